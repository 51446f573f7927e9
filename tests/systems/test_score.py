"""The figures of a task against the libraries' own, and by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics import f1_score as f1_entities
from seqeval.metrics import precision_score, recall_score
from seqeval.scheme import IOB2
from sklearn.metrics import f1_score

from nanomed.systems.tasks import score
from nanomed.systems.tasks.entities import begun

TAGS = st.lists(
    st.lists(st.sampled_from("O O B-D I-D B-E I-E".split()), min_size=4, max_size=4), min_size=2, max_size=6
)


@given(TAGS, TAGS)
@settings(max_examples=200, deadline=None)
def test_strict_and_repaired_are_the_two_modes_of_seqeval(gold, said):
    """Of tags as they come, an I- without a B- among them; what is true is whole."""
    n = min(len(gold), len(said))
    gold, said = [list(begun(t)) for t in gold[:n]], said[:n]
    strict = {"mode": "strict", "scheme": IOB2, "zero_division": 0}
    for repaired, how in ((False, strict), (True, {"zero_division": 0})):
        counts = score.count(True, ["D", "E"], gold, said, repaired)
        assert np.nan_to_num(counts.value("entity_f1")) == pytest.approx(f1_entities(gold, said, **how))
        hits, of_said, of_true = (c.sum() for c in (counts.hits, counts.said, counts.true))
        assert hits / max(of_said, 1) == pytest.approx(precision_score(gold, said, **how))
        assert hits / max(of_true, 1) == pytest.approx(recall_score(gold, said, **how))


def test_both_figures_stand_there_where_an_i_has_no_b():
    gold = [["B-D", "I-D", "O"], ["O", "B-E", "O"]]
    found = score.figures(True, ["D", "E"], gold, [["I-D", "I-D", "O"], ["O", "B-E", "I-D"]])
    assert (found["orphans"], found["precision"], found["recall"]) == (2, 1, 0.5)
    assert (found["entity_f1"], found["entity_f1_repaired"]) == (pytest.approx(2 / 3), pytest.approx(4 / 5))
    assert len(found["entity_f1_repaired_ci95"]) == 2
    found = score.figures(True, ["D", "E"], gold, gold)
    assert (found["orphans"], found["entity_f1"]) == (0, 1) and "entity_f1_repaired" not in found


@given(TAGS, TAGS)
@settings(max_examples=50, deadline=None)
def test_a_types_hyphens_are_part_of_it(gold, said):
    """seqeval's strict mode takes them off a type's end: so the same tags under plain names."""
    n = min(len(gold), len(said))
    gold, said = [list(begun(t)) for t in gold[:n]], said[:n]

    def called(side):
        return [[t.replace("-E", "-T-cell-") for t in tags] for tags in side]

    for repaired in (False, True):
        plain = score.count(True, ["D", "E"], gold, said, repaired)
        hyphens = score.count(True, ["D", "T-cell-"], called(gold), called(said), repaired)
        assert (
            (plain.hits == hyphens.hits).all()
            and (plain.said == hyphens.said).all()
            and (plain.true == hyphens.true).all()
        )


def test_where_there_is_no_entity_on_either_side_there_is_no_figure():
    found = score.figures(True, ["D"], [["O"], ["O", "O"]], [["O"], None])
    assert (found["entity_f1"], found["precision"], found["recall"], found["entity_f1_ci95"]) == (
        None,
        None,
        None,
        None,
    )
    found = score.figures(True, ["D"], [["O"], ["B-D", "O"]], [["O"], None])
    assert (found["entity_f1"], found["precision"], found["recall"]) == (0, None, 0)
    found = score.figures(False, ["a"], [[], []], [[], None])
    assert (found["micro_f1"], found["macro_f1"], found["accuracy"]) == (None, None, 0.5)


def test_a_verdict_takes_the_lower_of_our_figures_and_the_higher_of_theirs():
    gold = [["B-D", "O"], ["O", "B-D"]] * 20
    spoilt = [
        ["B-D", "O"],
        ["I-D", "B-D"],
    ] * 20  # strict: all right; repaired: one too many in every second text
    lost = [["I-D", "O"], ["O", "I-D"]] * 20  # strict: nothing; repaired: all right
    way, ours, their_way, theirs = score.hardest(True, "entity_f1", ["D"], gold, spoilt, spoilt)
    assert (way, their_way) == ("repaired", "strict")
    assert (ours.value("entity_f1"), theirs.value("entity_f1")) == (pytest.approx(0.8), 1)
    way, ours, their_way, theirs = score.hardest(True, "entity_f1", ["D"], gold, lost, lost)
    assert (way, their_way, ours.value("entity_f1"), theirs.value("entity_f1")) == (
        "strict",
        "repaired",
        0,
        1,
    )
    assert score.against("entity_f1", ours, theirs)["verdict"] == "worse"
    assert score.hardest(False, "accuracy", ["a"], [["a"]], [["a"]], [["a"]])[::2] == ("", "")


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abcx")), min_size=2, max_size=20))
@settings(max_examples=100, deadline=None)
def test_our_counts_give_the_f1_of_scikit_learn(pairs):
    gold = [[true] for true, _ in pairs]
    said = [None if found == "x" else [found] for _, found in pairs]
    counts = score.count(False, list("abc"), gold, said)
    true, found = ([pair[k] for pair in pairs] for k in (0, 1))
    for average in ("macro", "micro"):
        expected = f1_score(true, found, labels=list("abc"), average=average, zero_division=np.nan)
        assert counts.value(f"{average}_f1") == pytest.approx(expected)
    each = f1_score(true, found, labels=list("abc"), average=None, zero_division=np.nan)
    sums = zip(each, counts.hits.sum(0), (counts.said + counts.true).sum(0), strict=True)
    assert all(np.isnan(f) if n == 0 else f == pytest.approx(2 * hits / n) for f, hits, n in sums)
    assert counts.value("accuracy") == np.mean([t == f for t, f in pairs])


def test_entities_by_hand():
    gold = [["B-D", "I-D", "O", "B-D"], ["O", "O"], ["B-D", "O"]]
    said = [
        ["B-D", "I-D", "O", "O"],
        ["O", "O", "B-D"],
        None,
    ]  # one found; one that the text does not hold; malformed
    found = score.figures(True, ["D"], gold, said)
    assert (found["precision"], found["recall"], found["entities"]) == (1 / 2, 1 / 3, 3)
    assert found["entity_f1"] == pytest.approx(2 / 5)


def test_a_boundary_that_is_off_by_a_word_is_no_entity():
    assert (
        score.figures(True, ["D"], [["B-D", "I-D"], ["B-D", "O"]], [["B-D", "O"], ["B-D", "O"]])["entity_f1"]
        == 0.5
    )


def test_labels_by_hand():
    gold, said = [["a"], ["a"], ["b"], ["b"]], [["a"], None, ["b"], ["a"]]
    found = score.figures(False, ["a", "b"], gold, said)
    assert found["accuracy"] == 0.5
    assert found["f1"] == {"a": 0.5, "b": pytest.approx(2 / 3)}
    assert found["macro_f1"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert found["micro_f1"] == pytest.approx(2 * 2 / (3 + 4))


def test_a_malformed_answer_is_not_right_where_there_is_nothing_to_find():
    found = score.figures(False, ["a", "b"], [[], ["a"]], [None, ["a"]])
    assert found["accuracy"] == 0.5
    assert score.figures(False, ["a", "b"], [[], ["a"]], [[], ["a"]])["accuracy"] == 1


def test_a_label_that_is_nowhere_is_left_out_of_the_mean():
    assert score.figures(False, ["a", "b", "c"], [["a"], ["b"]], [["a"], ["b"]])["macro_f1"] == 1


def test_intervals_hold_the_figure_and_shrink_with_the_texts():
    rng = np.random.default_rng(0)

    def width(n):
        gold = [[str(x)] for x in rng.integers(0, 2, n)]
        said = [g if rng.random() < 0.7 else [str(1 - int(g[0]))] for g in gold]
        found = score.figures(False, ["0", "1"], gold, said)
        low, high = found["macro_f1_ci95"]
        assert low <= found["macro_f1"] <= high
        return high - low

    assert width(2000) < width(50) / 3


def test_two_systems_on_the_same_texts():
    gold = [["a"]] * 50 + [["b"]] * 50
    right, wrong = (
        score.count(False, ["a", "b"], gold, gold),
        score.count(False, ["a", "b"], gold, [["a"]] * 100),
    )
    found = score.against("accuracy", right, wrong)
    assert (found["difference"], found["verdict"]) == (0.5, "better")
    assert score.against("accuracy", wrong, right)["verdict"] == "worse"
    assert score.against("accuracy", right, right) == {
        "difference": 0.0,
        "difference_ci95": [0.0, 0.0],
        "difference_p": 1.0,
        "verdict": "no difference beyond chance",
    }


@pytest.mark.parametrize("measure", ["accuracy", "macro_f1", "entity_f1"])
def test_a_few_texts_show_no_difference(measure):
    """All wrong against all right: in 2 of the 2^n ways of swapping answers the difference is as large."""
    for n, verdict in ((1, score.CHANCE), (2, score.CHANCE), (5, score.CHANCE), (8, "worse")):
        gold = [["B-D", "O"], ["O", "B-D"]] * n if measure == "entity_f1" else [["a"], ["b"]] * n
        gold, tagged = gold[:n], measure == "entity_f1"
        labels = ["D"] if tagged else ["a", "b"]
        right, wrong = (score.count(tagged, labels, gold, said) for said in (gold, [None] * n))
        found = score.against(measure, wrong, right)
        assert (found["difference"], found["verdict"]) == (-1, verdict)
        assert found["difference_p"] == pytest.approx(2 / 2**n, abs=0.05)
        assert found["difference_ci95"] == (None if n == 1 else [-1, -1])


def test_where_there_is_nothing_to_find_nothing_differs():
    nothing = score.Counts(*(np.zeros((5, 1), int) for _ in "hst"), np.ones(5, bool))
    found = score.against("entity_f1", nothing, nothing)
    assert found == {
        "difference": None,
        "difference_ci95": None,
        "difference_p": 1.0,
        "verdict": score.CHANCE,
    }
