"""One rule for every script: which items are trained on, and which are validated on.

What `--exclude` names is in no part of a run: not in training, not in what is replayed, not in the
share that is drawn for validation. What is validated on is in no training. A user's own `--val-data`
is never altered. With --near-duplicates, what nearly repeats a held-out text or another training text
goes too. held_out.json remembers what is held out (nanomed.text.heldout): a later phase leaves it out
of its replay, and says so when it is told to train on it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nanomed.errors import UserError
from nanomed.text.heldout import Excluded, HeldOut, Items


@dataclass(frozen=True)
class Divided:
    """training, validation: which items are trained on, and which were drawn to validate on, both (N,)
    of bool; held: all that is held out; texts: the held-out texts, by set, for near duplicates.

    Counts of items: removed, since they are held out; overlap, of --val-data and excluded too;
    earlier, trained on though an earlier phase held them out; along, removed with a near duplicate,
    whose group or quotation they share. near: what the search for near duplicates found, or None."""

    training: np.ndarray
    validation: np.ndarray
    held: HeldOut
    texts: Mapping[str, Sequence[str]]
    removed: int
    overlap: int
    earlier: int
    near: object | None
    along: int

    def facts(self) -> dict[str, int]:
        """For summary.json."""
        near = int(self.near.removed.sum()) + self.along if self.near else 0
        return {"duplicates_removed": self.removed, "near_duplicates_removed": near}

    def say(self, what: str, model: str) -> None:
        """One line for each count that is not 0."""
        if self.overlap:
            kept = "what is given to validate on stays as it is"
            print(f"{self.overlap} documents or rows of --val-data are in --exclude too; {kept}")
        if self.removed:
            print(f"{self.removed} training {what} that are held out too were taken out of the training side")
        if self.near:
            print(*self.near.lines(), sep="\n")
        if self.along:
            print(f"{self.along} training {what} of the same groups, or that quote the same, go with them")
        if self.earlier:
            print(
                f"note: {self.earlier} of what is trained on was held out when {model} was trained; from now"
                " on a measurement on it is none on unseen text"
            )

    def replayed(self, items: Items, earlier: HeldOut, near: Callable | None = None) -> np.ndarray:
        """Which of other items may be read again: none that is held out, now or earlier, (N,) of bool."""
        allowed = ~(self.held | earlier).has(items)
        if n := int((~allowed).sum()):
            when = "held out, now or by an earlier phase"
            print(f"{n} documents that are {when}, were taken out of what is replayed")
        if near:
            found = near(items.where(allowed).texts, self.texts)
            print(*found.lines(), sep="\n")
            allowed[allowed] = ~found.removed
        return allowed


def divide(
    items: Items,
    excluded: Excluded,
    given: Mapping[str, Items],
    draw: Callable[[np.ndarray], np.ndarray],
    near: Callable | None = None,
    earlier: HeldOut | None = None,
) -> Divided:
    """The rule of this page, for N items. given: the sets of --val-data, by name; without them,
    draw(which items are not excluded, (N,) of bool) says which of those to validate on. near(texts,
    held-out texts by set): which texts repeat a held-out one or an earlier one of their own
    (nanomed.systems.overlap.near_duplicates). earlier: what the phases before held out."""
    training, drawn = ~excluded.held.has(items), np.zeros(len(items.texts), bool)
    if not given and training.any():
        drawn[training] = draw(training)
    sides = given or ({"validation": items.where(drawn)} if drawn.any() else {})
    held = excluded.held
    for side in sides.values():
        held |= side.held_out()
    training &= ~drawn & ~held.has(items)
    removed = int((~training & ~drawn).sum())

    along, found = 0, None
    texts = {name: side.texts for name, side in sides.items()} | {"--exclude": excluded.texts}
    if near:
        found = near(items.where(training).texts, texts)
        repeats = np.zeros_like(training)
        repeats[training] = found.near_removed_held
        held |= items.where(repeats).held_out()  # what repeats a held-out item is held out as well
        training[training] = ~found.removed
        along = int((training & held.has(items)).sum())
        training &= ~held.has(items)
    overlap = sum(int(excluded.held.has(side).sum()) for side in given.values())
    again = int(earlier.has(items.where(training)).sum()) if earlier else 0
    return Divided(training, drawn, held, texts, removed, overlap, again, found, along)


def draw(groups: Sequence, fraction: float, seed: int, where: str) -> np.ndarray:
    """Which items to validate on, (N,) of bool: a share of their groups, drawn at random, one at least
    if the share is not 0. Raises UserError, naming `where`, if none would be left to train on."""
    names, group = np.unique(groups, return_inverse=True)
    n = max(1, round(fraction * len(names))) if fraction > 0 else 0
    if n >= len(names) > 0:
        of = f"{len(names)} document(s), row(s) or group(s)"
        raise UserError(f"{where}: {of} cannot be split; give --val-data, or --val-fraction 0")
    return np.isin(group, np.random.default_rng(seed).permutation(len(names))[:n])


def by_text(items: list) -> dict[str, list]:
    found: dict[str, list] = {}
    for item in items:
        found.setdefault(item.text, []).append(item)
    return found


def draw_by_label(items: list, fraction: float, seed: int, where: str) -> np.ndarray:
    """Which texts to validate on, (N,) of bool: a share of all, and of each label's as nearly as the total
    allows, drawn so that each label keeps a text to train on. Equal texts stay together and count once.

    Labels have their turn from the rarest on (as in Sechidis et al. 2011, "On the stratification of
    multi-label data"): each draws the whole number of texts in its share that those before it have not;
    the seats that are left go to the largest remainders. With a label a text these are the sizes that
    scikit-learn's StratifiedShuffleSplit gives. Raises UserError if that leaves a side empty."""
    texts = by_text(items)
    of = [sorted({label for item in same for label in item.labels}) or [None] for same in texts.values()]
    rng, n = np.random.default_rng(seed), len(of)
    seats = max(1, round(fraction * n)) if fraction > 0 else 0
    members: dict[str | None, list[int]] = {}
    for k in rng.permutation(n).tolist():
        for label in of[k]:
            members.setdefault(label, []).append(k)
    lacks = {label: seats / n * len(own) for label, own in members.items()}  # of its share, not yet drawn
    left, drawn = {label: len(own) for label, own in members.items()}, set()

    def draw(places: list[int], most: int, beyond: bool = False) -> None:
        """At most so many, none that is a label's last; one that brings a label beyond its share only if so
        asked."""
        for k in places:
            if most < 1 or len(drawn) == seats:
                return
            if k not in drawn and all(left[name] > 1 and (beyond or lacks[name] > 0) for name in of[k]):
                drawn.add(k)
                most -= 1
                for label in of[k]:
                    left[label] -= 1
                    lacks[label] -= 1

    by_chance = [list(members)[k] for k in rng.permutation(len(members))]
    for label in sorted(by_chance, key=lambda label: len(members[label])):
        draw(members[label], math.floor(lacks[label] + 1e-9))
    for label in sorted(by_chance, key=lambda label: -lacks[label]):
        draw(members[label], 1)
    anywhere = rng.permutation(n).tolist()
    draw(anywhere, seats)
    draw(anywhere, seats, beyond=True)
    if seats and (not drawn or seats >= n):
        what = f"{n} text(s) cannot be split so that each label keeps one to train on"
        raise UserError(f"{where}: {what}; give --val-data, or --val-fraction 0")
    chosen = {text for k, text in enumerate(texts) if k in drawn}
    return np.array([item.text in chosen for item in items], bool)
