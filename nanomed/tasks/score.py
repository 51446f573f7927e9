"""Figures of one task: what was said of each text, against what is true.

Strict entity F1 is seqeval's and the F1 of labels scikit-learn's; the counts of each text beside them give the bootstrap intervals
and the paired difference of two systems on the same texts. A malformed answer (None) finds nothing and is right about nothing.
"""

from dataclasses import dataclass

import numpy as np

from nanomed.evaluation.bootstrap import interval, share
from nanomed.optional import need
from nanomed.tasks.forms import begun, mentions

CHANCE = "no difference beyond chance"


@dataclass(frozen=True)
class Counts:
    """Of each text (N, K), K types of entities or labels: how many of what was said are true, were said, are true at all.
    right (N,): whether all of a text's answer is."""

    hits: np.ndarray
    said: np.ndarray
    true: np.ndarray
    right: np.ndarray

    def value(self, measure: str, rows=slice(None)) -> float:
        """One of sources.MEASURES over the texts `rows`; NaN if there is nothing to count. A label that is neither there nor
        said has no F1, and is left out of the mean."""
        if measure == "accuracy":
            return float(self.right[rows].mean())
        hits, size = self.hits[rows].sum(0), (self.said[rows] + self.true[rows]).sum(0)
        if measure != "macro_f1":
            hits, size = hits.sum(keepdims=True), size.sum(keepdims=True)
        there = size > 0
        return float((2 * hits[there] / size[there]).mean()) if there.any() else float("nan")


def count(tagged: bool, labels: list[str], gold: list[list[str]], said: list[list[str] | None]) -> Counts:
    """Counts of tags or labels. Tags behind a text's end are entities that it does not hold."""
    n, number = len(gold), {label: k for k, label in enumerate(labels)}
    hits, of_said, of_true = (np.zeros((n, len(labels)), int) for _ in range(3))
    right = np.zeros(n, bool)
    for row, (true, found) in enumerate(zip(gold, said, strict=True)):
        right[row] = found is not None
        true = set(mentions(true)) if tagged else {(label,) for label in true}
        found = set(mentions(found or [])) if tagged else {(label,) for label in found or []}
        right[row] &= true == found
        for counts, items in ((hits, true & found), (of_said, found), (of_true, true)):
            for item in items:
                counts[row, number[item[-1]]] += 1
    return Counts(hits, of_said, of_true, right)


def figures(tagged: bool, labels: list[str], gold: list[list[str]], said: list[list[str] | None], seed: int = 0) -> dict:
    """Of tags: strict entity F1 (IOB2) with precision and recall; of labels: accuracy, micro- and macro-F1, and F1 of each;
    all from 0 to 1, the first three with 95 % intervals over the texts."""
    counts, n = count(tagged, labels, gold, said), len(gold)

    def with_interval(measure, value):
        return {measure: value, measure + "_ci95": interval(lambda rows: counts.value(measure, rows), n, seed=seed)}

    if tagged:
        metrics, scheme = need("seqeval.metrics"), need("seqeval.scheme").IOB2
        true, found = padded(gold, said)
        how = {"mode": "strict", "scheme": scheme, "zero_division": 0}
        out = {k: float(getattr(metrics, f"{k}_score")(true, found, **how)) for k in ("precision", "recall")}
        f1 = float(metrics.f1_score(true, found, **how))
        return out | {"entities": int(counts.true.sum())} | with_interval("entity_f1", f1)
    sk = need("sklearn.metrics")
    true, found = (_one_hot(labels, [item or [] for item in side]) for side in (gold, said))
    with_f1 = {k: sk.f1_score(true, found, average=k, zero_division=np.nan) for k in ("micro", "macro")}
    each = sk.f1_score(true, found, average=None, zero_division=np.nan)
    out = {"accuracy": float(counts.right.mean()), "accuracy_ci95": share(counts.right)}
    for k, value in with_f1.items():
        out |= with_interval(f"{k}_f1", None if np.isnan(value) else float(value))
    return out | {"f1": {label: None if np.isnan(f) else float(f) for label, f in zip(labels, each, strict=True)}}


def padded(gold: list[list[str]], said: list[list[str] | None]) -> tuple[list[list[str]], list[list[str]]]:
    """Both sides with a tag for each word and for each entity beyond the text; of a malformed answer O."""
    true = [[*tags, *["O"] * (len(found or tags) - len(tags))] for tags, found in zip(gold, said, strict=True)]
    return true, [begun(found) if found else ["O"] * len(tags) for tags, found in zip(gold, said, strict=True)]


def _one_hot(labels: list[str], side: list[list[str]]) -> np.ndarray:
    return np.array([[label in item for label in labels] for item in side]).astype(int)


def against(measure: str, ours: Counts, theirs: Counts, seed: int = 0) -> dict:
    """The difference of two systems on the same texts, with its paired bootstrap interval, and what it says: "better", "worse", or
    CHANCE where 0 is inside."""
    n = len(ours.right)
    bounds = interval(lambda rows: ours.value(measure, rows) - theirs.value(measure, rows), n, seed=seed)
    low, high = bounds or (float("-inf"), float("inf"))  # one text, or nothing to find in any: nothing can be said
    verdict = "better" if low > 0 else "worse" if high < 0 else CHANCE
    difference = ours.value(measure) - theirs.value(measure)
    return {"difference": None if np.isnan(difference) else difference, "difference_ci95": bounds, "verdict": verdict}
