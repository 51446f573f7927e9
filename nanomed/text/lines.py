"""What files of rows have in common: lines, decoded, each a row or a bad one; plain texts; and one line for
what was recognised."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import groupby

from nanomed.streams import note

DOCUMENT_PER = ("file", "line", "blank-line")

note_once = cache(note)  # however often a file is read


class BadRow(Exception):
    """One row that cannot be used; the reader goes on after it if the user asked for that."""


def sha256_of(texts: Iterable[str]) -> str:
    """Of texts in order, each followed by a NUL byte."""
    sha = hashlib.sha256()
    for text in texts:
        sha.update(text.encode() + b"\0")
    return sha.hexdigest()


def decode(raw: bytes) -> str:
    halves = (raw[::2], raw[1::2]) if b"\0" in raw and len(raw) > 2 else ()
    zeros = sum(3 * half.count(0) > 2 * len(half) for half in halves) == 1  # as of English in UTF-16
    try:
        return (raw.replace(b"\0", b"\xff") if zeros else raw).removeprefix(b"\xef\xbb\xbf").decode("utf-8")
    except UnicodeDecodeError as e:
        utf16 = zeros or raw.startswith((b"\xff\xfe", b"\xfe\xff"))
        looks, name = ("UTF-16", "UTF-16") if utf16 else ("Latin-1", "WINDOWS-1252")  # which includes it
        mend = f"it looks like {looks}: iconv -f {name} -t UTF-8 FILE > NEW converts it"
        raise BadRow(f"not UTF-8 (byte 0x{raw[e.start]:02x} at position {e.start}; {mend})") from e


def blank(raw: bytes) -> bool:
    return not raw.decode("utf-8", errors="replace").strip()


def line_rows(f, make) -> Iterator:
    """(number, row_or_bad(make, line)) of each line that is not blank."""
    return ((number, row_or_bad(make, line)) for number, line in enumerate(f, 1) if not blank(line))


def row_or_bad(make, *args):
    """The row that make(*args) gives, or the BadRow that it raises."""
    try:
        return make(*args)
    except BadRow as e:
        return e


def json_line(line: bytes):
    try:
        return json.loads(decode(line))
    except (ValueError, RecursionError) as e:
        raise BadRow(f"not valid JSON ({e})") from e


def _plain(raw: bytes) -> dict:
    return {"text": decode(raw).replace("\r\n", "\n").rstrip("\r\n")}


def texts(f, per: str) -> Iterator:
    """(line, the text as a row or a BadRow) of each document; per: one of DOCUMENT_PER. A document has no
    line end at its end, and \\n within."""
    if per == "line":
        yield from line_rows(f, _plain)
        return
    numbered = enumerate([f.read()] if per == "file" else f, 1)
    for nothing, lines in groupby(numbered, lambda line: blank(line[1])):
        if not nothing:
            numbers, parts = zip(*lines, strict=True)
            yield numbers[0], row_or_bad(_plain, b"".join(parts))
