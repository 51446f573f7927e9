"""eval.py drift: the shift and its interval against scipy's bootstrap, an alarm where it belongs and none
elsewhere."""

import dataclasses
import json

import numpy as np
import pytest
import scipy.stats

from nanomed.commands.drift import DRIFTED
from nanomed.evaluation import measure
from nanomed.systems import drift
from nanomed.systems.drift import Side
from nanomed.text.corpus import Selection
from tests.conftest import ROOT, assert_refused, make_texts, write_jsonl

OTHER = "rivers run past old mills where nobody grinds corn or sings about summer weddings any more".split()


def side(nll, tokens, times=None):
    """Scores without texts."""
    times = np.ones(len(nll), int) if times is None else times
    return Side(None, times, np.asarray(tokens), np.asarray(nll, float))


def other_texts(n, seed):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(OTHER, size=rng.integers(8, 40))) for _ in range(n)]


def test_the_interval_is_that_of_scipys_bootstrap():
    rng = np.random.default_rng(0)
    tokens = [rng.integers(5, 60, size=n) for n in (150, 90)]
    nll = [t * rng.normal(mean, 0.8, size=len(t)) for t, mean in zip(tokens, (4.0, 4.3), strict=True)]
    value, (low, high) = drift.shift(side(nll[0], tokens[0]), side(nll[1], tokens[1]))

    def difference(i, j, axis):
        return (nll[1][j].sum(axis) / tokens[1][j].sum(axis)) - (nll[0][i].sum(axis) / tokens[0][i].sum(axis))

    data = (np.arange(150), np.arange(90))
    found = scipy.stats.bootstrap(
        data, difference, vectorized=True, method="percentile", n_resamples=20_000, rng=rng
    )
    assert np.log(value) == pytest.approx(difference(*data, axis=0))
    assert np.log([low, high]) == pytest.approx(
        list(found.confidence_interval), abs=0.03
    )  # of a width of 0.5; both are drawn


def test_a_text_that_comes_again_and_again_is_no_further_evidence():
    rng = np.random.default_rng(1)
    tokens, nll = np.full(60, 10), rng.normal(40, 6, size=60)
    once, thrice = side(nll, tokens), side(nll, tokens, np.full(60, 3))
    assert drift.shift(once, thrice)[1] == pytest.approx(drift.shift(once, once)[1])
    flood = np.where(nll == nll.max(), 500, 1)  # a script, say, that sends the one hard text over and over
    value, interval = drift.shift(once, side(nll, tokens, flood))
    assert value > 2 and not drift.judge(interval, 1.2)[0]
    _, mistaken = drift.shift(once, side(np.repeat(nll, flood), np.repeat(tokens, flood)))
    assert drift.judge(mistaken, 1.2)[0]


def test_small_samples_and_verdicts():
    assert drift.judge([1.21, 1.5], 1.2) == (
        True,
        "drift: what comes in is more surprising, beyond 1.2 with all of the interval",
    )
    assert drift.judge([0.5, 0.83], 1.2)[0] and "less surprising" in drift.judge([0.5, 0.83], 1.2)[1]
    for interval in ([1.19, 3.0], [0.2, 0.9], [0.5, 2.0]):
        assert not drift.judge(interval, 1.2)[0] and "none excluded" in drift.judge(interval, 1.2)[1]
    assert drift.judge([0.9, 1.1], 1.2) == (False, "no drift: all of the interval is within 1.2 either way")


@pytest.fixture(scope="module")
def scored():
    """nano's nll of each of each of 40 abstracts and of 80 paragraphs of general English, their first 160
    tokens."""
    o = measure.open_model("nano", "cpu", "fp32")
    rows = [
        json.loads(line) for line in (ROOT / "nanomed" / "demo" / "abstracts.jsonl").read_text().splitlines()
    ]
    kinds = {"medical": [text for row in rows for text in row["texts"]]}
    kinds["general"] = (ROOT / "nanomed" / "demo" / "general.txt").read_text().splitlines()[:80]
    out = {}
    for name, texts in kinds.items():
        ids = [np.concatenate([[o.tokenizer.lead], o.tokenizer.encode(text)[:160]]) for text in texts]
        nll = drift.score_ids(o.model, ids, 256, 128, 16, o.device, o.dtype)
        out[name] = nll, np.array([len(i) - 1 for i in ids])
    return out


def test_halves_of_the_same_texts_are_no_drift_and_other_texts_are(scored):
    rng, false, least, found = np.random.default_rng(2), 0, 0, 0
    nll, tokens = scored["medical"]
    for _ in range(60):
        a, b = np.split(rng.permutation(len(nll)), 2)
        _, interval = drift.shift(side(nll[a], tokens[a]), side(nll[b], tokens[b]))
        false += drift.judge(interval, 1.2)[0]
        least += drift.judge(interval, 1.0)[0]
        c = rng.choice(80, size=40, replace=False)
        general = side(scored["general"][0][c], scored["general"][1][c])
        found += drift.judge(drift.shift(general, side(nll[b], tokens[b]))[1], 1.2)[0]
    assert false == 0  # at the default threshold
    assert least <= 9  # at none, 5 % of 60 and what chance adds (P = 0.001)
    assert found == 60  # general English is nano's own, medical text is harder to it


# --- as a user runs it --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(model_dir, tmp_path_factory):
    """A tiny model that has read some texts, in a directory beside their file."""
    from tests.conftest import run_script

    home = tmp_path_factory.mktemp("drift")
    write_jsonl(home / "train.jsonl", make_texts(80, 1, 8, 40))
    flags = (
        "--val-fraction",
        0,
        "--max-steps",
        60,
        "--lr",
        5e-3,
        "--batch-size",
        4,
        "--context",
        48,
        "--dtype",
        "fp32",
    )
    out = run_script(
        home, "train_clm.py", "--model", model_dir, "--data", "train.jsonl", "--out", "m", *flags
    )
    assert out.returncode == 0, out.stderr
    return home


def test_a_cron_job_is_told_by_the_exit_status(trained, script, tmp_path):
    def run(incoming, *flags):
        command = (
            "drift",
            "--model",
            trained / "m",
            "--reference",
            tmp_path / "held.jsonl",
            "--incoming",
            incoming,
        )
        return script("eval.py", *command, "--dtype", "fp32", "--json", "d.json", *flags)

    write_jsonl(tmp_path / "held.jsonl", make_texts(60, 2, 8, 40))
    write_jsonl(tmp_path / "quiet.jsonl", make_texts(60, 3, 8, 40), field="question")
    write_jsonl(tmp_path / "loud.jsonl", other_texts(60, 4), field="prompt")
    quiet = run("quiet.jsonl")
    assert (
        quiet.returncode == 0 and "; no drift: all of the interval is within 1.2 either way\n" in quiet.stdout
    ), quiet.stderr
    r = json.loads((tmp_path / "d.json").read_text())
    assert (
        r["drifted"] is False
        and not r["notes"]
        and 1 / 1.2 < r["shift_ci95"][0] < 1 < r["shift_ci95"][1] < 1.2
    )
    assert r["shift"] == pytest.approx(r["incoming"]["ppl"] / r["reference"]["ppl"])
    # Both perplexities are those of eval.py ppl, with their intervals and names.
    for name, file, field in (("reference", "held.jsonl", "text"), ("incoming", "quiet.jsonl", "question")):
        command = (
            "eval.py",
            "ppl",
            "--model",
            trained / "m",
            "--data",
            file,
            "--text-field",
            field,
            "--dtype",
            "fp32",
        )
        assert script(*command, "--json", "p.json").returncode == 0
        ppl = json.loads((tmp_path / "p.json").read_text())
        for key in ("ppl", "ppl_ci95", "loss", "nll", "tokens_scored", "documents", "data_sha256"):
            assert r[name][key] == (pytest.approx(ppl[key]) if "sha" not in key else ppl[key]), key
    loud = run("loud.jsonl")
    assert loud.returncode == DRIFTED == 3 and "drift: what comes in is more surprising" in loud.stdout, (
        loud.stderr
    )
    r = json.loads((tmp_path / "d.json").read_text())
    assert r["drifted"] is True and r["shift_ci95"][0] > 1.2 and len(r["most_moving"]) == 5
    excess = [s["excess"] for s in r["most_moving"]]
    assert (
        excess == sorted(excess, reverse=True)
        and r["most_moving"][0]["text"] in (tmp_path / "loud.jsonl").read_text()
    )
    for s in r["most_moving"]:
        assert s["excess"] == pytest.approx(
            s["times"] * s["tokens"] * (np.log(s["ppl"]) - r["reference"]["loss"])
        )
    # The other way round it is as much of a drift, and beyond a higher threshold it is none.
    command = (
        "eval.py",
        "drift",
        "--model",
        trained / "m",
        "--reference",
        "loud.jsonl",
        "--incoming",
        "held.jsonl",
        "--top",
        0,
    )
    back = script(*command, "--dtype", "fp32", "--json", "b.json")
    assert back.returncode == DRIFTED and "less surprising" in back.stdout and "nats" not in back.stdout
    b = json.loads((tmp_path / "b.json").read_text())
    assert b["shift"] == pytest.approx(1 / r["shift"]) and b["most_moving"] == []
    assert run("loud.jsonl", "--threshold", 1e6).returncode == 0


def test_what_speaks_against_the_figure_is_said(trained, script, tmp_path):
    def notes(reference, incoming, *flags):
        command = (
            "drift",
            "--model",
            trained / "m",
            "--reference",
            reference,
            "--incoming",
            incoming,
            "--dtype",
            "fp32",
            *flags,
        )
        out = script("eval.py", *command, "--json", "d.json")
        assert out.returncode in (0, DRIFTED), out.stderr
        found = json.loads((tmp_path / "d.json").read_text())
        assert [line[6:] for line in out.stdout.splitlines() if line.startswith("note: ")] == found["notes"]
        return " | ".join(found["notes"]), found

    held = write_jsonl(tmp_path / "held.jsonl", make_texts(60, 2, 30, 40))
    short = write_jsonl(tmp_path / "short.jsonl", [*make_texts(9, 3, 3, 6), ""])
    said, _ = notes(held, short)
    assert (
        "only 9 different texts" in said
        and "1 empty texts left out" in said
        and "for want of context" in said
    )
    said, found = notes(held, short, "--first", 4)
    assert (
        "context" not in said
        and found["reference"]["median_tokens"] == found["incoming"]["median_tokens"] == 4
    )
    assert found["incoming"]["tokens_scored"] == 36
    said, found = notes(trained / "train.jsonl", held, "--sample", 40)
    assert "most of the reference was trained on" in said and found["reference"]["overlap"]["documents"] > 20
    assert (found["reference"]["documents"], found["reference"]["of"], found["incoming"]["documents"]) == (
        40,
        80,
        40,
    )
    rows = [
        {"instruction": f"Answer {k % 2}", "input": text} for k, text in enumerate(make_texts(40, 5, 30, 40))
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said, found = notes("rows.jsonl", held)
    assert (
        "of 40 texts only 2 are different" in said
        and found["reference"]["field"] == "text,question,prompt,instruction"
    )
    said, found = notes("rows.jsonl", held, "--reference-field", "input")
    assert said == "" and found["reference"]["different"] == 40


def test_a_sample_is_drawn_by_the_seed_from_all_texts(trained, tmp_path):
    o = measure.open_model(str(trained / "m"), "cpu", "fp32")
    corpus = measure.encode(o, [str(write_jsonl(tmp_path / "d.jsonl", make_texts(200, 6, 8, 12)))])
    first, again, third = (drift.draw(corpus, 50, seed)[0].indices for seed in (0, 0, 1))
    assert len(first) == 50 and (first == again).all() and set(first) != set(third) and max(first) > 150
    assert len(drift.draw(corpus, 0, 0)[0].indices) == len(drift.draw(corpus, 500, 0)[0].indices) == 200
    double = dataclasses.replace(corpus, documents=np.concatenate([corpus.documents, corpus.documents[::2]]))
    texts, times = drift.draw(double, 0, 0)
    assert (texts.indices == np.arange(200)).all()
    assert (times == np.where(np.arange(200) % 2, 1, 2)).all()
    assert isinstance(texts, Selection)


def test_what_cannot_be_measured_is_refused(trained, script, tmp_path):
    texts = write_jsonl(tmp_path / "t.jsonl", make_texts(5, 1))
    same = write_jsonl(tmp_path / "same.jsonl", ["the same"] * 5)
    blank = write_jsonl(tmp_path / "blank.jsonl", ["", ""])
    (tmp_path / "none.jsonl").touch()

    def refused(*flags):
        return script("eval.py", "drift", "--model", trained / "m", *flags)

    assert_refused(
        refused("--reference", texts, "--incoming", same), "--incoming: one text, or the same again"
    )
    assert_refused(refused("--reference", blank, "--incoming", texts), "blank.jsonl", "2 are without text")
    assert_refused(refused("--reference", texts, "--incoming", "none.jsonl"), "none.jsonl", "no documents")
    assert_refused(
        refused("--reference", texts, "--incoming", texts, "--text-field", "q"), "'q'", "--text-field"
    )
    assert_refused(refused("--reference", texts, "--incoming", texts, "--threshold", 0.8), "at least 1")
    assert_refused(refused("--reference", texts, "--incoming", texts, "--stride", 64), "stride 64")
    assert_refused(refused("--reference", texts, "--incoming", same, "--json", same), "reads")
    assert "the same" in same.read_text()
