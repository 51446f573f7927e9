"""Rows of CSV and TSV files."""

import csv
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from nanomed.errors import UserError
from nanomed.text.lines import BadRow, decode, note_once

SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t", "bar": "|"}


def csv_rows(path: Path, f, how: str | None, columns: list[str] | None = None) -> Iterator:
    """how: one of SEPARATORS; None: what a header without a comma shows, and a tab in a .tsv. columns: their
    names, if the first row is none; those without a name are called as pandas calls them. Raises UserError
    where nobody knows where the next row begins."""
    csv.field_size_limit(2**31 - 1)
    lines, begin = (decode(line) for line in f), []
    try:
        while not begin or not begin[-1].strip():
            begin.append(next(lines))
    except StopIteration:
        return
    except BadRow as e:
        raise UserError(f"{path}, line {len(begin) + 1}: {e}") from e
    name = how or _separator(path, begin[-1])
    # strict: else an open quote swallows the rest of the file
    reader = csv.reader(chain(begin, lines), delimiter=SEPARATORS[name], strict=True)
    header, named, nameless = columns, len(columns or ()), 0
    for begin, values in _numbered(path, reader):
        if values and header is None:
            named = max((k for k, column in enumerate(values, 1) if column), default=0)
            header = [column or f"Unnamed: {k}" for k, column in enumerate(values)]  # as pandas calls them
            if len(set(header)) < len(header):
                what = f"two columns of the same name: {', '.join(header)[:200]}"
                raise UserError(f"{path}, line {begin}: {what}")
        elif name == "tab" and _are_rows("\t".join(values).split("\n"), len(header)):
            what = f"lines {begin} to {reader.line_num} have all columns, and two quotes make one row of them"
            mend = 'a text that begins with " stands in quotes; if they are one row, save it as .csv'
            raise UserError(f"{path}: {what}; {mend}")
        elif values and any(values[len(header) :]):  # rows may end in a comma
            mend = f'a text with {name}s must stand in quotes ("), no blank before them'
            yield begin, BadRow(f"{len(values)} fields where the header has {len(header)}; {mend}")
        elif values:
            nameless += any(values[named:])
            yield begin, dict.fromkeys(header) | dict(zip(header, values, strict=False))
    if nameless:
        fields = ", ".join(header[named:])
        note_once(f"{path}: {nameless:,} rows go on in columns without a name, which are the fields {fields}")


def _are_rows(lines: list[str], columns: int) -> bool:
    """Whether lines that are read as one row are each a row, in a file that does not quote."""
    return len(lines) > 1 < columns and all(line.count("\t") == columns - 1 for line in lines)


def _numbered(path: Path, reader) -> Iterator[tuple[int, list[str]]]:
    """(the line that it begins at, values) of each row."""
    while True:
        begin = reader.line_num + 1
        try:
            yield begin, next(reader)
        except StopIteration:
            return
        except BadRow as e:  # a line that cannot be decoded, which the reader has not seen
            raise UserError(f"{path}, line {reader.line_num + 1}: {e}") from e
        except csv.Error as e:
            if str(e) == "unexpected end of data":
                what = 'a quote (") is opened in this row and never closed'
                raise UserError(f"{path}, line {begin}: {what}") from e
            mend = '; a quote within a text that stands in quotes is doubled ("")'
            mend = mend if "expected after" in str(e) else ""
            raise UserError(f"{path}, line {reader.line_num}: {e}{mend}") from e


def _separator(path: Path, header: str) -> str:
    if ".tsv" in map(str.lower, path.suffixes):
        return "tab"
    bare = re.sub(r'"[^"]*"', "", header)
    name = next((name for name, character in SEPARATORS.items() if character in bare), "comma")
    if name != "comma":
        note_once(f"{path}: its columns are separated by {name}s (--separator comma: they are not)")
    return name
