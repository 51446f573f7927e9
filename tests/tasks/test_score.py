"""The figures of a task against the libraries' own, and by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics import classification_report
from seqeval.scheme import IOB2
from sklearn.metrics import f1_score

from nanomed.tasks import score
from nanomed.tasks.entities import begun

TAGS = st.lists(st.lists(st.sampled_from("O O B-D I-D B-E I-E".split()), min_size=4, max_size=4), min_size=2, max_size=6)


@given(TAGS, TAGS)
@settings(max_examples=100, deadline=None)
def test_our_counts_give_the_strict_f1_of_seqeval(gold, said):
    n = min(len(gold), len(said))
    gold, said = [list(begun(t)) for t in gold[:n]], [list(begun(t)) for t in said[:n]]
    if not any(tag != "O" for tags in gold + said for tag in tags):
        return
    report = classification_report(gold, said, mode="strict", scheme=IOB2, output_dict=True, zero_division=0)
    value = score.count(True, ["D", "E"], gold, said).value("entity_f1")
    assert value == pytest.approx(report["micro avg"]["f1-score"])


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
    assert counts.value("accuracy") == np.mean([t == f for t, f in pairs])


def test_entities_by_hand():
    gold = [["B-D", "I-D", "O", "B-D"], ["O", "O"], ["B-D", "O"]]
    said = [["B-D", "I-D", "O", "O"], ["O", "O", "B-D"], None]  # one found; one that the text does not hold; malformed
    found = score.figures(True, ["D"], gold, said)
    assert (found["precision"], found["recall"], found["entities"]) == (1 / 2, 1 / 3, 3)
    assert found["entity_f1"] == pytest.approx(2 / 5)


def test_a_boundary_that_is_off_by_a_word_is_no_entity():
    assert score.figures(True, ["D"], [["B-D", "I-D"], ["B-D", "O"]], [["B-D", "O"], ["B-D", "O"]])["entity_f1"] == 0.5


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
    right, wrong = score.count(False, ["a", "b"], gold, gold), score.count(False, ["a", "b"], gold, [["a"]] * 100)
    found = score.against("accuracy", right, wrong)
    assert (found["difference"], found["verdict"]) == (0.5, "better")
    assert score.against("accuracy", wrong, right)["verdict"] == "worse"
    assert score.against("accuracy", right, right) == {
        "difference": 0.0,
        "difference_ci95": [0.0, 0.0],
        "verdict": "no difference beyond chance",
    }
