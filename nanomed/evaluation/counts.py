"""What a system said of each text against what is true, counted; and whether two systems differ."""

from dataclasses import dataclass

import numpy as np


def or_none(x) -> float | None:
    return None if np.isnan(x) else float(x)  # JSON has no NaN


@dataclass(frozen=True)
class Counts:
    """Of each text (N, K), K labels or types of entities: how many of what was said are true, were said, are
    true at all. right (N,): whether all of a text's answer is."""

    hits: np.ndarray
    said: np.ndarray
    true: np.ndarray
    right: np.ndarray

    def f1(self) -> np.ndarray:
        """Of each label (K,); NaN for one that is neither there nor said."""
        hits, size = 2.0 * self.hits.sum(0), (self.said + self.true).sum(0)
        return np.divide(hits, size, out=np.full(len(size), np.nan), where=size > 0)

    def value(self, measure: str, rows=slice(None)) -> float:
        """accuracy, macro_f1 (the mean over labels that have an F1), or else F1 of all labels together, over
        the texts `rows`; NaN if there is nothing to count."""
        there = np.arange(len(self.right))
        times = np.bincount(there[rows], minlength=len(there))
        return float(self.values(measure, times[None])[0])

    def values(self, measure: str, times: np.ndarray) -> np.ndarray:
        """The same (D,) of texts that each come so often, times (D, N), in each of D draws."""
        times = times.astype(float)  # whole numbers are multiplied slowly
        if measure == "accuracy":
            return times @ self.right / times.sum(1)
        hits, size = times @ self.hits, times @ (self.said + self.true)
        if measure != "macro_f1":
            hits, size = hits.sum(1, keepdims=True), size.sum(1, keepdims=True)
        f1 = np.divide(2 * hits, size, out=np.zeros_like(size), where=size > 0)
        with np.errstate(invalid="ignore"):
            return f1.sum(1) / (size > 0).sum(1)


def difference(measure: str, ours: Counts, theirs: Counts, seed=0, samples=1000) -> dict:
    """By how much two systems differ in a measure (Counts.value) of the same texts, and whether by chance.

    difference_ci95: a paired bootstrap, each draw taking the same texts for both. difference_p: the share of
    differences as large if, text by text, a coin decides whose answer is whose (Yeh 2000); it holds for few
    texts too, where a bootstrap's interval is too narrow."""
    n, rng, parts = len(ours.right), np.random.default_rng(seed), [ours.true, ours.said, theirs.said]
    parts += [ours.hits, theirs.hits, theirs.true, ours.right[:, None], theirs.right[:, None]]
    # Texts that are alike in all of it: only how many there are of each kind matters.
    _, kinds, counts = np.unique(np.concatenate(parts, 1), axis=0, return_index=True, return_counts=True)
    a, b = (Counts(*(x[kinds] for x in vars(c).values())) for c in (ours, theirs))

    def behind(a, b):
        return Counts(*map(np.concatenate, zip(vars(a).values(), vars(b).values(), strict=True)))

    def differences(times, a, b):
        return a.values(measure, times) - b.values(measure, times)

    found, drawn, swapped = differences(counts[None], a, b)[0], [], []
    for _ in range(samples // 100):  # in parts, for the memory
        drawn.append(differences(rng.multinomial(n, counts / n, size=100), a, b))
        m = rng.binomial(counts, 0.5, size=(100, len(counts)))
        swapped.append(differences(np.concatenate([counts - m, m], 1), behind(a, b), behind(b, a)))
    drawn, swapped = np.concatenate(drawn), np.concatenate(swapped)
    as_large = np.abs(swapped) >= abs(found) - 1e-9
    defined = n > 1 and not np.isnan(drawn).all()
    return {
        "difference": or_none(found),
        "difference_ci95": [float(q) for q in np.nanpercentile(drawn, [2.5, 97.5])] if defined else None,
        "difference_p": 1.0 if np.isnan(found) else float((1 + as_large.sum()) / (1 + len(swapped))),
    }


def beyond_chance(found: dict) -> bool:
    """Whether a difference() shows one: 0 is outside its interval, and its p-value is below 0.05."""
    low, high = found["difference_ci95"] or (0, 0)  # one text, or nothing to find in any
    return not low <= 0 <= high and found["difference_p"] < 0.05
