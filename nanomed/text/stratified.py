"""A share of labelled texts to validate on, of which each label has its part."""

import math

import numpy as np

from nanomed.errors import UserError


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
        raise UserError(
            f"{where}: {n} text(s) cannot be split so that each label keeps one to train on; give --val-data,"
            " or --val-fraction 0"
        )
    chosen = {text for k, text in enumerate(texts) if k in drawn}
    return np.array([item.text in chosen for item in items], bool)
