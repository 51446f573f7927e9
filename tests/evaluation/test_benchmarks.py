"""Medical benchmarks as they are published: the same questions, answers and likelihoods as lm-eval's own
tasks have on the same model; what one file cannot show is refused."""

import csv
import json
from pathlib import Path

import datasets
import lm_eval.tasks
import numpy as np
import pytest
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks._yaml_loader import load_yaml

from nanomed.errors import UserError
from nanomed.evaluation.benchmarks import HEADING, reader, with_shots
from nanomed.evaluation.questions import read_questions
from tests.conftest import assert_refused, make_texts  # fmt: skip
from tests.conftest import lm_eval as ask

TASKS = Path(lm_eval.tasks.__file__).parent
YAML = {
    "medqa": "medqa/medqa.yaml",
    "medmcqa": "medmcqa/medmcqa.yaml",
    "mmlu": "mmlu/default/mmlu_us_foreign_policy.yaml",
    "headqa": "headqa/headqa_en.yaml",
}
N = 9
QUESTIONS, TEXTS = [" " + q + "\n" for q in make_texts(N, 1, 3, 9)], make_texts(4 * N, 2, 1, 3)
OPTIONS = [TEXTS[4 * k : 4 * k + 4] for k in range(N)]
GOLD = [(3 * k + k // 4) % 4 for k in range(N)]
ROWS = list(zip(QUESTIONS, OPTIONS, GOLD, strict=True))


def medmcqa(first, rows=ROWS):
    options = [dict(zip(("opa", "opb", "opc", "opd"), o, strict=True)) for _, o, _ in rows]
    return [{"question": q, "cop": g + first} | o for (q, _, g), o in zip(rows, options, strict=True)]


def headqa(kind):
    answers = [[{"aid": kind(k), "atext": t} for k, t in enumerate(o, 1)] for o in OPTIONS]
    return [
        {"qid": kind(1), "qtext": q, "ra": kind(g + 1), "answers": a}
        for (q, _, g), a in zip(ROWS, answers, strict=True)
    ]


# As lm-eval takes them, from the Hub.
DOCS = {
    "medqa": [
        {"sent1": q, "label": g} | {f"ending{k}": o for k, o in enumerate(options)} for q, options, g in ROWS
    ],
    "medmcqa": medmcqa(0),
    "mmlu": [{"question": q, "subject": "us_foreign_policy", "choices": o, "answer": g} for q, o, g in ROWS],
    "headqa": headqa(int),
}
# As others publish the same: {name of the file: (format, what it holds)}.
OTHERS = {
    "medqa_letters.jsonl": (
        "medqa",
        [
            {
                "question": q,
                "answer": o[g],
                "options": dict(zip("ABCD", o, strict=True)),
                "answer_idx": "ABCD"[g],
            }
            for q, o, g in ROWS
        ],
    ),
    "medmcqa_release.json": ("medmcqa", medmcqa(1)),
    "us_foreign_policy_test.csv": ("mmlu", [[q, *o, "ABCD"[g]] for q, o, g in ROWS]),
    "HEAD_EN.json": (
        "headqa",
        {
            "version": "1.0",
            "language": "en",
            "exams": {
                "a": {"name": "a", "year": "2013", "data": headqa(str)[:4]},
                "b": {"name": "b", "year": "2014", "data": headqa(str)[4:]},
            },
        },
    ),
}


def write(path, rows):
    if path.suffix == ".csv":
        with open(path, "w", newline="") as f:
            csv.writer(f).writerows(rows)
    elif isinstance(rows, dict):
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


def theirs(format, docs, shots=()):
    """lm-eval's task on docs, with the examples of `shots`."""
    of_hub = ("dataset_path", "dataset_name")
    config = {k: v for k, v in load_yaml(TASKS / YAML[format]).items() if k not in of_hub}
    splits = {config.get(f"{s}_split", config.get("fewshot_split")) for s in ("test", "training", "fewshot")}
    sets = {s: docs if s == config["test_split"] else list(shots) or docs for s in splits - {None}}
    found = datasets.DatasetDict({s: datasets.Dataset.from_list(rows) for s, rows in sets.items()})
    task = ConfigurableTask(config=config | {"custom_dataset": lambda **_: found})
    task.set_fewshot_seed(1234)
    return task


def asked(task, shots=0):
    """[(prompt, choices)] of every doc."""
    requests = [
        task.construct_requests(doc, task.fewshot_context(doc, shots), metadata=("t", 0, 1))
        for doc in task.eval_docs
    ]
    return [(of_one[0].arguments[0], [r.arguments[1] for r in of_one]) for of_one in requests]


def read(file, format, **how):
    return read_questions([file], lambda name: reader(name, format, **how), None, False)


FILES = {f"{name}.jsonl": (name, rows) for name, rows in DOCS.items()} | OTHERS


@pytest.mark.parametrize("name", FILES)
def test_asked_as_lm_eval_asks_whoever_published_it(tmp_path, name):
    format, rows = FILES[name]
    task = theirs(format, DOCS[format][5:], DOCS[format][:5])
    items = read(write(tmp_path / name, rows), format).items
    for shots in (0, 3):
        ours = with_shots(items[5:], items[:5], shots, in_order=format == "mmlu")
        assert [(item.prompt, list(item.choices)) for item in ours] == asked(task, shots)
    assert [item.answer for item in items] == GOLD == [task.doc_to_target(doc) for doc in DOCS[format]]


def test_each_subject_of_mmlu_has_its_heading():
    files = sorted((TASKS / "mmlu" / "default").glob("mmlu_*.yaml"))
    found = {c["dataset_name"]: c["description"] for c in map(load_yaml, files)}
    assert len(found) == 57
    assert found == {name: HEADING.format(name.replace("_", " ")) for name in found}


@pytest.mark.parametrize("format", ["headqa", "medmcqa"])
def test_likelihoods_and_both_accuracies_are_lm_evals(script, model_dir, tmp_path, format):
    data = write(tmp_path / "d.jsonl", DOCS[format])
    flags = ("--model", model_dir, "--data", data, "--format", format, "--dtype", "fp32", "--json", "r.json")
    out = script("eval.py", "choices", *flags)
    assert out.returncode == 0, out.stderr
    r = json.loads((tmp_path / "r.json").read_text())
    task = theirs(format, DOCS[format])
    pairs = [(prompt, choice) for prompt, choices in asked(task) for choice in choices]
    answers = ask(model_dir, "loglikelihood", pairs)
    np.testing.assert_allclose(np.ravel(r["loglikelihoods"]), [value for value, _ in answers], rtol=1e-5)
    scores = [task.process_results(doc, answers[4 * k : 4 * k + 4]) for k, doc in enumerate(DOCS[format])]
    assert r["accuracy"] == pytest.approx(np.mean([s["acc"] for s in scores]))
    assert r["per_character"]["accuracy"] == pytest.approx(np.mean([s["acc_norm"] for s in scores]))
    assert r["chance"] == 0.25 and r["hidden"] == 0


def test_what_cop_counts_from_is_the_files_to_say(tmp_path):
    few = [(q, o, g) for q, o, g in ROWS if g in (1, 2)]  # as 1, 2 from 0, or 2, 3 from 1
    neither = write(tmp_path / "n.jsonl", medmcqa(0, few))
    with pytest.raises(UserError, match="--cop-from 0 or 1"):
        read(neither, "medmcqa")
    assert [i.answer for i in read(neither, "medmcqa", cop_from=0).items] == [g for _, _, g in few]
    assert [i.answer for i in read(neither, "medmcqa", cop_from=1).items] == [g - 1 for _, _, g in few]
    with pytest.raises(UserError, match="0 in one row and 4 in another"):
        read(write(tmp_path / "b.jsonl", medmcqa(0) + medmcqa(1)), "medmcqa")
    with pytest.raises(UserError, match="counts from 1"):
        read(write(tmp_path / "r.jsonl", medmcqa(1)), "medmcqa", cop_from=0)
    hub = write(tmp_path / "h.jsonl", medmcqa(0))  # the drawn rows alone might not show it
    for item in read_questions([hub], lambda name: reader(name, "medmcqa"), 2, False).items:
        assert item.answer == GOLD[item.place[1] - 1]


HIDDEN = {"medqa": {"label": -1}, "medmcqa": {"cop": -1}, "mmlu": {"answer": None}}


@pytest.mark.parametrize("format", HIDDEN)
def test_a_row_without_a_published_answer_is_counted_and_not_scored(script, model_dir, tmp_path, format):
    hidden = [row | HIDDEN[format] for row in DOCS[format]]
    found = read(write(tmp_path / "d.jsonl", hidden[:4] + DOCS[format][4:]), format)
    assert found.hidden == 4 and [i.answer for i in found.items] == GOLD[4:]
    flags = ("--model", model_dir, "--data", write(tmp_path / "h.jsonl", hidden), "--format", format)
    assert_refused(script("eval.py", "choices", *flags), "h.jsonl", "9 whose answer is not published")


def test_of_the_release_of_medmcqa_the_test_rows_have_no_cop_at_all(tmp_path):
    rows = [{k: v for k, v in row.items() if k != "cop"} for row in medmcqa(1)]
    assert read(write(tmp_path / "test.json", rows), "medmcqa").hidden == N


WRONG = {
    "medqa": ({"answer_idx": "E"}, ["answer_idx", "'E'"]),
    "medmcqa": ({"cop": 7}, ["cop", "0 to 3", "7"]),
    "mmlu": ({"answer": "E"}, ["answer", "'E'"]),
    "headqa": ({"answers": [{"aid": 2, "atext": "a"}, {"aid": 1, "atext": "b"}], "ra": 1}, ["ra", "aid"]),
}


@pytest.mark.parametrize("format", WRONG)
def test_an_answer_that_does_not_read_back_is_a_bad_row(script, model_dir, tmp_path, format):
    change, words = WRONG[format]
    rows = OTHERS["medqa_letters.jsonl"][1] if format == "medqa" else DOCS[format]
    data = write(tmp_path / "d.jsonl", [*rows[:2], rows[2] | change, *rows[3:]])
    flags = ("--model", model_dir, "--data", data, "--format", format)
    assert_refused(script("eval.py", "choices", *flags), "d.jsonl", "row 3", *words)


def test_five_options_have_five_letters_and_answer_and_letter_must_agree(tmp_path):
    row = {
        "question": "Q?",
        "answer": "e",
        "options": dict(zip("ABCDE", "abcde", strict=True)),
        "answer_idx": "E",
    }
    (item,) = read(write(tmp_path / "d.jsonl", [row]), "medqa").items
    assert item.choices == (" A", " B", " C", " D", " E") and item.answer == 4
    with pytest.raises(UserError, match="row 1.*'D' and `answer` 'e'"):
        read(write(tmp_path / "e.jsonl", [row | {"answer_idx": "D"}]), "medqa")


def test_examples_come_from_a_file(script, model_dir, tmp_path):
    data, shots = write(tmp_path / "d.jsonl", DOCS["mmlu"][5:]), write(tmp_path / "s.jsonl", DOCS["mmlu"][:5])
    flags = ("--model", model_dir, "--data", data, "--format", "mmlu", "--dtype", "fp32", "--json", "r.json")
    out = script("eval.py", "choices", *flags, "--shots", 1, "--shots-from", shots)
    assert out.returncode == 0, out.stderr
    r = json.loads((tmp_path / "r.json").read_text())
    pairs = [
        (p, c) for p, choices in asked(theirs("mmlu", DOCS["mmlu"][5:], DOCS["mmlu"][:5]), 1) for c in choices
    ]
    expected = [value for value, _ in ask(model_dir, "loglikelihood", pairs)]
    np.testing.assert_allclose(np.ravel(r["loglikelihoods"]), expected, rtol=1e-5)
    assert r["shots"] == 1
    assert_refused(
        script("eval.py", "choices", *flags, "--shots", 6, "--shots-from", shots), "--shots 6", "5 other"
    )
    assert_refused(script("eval.py", "choices", *flags, "--shots", 1), "--shots-from")
    items = read(data, "mmlu").items  # of a file that is its own examples, no question stands before itself
    for in_order in (True, False):
        for item, out in zip(items, with_shots(items, items, 3, in_order), strict=True):
            assert out.prompt.count(item.prompt) == 1
