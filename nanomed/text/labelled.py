"""Labelled texts: rows to the two sides of a training, and to ids."""

import re
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import compress

import numpy as np

from nanomed.errors import UserError
from nanomed.text import heldout, special
from nanomed.text.arrow import class_names
from nanomed.text.divide import Divided, by_text, divide, draw, draw_by_label
from nanomed.text.heldout import HeldOut, Items
from nanomed.text.labels import PLAIN, Spelling, in_line, named, to_model, value_of
from nanomed.text.lines import sha256_of
from nanomed.text.names import named_sets
from nanomed.text.rows import BadRow, field_of, get_text, read_rows


@dataclass(frozen=True)
class Labelled:
    """A text and the names of its labels: one, or any number in a multi-label task."""

    text: str
    labels: tuple[str, ...]


@dataclass(frozen=True)
class LabelledSet:
    """order: all labels, where more is known of them than the rows show; lists: how lists of 0 and 1 were
    taken."""

    items: list[Labelled]
    multi_label: bool
    bad_rows: int
    sha256: str
    order: tuple[str, ...] = ()
    lists: str | None = None

    def names(self) -> list[str]:
        """Every label once, in the order of the numbers that they get: 9 before 10 if all are whole
        numbers."""
        there = {label for item in self.items for label in item.labels}
        numbers = {name: re.fullmatch("(?:LABEL_)?(-?[0-9]{1,18})", name) for name in there}
        if all(numbers.values()):
            return list(self.order) or sorted(there, key=lambda name: (int(numbers[name][1]), name))
        return list(self.order) or sorted(there)


def read_labelled(sources, text_field, label_field, limit, skip_bad, how=PLAIN, say=print) -> LabelledSet:
    """Rows with labels. sources: (file, label) pairs; where the label is None, each row says it itself, in
    `label_field` or as `how` has it (nanomed.text.labels): lists of labels make the task a multi-label one.
    say: is called with each note. Raises UserError for a bad row."""

    def take(row, label, fields, classes):
        text = get_text(row, fields)
        if not text.strip():
            raise BadRow("an empty text")
        return text, label if label is not None else value_of(row, label_field, how, classes)

    good, n, orders, where = [], 0, set(), ", ".join(file for file, _ in sources)
    for file, label in sources:
        fields = field_of(file, text_field) if label is not None else text_field
        classes = None if label is not None or how.names or how.columns else class_names(file, label_field)
        orders.add(tuple(classes or ()))
        of_file = partial(take, label=label, fields=fields, classes=classes)
        for k, row in enumerate(read_rows(file, of_file, limit, skip_bad), 1):
            n += 1
            if row is not None:
                good.append((f"{file}, row {k}", *row))
    if not good:
        raise UserError(f"{where}: no texts there")
    found = named([(place, value) for place, _, value in good], how, orders.pop() if len(orders) == 1 else ())
    for note in found.notes:
        say(note)
    items = [Labelled(text, labels) for (_, text, _), labels in zip(good, found.labels, strict=True)]
    of_lists = found.multi_label and found.lists != "vectors" and not (how.separator or how.columns)
    if of_lists and all(len(item.labels) == 1 for item in items):
        first = ",".join(f"{name}.0" for name in label_field.split(","))
        mend = f"--label-field {first} makes classes, of which one is right"
        say(f"{where}: each text has exactly one label, and each label is learned by itself ({mend})")
    if n_both := sum(len({frozenset(i.labels) for i in same}) > 1 for same in by_text(items).values()):
        say(f"{where}: {n_both:,} texts are there more than once, with different labels")
    sha = sha256_of(part for item in items for part in (item.text, *item.labels, ""))
    return LabelledSet(items, found.multi_label, n - len(items), sha, found.order, found.lists)


@dataclass(frozen=True)
class Sides:
    """The texts that train_cls.py trains on and validates on (by the names of the sets), how they were
    divided, and {name: SHA-256} of each side's data."""

    labels: list[str]
    multi_label: bool
    training: list[Labelled]
    validation: dict[str, list[Labelled]]
    bad_rows: int = 0
    hashes: dict[str, str] = field(default_factory=dict)
    divided: Divided | None = None

    def encode(self, side: list[Labelled], tokenizer, context: int) -> tuple[list, np.ndarray, int]:
        """Ids, targets, and how many of the texts were cut."""
        ids, truncated = encode_texts([item.text for item in side], tokenizer, context)
        return ids, targets_of(side, self.labels, self.multi_label), truncated

    def facts(self, tokenizer, truncated: int) -> dict:
        """What summary.json says."""
        read = [item.text for side in (self.training, *self.validation.values()) for item in side]
        sizes = Counter(label for item in self.training for label in item.labels)
        return {
            "special_tokens": special.report(tokenizer, read),
            "labels": self.labels,
            "texts": len(self.training),
            "texts_by_label": {label: sizes[label] for label in self.labels},
            "val_texts": sum(map(len, self.validation.values())),
            "truncated": truncated,
            "bad_rows": self.bad_rows,
            **self.divided.facts(),
        }


def in_words(facts: dict, context: int) -> str:
    """Sides.facts() for a terminal."""
    sizes = in_line(f"{n:,} {name}" for name, n in facts["texts_by_label"].items())
    said = f"{facts['texts']:,} texts ({sizes})"
    said += f", {facts['truncated']:,} cut at {context} tokens" if facts["truncated"] else ""
    said += f", {facts['bad_rows']:,} bad rows left out" if facts["bad_rows"] else ""
    return f"{said}; {facts['val_texts']:,} validation texts"


def read_sides(s, near=None, earlier: HeldOut | None = None, say=print) -> Sides:
    """The texts that settings (nanomed.training.settings.Classify) name, read and divided. near, earlier: as
    divide() has them. say: is called with each note on labels that lack texts. Raises UserError."""

    def read(side, sources, how, limit=None):
        found = read_labelled(sources, s.text_field, s.label_field, limit, s.skip_bad_rows, how, say)
        hashes[f"{side}: {' + '.join(file for file, _ in sources)}"] = found.sha256
        return found

    def items_of(side: list[Labelled]) -> Items:
        return Items.of_texts([item.text for item in side])

    def draw_side(allowed: np.ndarray) -> np.ndarray:
        left, where = list(compress(items, allowed)), " + ".join(file for file, _ in sources)
        if s.stratify:
            return draw_by_label(left, s.val_fraction, s.seed, where)
        return draw(np.array([str(k) for k in range(len(left))]), s.val_fraction, s.seed, where)

    hashes, how, sources = {}, spelling(s), labelled_sources(s)
    data = read("data", sources, how, s.limit)
    labels = [s.negative_name, s.positive_name] if s.positives else data.names()
    if len(set(labels)) < 2:
        where = s.data[0] if s.data else "--positive-name, --negative-name"
        raise UserError(f"{where}: one label only ({', '.join(labels) or 'none'}): nothing to tell apart")
    given, how = {}, replace(how, lists=data.lists or how.lists)
    for name, files in named_sets(s.val_data or []).items():
        found = read(f"val-data {name}", [(file, None) for file in files], how)
        if found.multi_label != data.multi_label:
            both = "one label a text here and a list of labels there"
            raise UserError(f"{files[0]}: {both} cannot be compared")
        given[name] = found.items
    items = data.items
    if s.stratify and not given:  # equal texts one after another: the order decides what a run computes
        items = [item for same in by_text(items).values() for item in same]
    excluded = heldout.read_excluded(s)
    of_given = {name: items_of(side) for name, side in given.items()}
    divided = divide(items_of(items), excluded, of_given, draw_side, near, earlier)
    training, drawn = (list(compress(items, mask)) for mask in (divided.training, divided.validation))
    if drawn and s.stratify and (rare := missing_labels(labels, drawn)):
        of = f"too rare for a share of {s.val_fraction:g} to hold a text of theirs"
        say(f"{of}, so trained on and not validated: {in_line(rare)}")
    never = missing_labels(labels, items)
    if never:
        say(f"no text has the label {in_line(never)}: what it looks like cannot be learnt")
    if lost := [label for label in missing_labels(labels, training) if label not in never]:
        raise UserError(f"no text of the label {lost[0]!r} is left to train on (held out, or duplicates)")
    validation = given or ({"validation": drawn} if drawn else {})
    hashes |= excluded.hashes
    return Sides(labels, data.multi_label, training, validation, data.bad_rows, hashes, divided)


def missing_labels(labels: list[str], items: list[Labelled]) -> list[str]:
    there = {label for item in items for label in item.labels}
    return [label for label in labels if label not in there]


def labelled_sources(s) -> list[tuple[str, str | None]]:
    """(file, label) pairs of --positives and --negatives, or (file, None) of --data. Raises UserError for
    neither or both."""
    if s.data and not (s.positives or s.negatives):
        return [(file, None) for file in s.data]
    if s.data or not (s.positives and s.negatives):
        raise UserError("give --positives and --negatives, or --data with a label in each row")
    for flag in ("columns", "separator", "lists"):
        if getattr(s, f"label_{flag}"):
            raise UserError(f"--label-{flag} is about the labels that --data's rows hold")
    if not (s.positive_name.strip() and s.negative_name.strip()):
        raise UserError("--positive-name, --negative-name: a label has a name")
    return [(f, s.negative_name) for f in s.negatives] + [(f, s.positive_name) for f in s.positives]


def spelling(s) -> Spelling:
    """Raises UserError for settings that make no sense together."""
    names, columns = tuple(s.label_names or ()), tuple(s.label_columns or ())
    if columns and (s.label_separator or s.label_lists):
        others = "--label-separator and --label-lists are about one of several"
        raise UserError(f"--label-columns is a field a label; {others}")
    if columns and names and len(columns) != len(names):
        raise UserError(f"--label-names gives {len(names)} names for the {len(columns)} --label-columns")
    return Spelling(names, s.label_separator, columns, s.label_lists)


def as_model_says(items: list[Labelled], labels: list[str]) -> tuple[list[Labelled], str | None]:
    """The texts with their labels called as a model calls them, and a note or None
    (nanomed.text.labels.to_model)."""
    calls, note = to_model({label for item in items for label in item.labels}, labels)
    return [Labelled(i.text, tuple(calls.get(label, label) for label in i.labels)) for i in items], note


def targets_of(items: list[Labelled], labels: list[str], multi_label: bool) -> np.ndarray:
    """Label numbers (N,), or in a multi-label task zeros and ones (N, K). Raises UserError for an unknown
    label."""
    number = {name: k for k, name in enumerate(labels)}
    for item in items:
        if unknown := [name for name in item.labels if name not in number]:
            known = f"none of the model's: {', '.join(labels)}"
            raise UserError(f"the label {unknown[0]!r} is {known} (of the text {item.text[:40]!r})")
    if not multi_label:
        return np.array([number[item.labels[0]] for item in items])
    out = np.zeros((len(items), len(labels)))
    for row, item in enumerate(items):
        out[row, [number[name] for name in item.labels]] = 1
    return out


def class_weights(targets: np.ndarray, n_labels: int) -> np.ndarray:
    """Of each class N / (K n): all classes count the same in the loss, and its mean over the texts stays 1. A
    multi-label task weighs its positives by negatives / positives."""
    if targets.ndim == 2:
        positives = np.maximum(targets.sum(0), 1)
        return np.maximum(len(targets) - positives, 1) / positives
    counts = np.bincount(targets, minlength=n_labels)
    return len(targets) / (n_labels * np.maximum(counts, 1))


def oversampled(targets: np.ndarray, seed: int) -> np.ndarray:
    """Indices in which every class is as frequent as the largest: whole copies, and a random part of one
    more. Raises UserError for targets of several labels a text."""
    if targets.ndim == 2:
        raise UserError("--balance sampling is for one label a text; with several, --balance weights")
    rng, classes = np.random.default_rng(seed), np.unique(targets)
    largest = max((targets == c).sum() for c in classes)
    parts = []
    for c in classes:
        members = np.flatnonzero(targets == c)
        copies, rest = divmod(largest, len(members))
        parts += [np.tile(members, copies), rng.permutation(members)[:rest]]
    return np.sort(np.concatenate(parts))


def encode_texts(texts: list[str], tokenizer, context: int) -> tuple[list[np.ndarray], int]:
    """The first `context` ids of each text, and how many texts were longer."""
    ids = [tokenizer.prompt(text).astype(np.int64) for text in texts]
    return [i[:context] for i in ids], sum(len(i) > context for i in ids)
