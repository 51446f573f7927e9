"""`eval.py choices`: likelihoods as lm-eval has them, figures as scikit-learn has them, PubMedQA's rows,
retrieved passages."""

import json
import random
import re
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from nanomed.evaluation import measure
from nanomed.evaluation.choices import encode, loglikelihoods, measure_choices
from nanomed.evaluation.questions import Item, from_row, official_ids, read_questions
from nanomed.text.templates import TEMPLATES
from tests.conftest import assert_refused, every_family, lm_eval, make_texts


def write(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def likelihoods(model_dir, pairs):
    """Summed log-likelihoods of (context, continuation) pairs by lm-eval."""
    return [value for value, _ in lm_eval(model_dir, "loglikelihood", pairs)]


# One token and several, blanks on either side of the boundary, a prompt that is too long for the model.
PROMPTS = [
    f"Abstract: {c}\nQuestion: {q}?\nAnswer:"
    for c, q in zip(make_texts(5, 1, 3, 12), make_texts(5, 2, 2, 5), strict=True)
]
ITEMS = [Item(p, (" yes", " no", " maybe"), 0) for p in PROMPTS]
ITEMS += [
    Item(PROMPTS[0] + " ", ("the patients", "blood pressure and dose", "a"), 1),
    Item("", ("the cells", " the cells were"), 1),
]
ITEMS += [Item(make_texts(1, 5, 70, 80)[0], (" patient", " treatment of liver"), 0)]


@every_family
def test_against_likelihoods(model_dir):
    o = measure.open_model(str(model_dir), dtype="fp32")
    encoded = [encode(item, o.tokenizer, o.model.config.n_positions) for item in ITEMS]
    ours = loglikelihoods(o, encoded, batch_size=4)
    pairs = [(item.prompt, choice) for item in ITEMS for choice in item.choices]
    np.testing.assert_allclose(np.concatenate(ours), likelihoods(model_dir, pairs), rtol=1e-5)
    for other in (
        loglikelihoods(o, encoded, batch_size=1),
        loglikelihoods(o, encoded[::-1], batch_size=100)[::-1],
    ):
        np.testing.assert_allclose(np.concatenate(other), np.concatenate(ours), rtol=1e-5)


def test_figures_and_predictions(script, model_dir, tmp_path):
    choices = [" yes", " no", " maybe"]
    answers = ["yes", " no", 2, 0, "maybe"]
    rows = [{"prompt": p, "choices": choices, "answer": a} for p, a in zip(PROMPTS, answers, strict=True)]
    out = script(
        "eval.py",
        "choices",
        "--model",
        model_dir,
        "--data",
        write(tmp_path / "d.jsonl", rows),
        "--json",
        "r.json",
        "--dtype",
        "fp32",
    )
    assert out.returncode == 0, out.stderr
    r = json.loads((tmp_path / "r.json").read_text())
    scores = np.array(r["loglikelihoods"])
    right, chosen = [0, 1, 2, 0, 2], scores.argmax(1)
    kinds = [
        choices[c].strip() if a in ("yes", "maybe") else choices[c] if isinstance(a, str) else c
        for a, c in zip(answers, chosen, strict=True)
    ]
    assert r["predictions"] == kinds
    assert r["accuracy"] == accuracy_score(right, chosen) and r["questions"] == 5
    there = sorted({*right, *chosen})
    assert r["macro_f1"] == pytest.approx(f1_score(right, chosen, average="macro", labels=there))
    per_byte = scores / [3, 2, 5]  # bytes, without the blank
    np.testing.assert_allclose(r["loglikelihoods_per_byte"], per_byte)
    assert r["per_byte"]["accuracy"] == accuracy_score(right, per_byte.argmax(1))
    assert r["rows"] == {str(tmp_path / "d.jsonl"): [1, 2, 3, 4, 5]}
    assert r["majority"]["answer"] == "yes" and r["majority"]["accuracy"] == 0.4
    assert r["accuracy_ci95"][0] <= r["accuracy"] <= r["accuracy_ci95"][1]


def test_the_likeliest_per_byte_is_lm_evals(model_dir):
    """On choices of many lengths, some of letters of several bytes."""
    from lm_eval.api.task import ConfigurableTask

    o = measure.open_model(str(model_dir), dtype="fp32")
    words = ["yes", "é", "a", "α and β", "patients of blood pressure"]
    items = [Item(p, tuple(" " + w for w in words[k % 3 :]), 0) for k, p in enumerate(PROMPTS)]
    r = measure_choices(o, items)
    metrics = dict.fromkeys(("acc", "acc_bytes"))
    how = {"OUTPUT_TYPE": "multiple_choice", "_metric_fn_list": metrics, "multiple_input": False}
    task = SimpleNamespace(**how, multiple_target=False, config=SimpleNamespace(process_results=None))
    for k, item in enumerate(items):
        task.doc_to_choice = lambda _, item=item: [c.removeprefix(" ") for c in item.choices]
        for right in range(len(item.choices)):
            task.doc_to_target = lambda _, right=right: right
            lls = [(value, False) for value in r["loglikelihoods"][k]]
            theirs = ConfigurableTask.process_results(task, {}, lls)
            assert theirs["acc"] == (np.argmax(r["loglikelihoods"][k]) == right)
            assert theirs["acc_bytes"] == (np.argmax(r["loglikelihoods_per_byte"][k]) == right)
    with_blank = [
        np.argmax(np.array(lls) / [len(c.encode()) for c in item.choices])
        for lls, item in zip(r["loglikelihoods"], items, strict=True)
    ]
    assert with_blank != [np.argmax(values) for values in r["loglikelihoods_per_byte"]]


def test_a_limit_draws_as_it_does_for_tasks(script, model_dir, tmp_path):
    row = {"prompt": "a", "choices": ["x", "y"], "answer": 0}
    rows = [row | {"prompt": p} for p in make_texts(20, 1)]
    files = [write(tmp_path / name, some) for name, some in (("a.jsonl", rows), ("b.jsonl", rows[:3]))]
    flags = ("eval.py", "choices", "--model", model_dir, "--data", *files, "--dtype", "fp32", "--limit", 4)
    out = script(*flags, "--seed", 3, "--json", "r.json")
    assert out.returncode == 0, out.stderr
    drawn = sorted(random.Random(3).sample(range(20), 4))
    r = json.loads((tmp_path / "r.json").read_text())
    assert r["rows"] == {str(files[0]): [k + 1 for k in drawn], str(files[1]): [1, 2, 3]}
    assert r["questions"] == 7 and (r["limit"], r["seed"]) == (4, 3)
    assert f"rows {', '.join(str(k + 1) for k in drawn)} of {files[0]}; rows 1, 2, 3 of" in out.stdout
    found = read_questions([str(files[0])], lambda name: (from_row, None), 4, False, 3)
    assert [item.prompt for item in found.items] == [rows[k]["prompt"] for k in drawn]


def test_pubmedqa_is_asked_as_lm_eval_asks_on_the_official_test_ids(script, model_dir, tmp_path):
    ids = sorted(official_ids())
    assert len(ids) == 500 and all(i.isdigit() for i in ids)
    contexts, questions = make_texts(4, 1, 3, 8), make_texts(4, 2, 2, 5)
    rows = [
        {
            "pubid": int(i),
            "question": q,
            "context": {"contexts": [c, "more"]},
            "final_decision": d,
        }  # as on the Hub
        for i, q, c, d in zip([*ids[:3], "1"], questions, contexts, ["yes", "no", "maybe", "no"], strict=True)
    ]
    data = write(tmp_path / "d.jsonl", rows)
    flags = ("--model", model_dir, "--data", data, "--json", "r.json", "--dtype", "fp32")
    out = script("eval.py", "choices", *flags, "--format", "pubmedqa")
    assert out.returncode == 0, out.stderr
    r = json.loads((tmp_path / "r.json").read_text())
    prompts = [
        f"Abstract: {c}\nmore\nQuestion: {q}\nAnswer:"
        for c, q in zip(contexts[:3], questions[:3], strict=True)
    ]
    theirs = likelihoods(model_dir, [(p, c) for p in prompts for c in (" yes", " no", " maybe")])
    np.testing.assert_allclose(np.ravel(r["loglikelihoods"]), theirs, rtol=1e-5)
    assert r["questions"] == 3 and r["labels"] == ["yes", "no", "maybe"]
    assert (
        script("eval.py", "choices", *flags, "--format", "pubmedqa", "--all-rows", "--limit", 10).returncode
        == 0
    )
    assert json.loads((tmp_path / "r.json").read_text())["questions"] == 4
    closed = script("eval.py", "choices", *flags, "--format", "pubmedqa-closed", "--template", "response")
    assert closed.returncode == 0, closed.stderr
    asked = [TEMPLATES["response"].ask(f"Question: {q}\nAnswer:").text for q in questions[:3]]
    theirs = likelihoods(model_dir, [(p, c) for p in asked for c in ("", "yes", "no", "maybe")])
    line_end, *choices = (
        np.array(theirs).reshape(3, 4).T
    )  # a token: lm-eval takes it to the choice, in a template it is asked
    found = json.loads((tmp_path / "r.json").read_text())["loglikelihoods"]
    np.testing.assert_allclose(np.array(found).T, choices - line_end, rtol=1e-4)
    rows = [{**row, "pubid": 1} for row in rows]
    assert_refused(
        script(
            "eval.py",
            "choices",
            *flags[:2],
            "--data",
            write(tmp_path / "e.jsonl", rows),
            "--format",
            "pubmedqa",
        ),
        "--all-rows",
    )


def test_passages_stand_before_the_prompt(script, model_dir, tmp_path):
    passages = [f"{word} {word} were given" for word in ("blood", "renal", "tumor")]
    corpus = write(tmp_path / "c.jsonl", [{"text": p} for p in passages])
    rows = [
        {"prompt": f"Is {w}?", "choices": [" yes", " no"], "answer": 0, "context": p}
        for w, p in zip(("renal", "tumor"), passages[1:], strict=True)
    ]
    data = write(tmp_path / "d.jsonl", rows)
    plain = [{**row, "prompt": f"{row['context']}\n{row['prompt']}"} for row in rows]
    flags = ("--model", model_dir, "--json", "r.json", "--dtype", "fp32")
    assert script("eval.py", "choices", *flags, "--data", write(tmp_path / "p.jsonl", plain)).returncode == 0
    expected = json.loads((tmp_path / "r.json").read_text())["loglikelihoods"]
    out = script("eval.py", "choices", *flags, "--data", data, "--retrieve", 1, "--corpus", corpus)
    assert out.returncode == 0 and "@1 1.000" in out.stdout, out.stderr
    r = json.loads((tmp_path / "r.json").read_text())
    np.testing.assert_allclose(r["loglikelihoods"], expected, rtol=1e-6)
    assert r["retrieval"]["recall"]["recall"] == {"1": 1.0} and r["retrieval"]["passages"] == 3
    out = script(
        "eval.py",
        "choices",
        *flags,
        "--data",
        data,
        "--retrieve",
        2,
        "--corpus",
        corpus,
        "--retriever",
        "embeddings",
    )
    assert out.returncode == 0, out.stderr
    # And before a question that is to be answered in words.
    write(tmp_path / "q.jsonl", [{"question": "Is renal?", "answer": "it is"}])
    asked = ("--data", "q.jsonl", "--retrieve", 1, "--corpus", corpus, "--max-new-tokens", 4)
    out = script("eval.py", "qa", *flags, *asked)
    assert out.returncode == 0, out.stderr
    assert json.loads((tmp_path / "r.json").read_text())["answers"][0]["prompt"].split("\n")[1:3] == [
        "Is renal?",
        passages[1],
    ]
    assert re.search("^  question: +Is renal[?]$", out.stdout, re.M)  # what was asked, not what was found


@pytest.mark.parametrize(
    "row, words",
    [
        ({"prompt": "a", "choices": ["x", "y"], "answer": 2}, ["answer", "0 to 1"]),
        ({"prompt": "a", "choices": ["x", "y"], "answer": True}, ["answer"]),
        ({"prompt": "a", "choices": ["x", "y"], "answer": "z"}, ["'z'", "none"]),
        ({"prompt": "a", "choices": [" x", "x "], "answer": "x"}, ["two of", "same"]),
        ({"prompt": "a", "choices": ["x"], "answer": 0}, ["choices"]),
        ({"prompt": "a", "choices": ["x", ""], "answer": 0}, ["choices"]),
        ({"prompt": "a", "choices": "xy", "answer": 0}, ["choices"]),
        ({"choices": ["x", "y"], "answer": 0}, ["prompt"]),
        ({"prompt": "a", "choices": ["x", "y"]}, ["answer"]),
    ],
)
def test_bad_rows_are_named(script, model_dir, tmp_path, row, words):
    good = {"prompt": "a", "choices": ["x", "y"], "answer": 0}
    data = write(tmp_path / "d.jsonl", [good, row])
    flags = ("--model", model_dir, "--data", data, "--dtype", "fp32")
    assert_refused(script("eval.py", "choices", *flags), "d.jsonl", "row 2", *words)
    out = script("eval.py", "choices", *flags, "--skip-bad-rows", "--json", "r.json")
    assert out.returncode == 0 and json.loads((tmp_path / "r.json").read_text())["bad_rows"] == 1


def test_flags_that_make_no_sense(script, model_dir, tmp_path):
    data = write(tmp_path / "d.jsonl", [{"prompt": "a", "choices": ["x", "y"], "answer": 0}])
    flags = ("eval.py", "choices", "--model", model_dir, "--data", data)
    assert_refused(script(*flags, "--retrieve", 1), "--corpus")
    assert_refused(script(*flags, "--all-rows"), "--all-rows")
    assert_refused(
        script(*flags, "--retrieve", 2, "--corpus", data, "--corpus-field", "prompt"),
        "--retrieve 2",
        "1 passage",
    )
    assert_refused(
        script(*flags, "--format", "pubmedqa-closed", "--retrieve", 1, "--corpus", data), "pubmedqa-closed"
    )
