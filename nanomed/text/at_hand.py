"""Data that a program of Python has at hand: a list of texts or of rows (dicts), a datasets.Dataset. It is
kept in the cache under its contents, and goes by its name there: so there is one way to read data, and a
later phase finds what an earlier one was trained on."""

import hashlib
import json
import os
import re
import reprlib
from collections.abc import Sequence
from pathlib import Path

from nanomed.caches import filled
from nanomed.errors import UserError
from nanomed.text.names import KINDS, PACKED, split_how, split_name, split_weight


def names(data, what: str, kept: dict[str, str]) -> list[str]:
    """The names by which --data can read it. kept: gets {name: what} of what went into the cache."""
    data = data.tolist() if hasattr(data, "tolist") else data  # numpy's arrays, a column of pandas'
    data = data.to_dict("records") if hasattr(data, "iterrows") else data  # a table of pandas'
    if isinstance(data, str | os.PathLike):
        return [os.path.expanduser(data)]
    if isinstance(data, dict) and what == "val_data":
        if odd := [name for name in data if not re.fullmatch("[^/=]+", str(name))]:
            raise UserError(f"{what}: a set's name is a text without / and =, not {odd[0]!r}")
        return [f"{name}={file}" for name, side in data.items() for file in names(side, what, kept)]
    if isinstance(data, list) and data and all(map(_is_weighted, data)):
        return [f"{file}:{float(weight)}" for side, weight in data for file in names(side, what, kept)]
    if type(data).__module__.startswith("datasets.") and hasattr(data, "save_to_disk"):
        if isinstance(data, dict):
            raise UserError(f"{what}: a data set of several splits ({', '.join(data)}); give one of them")
        name = _keep(data._fingerprint, "rows", lambda path: data.save_to_disk(path))
    elif not isinstance(data, Sequence) or not len(data):
        kinds = "a file's name, a list of texts or of rows (dicts), or a datasets.Dataset"
        raise UserError(f"{what}: must be {kinds}, not {in_short(data)}")
    elif named := [d for d in data if isinstance(d, os.PathLike) or (isinstance(d, str) and is_name(d))]:
        if len(named) < len(data):
            mend = "give files alone, or texts as rows, {'text': ...}"
            raise UserError(f"{what}: {os.fspath(named[0])!r} is a file's name among others; {mend}")
        return list(map(os.path.expanduser, named))
    else:
        lines = "".join(_line(row, f"{what}[{k}]") for k, row in enumerate(data))
        key = hashlib.sha256(lines.encode()).hexdigest()
        name = _keep(key, "rows.jsonl", lambda path: path.write_text(lines, encoding="utf-8"))
    kept[name] = what
    return [name]


def _is_weighted(value) -> bool:
    """Whether it is data with its share of the blocks, which a name has behind it (general.jsonl:0.1), and
    not a text with its label."""
    pair = isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], int | float)
    return pair and not (isinstance(value[0], str) and not is_name(value[0]))


def is_name(text: str) -> bool:
    """Whether a text is one of those that name a file or a data set."""
    try:
        path = split_how(split_weight(split_name(text)[1])[0])[0]
    except (OSError, ValueError, UserError):  # too long for one, say
        return False
    known = Path(path).suffix.lower() in (*KINDS, *PACKED) and not re.search(r"\s", path)
    return text.startswith("hub:") or known or os.path.exists(path)


def _line(row, where: str) -> str:
    """A text or a row as a line of JSON."""
    if not isinstance(row, str | dict | list):
        raise UserError(f"{where}: must be a text or a row (a dict), not {in_short(row)}")
    try:
        row = {"text": row} if isinstance(row, str) else row
        return json.dumps(row, default=lambda value: value.tolist()) + "\n"  # of numpy's numbers
    except (AttributeError, TypeError, ValueError, RecursionError) as e:
        raise UserError(f"{where}: holds what JSON does not ({e})") from None


def _keep(key: str, name: str, write) -> str:
    """The path of what write(path) writes, in a folder of the cache that is known by `key`."""
    look = lambda there: there / name if (there / name).exists() else None  # noqa: E731
    return str(filled(f"{key[:32]}-given", "keeping", look, lambda folder: write(folder / name)))


def in_short(value) -> str:
    """For a line."""
    short = reprlib.Repr()  # of a million texts, it looks at six
    short.maxstring = short.maxother = 1000
    said = " ".join(short.repr(value).split())
    return said if len(said) <= 60 else f"a {type(value).__name__}"
