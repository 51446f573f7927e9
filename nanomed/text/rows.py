"""Rows of a data file or of a data set on the Hub, one at a time, each bad one named by file and row."""

import csv
import json
import re
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path

from nanomed import network
from nanomed.errors import UserError
from nanomed.files import read_json

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".txt")


class BadRow(Exception):
    """One row that cannot be used; the reader goes on after it if the user asked for that."""


class NoField(BadRow):
    """A row without the field at all: in the first row of a file it is the field's name that is wrong, not the row."""


def split_weight(name: str) -> tuple[str, float | None]:
    """`general.jsonl:0.1` is that file with a weight; a name that exists as it stands has none."""
    path, colon, weight = name.rpartition(":")
    pattern = r"\d*\.\d+" if name.startswith("hub:") else r"\d*\.?\d+"  # hub:REPO:2023 is a configuration
    if not colon or Path(name).exists() or not re.fullmatch(pattern, weight):
        return name, None
    if float(weight) <= 0:
        raise UserError(f"{name}: a weight must be more than 0")
    return path, float(weight)


def named_sets(names: list[str], home: Path = Path()) -> dict[str, list[str]]:
    """{name: files} of `NAME=D ...`; several D of one name are one set, those without a name are the set `validation`."""
    sets = {}
    for name, file in (split_name(text, home) for text in names):
        sets.setdefault(name or "validation", []).append(file)
    return sets


def split_name(text: str, home: Path = Path()) -> tuple[str | None, str]:
    """(NAME, D) of `NAME=D`. A file that exists (in `home`) as it stands has no name, nor has one with a `/` before the `=`,
    which is part of a path then. Raises UserError for a name without a file."""
    name, equals, file = text.partition("=")
    if not equals or not name or "/" in name or (home / text).exists():
        return None, text
    if not file:
        raise UserError(f"{text}: the name has no file; NAME=D gives it one")
    return name, file


def read_documents(name: str, text_field: str, limit: int | None, skip_bad: bool) -> Iterator[str | None]:
    """The texts of a file or of `hub:REPO[:CONFIG[:SPLIT]]`, in order; None for a bad row that is skipped."""
    return (text for _, text in placed_documents(name, text_field, limit, skip_bad))


def placed_documents(name: str, text_field: str, limit: int | None, skip_bad: bool) -> Iterator[tuple[str, str | None]]:
    """read_documents(), each with its place for a message: "row 2", or "row 2, line 4" where that is another number."""
    fields = "text" if name.lower().endswith(".txt") else text_field
    return _placed_rows(name, lambda row: get_text(row, fields), limit, skip_bad)


def read_rows(name: str, take, limit: int | None, skip_bad: bool) -> Iterator:
    """What `take(row)` makes of each row, in order; None for a bad row that is skipped.

    `take` raises BadRow for a row that it cannot use. Raises UserError with file, row and line for the first, unless
    `skip_bad`; and if there are rows and all of them are bad.
    """
    return (value for _, value in _placed_rows(name, take, limit, skip_bad))


def _placed_rows(name: str, take, limit: int | None, skip_bad: bool) -> Iterator[tuple[str, object]]:
    number, good, first_bad = 0, False, None
    for number, (line, make) in enumerate(islice(_rows(name), limit), 1):
        place = f"row {number}" + (f", line {line}" if line not in (None, number) else "")
        try:
            value, good = take(make()), True
        except BadRow as e:
            if not skip_bad:
                mend = " (--skip-bad-rows leaves such rows out)"  # no mend where it would leave out all of them
                raise UserError(f"{name}, {place}: {e}{'' if number == 1 and isinstance(e, NoField) else mend}") from e
            value, first_bad = None, first_bad or f"{place}: {e}"
        yield place, value
    if first_bad and not good:
        raise all_bad(name, number, first_bad)


def all_bad(name: str, rows: int, first: str) -> UserError:
    """--skip-bad-rows would leave out every row of a file. first: where the first of them is, and what is wrong with it."""
    which = f"all {rows} rows are" if rows > 1 else "the only row is"
    return UserError(f"{name}: {which} bad, so that leaving them out leaves nothing; {first}")


def _rows(name: str) -> Iterator:
    """(the line where a row begins, a function that gives its value or raises BadRow); None where rows are no lines.
    A blank line is no row."""
    if name.startswith("hub:"):
        yield from ((None, partial(_as_it_is, row)) for row in _hub_rows(name))
        return
    path = data_file(name)
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        yield from _parquet_rows(path)
    elif suffix == ".json":
        rows = read_json(path)
        if not isinstance(rows, list):
            raise UserError(f"{name}: a .json file must hold a list of objects; one object a line is .jsonl")
        yield from ((None, partial(_as_it_is, row)) for row in rows)
    else:
        with open(path, "rb") as f:
            if suffix == ".csv":
                yield from _csv_rows(path, f)
            else:
                make = _plain if suffix == ".txt" else _json_line
                for number, line in enumerate(f, 1):
                    if line.decode("utf-8", errors="replace").strip():
                        yield number, partial(make, line)


def data_file(name: str) -> Path:
    path = Path(name)
    if path.suffix.lower() not in SUFFIXES:
        if not name or path.is_dir():
            raise UserError(f"--data {name or repr(name)}: name a file" + (f"; {name} is a directory" if name else ""))
        raise UserError(f"{name}: not a data file ({', '.join(SUFFIXES)}) and not hub:REPO[:CONFIG[:SPLIT]]")
    if not path.is_file():
        raise UserError(f"{name}: no such file")
    return path


def _as_it_is(row):
    return row


def _decode(line: bytes) -> str:
    try:
        return line.removeprefix(b"\xef\xbb\xbf").decode("utf-8")
    except UnicodeDecodeError as e:
        utf16 = line.startswith((b"\xff\xfe", b"\xfe\xff"))
        mend = "it looks like UTF-16: iconv -f UTF-16 -t UTF-8 converts it" if utf16 else "save the file as UTF-8"
        raise BadRow(f"not UTF-8 (byte 0x{line[e.start]:02x} at position {e.start}; {mend})") from e


def _plain(line: bytes) -> dict:
    return {"text": _decode(line).rstrip("\r\n")}


def _json_line(line: bytes):
    try:
        return json.loads(_decode(line))
    except (ValueError, RecursionError) as e:
        raise BadRow(f"not valid JSON ({e})") from e


def _csv_rows(path: Path, lines) -> Iterator:
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader((_decode(line) for line in lines), strict=True)  # else an open quote swallows the rest of the file
    header = None
    while True:
        begin = reader.line_num + 1
        try:
            values = next(reader)
        except StopIteration:
            return
        except (BadRow, csv.Error) as e:  # where the next row starts is unknown then
            line = reader.line_num + isinstance(e, BadRow)  # the reader has not seen a line that cannot be decoded
            if str(e) == "unexpected end of data":
                raise UserError(f'{path}, line {begin}: a quote (") is opened in this row and never closed') from e
            raise UserError(f"{path}, line {line}: {e}") from e
        if values and header is None:
            header = values
            if len(set(header)) < len(header):
                raise UserError(f"{path}, line {begin}: two columns of the same name: {', '.join(header)[:200]}")
        elif values and any(values[len(header) :]):  # rows may end in a comma
            yield begin, partial(_too_long, len(values), len(header))
        elif values:
            yield begin, partial(_as_it_is, dict.fromkeys(header) | dict(zip(header, values, strict=False)))


def _too_long(n: int, known: int):
    raise BadRow(f'{n} fields where the header has {known}; a text with commas must stand in quotes (")')


def _parquet_rows(path: Path) -> Iterator:
    import pyarrow.parquet  # datasets brings it

    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=1024):
            yield from ((None, partial(_as_it_is, row)) for row in batch.to_pylist())
    except (pyarrow.ArrowException, OSError) as e:
        raise UserError(f"{path}: truncated, corrupt or not Parquet ({e})") from e
    except (ValueError, OverflowError) as e:  # of a text, or a time
        raise UserError(f"{path}: a value that cannot be read ({e})") from e


def _hub_rows(name: str):
    repo, config, split, *rest = [*name.removeprefix("hub:").split(":"), None, None]
    if not repo or any(rest):
        raise UserError(f"{name}: must be hub:REPO[:CONFIG[:SPLIT]]")
    if Path(repo).is_file():
        raise UserError(f"{name}: {repo} is a file here; leave out hub:")
    import datasets

    if not network.online():  # else datasets would retry for half a minute
        datasets.config.HF_HUB_OFFLINE = network.constants.HF_HUB_OFFLINE = True
    datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # it would tell another host of every data set that is read
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # what fails is said by explain()
    try:
        load = partial(datasets.load_dataset, repo, config, split=split or "train")
        return network.watched(load, network.folder_of("datasets", repo), all_the_time=False)
    except Exception as e:  # datasets raises a dozen kinds, all about what was asked for
        raise network.explain(repo, e, "file") from e


def get_text(row, fields: str, flag: str = "--text-field") -> str:
    """The text at the first of the dotted paths `a.b,c` that a row has; a list of texts becomes lines. Raises BadRow if
    there is none, NoField if the row has no such field; `flag` is what names another field."""
    for field in fields.split(","):
        value = get_value(row, field)
        if isinstance(value, list) and all(isinstance(v, str) for v in value):
            value = "\n".join(value)
        if isinstance(value, str):
            try:
                value.encode("utf-8")
            except UnicodeEncodeError as e:
                raise BadRow("a lone surrogate, which is no valid Unicode") from e
            return value
        if value is not None:
            raise BadRow(f"field {field!r} is not text but {type(value).__name__}")
    if any(_has(row, field) for field in fields.split(",")):
        raise BadRow(f"no text in the field {fields!r}: null there")
    there = "fields: " + ", ".join(map(str, row)) if isinstance(row, dict) else f"it is a {type(row).__name__}"
    if isinstance(row, dict) and len(row) == 1 and ";" in next(iter(row)):
        there += ", separated by semicolons: save it with commas"
    several = f"; {flag} a,b takes the first that a row has" if flag.startswith("--") else ""
    raise NoField(f"no text in the field {fields!r} ({there}{several})")


def _has(row, path: str) -> bool:
    """Whether a row has the field, if only with null in it."""
    parent, _, last = path.rpartition(".")
    holder = get_value(row, parent) if parent else row
    return isinstance(holder, dict) and last in holder


def get_value(row, fields: str):
    """The value at the first of the dotted paths `a.b,c` that a row has; None if it has none."""
    for field in fields.split(","):
        value = row
        for key in field.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None:
            return value
    return None
