"""Repeated texts through the scripts: --near-duplicates, eval.py overlap, and the overlap that stands beside
every figure."""

import json

from nanomed.evaluation.training_texts import training_sides
from nanomed.systems.overlap import finder
from nanomed.text import heldout
from tests.conftest import assert_refused, make_texts, write_jsonl

TINY = ["--context", 32, "--batch-size", 4, "--max-steps", 1, "--dtype", "fp32"]
KEPT, TEST = make_texts(20, 1, 40, 60), make_texts(4, 2, 40, 60)
NEAR = [
    text.replace(" the ", " The ", 1) + " Yes" for text in (*TEST, KEPT[0])
]  # of four held texts, and of one that is trained on


def rows(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def summary(path):
    return json.loads((path / "summary.json").read_text())


def test_documents(script, model_dir, tmp_path):
    data, test = write_jsonl(tmp_path / "d.jsonl", KEPT + NEAR), write_jsonl(tmp_path / "t.jsonl", TEST[:2])
    val = write_jsonl(tmp_path / "v.jsonl", TEST[2:])
    held = ["--exclude", test, "--val-data", val]
    common = ("train_clm.py", "--model", model_dir, "--data", data, *held, *TINY)
    out = script(*common, "--out", "a", "--near-duplicates", 0.8, "--show", 1)
    assert out.returncode == 0, out.stderr
    assert "5 of 25 training texts to be taken out" in out.stdout and "near one of --exclude" in out.stdout
    assert (
        summary(tmp_path / "a")["documents"] == 20 and summary(tmp_path / "a")["near_duplicates_removed"] == 5
    )
    saved = set(json.loads((tmp_path / "a" / "held_out.json").read_text())["documents"])
    assert {heldout.digest(t).hex() for t in NEAR[:4]} <= saved  # a later phase keeps them out as well
    assert heldout.digest(NEAR[4]).hex() not in saved
    assert script(*common, "--out", "b").returncode == 0 and summary(tmp_path / "b")["documents"] == 25
    again = script(*common, "--out", "a", "--resume")
    assert_refused(again, "near_duplicates")
    assert_refused(script(*common, "--out", "c", "--near-duplicates", 2), "--near-duplicates")


def test_rows_of_instructions_and_labelled_texts(script, model_dir, tmp_path):
    questions = make_texts(25, 3, 4, 6)
    data = rows(
        tmp_path / "q.jsonl",
        [{"question": q, "answer": a} for q, a in zip(questions, KEPT + NEAR, strict=True)],
    )
    val = rows(
        tmp_path / "v.jsonl",
        [{"question": q, "answer": a} for q, a in zip(questions[20:24], TEST, strict=True)],
    )
    for row in (both := [json.loads(line) for line in data.read_text().splitlines()])[20:24]:
        row["question"] += " again"  # else the question itself is held out
    rows(data, both)
    flags = (
        "--model",
        model_dir,
        "--val-data",
        val,
        "--near-duplicates",
        0.7,
        "--out",
        "s",
        *TINY,
        "--context",
        64,
    )
    out = script("train_sft.py", "--data", data, *flags)
    assert out.returncode == 0, out.stderr
    assert (
        summary(tmp_path / "s")["near_duplicates_removed"] == 5 and summary(tmp_path / "s")["examples"] == 20
    )
    labelled = rows(
        tmp_path / "l.jsonl", [{"text": t, "label": "ab"[k % 2]} for k, t in enumerate(KEPT + NEAR)]
    )
    val = rows(tmp_path / "lv.jsonl", [{"text": t, "label": "ab"[k % 2]} for k, t in enumerate(TEST)])
    flags = ("--model", model_dir, "--val-data", val, "--near-duplicates", 0.8, "--out", "c", *TINY)
    out = script("train_cls.py", "--data", labelled, *flags)
    assert out.returncode == 0, out.stderr
    assert summary(tmp_path / "c")["near_duplicates_removed"] == 5 and summary(tmp_path / "c")["texts"] == 20
    sides, why = training_sides(tmp_path / "c", finder)  # as eval.py cls finds them again for its baselines
    assert why is None and len(sides.training) == 20


def test_overlap_of_two_sides_in_one_command(script, tmp_path):
    data = rows(
        tmp_path / "d.jsonl", [{"context": {"contexts": t.split(". ")}} for t in [*KEPT, *NEAR[:2], TEST[3]]]
    )
    against = rows(tmp_path / "t.jsonl", [{"context": t} for t in TEST])
    flags = (
        "--data",
        data,
        "--text-field",
        "context.contexts",
        "--against",
        against,
        "--against-field",
        "context",
    )
    out = script("eval.py", "overlap", *flags, "--json", "r.json")
    assert out.returncode == 0, out.stderr
    r = json.loads((tmp_path / "r.json").read_text())
    assert (r["exact_held"], r["near_held"], r["exact_within"], r["near_within"]) == (1, 2, 0, 0)
    assert r["ngrams"]["documents"] == 3 and r["ngrams"]["of"] == 4 and len(r["examples"]) == 3
    assert "3 of 4 texts share 13 words in a row" in out.stdout
    assert_refused(script("eval.py", "overlap", *flags, "--threshold", 0.001), "threshold")
    assert_refused(
        script("eval.py", "overlap", "--data", data, "--against", against), "d.jsonl", "row 1", "text"
    )


def test_it_stands_beside_every_figure(script, model_dir, tmp_path):
    """What a model was trained on, in this phase and the one before, against what it is measured on."""
    data, test = write_jsonl(tmp_path / "d.jsonl", [*KEPT, NEAR[0]]), write_jsonl(tmp_path / "t.jsonl", TEST)
    assert (
        script(
            "train_clm.py", "--model", model_dir, "--data", data, "--val-fraction", 0, "--out", "a", *TINY
        ).returncode
        == 0
    )
    pairs = rows(
        tmp_path / "q.jsonl", [{"question": "What?", "answer": t} for t in (NEAR[1], *make_texts(5, 4, 4, 9))]
    )
    assert (
        script(
            "train_sft.py", "--model", "a", "--data", pairs, "--val-fraction", 0, "--out", "b", *TINY
        ).returncode
        == 0
    )

    def overlap(command, model, *flags):
        out = script("eval.py", command, "--model", model, *flags, "--json", "r.json", "--dtype", "fp32")
        assert out.returncode == 0, out.stderr
        found = json.loads((tmp_path / "r.json").read_text())
        assert "overlap with its" in out.stdout
        return found["overlap"], found["no_overlap"]

    (one, why), (two, _) = overlap("ppl", "a", "--data", test), overlap("ppl", "b", "--data", test)
    assert (one["documents"], one["of"], one["training_documents"], why) == (1, 4, 21, None)
    assert (two["documents"], two["training_documents"]) == (2, 27) and two["n"] == 13
    choices = rows(tmp_path / "c.jsonl", [{"prompt": t, "choices": [" a", " b"], "answer": 0} for t in TEST])
    assert overlap("choices", "b", "--data", choices)[0]["documents"] == 2
    asked = rows(tmp_path / "qa.jsonl", [{"question": t[:40], "answer": t} for t in TEST])
    assert overlap("qa", "a", "--data", asked, "--max-new-tokens", 2)[0]["documents"] == 1
    short = rows(tmp_path / "short.jsonl", [{"question": t[:9], "answer": "so"} for t in TEST])
    asked = ("--data", short, "--template", "none", "--max-new-tokens", 2)
    looked_up = ("--retrieve", 1, "--corpus", write_jsonl(tmp_path / "s.jsonl", [t[:90] for t in KEPT]))
    assert (
        overlap("qa", "a", *asked, *looked_up)[0]["documents"] == 0
    )  # what is looked up is not what is measured
    labelled = rows(tmp_path / "l.jsonl", [{"text": t, "label": "ab"[k % 2]} for k, t in enumerate(KEPT)])
    assert (
        script(
            "train_cls.py", "--model", "a", "--data", labelled, "--val-fraction", 0, "--out", "c", *TINY
        ).returncode
        == 0
    )
    assert overlap("cls", "c", "--data", labelled)[0]["documents"] == 20
    unknown, why = overlap("ppl", model_dir, "--data", test)
    assert unknown is None and "run.json" in why
    data.write_text(data.read_text().replace("fox", "dog"))
    unknown, why = overlap("ppl", "a", "--data", test)
    assert unknown is None and "changed" in why
    data.unlink()
    unknown, why = overlap("ppl", "a", "--data", test)
    assert unknown is None and "d.jsonl" in why


def test_what_an_earlier_phase_held_out_and_this_one_reads_is_an_overlap(script, model_dir, tmp_path):
    data, test = write_jsonl(tmp_path / "d.jsonl", KEPT), write_jsonl(tmp_path / "t.jsonl", TEST)
    first = [
        "--model",
        model_dir,
        "--data",
        data,
        "--exclude",
        test,
        "--val-fraction",
        0,
        "--out",
        "a",
        *TINY,
    ]
    assert script("train_clm.py", *first).returncode == 0
    again = script("train_clm.py", "--model", "a", "--data", test, "--val-fraction", 0, "--out", "b", *TINY)
    assert again.returncode == 0 and "was held out when" in again.stdout
    for model, found in (("a", 0), ("b", 4)):
        out = script(
            "eval.py",
            "ppl",
            "--model",
            model,
            "--data",
            test,
            "--json",
            "r.json",
            "--also",
            "train-set",
            "--dtype",
            "fp32",
        )
        assert out.returncode == 0, out.stderr
        assert json.loads((tmp_path / "r.json").read_text())["overlap"]["documents"] == found
    # Of an earlier phase that is gone nothing is known; from random weights there was none.
    (tmp_path / "a").rename(tmp_path / "elsewhere")
    settings = json.loads((tmp_path / "b" / "run.json").read_text())
    settings["settings"]["model"] = str(tmp_path / "a")
    (tmp_path / "b" / "run.json").write_text(json.dumps(settings))
    out = script("eval.py", "ppl", "--model", "b", "--data", test, "--dtype", "fp32")
    assert "is not there any more" in out.stdout
