"""eval.py tasks: what a model writes is read back, counted and set beside the baselines."""

import json
import random
import shutil

import pytest

from nanomed.errors import UserError
from nanomed.evaluation import measure as measuring
from nanomed.systems.tasks import measure, sets
from nanomed.text.templates import TEMPLATES
from tests.conftest import assert_refused, make_texts, run_script, write_jsonl
from tests.systems.test_sources import annotated, build, rows_of

TEMPLATE = TEMPLATES["none"]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    home = annotated(tmp_path_factory.mktemp("home"))
    build(home)
    return home / "set"


@pytest.fixture
def made(built, tmp_path):
    """An instruction set of one's own."""
    return shutil.copytree(built, tmp_path / "set")


def answered(made, name, write):
    """measure_task() of the answers that write(row) gives."""
    task = sets.read_set(made)[name]
    rows = rows_of(made / f"{name}.test.jsonl")
    baselines = json.loads((made / f"{name}.baselines.json").read_text())
    return measure.measure_task(task, rows, [write(row) for row in rows], baselines, 0)


def test_the_right_answers_are_right(made):
    for name, measured in (("diseases", "entity_f1"), ("topics", "accuracy")):
        found = answered(made, name, lambda row: {"answer": row["output"], "stopped": True, "room": True})
        assert found[measured] == 1 and found["malformed_share"] == 0
    assert found["against_linear"]["verdict"] != "worse"


def test_a_malformed_or_cut_off_answer_is_wrong_and_counted(made):
    found = answered(
        made,
        "topics",
        lambda row: {"answer": row["output"], "stopped": row["gold"] != ["general"], "room": True},
    )
    assert found["cut_off"] == 5 and found["accuracy"] == 0.5 and found["malformed_share"] == 0.5
    found = answered(
        made, "topics", lambda row: {"answer": "well, " + row["output"], "stopped": True, "room": True}
    )
    assert found["malformed"] == 10 and found["accuracy"] == found["macro_f1"] == 0
    found = answered(
        made,
        "diseases",
        lambda row: {"answer": row["output"] + "\nunheard of", "stopped": True, "room": True},
    )
    contradicted = sum(
        row["output"] == "none" for row in rows_of(made / "diseases.test.jsonl")
    )  # "none", and yet another
    assert found["not_in_text"] == 20 + contradicted and found["malformed"] == 0 and found["entity_f1"] < 1


def test_an_answer_has_room_for_what_its_form_can_need(made, model_dir):
    o = measuring.open_model(str(model_dir), "cpu", "fp32")
    for form, labels, input, answer in (
        ("entities", ["D"], "a cough", "a cough"),
        (
            "entities",
            ["D", "Disease"],
            "fever cough asthma " * 9 + "x",
            "fever : Disease\ncough : Disease\nasthma : Disease\n" * 9,
        ),
        ("entities", ["D"], "fever " * 30 + "x", "fever #30\nfever #12\n" * 15),
        ("tags", ["D"], "a cough", "a : B-D\ncough : B-D"),
        ("classes", ["growth", "death"], "x", "growth, death"),
        ("classes", ["growth, slow", "death"], "x", "growth, slow; death"),
        ("class", ["growth", "death"], "x", "growth"),
        ("options", ["A", "B"], "q?\nA. x\nB. y", "A. x"),
    ):
        (most,) = measure.longest_answer({"form": form, "labels": labels}, [input], o.tokenizer)
        assert len(o.tokenizer.encode(answer)) < most


def test_a_model_is_measured_on_all_tasks_at_once(made, model_dir, script, tmp_path):
    """A model of random weights in 64 positions: nonsense, some prompts without room for an answer, and still
    a whole table."""
    done = script(
        "eval.py",
        "tasks",
        "--model",
        model_dir,
        "--tasks",
        made,
        "--template",
        "none",
        "--json",
        tmp_path / "t.json",
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "t.json").read_text())
    assert set(result["tasks"]) == {"diseases", "topics"} and result["template"] == "none"
    for name, task in result["tasks"].items():
        assert (
            task["texts"] == len(task["answers"])
            and 0 <= task["malformed_share"] <= 1
            and name in done.stdout
        )
    assert (
        "linear baseline: diseases" in done.stdout
        and "published, topics: accuracy 0.9 (someone)" in done.stdout
    )
    assert result["tasks"]["topics"]["baselines"]["linear"]["accuracy"] >= 0


def test_batches_change_nothing(made, model_dir):
    o = measuring.open_model(str(model_dir), "cpu", "fp32")
    rows = rows_of(made / "diseases.test.jsonl")[:6]
    task = {"form": "entities", "labels": ["Disease"]}
    alone, together = (measure.ask(o, rows, task, TEMPLATE, n, 0) for n in (1, 6))
    assert alone == together


def test_a_limit_draws_texts_and_their_baselines(made, model_dir, script, tmp_path):
    flags = [
        "--model",
        model_dir,
        "--tasks",
        made,
        "--only",
        "topics",
        "--limit",
        4,
        "--json",
        tmp_path / "t.json",
    ]
    done = script("eval.py", "tasks", *flags)
    first = json.loads((tmp_path / "t.json").read_text())["tasks"]
    assert set(first) == {"topics"} and first["topics"]["texts"] == 4
    drawn = [k + 1 for k in sorted(random.Random(0).sample(range(10), 4))]  # as choices draws
    assert first["topics"]["rows"] == drawn
    assert f"rows {', '.join(map(str, drawn))} of topics.test.jsonl" in done.stdout, done.stderr
    assert script("eval.py", "tasks", *flags).returncode == 0
    assert (
        json.loads((tmp_path / "t.json").read_text())["tasks"]["topics"]["answers"]
        == first["topics"]["answers"]
    )


def test_predictions_are_written_task_by_task_and_gone_on_with(
    made, model_dir, script, tmp_path, monkeypatch
):
    flags = [
        "--model",
        model_dir,
        "--tasks",
        made,
        "--template",
        "none",
        "--limit",
        4,
        "--predictions",
        tmp_path / "p",
    ]
    ask, asked = measure.ask, []

    def stopped(o, rows, task, *rest):
        asked.append(task["form"])
        if task["form"] == "class" and len(asked) == 2:
            raise UserError("the power went off")
        return ask(o, rows, task, *rest)

    monkeypatch.setattr(measure, "ask", stopped)
    assert_refused(script("eval.py", "tasks", *flags), "the power went off")
    rows = rows_of(tmp_path / "p" / "diseases.jsonl")
    test = rows_of(made / "diseases.test.jsonl")
    assert len(rows) == 4 and all(row["gold"] == test[row["row"] - 1]["gold"] for row in rows)
    assert (
        all(row["right"] == (row["read"] == row["gold"]) for row in rows)
        and not (tmp_path / "p" / "topics.jsonl").exists()
    )
    done = script("eval.py", "tasks", *flags, "--json", tmp_path / "t.json")
    assert done.returncode == 0 and asked == ["entities", "class", "class"], done.stderr
    assert f"diseases: 4 texts from {tmp_path / 'p' / 'diseases.jsonl'}" in done.stdout
    plain = script("eval.py", "tasks", *flags[:-2], "--json", tmp_path / "u.json")
    with_seconds = [json.loads((tmp_path / name).read_text())["tasks"] for name in ("t.json", "u.json")]
    assert plain.returncode == 0
    first, second = (
        {n: {k: v for k, v in task.items() if k != "seconds"} for n, task in found.items()}
        for found in with_seconds
    )
    assert first == second
    assert_refused(script("eval.py", "tasks", *flags, "--seed", 1), "--predictions", "of another seed")
    (tmp_path / "p" / "topics.jsonl").write_text('{"row": 1}\n')
    assert_refused(script("eval.py", "tasks", *flags), "topics.jsonl, row 1: object missing required field")
    assert_refused(
        script("eval.py", "tasks", *flags[:-1], made), "not empty", "none of eval.py tasks's files"
    )


def test_what_was_done_to_a_sets_rows_stands_beside_its_figure(made, model_dir, script, tmp_path):
    told = json.loads((made / "tasks.json").read_text())
    told["tasks"]["topics"] |= {"words": 7, "cut": {"train": 3, "test": 2}, "bad_rows": 5}
    (made / "tasks.json").write_text(json.dumps(told))
    flags = ["--model", model_dir, "--tasks", made, "--limit", 4, "--only", "topics", "--template", "none"]
    done = script("eval.py", "tasks", *flags, "--json", tmp_path / "t.json")
    cut = "3 of 30 training texts and 2 of 10 test texts cut at 7 words"
    assert (
        f"of the set: 1 repeat a test text and were taken out, 5 bad rows left out, {cut}" in done.stdout
    ), done.stderr
    assert json.loads((tmp_path / "t.json").read_text())["tasks"]["topics"]["set"]["cut"] == {
        "train": 3,
        "test": 2,
    }


def test_two_figures_where_an_i_has_no_b_and_a_dash_where_there_is_nothing(made):
    rows = [{"input": "a b", "gold": ["B-D", "O"]}, {"input": "c d", "gold": ["O", "B-D"]}]
    said = [
        {"answer": "b : O\na : B-D", "stopped": True, "room": True},
        {"answer": "c : O\nd : I-D", "stopped": True, "room": True},
    ]
    task = vars(sets.Made(form="tags", labels=["D"], measure="entity_f1"))
    found = measure.measure_task(task, rows, said, {"linear": [["I-D", "O"], ["I-D", "I-D"]]}, 0)
    assert found["orphans"] == 1 and found["baselines"]["linear"]["orphans"] == 2
    assert measure.cell(found, "entity_f1").startswith("0.667 [") and "; 1.000 [" in measure.cell(
        found, "entity_f1"
    )
    assert measure.cell(found, "entity_f1").endswith("with 1 I- repaired")
    assert found["against_linear"]["ways"] == ["strict", "repaired"]
    empty = [{"input": "a b", "gold": ["O", "O"]}, {"input": "c d", "gold": ["O", "O"]}]
    found = measure.measure_task(
        task | {"form": "entities"}, empty, [{"answer": "none", "stopped": True, "room": True}] * 2, {}, 0
    )
    assert found["entity_f1"] is None and measure.cell(found, "entity_f1") == "-"
    assert measure.table({"m": {"tasks": {"t": found}}})[2][2] == "-"


def test_what_is_no_instruction_set_is_refused(made, model_dir, script, tmp_path):
    assert_refused(
        script("eval.py", "tasks", "--model", model_dir, "--tasks", tmp_path),
        "no tasks.json there",
        "python -m",
    )
    done = script("eval.py", "tasks", "--model", model_dir, "--tasks", made, "--only", "genes")
    assert_refused(done, "--only genes", "diseases, topics")
    done = script("eval.py", "tasks", "--model", model_dir, "--tasks", made, "--json", made / "tasks.json")
    assert_refused(done, "tasks.json")
    (made / "topics.baselines.json").write_text('{"majority": []}')
    assert_refused(
        script("eval.py", "tasks", "--model", model_dir, "--tasks", made),
        "topics.baselines.json",
        "other texts",
    )


@pytest.mark.parametrize(
    ("name", "old", "new", "words"),
    [
        ("tasks.json", '"form": "class"', '"form": "essay"', ["tasks.json: not what", "topics"]),
        (
            "tasks.json",
            '"form": "class"',
            '"form": ["class"]',
            ["tasks.json: not what", "topics: form: expected"],
        ),
        (
            "tasks.json",
            '"form": "class"',
            '"form": "entities"',
            ["tasks.json: not what", "topics"],
        ),  # accuracy is not of it
        ("tasks.json", "macro_f1", "f1", ["tasks.json: not what", "topics"]),
        ("tasks.json", '"words": null', '"words": "many"', ["tasks.json: not what", "words: expected"]),
        ("tasks.json", '"medical"', '"doctor"', ["topics.test.jsonl, text 2: not of the labels"]),
        (
            "topics.test.jsonl",
            '"gold": ["general"]',
            '"gold": ["x"]',
            ["topics.test.jsonl, text 1: not of the labels"],
        ),
        (
            "topics.test.jsonl",
            '"gold": ["general"]',
            '"gold": 5',
            ["topics.test.jsonl, row 1: gold: expected"],
        ),
        (
            "topics.test.jsonl",
            '"gold": ["general"]}',
            '"gold": ["gen',
            ["topics.test.jsonl, row 1: not valid JSON"],
        ),
        ("topics.baselines.json", '"general"', '"x"', ["topics.baselines.json, text 1: not of the labels"]),
        (
            "diseases.baselines.json",
            '"O",',
            "",
            ["diseases.baselines.json, text 1: not of the labels and words"],
        ),
        (
            "diseases.baselines.json",
            '"linear"',
            '"x": 5, "linear"',
            ["diseases.baselines.json: [...]: expected"],
        ),
    ],
)
def test_a_damaged_set_is_named(made, model_dir, script, name, old, new, words):
    text = (made / name).read_text()
    assert old in text
    (made / name).write_text(text.replace(old, new))
    assert_refused(script("eval.py", "tasks", "--model", model_dir, "--tasks", made, "--limit", 2), *words)


def test_a_base_without_a_template_is_asked_as_the_published_system_was(made, model_dir, tmp_path):
    done = run_script(
        tmp_path, "eval.py", "tasks", "--model", model_dir, "--tasks", made, "--only", "topics", "--limit", 2
    )
    assert "template medtuned" in done.stdout, done.stderr


def test_the_page_shows_the_tasks(made, model_dir, script, tmp_path):
    common = ["--model", model_dir, "--tasks", made, "--template", "none", "--only", "topics", "--json"]
    assert script("eval.py", "tasks", *common, tmp_path / "a.json").returncode == 0
    result = json.loads((tmp_path / "a.json").read_text())
    (tmp_path / "b.json").write_text(json.dumps(result | {"model": "<tuned>"}))
    write_jsonl(tmp_path / "docs.jsonl", make_texts(3, 1))
    page = [
        "compare",
        "--models",
        model_dir,
        "--data",
        tmp_path / "docs.jsonl",
        "--max-new-tokens",
        2,
        "--out",
        tmp_path / "page",
    ]
    done = script("eval.py", *page, "--tasks", tmp_path / "a.json", tmp_path / "b.json")
    assert done.returncode == 0, done.stderr
    html = (tmp_path / "page" / "report.html").read_text()
    assert 'id="tasks"' in html and "&lt;tuned&gt;" in html and "topics accuracy 0.9 (someone)" in html
    figure, interval = measure.table({"m": result})[2][2].split(" ", 1)
    assert f"<td>{figure}<small>{interval}</small></td>" in html
    (tmp_path / "b.json").write_text(json.dumps(result))
    same = ("--tasks", tmp_path / "a.json", tmp_path / "b.json")
    assert_refused(script("eval.py", *page, *same), "b.json", "each model once")
    (tmp_path / "b.json").write_text(json.dumps(result | {"limit": 3}))
    assert_refused(
        script("eval.py", *page, "--tasks", tmp_path / "a.json", tmp_path / "b.json"), "b.json", "same texts"
    )
    assert_refused(script("eval.py", *page, "--tasks", tmp_path / "docs.jsonl"), "docs.jsonl")
