"""What a row's label field means: one label, a list of them, numbers that stand for names, or a vector with a
place a label.

    row --value_of--> what it says --named, over all rows--> names --to_model--> what a model calls them

Which of these it is only all of the rows together show: [1, 0] could be two labels' numbers or a vector over
two labels. What could be either is asked for."""

import ast
import io
import json
import re
import tokenize
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

from nanomed.errors import UserError
from nanomed.text.rows import BadRow, NoField, fields_of, get_value

ZERO_ONE = {"0": False, "1": True, "false": False, "true": True}
SHOWN = 10  # labels in a line


@dataclass(frozen=True)
class Spelling:
    """How rows say their labels, where it is not plain.

    names: of the labels 0, 1, ..., be these numbers or the places of a vector; separator: between the labels
    in one text, or `list` for a list of Python's or JSON's that is written as text; columns: fields of a row,
    each a label that it has (1, true) or not (0, false); lists: whether lists of 0 and 1 are `names` or
    `vectors`; flag: how messages call these settings, before their own names."""

    names: tuple[str, ...] = ()
    separator: str | None = None
    columns: tuple[str, ...] = ()
    lists: str | None = None
    flag: str = "--label-"


PLAIN = Spelling()


@dataclass(frozen=True)
class Named:
    """labels: of each row, by name; order: all labels in the order of their numbers, where more is known of
    them than which rows there are; lists: how lists of 0 and 1 were taken; notes: what the user should know,
    a line each."""

    labels: list[tuple[str, ...]]
    multi_label: bool
    order: tuple[str, ...]
    lists: str | None
    notes: tuple[str, ...]


# --- of a row -----------------------------------------------------------------------------------------------


def value_of(row, field: str, how: Spelling, classes: list[str] | None = None) -> str | tuple[str, ...]:
    """The label that a row names, or all that it lists; numbers and truth values as texts: 1 and 1.0 are `1`.
    classes: what class_names() says of its file. Raises BadRow, and NoField for a row without the field."""
    if field != "answer" and get_value(row, "answer") in ("reject", "ignore") and "_task_hash" in row:
        raise BadRow(f"Prodigy's answer {row['answer']!r}: what is in the field {field!r} is not the text's")
    read = next((name for name in field.split(",") if get_value(row, name) is not None), "")
    if (task := read.rpartition(".result.")[0]) and get_value(row, f"{task}.was_cancelled"):
        raise BadRow(f"skipped in Label Studio ({task}.was_cancelled): what is in it is not the text's label")
    if how.columns:
        named = zip(how.columns, how.names or how.columns, strict=True)
        return tuple(name for column, name in named if _has_label(row, column))
    value = get_value(row, field)
    several = isinstance(value, list) or bool(how.separator)
    if isinstance(value, str) and how.separator == "list":
        value = _read_list(value)
    elif isinstance(value, str) and how.separator:
        value = [part.strip() for part in value.split(how.separator) if part.strip()]
    values = [_text_of(v, classes) for v in (value if isinstance(value, list) else [value])]
    if None in values:
        kind = NoField if value is None else BadRow
        there = f"{value!r} ({how.flag}field names another; {fields_of(row)})"
        raise kind(f"no label in the field {field!r}: {there}")
    return tuple(values) if several else values[0]


def _text_of(value, classes: list[str] | None) -> str | None:
    """None for what is no label: null, an empty text, a number that is not whole, -1 where the data set names
    its classes."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and classes:
        return classes[value] if 0 <= value < len(classes) else None
    if isinstance(value, int):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        return None
    if re.fullmatch(r'\{".+\}', value.strip(), re.DOTALL):  # label-studio-sdk 2.1.2: of several choices
        raise BadRow(f"no label but an object: {value!r:.60}; Label Studio's JSON, unlike its CSV, has lists")
    if any("\ud800" <= c <= "\udfff" for c in value):
        raise BadRow(f"a label with a lone surrogate, which is no valid Unicode: {value!r}")
    return value


def _has_label(row, column: str) -> bool:
    value = get_value(row, column)
    if value is None:
        raise NoField(f"no label in the column {column!r}: null, or no such column")
    found = ZERO_ONE.get(_plain(str(value).strip()))
    if found is None:
        raise BadRow(f"the column {column!r} must hold 0 or 1 (or true or false), not {value!r:.60}")
    return found


def _read_list(text: str) -> list:
    """`['asthma', 'renal']`, as Python or JSON writes it. Texts side by side without a comma, as numpy writes
    them, are refused: Python would join them."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        try:
            found = ast.literal_eval(text.strip())
            kinds = [t.type for t in tokenize.generate_tokens(io.StringIO(text.strip()).readline)]
            joined = any(a == b == tokenize.STRING for a, b in pairwise(kinds))
            found = None if joined else sorted(found, key=str) if isinstance(found, set) else found
        except (ValueError, SyntaxError, MemoryError, RecursionError, tokenize.TokenError):
            found = None
    if not isinstance(found, list | tuple):
        mend = "numpy's arrays leave the commas out: save .tolist() of them"
        raise BadRow(f"not a list, as JSON or Python writes it: {text[:60]!r} ({mend})")
    return list(found)


def _plain(text: str) -> str:
    """What Python, pandas and JSON write in several ways."""
    return text.lower() if text.lower() in ("true", "false") else text.removesuffix(".0")


# --- of all rows --------------------------------------------------------------------------------------------


def named(found: list[tuple[str, str | tuple[str, ...]]], how: Spelling, order: Iterable[str] = ()) -> Named:
    """(place for a message, value_of()) of each row -> the names of its labels. order: all that there are,
    where the data set says so. Raises UserError, naming the setting that decides, where it is not plain what
    rows mean."""
    places, values = [place for place, _ in found], [value for _, value in found]
    several = [isinstance(value, tuple) for value in values]
    if len(set(several)) > 1:
        odd = places[several.index(not several[0])]
        raise UserError(f"{odd}: a list in some rows and one label in others")
    multi, where = True in several, places[0].partition(", row ")[0] if places else ""
    labels = _respelled(values if multi else [(value,) for value in values])
    if how.columns:
        return Named(labels, True, how.names or how.columns, None, ())
    if multi and not order and _are_vectors(places, labels, how):
        n = len(labels[0])
        if how.names and len(how.names) != n:
            raise UserError(f"{where}: vectors over {n} labels, and {len(how.names)} {how.flag}names")
        order = how.names or tuple(f"LABEL_{k}" for k in range(n))
        labels = [tuple(order[k] for k in range(n) if ZERO_ONE[row[k]]) for row in labels]
        return Named(labels, True, order, "vectors", ())
    there = {label for row in labels for label in row}
    notes = (() if multi else _notes_on(there, where, how)) + _nearly_the_same(there, where)
    if how.names and not there <= {*how.names}:
        calls = _by_number(there, how.names)
        if calls is None:
            odd = f"the label {min(there.difference(how.names))!r}"
            known = f"{how.flag}names ({in_line(how.names)})"
            raise UserError(f"{where}: {odd} is none of {known}, nor one's number")
        labels = [tuple(calls[label] for label in row) for row in labels]
    labels = [tuple(dict.fromkeys(row)) for row in labels]
    return Named(labels, multi, how.names or tuple(order), "names" if multi else None, notes)


def _respelled(labels: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Numbers and truth values as they are spelled in texts: pandas writes 1.0 and True where JSON has 1 and
    true. Only where all labels are such: the codes 250.0 and 250.00 are two."""
    there = {label for row in labels for label in row}
    plain = all(re.fullmatch(r"-?\d+(\.0)?", name) for name in there)
    if plain or {name.lower() for name in there} <= {"true", "false"}:
        return [tuple(map(_plain, row)) for row in labels]
    return labels


def _are_vectors(places: list[str], labels: list[tuple[str, ...]], how: Spelling) -> bool:
    """Whether lists have a place a label: they are of one length and hold 0 and 1 alone, in some list one of
    them twice, which a list of names does not. Raises UserError for what could be either, unless `how` says
    it."""
    if how.lists == "names" or (not any(labels) and how.lists != "vectors"):
        return False
    asked, n, rows = how.lists == "vectors", len(labels[0]), list(zip(places, labels, strict=True))
    long = next(((place, len(row)) for place, row in rows if len(row) != n), None)
    odd = next(((place, label) for place, row in rows for label in row if label not in ZERO_ONE), None)
    repeated = any(len(set(row)) < len(row) for row in labels)
    if odd and not asked:
        numbers = all(re.fullmatch(r"-?\d+", label) for row in labels for label in row)
        if long or not repeated or not numbers:
            return False
    if odd:
        wrong = f"{odd[0]}: {odd[1]} in what is else a vector of 0 and 1"
    elif long:
        wrong = f"{long[0]}: a list of {long[1]}, where {places[0]} has one of {n}"
    elif not repeated and not asked:
        wrong = f"{places[0]}: [{', '.join(labels[0])}] could be labels so called, or a vector"
    else:
        return True
    decides = f"{how.flag}lists says whether lists are vectors (a place a label, 0 or 1) or names of labels"
    raise UserError(wrong if asked else f"{wrong}; {decides}")


def _notes_on(there: set[str], where: str, how: Spelling) -> tuple[str, ...]:
    """Where each text, taken as one label, looks like several: a list, or names that recur between
    separators."""
    joined, wanted = set(), "list"
    if there and all(name.strip()[:1] + name.strip()[-1:] == "[]" for name in there):
        joined = there
    for separator in "" if joined else "|;,#":
        parts = {name: {part.strip() for part in name.split(separator)} for name in there}
        several = {name for name in there if sum(bool(p.strip()) for p in name.split(separator)) > 1}
        if several and (separator == "|" or len(set().union(*parts.values())) < len(there)):
            joined, wanted = several, separator if separator == "," else repr(separator)
            break
    if not joined:
        return ()
    means = f"{how.flag}separator {wanted} parts them"
    return (f"{where}: {min(joined)!r} is taken as one label; if it is several, {means}",)


def _nearly_the_same(there: set[str], where: str) -> tuple[str, ...]:
    spelled = {}
    for name in sorted(there):
        spelled.setdefault(" ".join(name.lower().split()), []).append(repr(name))
    alike = in_line(" and ".join(names) for names in spelled.values() if len(names) > 1)
    return (f"{where}: {alike} differ in blanks or case alone, and are different labels",) if alike else ()


def _by_number(there: set[str], names) -> dict[str, str] | None:
    """{what rows say: the name of that number}, as transformers numbers what has no name (LABEL_1); None if
    one is no number, or beyond the names."""
    if len(names) == 2 and there <= {"false", "true"}:
        return dict(zip(("false", "true"), names, strict=True))
    found = {label: re.fullmatch(r"(?:LABEL_)?([0-9]{1,18})", label) for label in there}
    if not all(number and int(number[1]) < len(names) for number in found.values()):
        return None
    return {label: names[int(number[1])] for label, number in found.items()}


def unnamed(labels: Iterable[str]) -> bool:
    """Whether a model's labels are the names that transformers gives where there are none."""
    return all(name == f"LABEL_{k}" for k, name in enumerate(labels))


def to_model(there: set[str], labels: list[str]) -> tuple[dict[str, str], str | None]:
    """({what rows say: what the model says}, a note or None). What a model calls otherwise is known by its
    number in config.json's id2label, unless the model's own labels are numbers; labels that are not found
    keep their names."""
    alike = {_plain(name): name for name in labels}
    found = {name: alike[_plain(name)] for name in there.difference(labels) if _plain(name) in alike}
    if there <= {*labels, *found} or any(name.isdigit() for name in alike):
        return found, None
    calls = _by_number(there, labels) or {}
    in_order = sorted(calls.items(), key=lambda pair: labels.index(pair[1]))
    said = ", ".join(f"{a} is {b}" for a, b in in_order[:SHOWN])
    return calls, None if unnamed(labels) or not calls else f"labels are the model's by their numbers: {said}"


def in_line(labels: Iterable[str]) -> str:
    """For a message: the first of them, and how many more there are."""
    labels = list(labels)
    more = f" and {len(labels) - SHOWN:,} more" if len(labels) > SHOWN else ""
    return ", ".join(labels[:SHOWN]) + more
