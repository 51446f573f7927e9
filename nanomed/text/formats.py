"""Files of rows as the field's tools write them: JSON in its shapes, CSV, Parquet, plain text, folders of it,
data sets that were saved or are on the Hub. docs/files.md lists them.

    name -> names.find -> rows_of -> (place, the row or a BadRow) -> nanomed.text.rows

What was recognised beyond the file's name is said in one line."""

import gzip
import io
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from nanomed.errors import UserError
from nanomed.files import parse_json
from nanomed.text import arrow
from nanomed.text.csv_rows import csv_rows
from nanomed.text.lines import BadRow, decode, json_line, line_rows, note_once, row_or_bad, texts
from nanomed.text.names import BEFORE, PACKED, find, texts_in
from nanomed.text.pubmed import pubmed_rows

# How a .txt begins that is no text: PubTator's, PubMed RCT's, CoNLL's and BioBERT's.
ANNOTATED = rb"\d+\|t\||###\d+\r?\n[A-Z]+\t|-DOCSTART-|(\S+\t([OBI]|[BI]-\S+)\r?\n){2}"
NUMBERS = {int, float, bool}
# In JSON they hold rows, whatever else the object has.
ROW_KEYS = ("data", "questions", "rows", "examples", "records", "documents")


def rows_of(name: str) -> Iterator[tuple[int | str | None, object]]:
    """(where a row begins: a line, or a file of a folder, None where rows are no lines; the row, or the
    BadRow that says why it is none). A blank line is no row. Raises UserError for a file that cannot be read
    any further."""
    if name.startswith("hub:"):
        yield from _not_in_lines(arrow.hub_rows(name))
        return
    source = find(name)
    path, how = source.path, source.how
    try:
        match source.kind:
            case "parquet":
                yield from _not_in_lines(arrow.parquet_rows(path))
            case "saved":
                yield from _not_in_lines(arrow.saved_rows(path, how))
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
                    elif (how, kind) == (None, "text") and re.match(ANNOTATED, f.peek(99).lstrip(BEFORE)):
                        raise UserError(f"{name}: annotations, no plain text ({name}#line takes its lines)")
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
    note_once(f"{directory}: {len(files):,} .txt files, a document per {per}{more}")
    for file in files:
        with open(file, "rb") as f:
            for line, row in texts(f, per):
                yield file.name + (f", line {line}" if per != "file" else ""), row


def _json_rows(path: Path, how: str | None) -> Iterator:
    with open_unpacked(path) as f:
        lines = (line for line in f if line.strip())
        first, more = next(lines, b""), next(lines, None)
    with open_unpacked(path) as f:
        if how is None and more is not None and isinstance(row_or_bad(json_line, first), dict):
            note_once(f"{path}: one object a line")
            yield from line_rows(f, json_line)
            return
        try:
            value = parse_json(decode(f.read()), path)
        except BadRow as e:
            raise UserError(f"{path}: {e}") from e
    yield from _not_in_lines(_shaped(value, path, how))


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
        note_once(f"{path}: columns and data, as pandas splits them")
        return [dict(zip(columns, row, strict=True)) for row in data]
    exams = value.get("exams")
    exams = list(exams.values()) if isinstance(exams, dict) else []
    if exams and all(isinstance(exam, dict) and _is_rows(exam.get("data")) for exam in exams):
        note_once(f"{path}: HEAD-QA's exams, whose questions are its rows")
        return [row for exam in exams for row in exam["data"]]
    listed = [key for key, rows in value.items() if _is_rows(rows)]
    if len(listed) == 1 and (len(value) == 1 or listed[0] in ROW_KEYS):
        note_once(f"{path}: its rows stand under the key {listed[0]!r}")
        return value[listed[0]]
    if listed:
        what = f"an object with rows under {', '.join(listed)}"
        raise UserError(f"{path}: {what}: {path}#{listed[0]} reads these")
    if all(isinstance(v, dict) and v for v in values):
        keys, alike = list(values[0]), all(v.keys() == values[0].keys() for v in values)
        kinds = [{type(cell) for cell in v.values() if cell is not None} for v in values]  # one in a column
        there = set().union(*kinds)
        of_a_kind = alike and len(keys) > 1 and max(map(len, kinds)) == 1
        numbered = alike and all(re.fullmatch(r"-?\d+(\.\d+)?", key) for key in keys)
        if numbered or (of_a_kind and there & NUMBERS and there - NUMBERS):
            note_once(f"{path}: columns, as pandas writes them, of {len(keys):,} rows")
            return [{column: v[key] for column, v in value.items()} for key in keys]
        mend = '; if these are columns, orient="records" writes rows' if of_a_kind else ""
        note_once(f"{path}: an object by id; the id is the field `id`{mend}")
        return [{"id": key} | v for key, v in value.items()]
    if all(_fits(v, values[0]) and not any(isinstance(cell, dict) for cell in v) for v in values):
        note_once(f"{path}: columns of {len(values[0]):,} rows")
        return [dict(zip(value, row, strict=True)) for row in zip(*values, strict=True)]
    note_once(f"{path}: one object, which is its only row")
    return [value]


def _fits(row, columns) -> bool:
    return isinstance(row, list) and isinstance(columns, list) and len(row) == len(columns)


def _is_rows(value) -> bool:
    """Whether it is a list of objects, other than the turns of a conversation."""
    rows = value if isinstance(value, list) else []
    return bool(rows) and all(isinstance(v, dict) and not v.keys() & {"role", "from"} for v in rows)
