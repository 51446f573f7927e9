"""Medical benchmarks as they are published: the same questions, answers and likelihoods as lm-eval's own
tasks have on the same model; what one file cannot show is refused."""

import csv
import importlib.util
import json
from pathlib import Path

import datasets
import numpy as np
import pytest

from nanomed.errors import UserError
from nanomed.evaluation.benchmarks import HEADING, reader, with_shots
from nanomed.evaluation.questions import official_ids, read_questions
from nanomed.evaluation.suite import named_in
from nanomed.evaluation.tables import against_chance
from tests.conftest import ROOT, assert_refused, make_texts
from tests.conftest import lm_eval as ask

TASKS = Path(importlib.util.find_spec("lm_eval").origin).parent / "tasks"
YAML = {
    "medqa": "medqa/medqa.yaml",
    "medmcqa": "medmcqa/medmcqa.yaml",
    "mmlu": "mmlu/default/mmlu_us_foreign_policy.yaml",
    "headqa": "headqa/headqa_en.yaml",
    "pubmedqa": "pubmedqa/pubmedqa.yaml",
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


def load_yaml(path):
    from lm_eval.tasks._yaml_loader import load_yaml  # not before it is asked: it takes seconds to load

    return load_yaml(path)


def theirs(format, docs, shots=()):
    """lm-eval's task on docs, with the examples of `shots`."""
    from lm_eval.api.task import ConfigurableTask

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


def test_pubmedqa_too_with_examples(tmp_path):
    rows = [
        {"QUESTION": q.strip(), "CONTEXTS": o, "final_decision": ("yes", "no", "maybe", "no")[g]}
        for q, o, g in ROWS
    ]
    items = read(write(tmp_path / "p.jsonl", rows), "pubmedqa").items
    task = theirs("pubmedqa", rows[5:], rows[:5])
    for shots in (0, 2):
        ours = with_shots(items[5:], items[:5], shots, in_order=False)
        assert [(item.prompt, list(item.choices)) for item in ours] == asked(task, shots)


def test_each_subject_of_mmlu_has_its_heading(tmp_path):
    rows = [{k: v for k, v in row.items() if k != "subject"} for row in DOCS["mmlu"]]
    for item in read(write(tmp_path / "mmlu_test.jsonl", rows), "mmlu").items:  # that is no subject
        assert item.heading == ""
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


# --- all that lie in a directory ----------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path):
    """As their authors' archives unpack, and as the Hub's repositories do."""
    place, release = tmp_path / "place", [*OTHERS.values()]
    hidden = [{k: v for k, v in row.items() if k != "cop"} for row in medmcqa(1)]
    for name, rows in {
        "medmcqa/test.json": hidden,
        "medmcqa/dev.json": medmcqa(1),
        "medmcqa/train.json": medmcqa(1),
        "US/4_options/phrases_no_exclude_test.jsonl": release[0][1],
        "data/test/anatomy_test.csv": release[2][1],
        "data/dev/anatomy_dev.csv": release[2][1],
        "HEAD/train_HEAD_EN.json": release[3][1],
        "HEAD/test_HEAD_EN.json": release[3][1],
        "only/train.jsonl": DOCS["medqa"],
        "notes.jsonl": [{"text": "no benchmark"}],
    }.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        write(place / name, rows)
    (place / "cut.parquet").write_text("PAR1")
    (place / "virology").mkdir()
    for part in (0, 1):
        some = datasets.Dataset.from_list(DOCS["mmlu"][part::2])
        some.to_parquet(place / "virology" / f"test-0000{part}-of-00002.parquet")
    ids = sorted(official_ids())[:4]
    rows = [
        {"pubid": int(i), "question": "Q?", "context": {"contexts": ["c"]}, "final_decision": "no"}
        for i in ids
    ]
    write(place / "pubmedqa-train.jsonl", rows)
    return place


MEASURED = {
    "medmcqa": "dev",
    "medqa US/4_options/phrases_no_exclude": "test",
    "mmlu anatomy": "test",
    "headqa HEAD/HEAD_EN": "test",
    "mmlu virology": "test",
    "pubmedqa": "train",
}


def test_all_that_lie_there_are_measured_as_each_alone(script, model_dir, tmp_path, place):
    flags = ("--model", model_dir, "--dtype", "fp32", "--json", "r.json")
    out = script("eval.py", "benchmarks", *flags, "--from", place)
    assert out.returncode == 0, out.stderr
    said = (
        "notes.jsonl",
        "cut.parquet: truncated",
        "medmcqa: its test split's 9 answers are not",
        "only: not measured",
    )
    for note in said:
        assert note in out.stderr
    r = json.loads((tmp_path / "r.json").read_text())["benchmarks"]
    assert {name: of_one["split"] for name, of_one in r.items()} == MEASURED
    assert [r[name]["questions"] for name in MEASURED] == [N, N, N, N, N, 4]
    assert "not above chance" in out.stdout and r["medmcqa"]["hidden"] == N
    for name, of_one in r.items():
        alone = script("eval.py", "choices", *flags, "--data", *of_one["data"], "--format", of_one["format"])
        assert alone.returncode == 0, alone.stderr
        expected = json.loads((tmp_path / "r.json").read_text())
        keys = ("loglikelihoods", "accuracy", "per_character", "majority", "chance", "data_sha256")
        assert {key: of_one[key] for key in keys} == {key: expected[key] for key in keys}, name


def test_above_chance_is_the_whole_interval():
    for interval, said in (
        ([0.26, 0.5], ""),
        ([0.2, 0.5], "not above chance"),
        ([0.1, 0.2], "not above chance"),
    ):
        assert against_chance({"accuracy_ci95": interval, "chance": 0.25}) == said


def test_the_page_shows_them(script, model_dir, tmp_path, place):
    flags = ("--model", model_dir, "--dtype", "fp32", "--json", "a.json", "--from", place)
    assert script("eval.py", "benchmarks", *flags).returncode == 0
    r = json.loads((tmp_path / "a.json").read_text())
    other = r["benchmarks"] | {"medmcqa": r["benchmarks"]["medmcqa"] | {"data_sha256": "0"}}
    for name, change in (("b", {"benchmarks": other}), ("c", {"model": "c"})):
        (tmp_path / f"{name}.json").write_text(json.dumps(r | {"model": name} | change))
    write(tmp_path / "d.jsonl", [{"text": t} for t in make_texts(3, 1)])
    page = (
        "--models",
        model_dir,
        "--data",
        "d.jsonl",
        "--out",
        "page",
        "--dtype",
        "fp32",
        "--max-new-tokens",
        2,
    )
    page += ("--prompts", tmp_path / "p.txt")
    (tmp_path / "p.txt").write_text("the patient")
    out = script("eval.py", "compare", *page, "--benchmarks", "a.json", "c.json")
    assert out.returncode == 0, out.stderr
    held = json.loads((tmp_path / "page" / "report.json").read_text())["benchmarks"]
    assert held["head"][1:3] == [str(model_dir), "c"] and [row[0] for row in held["rows"]] == sorted(MEASURED)
    html = (tmp_path / "page" / "report.html").read_text()
    assert "Medical benchmarks" in html and "mmlu virology" in html and "not above chance" in html
    out = script("eval.py", "compare", *page, "--benchmarks", "a.json", "b.json")
    assert_refused(out, "b.json", "--limit")
    assert_refused(script("eval.py", "compare", *page, "--benchmarks", "a.json", "a.json"), "each model once")
    write(tmp_path / "x.json", {"model": "m", "ppl": 1})
    assert_refused(
        script("eval.py", "compare", *page, "--benchmarks", "x.json"), "x.json", "benchmarks --json"
    )


def test_the_recipe_names_what_lm_eval_asks():
    found = named_in(ROOT / "recipes" / "benchmarks.toml")
    named = {b.data[""][0] for b in found.values() if b.format != "pubmedqa"}
    medical = load_yaml(TASKS / "benchmarks" / "multimedqa" / "multimedqa.yaml")["task"]
    subjects = [task["task"] for task in medical if isinstance(task, dict)]
    files = [YAML["medqa"], YAML["medmcqa"], YAML["headqa"], *(f"mmlu/default/{s}.yaml" for s in subjects)]
    configs = [load_yaml(TASKS / file) for file in files]
    assert named == {
        f"hub:{c['dataset_path']}:{c.get('dataset_name', 'default')}:{c['test_split']}" for c in configs
    }


def test_what_cannot_be_measured_is_refused(script, model_dir, tmp_path, place):
    flags = ("eval.py", "benchmarks", "--model", model_dir, "--from")
    assert_refused(script(*flags, "nowhere"), "nowhere")
    (tmp_path / "empty").mkdir()
    assert_refused(script(*flags, "empty"), "empty", "no benchmark", "medmcqa")
    (tmp_path / "t.toml").write_text('[x]\nformat = "rows"\ndata = ["d.jsonl"]\n')
    assert_refused(script(*flags, "t.toml"), "t.toml [x]", "'rows'", "headqa")
    (place / "medmcqa" / "test.jsonl").write_text((place / "medmcqa" / "test.json").read_text())
    out = script(*flags, place)
    assert out.returncode == 2 and "medmcqa test; leave one" in out.stderr
    before = (place / "medmcqa" / "dev.json").read_text()
    out = script(*flags, place, "--json", place / "medmcqa" / "dev.json")
    assert_refused(out, "dev.json")
    assert (place / "medmcqa" / "dev.json").read_text() == before
