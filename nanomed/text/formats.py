"""Files of rows as the field's tools write them: JSON in its shapes, CSV, Parquet, plain text, folders of it,
data sets that were saved or are on the Hub. docs/files.md lists them.

    name -> find -> rows_of -> (place, the row or a BadRow) -> nanomed.text.rows

`nested.json#data` says how a file's rows are found: of JSON the key that they are under, of CSV what
separates its columns, of plain text what is a document, of a saved data set its split. What was recognised
beyond the file's name is said in one line."""

import gzip
import hashlib
import io
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nanomed.errors import UserError
from nanomed.files import is_part, parse_json
from nanomed.text.arrow import hub_rows, parquet_rows, saved_rows
from nanomed.text.csv_rows import SEPARATORS, csv_rows
from nanomed.text.lines import DOCUMENT_PER, BadRow, decode, json_line, line_rows, say, texts
from nanomed.text.pubmed import pubmed_rows

KINDS = {".jsonl": "lines", ".ndjson": "lines", ".json": "json", ".csv": "csv", ".tsv": "csv", ".txt": "text"}
KINDS |= {".parquet": "parquet", ".xml": "pubmed", ".nbib": "pubmed"}
PACKED = (".gz", ".zst")
# In JSON they hold rows, whatever else the object has.
ROW_KEYS = ("data", "questions", "rows", "examples", "records", "documents")
# What may be said of a kind; of json and saved a key.
HOW = {"csv": SEPARATORS, "text": DOCUMENT_PER, "folder": DOCUMENT_PER}


# --- what a name names --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """A file, or a directory. kind: one of KINDS' values, "folder" (of .txt) or "saved" (by
    Dataset.save_to_disk)."""

    path: Path
    kind: str
    how: str | None


def split_how(name: str) -> tuple[str, str | None]:
    """(file, how its rows are found) of `nested.json#data`; a name that exists as it stands, and one on the
    Hub, says nothing."""
    file, mark, how = name.rpartition("#")
    return (file, how) if mark and not name.startswith("hub:") and not Path(name).exists() else (name, None)


def find(name: str) -> Source:
    """Raises UserError if it is no file of a known kind, or is not there."""
    file, how = split_how(name)
    path = Path(file)
    suffix = path.suffix.lower()
    inner = Path(path.stem).suffix.lower() if suffix in PACKED else suffix
    if not file:
        raise UserError(f"--data {file!r}: name a file")
    if path.is_dir():
        kind = "saved" if is_saved(path) else "folder"
        if kind == "folder" and not texts_in(path):
            what = "a directory without .txt files, which Dataset.save_to_disk has not written"
            raise UserError(f"--data {name}: {what}")
    elif inner not in KINDS or (suffix in PACKED and inner == ".parquet"):
        known = ", ".join([*KINDS, *(f"{s}{p}" for s in (".jsonl", ".csv") for p in PACKED)])
        mend = f"{known}, a folder of .txt, or hub:REPO[:CONFIG[:SPLIT]]"
        raise UserError(f"{name}: not a data file ({mend})")
    elif not path.is_file():
        raise UserError(f"{name}: no such file")
    else:
        kind = KINDS[inner]
    if how is not None and (kind in ("lines", "parquet", "pubmed") or how not in HOW.get(kind, [how])):
        known = f"one of {', '.join(HOW[kind])}" if kind in HOW else "for .json, .csv, .txt, saved data sets"
        raise UserError(f"{name}: what stands behind the # is {known}")
    return Source(path, kind, how)


def is_saved(directory: Path) -> bool:
    """Whether Dataset.save_to_disk wrote it."""
    return any((directory / f).exists() for f in ("state.json", "dataset_dict.json"))


def is_plain(name: str) -> bool:
    """Whether a file holds texts and no fields: .txt, or a folder of them."""
    file, _ = split_how(name)
    plain = file.lower().endswith((".txt", *(f".txt{packed}" for packed in PACKED)))
    return plain or (Path(file).is_dir() and find(name).kind == "folder")


def is_table(name: str) -> bool:
    return not name.startswith("hub:") and find(name).kind == "csv"


def texts_in(directory: Path) -> list[Path]:
    """The .txt files of a folder, by name, without those that are hidden and a model's merges.txt."""
    found = (p for p in directory.iterdir() if p.suffix.lower() == ".txt" and p.is_file())
    return sorted(p for p in found if not is_part(p.name) and not p.name.startswith("."))


def content_hash(name: str) -> str:
    """Of all that decides which rows a file or a directory gives: its bytes, and how they are read, but not
    its name."""
    source = find(name)
    path = source.path
    digest = hashlib.sha256(f"{source.kind} {''.join(path.suffixes).lower()} {source.how}".encode())
    for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
        with open(file, "rb") as f:
            digest.update(file.relative_to(path).as_posix().encode())
            digest.update(hashlib.file_digest(f, "sha256").digest())
    return digest.hexdigest()


# --- rows ---------------------------------------------------------------------------------------------------


def rows_of(name: str) -> Iterator[tuple[int | str | None, object]]:
    """(where a row begins: a line, or a file of a folder, None where rows are no lines; the row, or the
    BadRow that says why it is none). A blank line is no row. Raises UserError for a file that cannot be read
    any further."""
    if name.startswith("hub:"):
        yield from _not_in_lines(hub_rows(name))
        return
    source = find(name)
    path, how = source.path, source.how
    try:
        match source.kind:
            case "parquet":
                yield from _not_in_lines(parquet_rows(path))
            case "saved":
                yield from _not_in_lines(saved_rows(path, how))
            case "folder":
                yield from _folder_rows(path, how or "file")
            case "json":
                yield from _json_rows(path, how)
            case kind:
                with open_unpacked(path) as f:
                    if kind == "csv":
                        yield from csv_rows(path, f, how)
                    elif kind == "pubmed":
                        yield from _not_in_lines(pubmed_rows(path, f))
                    else:
                        yield from line_rows(f, json_line) if kind == "lines" else texts(f, how or "line")
    except (EOFError, zlib.error, OSError) as e:
        if path.suffix.lower() not in PACKED:
            raise
        raise UserError(f"{path}: truncated, corrupt or not {path.suffix[1:]} ({e})") from e


def _not_in_lines(rows: Iterable) -> Iterator:
    return ((None, row) for row in rows)


def open_unpacked(path: Path):
    """The bytes of a file, unpacked."""
    match path.suffix.lower():
        case ".gz":
            return gzip.open(path, "rb")
        case ".zst":
            import pyarrow  # datasets brings it

            return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))
    return open(path, "rb")


def _folder_rows(directory: Path, per: str) -> Iterator:
    files = texts_in(directory)
    others = len([p for p in directory.iterdir() if not p.name.startswith(".")]) - len(files)
    more = f"; {others:,} others are not read" if others else ""
    say(f"{directory}: {len(files):,} .txt files, a document per {per}{more}")
    for file in files:
        with open(file, "rb") as f:
            for line, row in texts(f, per):
                yield file.name + (f", line {line}" if per != "file" else ""), row


def _json_rows(path: Path, how: str | None) -> Iterator:
    with open_unpacked(path) as f:
        lines = (line for line in f if line.strip())
        first, more = next(lines, b""), next(lines, None)
    with open_unpacked(path) as f:
        if how is None and more is not None and _is_object(first):
            say(f"{path}: one object a line")
            yield from line_rows(f, json_line)
            return
        try:
            value = parse_json(decode(f.read()), path)
        except BadRow as e:
            raise UserError(f"{path}: {e}") from e
    yield from _not_in_lines(_shaped(value, path, how))


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json_line(line), dict)
    except BadRow:
        return False


def _shaped(value, path: Path, how: str | None) -> list:
    """The rows of a JSON value: a list; an object that has them under a key, by id, or as columns, as pandas
    writes them; or that is a row itself. how: the key, a dotted path. Raises UserError for what could be
    several of these, or is none."""
    for key in how.split(".") if how else ():
        if not isinstance(value, dict) or key not in value:
            there = ", ".join(map(str, value)) if isinstance(value, dict) else type(value).__name__
            raise UserError(f"{path}#{how}: no such key there; there is: {there}")
        value = value[key]
    if isinstance(value, list) or value == {}:
        return list(value)
    if not isinstance(value, dict):
        raise UserError(f"{path}: a .json file must hold a list of objects, or an object with them")
    values, columns, data = list(value.values()), value.get("columns"), value.get("data")
    if isinstance(columns, list) and isinstance(data, list) and all(_fits(row, columns) for row in data):
        say(f"{path}: columns and data, as pandas splits them")
        return [dict(zip(columns, row, strict=True)) for row in data]
    exams = value.get("exams")
    exams = list(exams.values()) if isinstance(exams, dict) else []
    if exams and all(isinstance(exam, dict) and _is_rows(exam.get("data")) for exam in exams):
        say(f"{path}: HEAD-QA's exams, whose questions are its rows")
        return [row for exam in exams for row in exam["data"]]
    listed = [key for key, rows in value.items() if _is_rows(rows)]
    if len(listed) == 1 and (len(value) == 1 or listed[0] in ROW_KEYS):
        say(f"{path}: its rows stand under the key {listed[0]!r}")
        return value[listed[0]]
    if listed:
        what = f"an object with rows under {', '.join(listed)}"
        raise UserError(f"{path}: {what}: {path}#{listed[0]} reads these")
    if all(isinstance(v, dict) and v for v in values):
        keys = list(values[0])
        if all(key.isdigit() for key in keys) and all(v.keys() == values[0].keys() for v in values):
            say(f"{path}: columns, as pandas writes them, of {len(keys):,} rows")
            return [{column: v[key] for column, v in value.items()} for key in keys]
        say(f"{path}: an object by id; the id is the field `id`")
        return [{"id": key} | v for key, v in value.items()]
    if all(_fits(v, values[0]) and not any(isinstance(cell, dict) for cell in v) for v in values):
        say(f"{path}: columns of {len(values[0]):,} rows")
        return [dict(zip(value, row, strict=True)) for row in zip(*values, strict=True)]
    say(f"{path}: one object, which is its only row")
    return [value]


def _fits(row, columns) -> bool:
    return isinstance(row, list) and isinstance(columns, list) and len(row) == len(columns)


def _is_rows(value) -> bool:
    """Whether it is a list of objects, other than the turns of a conversation."""
    rows = value if isinstance(value, list) else []
    return bool(rows) and all(isinstance(v, dict) and not v.keys() & {"role", "from"} for v in rows)
