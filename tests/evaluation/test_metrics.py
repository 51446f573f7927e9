"""Measures of answers against the libraries' own, and the verdict on two classifiers under no difference."""

import importlib.metadata
import json
import re
import string

import numpy as np
import pytest
import sacrebleu
import sklearn.metrics
import torch
from hypothesis import given
from hypothesis import strategies as st
from rouge_score import rouge_scorer
from scipy.stats import binomtest

from nanomed.evaluation import metrics, tables
from nanomed.evaluation.baselines import TFIDF, beside_baselines, verdict
from nanomed.text.labelled import Labelled, LabelledSet, Sides
from nanomed.text.nfkc import nfkc
from tests.conftest import make_texts

WORDS = [
    "a",
    "A",
    "an",
    "the",
    "The",
    "hepatitis",
    "1.5",
    "15",
    "mg",
    "<10",
    ">10",
    "<",
    "10",
    "%",
    "5-10",
    "-5",
    "1,000",
    "B-12",
    "HER2-",
    "(n=20),",
    "Crohn's",
    "end.",
    "and",
    "β-cell",
    "٣",
    "İ",
    "1e-3",
    "I/II",
    "I-II",
    "-ve",
    "T4/T3",
    "/",
    "-",
]
phrases = st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join)
anything = st.one_of(phrases, st.text(), st.text(alphabet="aAiI1 .,-/+%<the\n'", max_size=20))


# --- exact match --------------------------------------------------------------------------------------------

DIFFERENT = [  # for a reader, though SQuAD's evaluation takes them for the same
    ("1.5 mg", "15 mg"),
    (".5 mg", "5 mg"),
    ("<10", ">10"),
    ("p < 0.05", "p > 0.05"),
    ("-5 dioptres", "5 dioptres"),
    ("5-10 mg", "510 mg"),
    ("120/80", "12080"),
    ("1:1000", "11000"),
    ("10^6 cells", "106 cells"),
    ("1,5 mg", "15 mg"),
    ("5%", "5"),
    ("HER2+", "HER2-"),
    ("ER-, PR+", "ER+, PR-"),
    ("hepatitis A", "hepatitis"),
    ("hepatitis A virus", "hepatitis virus"),
    ("Vitamin A.", "Vitamin."),
    ("vitamin a and zinc", "vitamin and zinc"),
    ("hepatitis a, b", "hepatitis b"),
    ("A", "The"),
    ("1e-3", "1e3"),
    ("1E-3 mol", "1E3 mol"),
    ("grade I/II", "grade III"),
    ("type I-II", "type III"),
    ("types I-II-III", "types IIIIII"),
    ("blood group A/B", "blood group AB"),
    ("blood group A-B", "blood group AB"),
    ("(-ve)", "(ve)"),
    ("T4/T3", "T4T3"),
]
SAME = [
    ("The cat sat.", "the cat  sat"),
    ("A fever!", "fever"),
    ("It is viral. A virus of bats.", "it is viral; virus of bats"),
    ("an (acute) illness", "acute illness"),
    ('The "a" 5 mg dose'.replace('"a"', "a"), "5 mg dose"),
    ("1,000 mg", "1000 mg."),
    ("< 10 %", "<10%"),
    ("Crohn's disease", "crohns disease"),
    ("beta-blocker", "betablocker"),
    ("IL-6", "IL6"),
    ("vitamin A", "vitamin a"),
    ("give 5.", "give 5"),
    ("X-ray, T-cell", "xray tcell"),
    ("follow-up", "followup"),
    ("fever -", "fever"),
    ("fever /", "fever"),
]


@pytest.mark.parametrize(("a", "b"), DIFFERENT)
def test_what_changes_the_meaning_is_no_exact_match(a, b):
    got = metrics.answers([a], [b], [True])
    assert got["exact_match"] == 0 and got["exact_match_squad"] == 1


@pytest.mark.parametrize(("a", "b"), SAME)
def test_what_changes_nothing_is_an_exact_match(a, b):
    got = metrics.answers([a], [b], [True])
    assert got["exact_match"] == got["exact_match_squad"] == 1


def squad(text):
    """The official evaluation script of SQuAD 1.1 and 2.0, line by line."""

    def remove_articles(text):
        return re.sub(r"\b(a|an|the)\b", " ", text)

    def remove_punc(text):
        exclude = set(string.punctuation)
        return "".join(ch for ch in text if ch not in exclude)

    return " ".join(remove_articles(remove_punc(text.lower())).split())


@given(anything)
def test_ours_leaves_in_what_squads_normalisation_takes_out_and_nothing_else(text):
    ours = metrics.normalise(text)
    assert metrics.normalise_squad(text) == squad(text)
    assert squad(ours) == squad(
        nfkc(text)
    )  # so that an exact match of ours is one of SQuAD's in the same characters
    assert "".join(re.findall(r"\d", ours)) == "".join(re.findall(r"\d", nfkc(text).lower()))


@given(anything, anything)
def test_the_strict_match_is_never_more_lenient(a, b):
    if metrics.normalise(a) == metrics.normalise(b):
        assert squad(nfkc(a)) == squad(nfkc(b))


@given(st.decimals(-1000, 1000, places=2), st.decimals(-1000, 1000, places=2))
def test_two_numbers_match_only_if_they_are_the_same(x, y):
    assert (metrics.normalise(f"give {x} mg") == metrics.normalise(f"Give {y} mg.")) == (str(x) == str(y))


# --- BLEU and ROUGE -----------------------------------------------------------------------------------------


def defaults(answer, reference):
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    return {name: s.fmeasure for name, s in scorer.score(reference, answer).items()}


def test_rouge_of_english_is_the_librarys():
    a, b = ([t.encode("ascii", "ignore").decode() for t in make_texts(30, seed, 1, 30)] for seed in (1, 2))
    got, expected = metrics.answers(a, b, [True] * 30), [defaults(x, y) for x, y in zip(a, b, strict=True)]
    for key, name in (("rouge_1", "rouge1"), ("rouge_2", "rouge2"), ("rouge_l", "rougeL")):
        assert np.isclose(got[key], np.mean([e[name] for e in expected])) and got[key] > 0


def test_the_best_of_several_references_counts_and_bleu_takes_all():
    a, *others = ([t.encode("ascii", "ignore").decode() for t in make_texts(9, n, 5, 20)] for n in range(4))
    references = [[b[k] for b in others[: 1 + k % 3]] for k in range(9)]
    references[1][1] = a[1].upper()
    got = metrics.answers(a, references, [True] * 9)
    scorer = rouge_scorer.RougeScorer(["rouge1", "rougeL"], use_stemmer=True)
    rouge = [scorer.score_multi(refs, text) for refs, text in zip(references, a, strict=True)]
    for key, name in (("rouge_1", "rouge1"), ("rouge_l", "rougeL")):
        assert np.isclose(got[key], np.mean([s[name].fmeasure for s in rouge]))
    streams = [[refs[k] if k < len(refs) else None for refs in references] for k in range(3)]
    assert np.isclose(got["bleu"], sacrebleu.corpus_bleu(a, streams).score)
    assert "nrefs:var" in got["settings"]["bleu"]
    f1 = [max(metrics.token_f1(text, r) for r in refs) for refs, text in zip(references, a, strict=True)]
    assert np.isclose(got["token_f1"], np.mean(f1)) and got["exact_match"] == 1 / 9
    assert metrics.answers(a, others[0], [True] * 9) == metrics.answers(
        a, [[b] for b in others[0]], [True] * 9
    )


@given(st.text(alphabet=st.characters(codec="ascii")))
def test_ascii_words_are_the_librarys(text):
    expected = rouge_scorer.tokenizers.DefaultTokenizer(use_stemmer=True).tokenize(text)
    assert metrics.UnicodeWords().tokenize(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "β-αναστολέας της αδρένης",
        "高血压 是 慢性病",
        "高血压是慢性病",
        "Œdème aigu généralisé",
        "ความดันโลหิตสูง",
        "उच्च रक्तचाप हिन्दी",
        "고혈압은 만성 질환이다",
    ],
)
def test_rouge_of_identical_answers_is_one_in_any_script(text):
    got = metrics.answers([text], [text], [True])
    assert got["rouge_1"] == got["rouge_2"] == got["rouge_l"] == 1
    assert metrics.answers([text], ["something else"], [True])["rouge_1"] == 0


def test_unicode_words():
    words = metrics.UnicodeWords().tokenize
    assert words("Naïve β-blockers, 37°C") == ["naïve", "β", "blocker", "37", "c"]
    assert words("高血压是") == list("高血压是")  # unspaced: a character is a word
    assert words("e\u0301te\u0301") == words("été") == ["été"]  # composed and not
    assert words("हिन्दी") != words("हान्दा")  # vowel signs belong to the word
    assert metrics.answers(["高血压是病"], ["高血压非病"], [True])["rouge_1"] == pytest.approx(0.8)


def test_the_settings_are_named():
    settings = metrics.answers(["six words make a sentence here"], ["x"], [True])["settings"]
    version = importlib.metadata.version("rouge-score")
    assert settings["rouge"] == f"rouge-score {version}, F1, Porter stemmer, Unicode words"
    bleu = sacrebleu.metrics.BLEU()
    bleu.corpus_score(["a"], [["a"]])
    assert settings["bleu"] == f"sacrebleu {bleu.get_signature()}"
    chinese = metrics.answers(["高血压是慢性病"], ["高血压是慢性病"], [True])
    assert (
        chinese["bleu"] == 0 and "13a takes unspaced" in chinese["settings"]["bleu"]
    )  # one word, no pair of words


@pytest.mark.parametrize(
    ("answer", "explained"),
    [("yes", True), ("it is", True), ("it is not so", False), ("a, b", True), ("a, b.", False)],
)
def test_a_bleu_of_answers_shorter_than_its_n_grams_is_explained(answer, explained):
    got = metrics.answers([answer, "no"], [answer, "no"], [True] * 2)
    theirs = sacrebleu.corpus_bleu([answer, "no"], [[answer, "no"]]).score  # right answers, word for word
    assert (got["bleu"], theirs == 0) == (theirs, explained)
    assert ("because no answer has 4 tokens" in got["settings"]["bleu"]) == explained


# --- the verdict --------------------------------------------------------------------------------------------


def two(n, k, accuracy, alike, rng):
    """Targets and the predictions of two classifiers of one accuracy; on a share `alike` of the texts they
    say the same."""
    targets = rng.integers(0, k, n)
    said = [
        np.where(rng.random(n) < accuracy, targets, (targets + rng.integers(1, k, n)) % k) for _ in range(3)
    ]
    same = rng.random(n) < alike
    return targets, np.where(same, said[2], said[0]), np.where(same, said[2], said[1])


def stands_beside(model, tfidf, targets, seed=0):
    """What verdict() needs of beside_baselines(), of predicted labels (N,)."""
    k = int(max(model.max(), tfidf.max(), targets.max())) + 1
    pair = metrics.paired(np.eye(k)[model], np.eye(k)[tfidf], targets, seed)
    share = [
        float((x == targets).mean()) for x in (model, tfidf)
    ]  # for macro-F1, which is printed and no more
    return {"model": {"macro_f1": share[0], "against_tfidf": pair}, TFIDF: {"macro_f1": share[1]}}


@pytest.mark.parametrize(
    ("n", "k", "accuracy", "alike"),
    [(12, 10, 0.6, 0), (20, 5, 0.6, 0), (40, 2, 0.6, 0.5), (200, 2, 0.8, 0.6)],
)
def test_where_there_is_no_difference_few_verdicts_say_that_there_is(n, k, accuracy, alike):
    rng, false = np.random.default_rng(1), 0
    for seed in range(200):
        targets, a, b = two(n, k, accuracy, alike, rng)
        false += "beyond chance" not in verdict(stands_beside(a, b, targets, seed))
    assert false / 200 <= 0.07


def test_a_difference_is_found_where_there_is_one():
    rng = np.random.default_rng(2)
    targets = rng.integers(0, 3, 300)
    good, poor = (np.where(rng.random(300) < p, targets, (targets + 1) % 3) for p in (0.9, 0.8))
    assert "the model beats the TF-IDF baseline:" in verdict(stands_beside(good, poor, targets))
    assert "the model does NOT beat the TF-IDF baseline:" in verdict(stands_beside(poor, good, targets))


def test_one_text_in_twenty_proves_nothing():
    targets = np.arange(20) % 2
    other = targets.copy()
    other[0] = 1
    said = verdict(stands_beside(targets, other, targets))  # the model makes no mistake at all
    assert "does not beat the TF-IDF baseline beyond chance: macro-F1 1.000 and 0.950" in said
    assert "only the model is right on 1 texts, only TF-IDF on 0 (McNemar's p 1.000)" in said
    assert "beyond chance" in verdict(stands_beside(targets, targets, targets))
    assert "too few texts" in verdict(stands_beside(targets[:1], targets[1:2], targets[:1]))


@pytest.mark.parametrize("multi", [False, True])
def test_the_paired_measures_are_those_of_their_definitions(multi):
    rng, n = np.random.default_rng(3), 60
    if multi:
        targets = (rng.random((n, 3)) < [0.5, 0.2, 0]).astype(float)
        a, b = (np.abs(targets - (rng.random((n, 3)) < p)) for p in (0.1, 0.2))
        right = [(x == targets).all(1) for x in (a, b)]
        got = metrics.paired(a, b, targets, samples=4000)
    else:
        targets, x, y = two(n, 3, 0.7, 0.3, rng)
        a, b = np.eye(3)[x], np.eye(3)[y]
        right = [x == targets, y == targets]
        got = metrics.paired(a, b, targets, samples=4000)
    marked = targets if multi else np.eye(3)[targets]

    def f1(rows, x):
        both = 2 * (marked[rows] * x[rows]).sum(0), (marked[rows] + x[rows]).sum(0)
        return np.mean([hits / size for hits, size in zip(*both, strict=True) if size])

    everything = np.arange(n)
    assert np.isclose(
        f1(everything, a), sklearn.metrics.f1_score(marked, a, average="macro", zero_division=np.nan)
    )
    assert np.isclose(got["difference"], f1(everything, a) - f1(everything, b))
    only = [int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())]
    assert [got["only_model_right"], got["only_tfidf_right"]] == only
    assert np.isclose(got["p"], binomtest(only[0], sum(only)).pvalue)
    draws, swaps = [], []
    for _ in range(1000):  # text by text
        rows, coin = rng.integers(n, size=n), rng.random(n) < 0.5
        draws.append(f1(rows, a) - f1(rows, b))
        mixed = np.where(coin[:, None], a, b), np.where(coin[:, None], b, a)
        swaps.append(f1(everything, mixed[0]) - f1(everything, mixed[1]))
    assert np.allclose(got["difference_ci95"], np.nanpercentile(draws, [2.5, 97.5]), atol=0.02)
    assert np.isclose(got["difference_p"], np.mean(np.abs(swaps) >= abs(got["difference"]) - 1e-9), atol=0.05)


def test_measures_of_nothing_are_none_and_not_nan():
    nothing, unsure = np.zeros((5, 2)), np.full((5, 2), 0.1)
    got = metrics.classification(unsure, nothing, ["a", "b"])
    assert got["macro_f1"] is got["macro_f1_ci95"] is got["micro_f1"] is got["f1"]["a"] is None
    pair = metrics.paired(unsure, unsure, nothing)
    assert pair["difference"] is pair["difference_ci95"] is None
    json.dumps([got, pair], allow_nan=False)
    assert "too few texts" in verdict({"model": got | {"against_tfidf": pair}, TFIDF: got})
    assert "1.000 [0.566, 1.000]" in tables.classification_table({"model": got})[2]


# --- labels -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "ordered"),
    [
        ([str(k) for k in range(11)], [str(k) for k in range(11)]),
        (["10", "-2", "9", "1"], ["-2", "1", "9", "10"]),
        (["10", "9", "b"], ["10", "9", "b"]),
        (["1.5", "10", "9"], ["1.5", "10", "9"]),
        (["01", "1", "0"], ["0", "01", "1"]),
        (["9" * 5000, "1"], ["1", "9" * 5000]),
    ],
)
def test_labels_that_are_all_whole_numbers_stand_in_their_order(given, ordered):
    items = [Labelled("t", (label,)) for label in reversed(given)]
    assert LabelledSet(items, False, 0, "").names() == ordered


def test_measures_carry_the_pairing():
    items = [
        Labelled(f"{'fever cough' if k % 3 else 'goal match'} number {k}", ("ill" if k % 3 else "well",))
        for k in range(60)
    ]
    sides = Sides(["ill", "well"], False, items[:40], {"validation": items[40:]})
    targets = np.array([int(item.labels[0] == "well") for item in items[40:]])
    got = beside_baselines(torch.tensor([[1.0, 0.0]] * 20), sides.labels, sides, items[40:], targets, 0)
    pair = got["model"]["against_tfidf"]
    assert pair["difference"] == pytest.approx(got["model"]["macro_f1"] - got[TFIDF]["macro_f1"])
    assert (pair["only_model_right"], pair["only_tfidf_right"]) == (0, targets.sum())
    assert pair["p"] == pytest.approx(binomtest(0, int(targets.sum())).pvalue)


# --- the table of answers -----------------------------------------------------------------------------------


def test_overlap_measures_are_printed_on_one_scale():
    good, bad = (
        metrics.answers([a] * 3, ["six words make a sentence here"] * 3, [True] * 3)
        for a in ("six words make a sentence here", "x")
    )
    rows = tables.answers_table({"one": good | {"answer_ppl": 3.2, "answer_ppl_ci95": None}, "two": bad})
    assert rows[0] == ["overlap with the reference, 0 to 100", "one", "two"]
    table = {row[0]: row[1:] for row in rows}
    for name in (
        "exact match, %",
        "exact match (SQuAD's), %",
        "token F1 (SQuAD's)",
        "BLEU",
        "ROUGE-1 F1",
        "ROUGE-2 F1",
        "ROUGE-L F1",
    ):
        exact = "exact" in name  # a share, whose interval of three answers is wide
        intervals = ("[43.9, 100.0]", "[0.0, 56.1]") if exact else ("[100.0, 100.0]", "[0.0, 0.0]")
        assert table[name] == [f"100.0 {intervals[0]}", f"0.0 {intervals[1]}"], name
    assert table["answer perplexity, from 1 up"] == ["3.20", ""]  # the second model has none
    assert table["words an answer"][0] == "6.0 [6.0, 6.0]"
