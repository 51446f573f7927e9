"""Labelled texts: rows to the two sides of a training, and to ids."""

import hashlib
import re
from dataclasses import dataclass

import numpy as np

from nanomed.errors import UserError
from nanomed.text import heldout
from nanomed.text.batches import split_rows
from nanomed.text.overlap import repeated
from nanomed.text.rows import BadRow, NoField, field_of, get_text, get_value, named_sets, read_rows


@dataclass(frozen=True)
class Labelled:
    """A text and the names of its labels: one, or any number in a multi-label task."""

    text: str
    labels: tuple[str, ...]


@dataclass(frozen=True)
class LabelledSet:
    items: list[Labelled]
    multi_label: bool
    bad_rows: int
    sha256: str

    def names(self) -> list[str]:
        """Every label once, in the order of the numbers that they get: 9 before 10 if all are whole numbers."""
        names = {label for item in self.items for label in item.labels}
        whole = all(re.fullmatch("-?[0-9]{1,18}", name) for name in names)
        return sorted(names, key=lambda name: (int(name) if whole else 0, name))


def read_labelled(sources, text_field, label_field, limit, skip_bad) -> LabelledSet:
    """Rows with labels. sources: (file, label) pairs; where the label is None, each row's `label_field` holds it: a text, a
    number, or a list of them, which makes the task a multi-label one. Raises UserError for a bad row."""
    kinds = set()

    def take(row, label, fields):
        text = get_text(row, fields)
        if not text.strip():
            raise BadRow("an empty text")
        if label is not None:
            return Labelled(text, (label,))
        value = get_value(row, label_field)
        values = value if isinstance(value, list) else [value]
        if any(v == "" or isinstance(v, bool) or not isinstance(v, str | int) for v in values):
            kind = NoField if value is None else BadRow
            raise kind(f"no label in the field {label_field!r}: {value!r} (--label-field names another)")
        if any("\ud800" <= c <= "\udfff" for v in values for c in str(v)):
            raise BadRow(f"a label with a lone surrogate, which is no valid Unicode: {value!r}")
        kinds.add(isinstance(value, list))
        return Labelled(text, tuple(dict.fromkeys(map(str, values))))

    taken = []
    for file, label in sources:
        fields = field_of(file, text_field) if label is not None else text_field
        taken += read_rows(file, lambda row, label=label, fields=fields: take(row, label, fields), limit, skip_bad)
    items = [item for item in taken if item is not None]
    files = ", ".join(file for file, _ in sources)
    if not items:
        raise UserError(f"{files}: no texts there")
    if len(kinds) > 1:
        raise UserError(f"{files}: {label_field!r} is a list in some rows and one label in others")
    sha = hashlib.sha256()
    for item in items:
        sha.update("\0".join([item.text, *item.labels, ""]).encode() + b"\0")
    return LabelledSet(items, kinds == {True}, len(taken) - len(items), sha.hexdigest())


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
    """The texts that a plan (nanomed.training.plan.Classify) names, read and split; says what --near-duplicates takes out, unless
    quiet. Raises UserError."""

    def read(side, sources, limit=None):
        found = read_labelled(sources, plan.text_field, plan.label_field, limit, plan.skip_bad_rows)
        hashes[f"{side}: {' + '.join(file for file, _ in sources)}"] = found.sha256
        return found

    hashes = {}
    whole = read("data", labelled_sources(plan), plan.limit)
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
            found = read(f"val-data {name}", [(file, None) for file in files])
            if found.multi_label != whole.multi_label:
                raise UserError(f"{files[0]}: one label a text here and a list of labels there cannot be compared")
            validation[name] = found.items
        heldout.say_overlap(sum(heldout.digest(i.text) in excluded for side in validation.values() for i in side))
        kept = items
    elif not items:
        raise UserError("no text is left to train on: --exclude holds all of them")
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
        held.documents |= {heldout.digest(item.text) for item, out in zip(kept, near.near_removed_held, strict=True) if out}
        kept = [item for item, out in zip(kept, near.removed, strict=True) if not out]
    missing = set(labels) - {label for item in kept for label in item.labels}
    if missing:
        raise UserError(f"no text of the label {sorted(missing)[0]!r} is left to train on (held out, or duplicates)")
    return Sides(labels, whole.multi_label, kept, validation, held, removed, whole.bad_rows, hashes, n_near)


def labelled_sources(args) -> list[tuple[str, str | None]]:
    """(file, label) pairs of --positives and --negatives, or (file, None) of --data. Raises UserError for neither or both."""
    if args.data and not (args.positives or args.negatives):
        return [(file, None) for file in args.data]
    if args.positives and args.negatives and not args.data:
        if not (args.positive_name.strip() and args.negative_name.strip()):
            raise UserError("--positive-name, --negative-name: a label has a name")
        return [(f, args.negative_name) for f in args.negatives] + [(f, args.positive_name) for f in args.positives]
    raise UserError("give --positives and --negatives, or --data with a label in each row")


def targets_of(items: list[Labelled], labels: list[str], multi_label: bool) -> np.ndarray:
    """Label numbers (N,), or in a multi-label task zeros and ones (N, K). Raises UserError for an unknown label."""
    number = {name: k for k, name in enumerate(labels)}
    for item in items:
        for name in item.labels:
            if name not in number:
                begins = f"{item.text[:40]!r}{'...' * (len(item.text) > 40)}"
                raise UserError(f"the label {name!r} is none of the model's: {', '.join(labels)} (of the text {begins})")
    if not multi_label:
        return np.array([number[item.labels[0]] for item in items])
    out = np.zeros((len(items), len(labels)))
    for row, item in enumerate(items):
        out[row, [number[name] for name in item.labels]] = 1
    return out


def class_weights(targets: np.ndarray, n_labels: int) -> np.ndarray:
    """Of each class N / (K n): all classes count the same in the loss, and its mean over the texts stays 1. A multi-label
    task weighs its positives by negatives / positives."""
    if targets.ndim == 2:
        positives = np.maximum(targets.sum(0), 1)
        return np.maximum(len(targets) - positives, 1) / positives
    counts = np.bincount(targets, minlength=n_labels)
    return len(targets) / (n_labels * np.maximum(counts, 1))


def oversampled(targets: np.ndarray, seed: int) -> np.ndarray:
    """Indices in which every class is as frequent as the largest: whole copies, and a random part of one more."""
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
