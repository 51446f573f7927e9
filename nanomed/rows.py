"""Rows of a data file or of a data set on the Hub, one at a time, each bad one named by file and row."""

import csv
import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from nanomed import hub
from nanomed.errors import UserError
from nanomed.files import read_json

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".txt")


class BadRow(Exception):
    """One row that cannot be used; the reader goes on after it if the user asked for that."""


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
    """{name: files} of `NAME=D ...`; several D of one name are one set, those without a name are the set `validation`, and
    a file that exists (in `home`) as it stands has no name."""
    sets = {}
    for text in names:
        name, equals, file = text.partition("=")
        if not equals or (home / text).exists() or "/" in name or not name:
            name, file = "validation", text
        sets.setdefault(name, []).append(file)
    return sets


def read_documents(name: str, text_field: str, limit: int | None, skip_bad: bool) -> Iterator[str | None]:
    """The texts of a file or of `hub:REPO[:CONFIG[:SPLIT]]`, in order; None for a bad row that is skipped."""
    fields = "text" if name.lower().endswith(".txt") else text_field
    return read_rows(name, lambda row: get_text(row, fields), limit, skip_bad)


def read_rows(name: str, take, limit: int | None, skip_bad: bool) -> Iterator:
    """What `take(row)` makes of each row, in order; None for a bad row that is skipped.

    `take` raises BadRow for a row that it cannot use. Raises UserError with file and row for the first, unless `skip_bad`.
    """
    for number, make in enumerate(_rows(name), 1):
        if make is None:  # a blank line
            continue
        try:
            yield take(make())
        except BadRow as e:
            if not skip_bad:
                raise UserError(f"{name}, row {number}: {e} (--skip-bad-rows leaves such rows out)") from e
            yield None
        limit = limit and limit - 1
        if limit == 0:
            return


def _rows(name: str) -> Iterator:
    """One function a row, which gives the row's value or raises BadRow; None for a blank line, so that rows count as lines."""
    if name.startswith("hub:"):
        yield from (partial(_as_it_is, row) for row in _hub_rows(name))
        return
    path = data_file(name)
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        yield from _parquet_rows(path)
    elif suffix == ".json":
        rows = read_json(path)
        if not isinstance(rows, list):
            raise UserError(f"{name}: a .json file must hold a list of objects; one object a line is .jsonl")
        yield from (partial(_as_it_is, row) for row in rows)
    else:
        with open(path, "rb") as f:
            lines = (partial(_decode, line) for line in f)
            if suffix == ".csv":
                yield from _csv_rows(path, lines)
            elif suffix == ".txt":
                yield from (partial(_plain, line) if _decode_lenient(line).strip() else None for line in lines)
            else:
                yield from (partial(_json_line, line) if _decode_lenient(line).strip() else None for line in lines)


def data_file(name: str) -> Path:
    path = Path(name)
    if path.suffix.lower() not in SUFFIXES:
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
        raise BadRow(f"not UTF-8 (byte 0x{line[e.start]:02x} at position {e.start})") from e


def _decode_lenient(line) -> str:
    return line.args[0].decode("utf-8", errors="replace")


def _plain(line) -> dict:
    return {"text": line().rstrip("\r\n")}


def _json_line(line):
    try:
        return json.loads(line())
    except (ValueError, RecursionError) as e:
        raise BadRow(f"not valid JSON ({e})") from e


def _csv_rows(path: Path, lines) -> Iterator:
    csv.field_size_limit(2**31 - 1)
    reader = csv.DictReader(line() for line in lines)
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except (BadRow, csv.Error) as e:  # where the next row starts is unknown then
            raise UserError(f"{path}, line {reader.line_num + 1}: {e}") from e
        yield partial(_as_it_is, row)


def _parquet_rows(path: Path) -> Iterator:
    import pyarrow.parquet  # datasets brings it

    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=1024):
            yield from (partial(_as_it_is, row) for row in batch.to_pylist())
    except (pyarrow.ArrowException, OSError) as e:
        raise UserError(f"{path}: truncated, corrupt or not Parquet ({e})") from e


def _hub_rows(name: str):
    repo, config, split, *rest = [*name.removeprefix("hub:").split(":"), None, None]
    if not repo or any(rest):
        raise UserError(f"{name}: must be hub:REPO[:CONFIG[:SPLIT]]")
    import datasets

    if not hub.online():  # else datasets would retry for half a minute
        datasets.config.HF_HUB_OFFLINE = hub.constants.HF_HUB_OFFLINE = True
    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(repo, config, split=split or "train")
    except Exception as e:  # datasets raises a dozen kinds, all about what was asked for
        raise hub.explain(repo, e, "file") from e


def get_text(row, fields: str, flag: str = "--text-field") -> str:
    """The text at the first of the dotted paths `a.b,c` that a row has; a list of texts becomes lines. Raises BadRow if
    there is none; `flag` is what names another field."""
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
    there = "fields: " + ", ".join(map(str, row)) if isinstance(row, dict) else f"it is a {type(row).__name__}"
    names_another = f"; {flag} names another" if flag.startswith("--") else ""
    raise BadRow(f"no text in the field {fields!r} ({there}{names_another})")


def get_value(row, fields: str):
    """The value at the first of the dotted paths `a.b,c` that a row has; None if it has none."""
    for field in fields.split(","):
        value = row
        for key in field.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None:
            return value
    return None
