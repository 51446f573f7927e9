"""What names data: `dev=nested.json#data:0.1` is the file nested.json. What stands around it says which set
it belongs to, how its rows are found (of JSON the key that they are under, of CSV what separates its columns,
of plain text what is a document, of a saved data set its split), and what share of the blocks it has."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from nanomed.errors import UserError
from nanomed.files import is_part
from nanomed.text.csv_rows import SEPARATORS
from nanomed.text.lines import DOCUMENT_PER

KINDS = {".jsonl": "lines", ".ndjson": "lines", ".json": "json", ".csv": "csv", ".tsv": "csv", ".txt": "text"}
KINDS |= {".parquet": "parquet", ".xml": "pubmed", ".nbib": "pubmed"}
PACKED = (".gz", ".zst")
BEFORE = b"\xef\xbb\xbf\r\n"  # what may stand before a file's first letter
# What may be said of a kind; of json and saved a key.
HOW = {"csv": SEPARATORS, "text": DOCUMENT_PER, "folder": DOCUMENT_PER}


def split_name(text: str, home: Path = Path()) -> tuple[str | None, str]:
    """(NAME, D) of `NAME=D`. A file that exists (in `home`) as it stands has no name, nor has one with a `/`
    before the `=`, which is part of a path then. Raises UserError for a name without a file."""
    name, equals, file = text.partition("=")
    if not equals or not name or "/" in name or (home / text).exists():
        return None, text
    if not file:
        raise UserError(f"{text}: the name has no file; NAME=D gives it one")
    return name, file


def named_sets(names: list[str], home: Path = Path()) -> dict[str, list[str]]:
    """{name: files} of `NAME=D ...`; several D of one name are one set, those without a name are the set
    `validation`."""
    sets = {}
    for name, file in (split_name(text, home) for text in names):
        sets.setdefault(name or "validation", []).append(file)
    return sets


def split_weight(name: str) -> tuple[str, float | None]:
    """`general.jsonl:0.1` is that file with a weight; a name that exists as it stands has none."""
    path, colon, weight = name.rpartition(":")
    pattern = r"\d*\.\d+" if name.startswith("hub:") else r"\d*\.?\d+"  # hub:REPO:2023 is a configuration
    if not colon or Path(name).exists() or not re.fullmatch(pattern, weight):
        return name, None
    if float(weight) <= 0:
        raise UserError(f"{name}: a weight must be more than 0")
    return path, float(weight)


def split_how(name: str) -> tuple[str, str | None]:
    """(file, how its rows are found) of `nested.json#data`; a name that exists as it stands, and one on the
    Hub, says nothing."""
    file, mark, how = name.rpartition("#")
    return (file, how) if mark and not name.startswith("hub:") and not Path(name).exists() else (name, None)


# --- files -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DataFile:
    """A file, or a directory. kind: one of KINDS' values, "folder" (of .txt) or "saved" (by
    Dataset.save_to_disk)."""

    path: Path
    kind: str
    how: str | None


def find(name: str) -> DataFile:
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
            raise UserError(f"--data {name}: {what}; hub:{name} reads it as datasets does")
    elif inner not in KINDS or (suffix in PACKED and inner == ".parquet"):
        known = ", ".join([*KINDS, *(f"{s}{p}" for s in (".jsonl", ".csv") for p in PACKED)])
        mend = f"{known}, a folder of .txt, or hub:REPO[:CONFIG[:SPLIT]]"
        raise UserError(f"{name}: not a data file ({mend})")
    elif not path.is_file():
        raise UserError(f"{name}: no such file")
    else:
        kind = KINDS[inner]
        if (kind, how) == ("text", None) and suffix == ".txt":  # as PubMed's "Save" calls its MEDLINE format
            with open(path, "rb") as f:
                kind = "pubmed" if f.read(99).lstrip(BEFORE).startswith(b"PMID- ") else kind
    if how is not None and (kind in ("lines", "parquet", "pubmed") or how not in HOW.get(kind, [how])):
        known = f"one of {', '.join(HOW[kind])}" if kind in HOW else "for .json, .csv, .txt, saved data sets"
        raise UserError(f"{name}: what stands behind the # is {known}")
    return DataFile(path, kind, how)


def is_saved(directory: Path) -> bool:
    """Whether Dataset.save_to_disk wrote it."""
    return any((directory / f).exists() for f in ("state.json", "dataset_dict.json"))


def is_plain(name: str) -> bool:
    """Whether a file holds texts and no fields: .txt, or a folder of them."""
    file, _ = split_how(name)
    if Path(file).exists():
        return find(name).kind in ("text", "folder")
    return file.lower().endswith((".txt", *(f".txt{packed}" for packed in PACKED)))


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
