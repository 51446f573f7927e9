"""One label a text, or several: written by their names, and read back."""

import re
from collections.abc import Callable
from dataclasses import replace
from functools import cache

from nanomed.systems.tasks.cases import NONE, Case, Malformed, Settled, missing, text_of
from nanomed.text.labels import Spelling, named, value_of
from nanomed.text.rows import BadRow, NoField

SPELLING = Spelling(flag="label_")


def _shown(row, fields: dict, key: str, most: int | None) -> tuple[str, bool]:
    """(the field's text, or what it begins with, up to the end of its word number `most`; whether that is
    less than all)."""
    text = text_of(row, fields, key)
    ends = [word.end() for word in re.finditer(r"\S+", text)]
    return (text, False) if most is None or len(ends) <= most else (text[: ends[most - 1]], True)


def taker(first: str, shown: str = "{}", second: str | None = None, label: str = "label") -> Callable:
    """take() of a form (forms.Form) that shows one text of a row, or two: these are keys of FIELDS; shown:
    how they stand together, of which the first may be cut."""

    def take(row, fields: dict, rename: dict, most: int | None, how=SPELLING, names=None) -> Case:
        text, cut = _shown(row, fields, first, most)
        text = shown.format(text, text_of(row, fields, second)) if second else text
        return Case(text, _said(row, fields, label, how, names), cut)

    return take


take_text, take_texts = taker("text"), taker("text", label="labels")
take_pair = taker("premise", "Premise: {}\nHypothesis: {}", "hypothesis")  # and what may follow from it
take_question = taker("context", "{}\nQuestion: {}", "question")  # that yes or no (or maybe) answers


def _said(row, fields: dict, key: str, how: Spelling, names) -> str | tuple[str, ...]:
    try:
        return value_of(row, fields[key], how, names)
    except NoField as e:
        raise (e if how.columns else missing(row, fields, key, "label")) from e
    except BadRow as e:
        raise BadRow(str(e).replace("label_field", f"fields.{key}")) from e


def settle_labels(placed: list[tuple[str, Case]], how=SPELLING, rename=None, order=()) -> Settled:
    """What the rows' labels mean, all of them together, and what an answer calls them."""
    found, rename = named([(place, case.gold) for place, case in placed], how, order), rename or {}

    def called(labels):
        return tuple(rename.get(label, label) for label in labels)

    golds = [tuple(sorted(set(called(labels)))) for labels in found.labels]
    cases = [replace(case, gold=gold) for (_, case), gold in zip(placed, golds, strict=True)]
    return Settled(cases, called(found.order), found.notes)


def settle_label(placed: list[tuple[str, Case]], how=SPELLING, rename=None, order=()) -> Settled:
    """The same of a form with one label a text."""
    found = settle_labels(placed, how, rename, order)
    why = 'it has {} labels, and one is asked for; form = "classes" takes any number'
    return replace(found, cases=[c if len(c.gold) == 1 else why.format(len(c.gold)) for c in found.cases])


def write_label(case: Case, labels: list[str]) -> str:
    return case.gold[0]


def mark(labels: list[str]) -> str:
    """What parts the labels of an answer: a comma, or the first of others that no label holds."""
    return next((m for m in ",;|" if not any(m in label for label in labels)), "\n")


def joined(found, labels: list[str]) -> str:
    return f"{mark(labels)} ".replace("\n ", "\n").join(found)


def nothing(labels: list[str]) -> str:
    """The answer where no label is right: `none`, where no label is called so."""
    return next(word for word in (NONE, "nothing", "no label", "(none)", "") if word not in map(bare, labels))


def notes_on(labels: list[str]) -> list[str]:
    """What a user's instructions may have to say, where labels are called so that the usual form would not
    read back."""
    notes, parts, without = [], mark(labels), nothing(labels)
    if parts != ",":
        said = "each has a line" if parts == "\n" else f"`{parts}` parts them"
        notes.append(f"labels hold commas, so that in an answer {said}")
    if without != NONE:
        notes.append(f"a label is called none, so that the answer without any is `{without}`")
    return notes


def write_labels(case: Case, labels: list[str]) -> str:
    return joined(case.gold, labels) or nothing(labels)


def plain(text: str) -> str:
    return " ".join(text.split())


def bare(text: str) -> str:
    return plain(text).rstrip(".").casefold()


@cache
def _spelled(labels: tuple[str, ...]) -> dict[Callable, dict[str, list[str]]]:
    """{same: {same(label): the labels that are the same then}}, the strictest way to read a label first."""
    ways = {plain: {}, bare: {}}
    for same, found in ways.items():
        for label in labels:
            found.setdefault(same(label), []).append(label)
    return ways


def _known(said: str, labels: list[str]) -> str:
    """The label that is meant: as it is written, else but for capitals and a full stop, where that is one
    label alone."""
    for same, spelled in _spelled(tuple(labels)).items():
        found = spelled.get(same(said), [])
        if len(found) == 1:
            return found[0]
    could = f"could be {' or '.join(map(repr, found))}" if found else "is no label"
    raise Malformed(f"{said!r} {could}")


def read_label(answer: str, input: str, labels: list[str]) -> list[str]:
    return [_known(answer, labels)]


def read_labels(answer: str, input: str, labels: list[str]) -> list[str]:
    if bare(answer) == nothing(labels):
        return []
    return sorted({_known(said, labels) for said in answer.strip().split(mark(labels))})
