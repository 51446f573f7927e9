"""Rows of a data file or of a data set on the Hub, one at a time, each bad one named by file and row; and
their fields."""

import re
from collections.abc import Iterator
from functools import partial
from itertools import islice

from nanomed.errors import UserError
from nanomed.text.formats import rows_of
from nanomed.text.lines import BadRow, note_once
from nanomed.text.names import find, is_plain


class NoField(BadRow):
    """A row without the field at all: in the first row of a file it is the field's name that is wrong, not
    the row."""


def read_texts(name: str, text_field: str, limit: int | None, skip_bad: bool) -> Iterator[str | None]:
    """The texts of a file or of `hub:REPO[:CONFIG[:SPLIT]]`, in order; None for a bad row that is skipped."""
    return (text for _, text in placed_documents(name, text_field, limit, skip_bad))


def full_texts(names: list[str], text_field: str, limit: int | None, skip_bad: bool) -> Iterator[str]:
    """read_texts() of files, without bad rows that are skipped, and without those that have no text."""
    empty = 0
    for text in (text for name in names for text in read_texts(name, text_field, limit, skip_bad)):
        if text and text.strip():
            yield text
        elif text is not None:
            empty += 1
    say_empty(names, empty)


def say_empty(names: list[str], empty: int) -> None:
    """Documents of blanks are none, as a blank line of a .txt is none."""
    if empty:
        note_once(f"{' + '.join(names)}: {empty:,} documents without text are left out")


def placed_documents(name: str, text_field: str, limit: int | None, skip_bad: bool) -> Iterator[tuple]:
    """read_texts(), each after its place."""
    return placed_rows(name, partial(get_text, fields=field_of(name, text_field)), limit, skip_bad)


def read_rows(name: str, take, limit: int | None, skip_bad: bool, found: Iterator | None = None) -> Iterator:
    """What `take(row)` makes of each row, in order; None for a bad row that is skipped. found: the rows, of a
    file that rows_of() does not read.

    `take` raises BadRow for a row that it cannot use. Raises UserError with file, row and line for the first,
    unless `skip_bad`; and if there are rows and all of them are bad."""
    return (value for _, value in placed_rows(name, take, limit, skip_bad, found))


def placed_rows(name, take, limit, skip_bad, found=None) -> Iterator[tuple[str, object]]:
    """read_rows(), each after its place for a message: "row 2", or "row 2, line 4" where that is another
    number."""
    number, good, first_bad = 0, False, None
    for number, (where, row) in enumerate(islice(rows_of(name) if found is None else found, limit), 1):
        line = f"line {where}" if isinstance(where, int) else where
        place = f"row {number}" + (f", {line}" if where not in (None, number) else "")
        try:
            if isinstance(row, BadRow):
                raise row
            value, good = take(row), True
        except BadRow as e:
            if not skip_bad:
                mend = " (--skip-bad-rows leaves such rows out)"
                if number == 1 and isinstance(e, NoField):  # where it would leave out all of them
                    table = found is None and not name.startswith("hub:") and find(name).kind == "csv"
                    mend = "; the first line of a CSV file names its columns" if table else ""
                raise UserError(f"{name}, {place}: {e}{mend}") from e
            value, first_bad = None, first_bad or f"{place}: {e}"
        yield place, value
    if first_bad and not good:
        raise all_bad(name, number, first_bad)


def all_bad(name: str, rows: int, first: str) -> UserError:
    """--skip-bad-rows would leave out every row of a file. first: where the first of them is, and what is
    wrong with it."""
    which = f"all {rows} rows are" if rows > 1 else "the only row is"
    return UserError(f"{name}: {which} bad, so that leaving them out leaves nothing; {first}")


class Field(str):
    """Where the texts of a file stand, given by another flag than --text-field: what is wrong with it is said
    of that one."""

    def __new__(cls, name: str, flag: str):
        self = super().__new__(cls, name)
        self.flag = flag
        return self


def field_of(name: str, text_field: str) -> str:
    """Where the texts of a file stand: plain text has no fields, which is said where one is asked for."""
    if not is_plain(name):
        return text_field
    if "text" not in text_field.split(","):
        note_once(f"{name}: plain text has no fields, so {text_field!r} is not looked for in it")
    return "text"


def get_text(row, fields: str, flag: str = "--text-field", numbers: bool = False) -> str:
    """The text at the first of the dotted paths `a.b,c` that is filled; a list of texts becomes lines.
    numbers: whether a number, too, is a text, as it is written. Raises BadRow if there is none, NoField if
    the row has no such field; `flag` is what names another field."""
    flag = getattr(fields, "flag", flag)
    names = [fields] if isinstance(row, dict) and fields in row else fields.split(",")
    filled = [name for name in names if _is_filled(get_value(row, name))] if names[1:] else names
    if filled[1:] and flag == "--text-field":
        note_once(f"{flag} {fields}: of a row with {', '.join(filled)} only the first is read")
    for field in filled or names:
        value = get_value(row, field)
        if isinstance(value, list) and all(isinstance(v, str) for v in value):
            value = "\n".join(value)
        value = number_as_text(value) if numbers else value
        if isinstance(value, str):
            try:
                value.encode("utf-8")
            except UnicodeEncodeError as e:
                raise BadRow("a lone surrogate, which is no valid Unicode") from e
            return value
        if value is not None:
            raise BadRow(f"field {field!r} is not text but {type(value).__name__}")
    if any(_has(row, field) for field in names):
        raise BadRow(f"no text in the field {fields!r}: null there")
    several = f"; {flag} a,b takes the first that is filled" if flag.startswith(("--", "[")) else ""
    raise NoField(f"no text in the field {fields!r} ({fields_of(row)}{several})")


def fields_of(row) -> str:
    """For a message."""
    return "fields: " + ", ".join(map(str, row)) if isinstance(row, dict) else f"it is a {type(row).__name__}"


def number_as_text(value):
    """A number as it is written: an answer `4` is a text. All else as it is."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _is_filled(value) -> bool:
    return (value.strip() if isinstance(value, str) else value) not in (None, "", [])


def _has(row, path: str) -> bool:
    """Whether a row has the field, if only with null in it."""
    parent, _, last = path.rpartition(".")
    holder = get_value(row, parent) if parent else row
    return any(isinstance(there, dict) and key in there for there, key in ((row, path), (holder, last)))


def get_value(row, fields: str):
    """The value at the first of the dotted paths `a.b,c` that a row has, of a list by number
    (`messages.1.content`, `messages.-1`), or in the field that is so called; None if it has none. NaN, which
    pandas writes for an empty cell, is none."""
    here = row if isinstance(row, dict) else {}
    for field in [fields] if here.get(fields) is not None else fields.split(","):
        value = row
        for key in [field] if here.get(field) is not None else field.split("."):
            if isinstance(value, list) and re.fullmatch("-?[0-9]{1,9}", key):
                value = value[int(key)] if -len(value) <= int(key) < len(value) else None
            else:
                value = value.get(key) if isinstance(value, dict) else None
        if value is not None and not (isinstance(value, float) and value != value):
            return value
    return None
