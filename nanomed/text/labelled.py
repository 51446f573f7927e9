"""Labelled texts: rows to the two sides of a training, and to ids."""

import hashlib
import math
import re
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from nanomed.errors import UserError
from nanomed.systems.overlap import repeated
from nanomed.text import heldout
from nanomed.text.batches import split_rows
from nanomed.text.labels import PLAIN, Spelling, class_names, in_line, named, to_model, value_of
from nanomed.text.rows import BadRow, field_of, get_text, named_sets, read_rows


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
        names = {label for item in self.items for label in item.labels}
        numbers = {name: re.fullmatch("(?:LABEL_)?(-?[0-9]{1,18})", name) for name in names}
        whole = all(numbers.values())
        return list(self.order) or sorted(
            names, key=lambda name: (int(numbers[name][1]) if whole else 0, name)
        )


def read_labelled(sources, text_field, label_field, limit, skip_bad, how=PLAIN, say=print) -> LabelledSet:
    """Rows with labels. sources: (file, label) pairs; where the label is None, each row says it itself, in
    `label_field` or as `how` has it (nanomed.text.labels): lists of labels make the task a multi-label one.
    say: is called with each note. Raises UserError for a bad row."""

    def take(row, label, fields, classes):
        text = get_text(row, fields)
        if not text.strip():
            raise BadRow("an empty text")
        return text, label if label is not None else value_of(row, label_field, how, classes)

    taken, orders = [], set()
    for file, label in sources:
        fields = field_of(file, text_field) if label is not None else text_field
        classes = None if label is not None or how.names or how.columns else class_names(file, label_field)
        orders.add(tuple(classes or ()))
        of_file = partial(take, label=label, fields=fields, classes=classes)
        taken += [
            (f"{file}, row {k}", row) for k, row in enumerate(read_rows(file, of_file, limit, skip_bad), 1)
        ]
    good = [(place, *row) for place, row in taken if row is not None]
    if not good:
        raise UserError(f"{', '.join(file for file, _ in sources)}: no texts there")
    found = named([(place, value) for place, _, value in good], how, orders.pop() if len(orders) == 1 else ())
    for note in found.notes:
        say(note)
    items = [Labelled(text, labels) for (_, text, _), labels in zip(good, found.labels, strict=True)]
    sha = hashlib.sha256()
    for item in items:
        sha.update("\0".join([item.text, *item.labels, ""]).encode() + b"\0")
    return LabelledSet(
        items, found.multi_label, len(taken) - len(items), sha.hexdigest(), found.order, found.lists
    )


@dataclass(frozen=True)
class Sides:
    """The texts that train_cls.py trains on and validates on, and what it says about them."""

    labels: list[str]
    multi_label: bool
    training: list[Labelled]
    validation: dict[str, list[Labelled]]  # by the names of the sets
    held: heldout.HeldOut  # what is measured on
    removed: int  # training texts that are held out too
    bad_rows: int
    hashes: dict[str, str]  # of each side's data, by name
    near_removed: int = 0  # training texts that --near-duplicates took out


def read_sides(plan, quiet: bool = False) -> Sides:
    """The texts that a plan (nanomed.training.settings.Classify) names, read and split; says what
    --near-duplicates takes out, and which labels have no text on a side, unless quiet. Raises UserError."""

    def read(side, sources, how, limit=None):
        found = read_labelled(sources, plan.text_field, plan.label_field, limit, plan.skip_bad_rows, how, say)
        hashes[f"{side}: {' + '.join(file for file, _ in sources)}"] = found.sha256
        return found

    say = (lambda note: None) if quiet else print
    hashes, how = {}, spelling(plan)
    whole = read("data", labelled_sources(plan), how, plan.limit)
    held, hash = heldout.excluded(plan)
    hashes |= hash
    labels = [plan.negative_name, plan.positive_name] if plan.positives else whole.names()
    if len(set(labels)) < 2:
        where = plan.data[0] if plan.data else "--positive-name, --negative-name"
        raise UserError(f"{where}: one label only ({', '.join(labels) or 'none'}): nothing to tell apart")
    excluded = held.texts()
    items = [item for item in whole.items if heldout.digest(item.text) not in excluded]
    if plan.val_data:
        validation = {}
        for name, files in named_sets(plan.val_data).items():
            same = replace(how, lists=whole.lists or how.lists)
            found = read(f"val-data {name}", [(file, None) for file in files], same)
            if found.multi_label != whole.multi_label:
                raise UserError(
                    f"{files[0]}: one label a text here and a list of labels there cannot be compared"
                )
            validation[name] = found.items
        heldout.say_overlap(
            sum(heldout.digest(i.text) in excluded for side in validation.values() for i in side)
        )
        kept = items
    elif not items:
        raise UserError("no text is left to train on: --exclude holds all of them")
    elif plan.stratify:
        kept, drawn = split_by_label(items, plan.val_fraction, plan.seed)
        validation = {"validation": drawn} if drawn else {}
        rare = missing_labels(labels, drawn) if drawn else []
        if rare:
            of = f"a share of {plan.val_fraction:g}"
            say(
                f"too rare for {of} to hold a text of theirs, so trained on and not validated:"
                f" {in_line(rare)}"
            )
    else:
        kept, drawn = split_rows(items, [str(k) for k in range(len(items))], plan.val_fraction, plan.seed)
        validation = {"validation": drawn} if drawn else {}
    held.documents |= {heldout.digest(item.text) for side in validation.values() for item in side}
    kept = [item for item in kept if heldout.digest(item.text) not in held.documents]
    removed = len(whole.items) - sum(map(len, validation.values())) * (not plan.val_data) - len(kept)
    n_near = 0
    if plan.near_duplicates:
        texts = {name: [item.text for item in side] for name, side in validation.items()}
        near = repeated(plan, held, [item.text for item in kept], texts, quiet)
        n_near = int(near.removed.sum())
        held.documents |= {
            heldout.digest(item.text) for item, out in zip(kept, near.near_removed_held, strict=True) if out
        }
        kept = [item for item, out in zip(kept, near.removed, strict=True) if not out]
    never = missing_labels(labels, whole.items)
    if never:
        say(f"no text has the label {in_line(never)}: what it looks like cannot be learnt")
    lost = [label for label in missing_labels(labels, kept) if label not in never]
    if lost:
        raise UserError(f"no text of the label {lost[0]!r} is left to train on (held out, or duplicates)")
    return Sides(labels, whole.multi_label, kept, validation, held, removed, whole.bad_rows, hashes, n_near)


def missing_labels(labels: list[str], items: list[Labelled]) -> list[str]:
    there = {label for item in items for label in item.labels}
    return [label for label in labels if label not in there]


def split_by_label(
    items: list[Labelled], fraction: float, seed: int
) -> tuple[list[Labelled], list[Labelled]]:
    """(training, validation): a share of the texts, and of each label's as nearly as the total allows, drawn
    so that each label keeps a text to train on. Equal texts stay together and count once.

    Labels have their turn from the rarest on (as in Sechidis et al. 2011, "On the stratification of
    multi-label data"): each draws the whole number of texts in its share that those before it have not; the
    seats that are left go to the largest remainders. With a label a text these are the sizes that
    scikit-learn's StratifiedShuffleSplit gives. Raises UserError if that leaves one of the sides empty."""
    groups: dict[str, list[Labelled]] = {}
    for item in items:
        groups.setdefault(item.text, []).append(item)
    sides = [
        sorted({label for item in group for label in item.labels}) or [None] for group in groups.values()
    ]
    rng, n = np.random.default_rng(seed), len(groups)
    seats = max(1, round(fraction * n)) if fraction > 0 else 0
    texts: dict[str | None, list[int]] = {}
    for k in rng.permutation(n).tolist():
        for label in sides[k]:
            texts.setdefault(label, []).append(k)
    lacks = {
        label: seats / n * len(members) for label, members in texts.items()
    }  # of its share, not yet drawn
    left, drawn = {label: len(members) for label, members in texts.items()}, set()
    last, full = {label for label in left if left[label] == 1}, set()

    def draw(members: list[int], most: int, beyond: bool = False) -> None:
        """At most so many of the texts, none that brings a label beyond its share, unless that is what is
        asked for."""
        for k in members:
            if most < 1 or len(drawn) == seats:
                return
            if k not in drawn and last.isdisjoint(sides[k]) and (beyond or full.isdisjoint(sides[k])):
                drawn.add(k)
                most -= 1
                for label in sides[k]:
                    left[label] -= 1
                    lacks[label] -= 1
                    last.update([label] if left[label] == 1 else [])
                    full.update([label] if lacks[label] <= 0 else [])

    by_chance = [list(texts)[k] for k in rng.permutation(len(texts))]
    for label in sorted(by_chance, key=lambda label: len(texts[label])):
        draw(texts[label], math.floor(lacks[label] + 1e-9))
    for label in sorted(by_chance, key=lambda label: -lacks[label]):
        draw(texts[label], 1)
    anywhere = rng.permutation(n).tolist()
    draw(anywhere, seats)
    draw(anywhere, seats, beyond=True)
    if seats and (not drawn or seats >= n):
        raise UserError(
            f"{n} text(s) cannot be split so that each label keeps one to train on; give --val-data, or"
            " --val-fraction 0"
        )
    out = ([], [])
    for k, group in enumerate(groups.values()):
        out[k in drawn].extend(group)
    return out


def labelled_sources(args) -> list[tuple[str, str | None]]:
    """(file, label) pairs of --positives and --negatives, or (file, None) of --data. Raises UserError for
    neither or both."""
    if args.data and not (args.positives or args.negatives):
        return [(file, None) for file in args.data]
    if args.positives and args.negatives and not args.data:
        if given := [
            flag for flag in ("label_columns", "label_separator", "label_lists") if getattr(args, flag)
        ]:
            raise UserError(f"--{given[0].replace('_', '-')} is about the labels that --data's rows hold")
        if not (args.positive_name.strip() and args.negative_name.strip()):
            raise UserError("--positive-name, --negative-name: a label has a name")
        return [(f, args.negative_name) for f in args.negatives] + [
            (f, args.positive_name) for f in args.positives
        ]
    raise UserError("give --positives and --negatives, or --data with a label in each row")


def spelling(args) -> Spelling:
    """Of the flags, or a plan that has them. Raises UserError for flags that make no sense together."""
    names, columns = tuple(args.label_names or ()), tuple(args.label_columns or ())
    if columns and (args.label_separator or args.label_lists):
        raise UserError(
            "--label-columns is a field a label; --label-separator and --label-lists are about one of several"
        )
    if columns and names and len(columns) != len(names):
        raise UserError(f"--label-names gives {len(names)} names for the {len(columns)} --label-columns")
    return Spelling(names, args.label_separator, columns, args.label_lists)


def as_model_says(items: list[Labelled], labels: list[str]) -> tuple[list[Labelled], str | None]:
    """The texts with their labels called as a model calls them, and a note or None
    (nanomed.text.labels.to_model)."""
    calls, note = to_model({label for item in items for label in item.labels}, labels)
    return [
        replace(item, labels=tuple(calls.get(label, label) for label in item.labels)) for item in items
    ], note


def targets_of(items: list[Labelled], labels: list[str], multi_label: bool) -> np.ndarray:
    """Label numbers (N,), or in a multi-label task zeros and ones (N, K). Raises UserError for an unknown
    label."""
    number = {name: k for k, name in enumerate(labels)}
    for item in items:
        for name in item.labels:
            if name not in number:
                begins = f"{item.text[:40]!r}{'...' * (len(item.text) > 40)}"
                raise UserError(
                    f"the label {name!r} is none of the model's: {', '.join(labels)} (of the text {begins})"
                )
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
    more."""
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
