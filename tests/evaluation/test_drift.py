"""The alarm: silent on more of the same, loud on another kind of text, and its figures by hand."""

import json
import math
import random

import numpy as np
import pytest

from nanomed.evaluation import drift
from nanomed.evaluation.bootstrap import difference
from nanomed.evaluation.perplexity import score_ids
from tests.conftest import ROOT, assert_refused, make_texts, write_jsonl

DRIFTED = 3


def sides(rng, n, m, ratio=1.0):
    """Texts of unequal length and difficulty; the incoming ones `ratio` times as surprising."""
    out = {}
    for name, size, factor in (("reference", n, 1.0), ("incoming", m, ratio)):
        tokens = rng.integers(5, 60, size)
        loss = 3 + 0.4 * rng.standard_normal(size) + math.log(factor)
        out[name] = (loss * tokens, tokens)
    return {k: v[0] for k, v in out.items()}, {k: v[1] for k, v in out.items()}


def test_the_shift_is_a_ratio_of_perplexities():
    nll = {"reference": np.array([10.0, 30.0]), "incoming": np.array([12.0, 36.0])}
    tokens = {name: np.array([5, 15]) for name in nll}
    found = drift.shift(nll, tokens, 1.1)
    assert found["shift"] == pytest.approx(math.exp(48 / 20 - 40 / 20))
    low, high = found["shift_ci95"]
    assert low <= found["shift"] <= high


def test_more_of_the_same_is_no_alarm():
    """At a threshold of 1 an interval of 95 % is above it by chance in about one of forty cases."""
    rng = np.random.default_rng(0)
    alarms = [drift.shift(*sides(rng, 150, 80), threshold=1.0, seed=k)["drifted"] for k in range(200)]
    assert sum(alarms) <= 14  # 5 are expected; 15 or more would be a chance of one in ten thousand
    rng = np.random.default_rng(0)
    assert not any(drift.shift(*sides(rng, 150, 80), threshold=1.1, seed=k)["drifted"] for k in range(50))


def test_a_real_shift_is_one():
    rng = np.random.default_rng(0)
    assert all(drift.shift(*sides(rng, 150, 80, ratio=1.6), threshold=1.1, seed=k)["drifted"] for k in range(50))


def test_the_interval_of_a_difference_holds_it_as_often_as_it_says():
    rng, inside = np.random.default_rng(1), 0
    for k in range(200):
        a, b = rng.normal(1.0, 1.0, 40), rng.normal(0.4, 2.0, 60)
        low, high = difference(lambda i, a=a: a[i].mean(), 40, lambda i, b=b: b[i].mean(), 60, samples=400, seed=k)
        inside += low <= 0.6 <= high
    assert 178 <= inside <= 199  # 190 are expected


def test_one_text_has_no_interval_and_raises_no_alarm():
    nll = {"reference": np.array([10.0, 30.0]), "incoming": np.array([99.0])}
    tokens = {"reference": np.array([5, 15]), "incoming": np.array([5])}
    found = drift.shift(nll, tokens, 1.1)
    assert found["shift_ci95"] is None and not found["drifted"] and found["shift"] > 1.1


@pytest.fixture
def files(tmp_path):
    """Beginnings of general paragraphs, others of the kind, and these with their words shuffled; the latter two in the field of
    a log."""
    lines = (ROOT / "nanomed" / "demo" / "general.txt").read_text(encoding="utf-8").splitlines()
    texts = [" ".join(line.split()[:40]) for line in lines]
    random.Random(1).shuffle(texts)
    half, rng = len(texts) // 2, random.Random(0)
    other = [" ".join(rng.sample(t.split(), len(t.split()))) for t in texts[half:]]
    return [write_jsonl(tmp_path / "reference.jsonl", texts[:half])] + [
        write_jsonl(tmp_path / f"{name}.jsonl", found, field="prompt") for name, found in (("same", texts[half:]), ("other", other))
    ]


def test_the_command_and_its_exit_status(files, script, tmp_path):
    reference, same, other = files
    common = ["drift", "--model", "nano", "--reference", reference, "--json", tmp_path / "d.json", "--incoming"]
    done = script("eval.py", *common, same)
    assert done.returncode == 0 and "no drift" in done.stdout, done.stderr
    quiet = json.loads((tmp_path / "d.json").read_text())
    assert not quiet["drifted"] and quiet["reference"]["documents"] >= 30 and len(quiet["surprising"]) == 5
    done = script("eval.py", *common, other)
    assert done.returncode == DRIFTED and "DRIFT: what comes in is more than 1.1 times" in done.stdout
    loud = json.loads((tmp_path / "d.json").read_text())
    assert loud["drifted"] and loud["shift"] == pytest.approx(loud["incoming"]["ppl"] / loud["reference"]["ppl"])
    assert loud["surprising"][0]["ppl"] >= loud["surprising"][-1]["ppl"]
    done = script("eval.py", *common, other, "--threshold", 1e6)
    assert done.returncode == 0 and "not surely more than 1e+06 times" in done.stdout


def test_both_sides_are_cut_to_the_same_length(files, script, tmp_path, model_dir):
    """A long text is easier a token than its own beginning; here each side is the other, cut."""
    short = write_jsonl(tmp_path / "short.jsonl", [" ".join(t.split()[:6]) for t in make_texts(40, 1, 20, 30)])
    long = write_jsonl(tmp_path / "long.jsonl", make_texts(40, 1, 20, 30))
    flags = ["drift", "--model", "nano", "--reference", long, "--incoming", short, "--dtype", "fp32", "--json", tmp_path / "d.json"]
    done = script("eval.py", *flags)
    found = json.loads((tmp_path / "d.json").read_text())
    assert found["reference"]["tokens_scored"] <= 40 * found["first"] < 40 * found["reference"]["median_tokens"]
    assert "differ much in length" in done.stdout or found["reference"]["median_tokens"] <= 4 * found["incoming"]["median_tokens"]
    assert 0.8 < found["shift"] < 1.25  # uncut, the beginnings alone would be far above


def test_figures_are_those_of_the_evaluator(files, script, tmp_path):
    from nanomed.evaluation import measure

    reference, same, _ = files
    flags = ["--reference", reference, "--incoming", same, "--first", 12, "--dtype", "fp32", "--json", tmp_path / "d.json"]
    done = script("eval.py", "drift", "--model", "nano", *flags)
    assert done.returncode == 0, done.stderr
    o = measure.open_model("nano", "cpu", "fp32")
    texts = [json.loads(line)["prompt"] for line in same.read_text().splitlines()]
    ids = [np.concatenate([[o.tokenizer.lead], o.tokenizer.encode(t)[:12]]) for t in texts]
    nll = score_ids(o.model, ids, 256, 128, 8, o.device, "fp32")
    expected = math.exp(nll.sum() / sum(len(i) - 1 for i in ids))
    assert json.loads((tmp_path / "d.json").read_text())["incoming"]["ppl"] == pytest.approx(expected, rel=1e-5)


def test_what_cannot_be_compared_is_refused(files, script, tmp_path):
    reference, same, _ = files
    (tmp_path / "empty.jsonl").write_text('{"text": ""}\n')
    common = ["drift", "--model", "nano", "--reference", reference, "--incoming"]
    assert_refused(script("eval.py", *common, tmp_path / "empty.jsonl"), "every text is empty")
    assert_refused(script("eval.py", *common, tmp_path / "none.jsonl"), "none.jsonl: no such file")
    assert_refused(script("eval.py", *common, same, "--first", 3), "--first 3: at least 8")
    assert_refused(script("eval.py", *common, same, "--text-field", "body"), "body")
    assert_refused(script("eval.py", *common, same, "--json", same), "same.jsonl")
