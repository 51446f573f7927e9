"""The rows of a JSON value, in the shapes that datasets, pandas and the field's releases give it."""

from pathlib import Path

from nanomed.errors import UserError
from nanomed.text.lines import say

# They hold rows, whatever else the object has.
ROW_KEYS = ("data", "questions", "rows", "examples", "records", "documents")


def shaped(value, path: Path, how: str | None) -> list:
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
