"""Figures of one task: what was said of each text, against what is true.

Entities are counted in two ways, which differ where an I- tag has no B- before it. Strict (IOB2): it is no
entity. Repaired: it begins one, as conlleval (Tjong Kim Sang and Buchholz 2000) has it. These are seqeval's
mode="strict" and its default mode; its own functions are not called, since the strict one takes the hyphens
off the ends of types. The F1 of labels equals scikit-learn's, which is not called either: of one label alone
it counts the texts without it as a second one. The counts of each text give the bootstrap intervals and the
paired difference of two systems. A malformed answer (None) finds nothing and is right about nothing."""

from functools import partial

import numpy as np

from nanomed.evaluation.bootstrap import interval, wilson
from nanomed.evaluation.counts import Counts, beyond_chance, difference, or_none
from nanomed.systems.tasks.entities import begun, mentions, orphans

WAYS = ("strict", "repaired")
CHANCE = "no difference beyond chance"
Answers = list[list[str] | None]  # the tags or labels of each text


def count(tagged: bool, labels: list[str], gold: Answers, said: Answers, repaired=False) -> Counts:
    """Counts of labels, or of the entities of tags, strict or repaired. Tags behind a text's end are entities
    that it does not hold."""
    n, number = len(gold), {label: k for k, label in enumerate(labels)}
    hits, of_said, of_true = (np.zeros((n, len(labels)), int) for _ in range(3))
    right = np.zeros(n, bool)

    def items(tags):
        return set(mentions(begun(tags) if repaired else tags)) if tagged else {(label,) for label in tags}

    for row, (true, found) in enumerate(zip(gold, said, strict=True)):
        right[row] = found is not None
        true, found = items(true), items(found or [])
        right[row] &= true == found
        for counts, those in ((hits, true & found), (of_said, found), (of_true, true)):
            for item in those:
                counts[row, number[item[-1]]] += 1
    return Counts(hits, of_said, of_true, right)


def figures(tagged: bool, labels: list[str], gold: Answers, said: Answers, seed: int = 0) -> dict:
    """Of tags: strict entity F1 (IOB2) with precision and recall, how many I- tags have no B-, and F1 with
    these repaired; of labels: accuracy, micro- and macro-F1, and F1 of each; all from 0 to 1, None where
    there is nothing to count; F1 and accuracy with 95 % intervals over the texts."""
    counts, n = count(tagged, labels, gold, said), len(gold)

    def with_interval(measure, counts, end=""):
        bounds = interval(partial(counts.value, measure), n, seed=seed)
        return {measure + end: or_none(counts.value(measure)), f"{measure}{end}_ci95": bounds}

    if tagged:
        hits, of_said, of_true = (int(c.sum()) for c in (counts.hits, counts.said, counts.true))
        out = {"precision": hits / of_said if of_said else None}
        out |= {"recall": hits / of_true if of_true else None, "entities": of_true}
        out |= with_interval("entity_f1", counts)
        out["orphans"] = sum(orphans(tags) for tags in said if tags)
        if not out["orphans"]:
            return out
        repaired = count(tagged, labels, gold, said, repaired=True)
        return out | with_interval("entity_f1", repaired, "_repaired")
    out = {"accuracy": float(counts.right.mean()), "accuracy_ci95": wilson(counts.right)}
    for measure in ("micro_f1", "macro_f1"):
        out |= with_interval(measure, counts)
    return out | {"f1": dict(zip(labels, map(or_none, counts.f1()), strict=True))}


def hardest(tagged: bool, measure: str, labels, gold, ours, theirs) -> tuple[str, Counts, str, Counts]:
    """(way, counts) of ours and of theirs, of the ways to count entities (strict, repaired) the one that
    gives us the lower figure and the one that gives them the higher; of labels there is one way, ""."""

    def ways(said):
        names = WAYS if tagged else [""]
        return [(way, count(tagged, labels, gold, said, way == "repaired")) for way in names]

    def value(item):
        return np.nan_to_num(item[1].value(measure))

    return *min(ways(ours), key=value), *max(ways(theirs), key=value)


def against(measure: str, ours: Counts, theirs: Counts, seed: int = 0) -> dict:
    """The difference() of two systems on the same texts, and what it says: "better", "worse" or CHANCE."""
    found = difference(measure, ours, theirs, seed)
    sign = "better" if (found["difference"] or 0) > 0 else "worse"
    return found | {"verdict": sign if beyond_chance(found) else CHANCE}
