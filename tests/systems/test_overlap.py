"""Against brute force on sets of tuples: nothing above the threshold is missed, nothing below it is
reported."""

import random
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanomed.errors import UserError
from nanomed.evaluation.training_texts import say_overlap
from nanomed.systems import overlap
from nanomed.systems.overlap import Duplicates, near_duplicates
from nanomed.text.ngrams import ngram_overlap, words

WORDS = [
    f"{a}{b}" for a in "bcdfgklm" for b in ("an", "er", "is", "ot", "ux", "yl", "ine", "ose", "gen", "oma")
]


class Lazy:
    """Texts as an index into a mapped file gives them: a length and [k], no iteration. Counts the reads of
    each."""

    def __init__(self, texts):
        self.texts, self.reads = texts, [0] * len(texts)

    def __len__(self):
        return len(self.texts)

    def __getitem__(self, k):
        assert isinstance(k, int) and 0 <= k < len(self.texts)
        self.reads[k] += 1
        return self.texts[k]


def text_of(rng, n=60):
    return " ".join(rng.choices(WORDS, k=n))


def mutated(rng, text, edits):
    """With so many words replaced, dropped or doubled."""
    parts = text.split()
    for _ in range(edits):
        k = rng.randrange(len(parts))
        parts[k : k + 1] = (
            rng.choice([[rng.choice(WORDS)], [], [parts[k]] * 2]) if len(parts) > 1 else parts[k : k + 1]
        )
    return " ".join(parts)


def mixture(rng, n):
    """Fresh texts, equal ones, some a few words apart, short ones, some without words."""
    texts = [text_of(rng)]
    while len(texts) < n:
        kind, other = rng.random(), rng.choice(texts)
        if kind < 0.3:
            texts.append(text_of(rng, rng.randint(1, 80)))
        elif kind < 0.4:
            texts.append(other)
        elif kind < 0.45:
            texts.append(other.upper() + "!")
        elif kind < 0.55:
            texts.append(rng.choice(["", " ", "...", "?!", "one two", "two one", "One, two"]))
        else:
            texts.append(mutated(rng, other, rng.randint(0, 8)) if other.split() else other)
    return texts


def shingles(text, width):
    parts = words(text)
    return {tuple(parts[k : k + width]) for k in range(max(1, len(parts) - width + 1))} if parts else set()


def brute_force(training, held, threshold, width):
    """((exact held, near held, exact within, near within), removed, near or equal to a held one), over all
    pairs."""

    def similarity(a, b):
        a, b = shingles(a, width), shingles(b, width)
        return len(a & b) / len(a | b) if a and b else 0.0

    others, kept, counts, removed, of_held = (
        [t for texts in held.values() for t in texts],
        [],
        [0] * 4,
        [],
        [],
    )
    for text in training:
        tests = [
            text in others,
            any(similarity(text, o) >= threshold for o in others),
            text in kept,
            any(similarity(text, o) >= threshold for o in kept),
        ]
        order = next((k for k in (0, 2, 1, 3) if tests[k]), None)
        removed.append(order is not None)
        of_held.append(order in (0, 1))
        if order is None:
            kept.append(text)
        else:
            counts[order] += 1
    return tuple(counts), removed, of_held


def counts(d: Duplicates):
    return d.exact_held, d.near_held, d.exact_within, d.near_within


@pytest.mark.parametrize("threshold, width", [(0.8, 5), (0.5, 3), (1.0, 5), (0.6, 1)])
def test_near_duplicates_equal_brute_force(threshold, width):
    rng = random.Random(f"{threshold} {width}")
    texts = mixture(rng, 180)
    rng.shuffle(texts)
    training, held = texts[:130], {"a": texts[130:150], "b": texts[150:]}
    d = near_duplicates(training, held, threshold, width)
    expected = brute_force(training, held, threshold, width)
    assert (counts(d), d.removed.tolist(), d.near_removed_held.tolist()) == expected
    assert min(expected[0]) > 0 and sum(expected[0]) < len(training)  # each kind, and some that stay
    assert d.removed.dtype == d.near_removed_held.dtype == bool


SMALL = st.lists(st.text("ab .", max_size=12), max_size=8)


@settings(max_examples=40, deadline=None)
@given(SMALL, SMALL, SMALL, st.sampled_from([0.25, 0.5, 0.8, 1.0]), st.integers(1, 3))
def test_tiny_texts_equal_brute_force(training, a, b, threshold, width):
    d = near_duplicates(training, {"a": a, "b": b}, threshold, width)
    assert (counts(d), d.removed.tolist(), d.near_removed_held.tolist()) == brute_force(
        training, {"a": a, "b": b}, threshold, width
    )


def test_what_is_planted_is_found_and_the_first_stays():
    rng = random.Random(0)
    fresh = [text_of(rng, 100) for _ in range(6)]
    held = [text_of(rng, 100) for _ in range(2)]
    ends = [t + " end" for t in (*fresh, *held)]
    training = [fresh[0], held[0], ends[0], fresh[1], fresh[0], ends[7], *fresh[2:], ends[0], ends[7]]
    d = near_duplicates(training, {"test": held})
    assert counts(d) == (1, 2, 1, 2)
    assert np.flatnonzero(d.removed).tolist() == [1, 2, 4, 5, 10, 11]
    assert np.flatnonzero(d.near_removed_held).tolist() == [1, 5, 11]
    assert [(e[2], e[3]) for e in d.examples] == [
        *[(fresh[0], "training"), (held[1], "test")] * 2,  # equally similar, so in the training texts' order
        (held[0], "test"),
    ]
    assert [round(e[0], 2) for e in d.examples] == [0.99] * 4 + [1.0]


def test_the_closest_examples_are_shown_and_one_that_is_equal():
    rng = random.Random(1)
    base = [text_of(rng, 200) for _ in range(9)]
    changed = [" ".join(t.split()[k:]) for k, t in enumerate(base)]
    d = near_duplicates([*base, base[3]], {"test": changed})
    assert counts(d) == (1, 9, 0, 0)  # the second base[3] repeats one that does not stay
    assert [round(e[0], 3) for e in d.examples] == [*(round(1 - k / 196, 3) for k in (1, 2, 3, 3)), 1.0]
    assert d.examples[-1] == (1.0, base[0], base[0], "test")
    d = near_duplicates(base[1:], {"test": changed})
    assert [round(e[0], 3) for e in d.examples] == [round(1 - k / 196, 3) for k in (1, 2, 3, 4, 5)]


def test_nothing_below_the_threshold_is_reported():
    """Sets of four fifths and of a little less: 79 of 99 words in common against 80 of 100."""
    a, b = [f"a{k}" for k in range(90)], [f"b{k}" for k in range(20)]
    held = {"test": [" ".join(a)]}
    at, below = " ".join(a[10:] + b[:10]), " ".join(a[11:] + b[:9])
    assert near_duplicates([at], held, width=1).removed.tolist() == [True]  # 80 of 100
    assert near_duplicates([below], held, width=1).removed.tolist() == [False]  # 79 of 99
    many = {"test": [" ".join(a[11:] + [f"c{k}x{j}" for j in range(9)]) for k in range(50)]}
    assert not near_duplicates([" ".join(a)], many, width=1).removed[0]


def test_pairs_at_the_threshold_are_found():
    rng, found = random.Random(2), 0
    for seed in range(3):
        training, held = [], []
        for _ in range(100):
            numbers = rng.sample(range(10**6), 110)
            training.append(" ".join(map(str, numbers[:90])))
            held.append(" ".join(map(str, numbers[10:100])))
        found += near_duplicates(training, {"test": held}, width=1, seed=seed).removed.sum()
    assert found >= 0.99 * 300
    for threshold in (0.05, 0.2, 0.5, 0.8, 0.95, 1.0):
        b, r = overlap.bands(threshold)
        assert b >= 2 and b * r <= 128 and (1 - threshold**r) ** b < 0.002


def test_case_blanks_and_punctuation_are_near_but_not_equal():
    text = "Aspirin (100 mg) reduced the risk; of stroke, in adults."
    same = [
        "ASPIRIN 100 MG REDUCED THE RISK OF STROKE IN ADULTS",
        text + "\n",
        text.replace(" ", "\n\t"),
        "_" + text,
    ]
    d = near_duplicates(same, {"test": [text]})
    assert counts(d) == (0, 4, 0, 0) and [e[0] for e in d.examples] == [1.0] * 4
    d = near_duplicates([text, *same], {})
    assert counts(d) == (0, 0, 0, 4) and d.removed.tolist() == [False] + [True] * 4


def test_short_texts_and_texts_without_words():
    """A short text is one shingle: a reordering is another one, and so is the beginning of a longer text."""
    training = ["one two", "two one", "One, two!", "one two three four five", "", "", "...", "?", "..."]
    d = near_duplicates(training, {"test": ["?", "!"]})
    assert counts(d) == (1, 0, 2, 1)
    assert np.flatnonzero(d.removed).tolist() == [2, 5, 7, 8]


def test_nothing_on_one_side():
    for held in ({}, {"test": []}, {"test": ["a b c"]}):
        d = near_duplicates([], held)
        assert (
            counts(d) == (0, 0, 0, 0) and len(d.removed) == len(d.near_removed_held) == 0 and d.examples == []
        )
    d = near_duplicates(["a b c", "d"], {})
    assert not d.removed.any() and d.lines()[0].startswith("0 of 2 training texts")


def test_two_held_texts_count_a_training_text_once_and_the_first_of_the_closest_is_shown():
    rng = random.Random(3)
    text = text_of(rng, 100)
    near = [text + " x", text + " y", "z " + text + " x"]
    d = near_duplicates([text], {"a": near[2:], "b": near[:1], "c": near[:2]})
    assert counts(d) == (0, 1, 0, 0) and d.examples[0][2:] == (near[0], "b")
    d = near_duplicates([text], {"a": near, "b": [text], "c": [text]})
    assert counts(d) == (1, 0, 0, 0) and d.examples == [(1.0, text, text, "b")]


def test_held_before_an_earlier_training_text_that_is_closer():
    rng = random.Random(4)
    held = text_of(rng, 100)
    between = held + " p q r s t u v w"  # 96 of 104 shingles are the held text's
    far = "x y z " + between  # 96 of 107 are the held text's, 104 are those of what is between
    d = near_duplicates([far, between], {"test": [held]}, threshold=0.9)
    assert counts(d) == (0, 1, 0, 0) and d.removed.tolist() == [False, True] and d.examples[0][3] == "test"


def test_texts_are_read_few_times_and_only_by_their_index():
    rng = random.Random(5)
    held, training = [Lazy([text_of(rng, 100) for _ in range(30)]) for _ in range(2)]
    training.texts[7] = held.texts[3] + " end"
    d = near_duplicates(training, {"test": held})
    assert np.flatnonzero(d.removed).tolist() == [7]
    assert max(held.reads) <= 3 and max(training.reads) <= 2 and sum(training.reads + held.reads) <= 64
    evaluated = Lazy(held.texts)
    assert ngram_overlap(evaluated, iter(training.texts))["documents"] == 1
    assert max(evaluated.reads) <= 3


def test_results_are_the_same_again_and_the_order_of_the_rows_decides():
    texts = mixture(random.Random(6), 150)
    once, again = [near_duplicates(texts, {"a": texts[:5], "b": texts[3:9]}) for _ in range(2)]
    assert (
        once.examples == again.examples
        and (once.removed == again.removed).all()
        and counts(once) == counts(again)
    )
    text = text_of(random.Random(7), 100)
    for training in ([text, text + " x"], [text + " x", text]):
        assert near_duplicates(training, {}).removed.tolist() == [False, True]
    for held in ({"a": [text], "b": [text]}, {"b": [text], "a": [text]}):
        assert near_duplicates([text], held).examples[0][3] == next(iter(held))


@pytest.mark.parametrize("limit", ["AT_ONCE", "ROOM"])
def test_what_bounds_the_memory_changes_nothing(monkeypatch, limit):
    texts = mixture(random.Random(8), 120)
    whole = near_duplicates(texts, {})
    for size in (1, 90):
        monkeypatch.setattr(overlap, limit, size)
        parts = near_duplicates(texts, {})
        assert (
            parts.examples == whole.examples
            and (parts.removed == whole.removed).all()
            and whole.near_within > 5
        )


@pytest.mark.parametrize("threshold, named", [(0.0, "0.05"), (1.5, "1.5")])
def test_thresholds_that_cannot_be(threshold, named):
    with pytest.raises(UserError, match=named):
        near_duplicates(["a"], {}, threshold)


def test_without_the_library_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(UserError, match="datasketch is not installed"):
        near_duplicates(["a"], {})


def test_words():
    assert words("Na+/K+-ATPase, 3.5 µg; snake_case ÉTÉ 日本\ud800x") == [
        *("na", "k", "atpase", "3", "5", "\u03bcg", "snake", "case", "été", "日本", "x")
    ]
    assert words("") == words(" _ ,.\n") == []


def naive_overlap(evaluated, training, n):
    def grams(text):
        parts = words(text)
        return [tuple(parts[k : k + n]) for k in range(len(parts) - n + 1)]

    there = {g for text in training for g in grams(text)}
    sides = [grams(text) for text in evaluated]
    every = {g for side in sides for g in side}
    shares = [(len(set(side) & there) / len(set(side)) if side else 0, -k) for k, side in enumerate(sides)]
    return {
        "n": n,
        "documents": sum(not there.isdisjoint(side) for side in sides),
        "of": len(evaluated),
        "too_short": sum(not side for side in sides),
        "share": len(every & there) / len(every) if every else 0.0,
        "training_documents": len(training),
        "most": [
            {"document": -k, "share": share, "text": " ".join(next(g for g in sides[-k] if g in there))}
            for share, k in sorted(shares, reverse=True)[:3]
            if share
        ],
    }


@pytest.mark.parametrize("n", [1, 2, 5, 13])
def test_ngram_overlap_equals_sets_of_tuples(n):
    rng = random.Random(n)
    texts = mixture(rng, 120)
    rng.shuffle(texts)
    evaluated, training = texts[:40], texts[40:] + [t + " unheard words" for t in texts[:2]]
    result = ngram_overlap(evaluated, iter(training), n)
    assert result == naive_overlap(evaluated, training, n)
    assert result["documents"] > 0 and len(result["most"]) == 3


@settings(max_examples=60, deadline=None)
@given(SMALL, SMALL, st.integers(1, 4))
def test_tiny_ngram_overlap_equals_sets_of_tuples(evaluated, training, n):
    assert ngram_overlap(evaluated, training, n) == naive_overlap(evaluated, training, n)


def test_ngram_overlap_with_nothing_on_one_side():
    result = ngram_overlap(["too short"], ["a b"])
    assert (result["too_short"], result["share"], result["training_documents"], result["most"]) == (
        1,
        0.0,
        1,
        [],
    )
    assert say_overlap(result).endswith("; 1 are too short for that")  # which is no sign that they are unseen
    assert ngram_overlap([], ["a"])["of"] == 0
    assert ngram_overlap(["a b c"], [], 2)["share"] == 0.0


def test_what_is_said():
    long = "Line one.\n\n  line\ttwo " + "word " * 50
    d = Duplicates(
        1, 1, 0, 0, np.array([True, False, True]), np.array([True, False, True]),
        [(0.934, long, "bad \x1b[31m\x07 and \ud800 \u202e" + long, "test"), (1.0, "same", "same", "training")],
    )  # fmt: skip
    lines = d.lines()
    assert (
        lines[0]
        == "2 of 3 training texts to be taken out: 1 equal to a held text, 1 near one, 0 equal to an earlier"
        " training text, 0 near one"
    )
    assert lines[1] == "  0.93, near one of test"
    assert (
        lines[2].startswith("    Line one. line two word word")
        and lines[2].endswith("…")
        and len(lines[2]) == 104
    )
    assert lines[3].startswith("    bad �[31m� and � �Line one.")
    assert lines[4:] == ["  1.00, equal to one of training", "    same"]
    assert all(c.isprintable() for line in lines for c in line)
