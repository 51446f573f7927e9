"""What is held out is in no part of a run: training, replay, validation; and later phases know of it."""

import json

import pytest

from nanomed.evaluation import measure
from nanomed.evaluation.training_texts import training_sides
from nanomed.text import heldout
from nanomed.text.conversations import Conversation
from nanomed.text.instructions import Fields
from nanomed.training import run
from nanomed.training.settings import Adapt
from tests.conftest import assert_refused, make_texts, write_jsonl

TINY = ("--batch-size", 4, "--max-steps", 1, "--dtype", "fp32")


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def trained_on(monkeypatch):
    """{"training": texts, "sets": names}: the batches and validation sets that reach the loop, which is not
    run."""
    seen = {}

    def train(setup, job):
        epoch = [batch for k in range(job.data.windows_per_epoch) for batch in job.data.window(k)]
        seen["training"] = "".join(
            setup.tokenizer.decode(row) for batch in epoch for row in batch.idx.tolist()
        )
        seen["validation"], seen["facts"], seen["held"] = list(job.validation), job.facts, job.held

    monkeypatch.setattr(run, "train", train)
    return seen


@pytest.fixture
def train(script, model_dir):
    """script() with what all runs here have in common."""
    return lambda name, *flags: script(name, "--model", model_dir, *flags, "--out", "o", *TINY)


def texts_of(held, texts):
    return sum(heldout.digest(t) in held.documents for t in texts)


@pytest.mark.parametrize("name", ["train_clm.py", "train_cls.py"])
def test_what_is_excluded_is_in_neither_training_nor_validation(train, trained_on, tmp_path, name):
    texts = make_texts(60, 31)
    test = write_jsonl(tmp_path / "test.jsonl", texts[:30])
    docs = write_jsonl(tmp_path / "docs.jsonl", texts)
    other = write_jsonl(tmp_path / "other.jsonl", make_texts(20, 32))
    data = ("--data", docs) if name == "train_clm.py" else ("--positives", docs, "--negatives", other)
    out = train(name, *data, "--exclude", test, "--val-fraction", 0.25)
    assert "30 training" in out.stdout, out.stderr
    sides = trained_on["facts"]
    if name == "train_clm.py":
        assert (sides["documents"], sides["val_documents"]) == (22, 8)
        assert texts_of(trained_on["held"], texts[30:]) == 8  # the validation documents come from the others
    else:
        assert (sides["texts"], sides["val_texts"]) == (38, 12)
    assert not any(t[:30] in trained_on["training"] for t in texts[:30])


def test_replay_leaves_out_what_is_excluded_and_what_an_earlier_phase_held_out(
    script, trained_on, model_dir, tmp_path
):
    """The README's road: phase 2 holds documents out with --exclude and validates on others, phase 4 replays
    all it read."""
    abstracts, held, excluded = make_texts(40, 501), make_texts(10, 500), make_texts(5, 502)
    docs = write_jsonl(tmp_path / "abstracts.jsonl", abstracts + held + excluded)
    pairs = write_rows(tmp_path / "pairs.jsonl", [{"question": f"{k}?", "answer": "yes"} for k in range(60)])
    adapted = tmp_path / "adapted"
    adapted.mkdir()
    for file in model_dir.iterdir():
        (adapted / file.name).write_bytes(file.read_bytes())
    heldout.write(heldout.HeldOut({heldout.digest(t) for t in held}), adapted)
    write_jsonl(tmp_path / "test.jsonl", excluded)
    out = script(
        "train_sft.py",
        "--model",
        adapted,
        "--data",
        pairs,
        "--replay",
        docs,
        "--exclude",
        "test.jsonl",
        "--out",
        "o",
        *TINY,
    )
    assert "15 documents that are held out, now or by an earlier phase" in out.stdout, out.stderr
    assert sum(t[:25] in trained_on["training"] for t in abstracts) > 35
    assert not any(t[:25] in trained_on["training"] for t in held + excluded)


def test_a_run_remembers_for_later_phases_and_they_say_so(script, model_dir, tmp_path):
    docs = write_jsonl(tmp_path / "docs.jsonl", make_texts(20, 1))
    test = write_jsonl(tmp_path / "test.jsonl", make_texts(4, 2))
    val = write_jsonl(tmp_path / "val.jsonl", make_texts(3, 3))
    assert (
        script(
            "train_clm.py",
            "--model",
            model_dir,
            "--data",
            docs,
            "--exclude",
            test,
            "--val-data",
            val,
            "--out",
            "a",
            *TINY,
        ).returncode
        == 0
    )
    assert len(heldout.earlier(tmp_path / "a").documents) == 7
    later = ("--negatives", docs, "--out", "c", *TINY)
    out = script("train_cls.py", "--model", "a", "--positives", test, val, *later, "--val-fraction", 0.3)
    assert out.returncode == 0 and "note: " in out.stdout and "was held out when" in out.stdout, out.stderr
    assert len(heldout.earlier(tmp_path / "c").documents) >= 7  # and on, from phase to phase
    assert "note: " not in script("train_clm.py", "--model", "a", "--data", docs, "--out", "b", *TINY).stdout
    (tmp_path / "a" / "held_out.json").write_text('{"documents": [3]}')
    assert_refused(
        script("train_clm.py", "--model", "a", "--data", docs, "--out", "d", *TINY), "held_out.json"
    )


def test_a_users_validation_data_stays_as_it_is_and_the_overlap_is_said(train, trained_on, tmp_path):
    texts = make_texts(20, 5)
    docs, val = write_jsonl(tmp_path / "docs.jsonl", texts), write_jsonl(tmp_path / "val.jsonl", texts[:6])
    out = train("train_clm.py", "--data", docs, "--val-data", val, "--exclude", val)
    assert "6 documents or rows of --val-data are in --exclude too" in out.stdout, out.stderr
    assert (trained_on["facts"]["val_documents"], trained_on["facts"]["documents"]) == (6, 14)


@pytest.mark.parametrize("flag", ["--val-data", "--exclude"])
def test_a_group_stays_on_one_side_of_whatever_is_held_out(train, trained_on, tmp_path, flag):
    rows = [
        {"instruction": f"What about {d}, {k}?", "response": f"{d} {k}.", "of": d}
        for d in "abcdef"
        for k in range(5)
    ]
    held = write_rows(tmp_path / "held.jsonl", rows[4:5])  # one row of the group a
    data = write_rows(tmp_path / "data.jsonl", rows[:4] + rows[5:])
    out = train("train_sft.py", "--data", data, flag, held, "--group-field", "of", "--val-fraction", 0)
    assert trained_on["facts"]["examples"] == 25, out.stderr
    assert "about a" not in trained_on["training"] and "about b" in trained_on["training"]


def test_documents_and_instruction_rows_alike(train, trained_on, tmp_path):
    """Both kinds of row, in one file, in every script."""
    texts = make_texts(12, 7)
    both = write_rows(
        tmp_path / "both.jsonl",
        [
            {"text": texts[0]},
            {"question": "Why?", "input": texts[1], "answer": texts[2]},
            {"question": "How?", "text": texts[3]},
        ],
    )
    docs = write_jsonl(tmp_path / "docs.jsonl", texts)
    out = train("train_clm.py", "--data", docs, "--exclude", both, "--val-fraction", 0)
    assert trained_on["facts"]["documents"] == 8, out.stderr
    rows = [
        {"question": "Why?", "input": texts[1], "answer": "other"},
        {"question": "How?", "answer": "b"},
        {"question": "What?", "input": texts[0], "answer": "c"},
        {"question": "Why?", "answer": "d"},
    ]
    pairs = write_rows(tmp_path / "pairs.jsonl", rows)
    out = train("train_sft.py", "--data", pairs, "--exclude", both, "--val-fraction", 0)
    assert trained_on["facts"]["examples"] == 1, (
        out.stderr
    )  # the question alone, without the input, is another one
    assert_refused(
        train("train_clm.py", "--data", docs, "--exclude", write_rows(tmp_path / "n.jsonl", [{"n": 1}])),
        "n.jsonl",
        "row 1",
    )


def has(held, *rows):
    return held.has(heldout.Items.of_rows(rows)).tolist()


def test_a_question_is_held_out_whatever_its_answer():
    held = heldout.Items.of_rows([Conversation.of("q", "x", "two", group="g")]).held_out()
    assert has(held, Conversation.of("q", "x", "one"), Conversation.of("q", "y", "one")) == [True, False]
    assert has(held, Conversation.of("other", "", "one", "g"), Conversation.of("other", "", "two")) == [
        True,
        False,
    ]


def test_a_classifiers_training_texts_are_found_again_with_named_sets(script, model_dir, tmp_path):
    """eval.py cls reads them once more for its baselines: from another directory, through NAME=D."""
    rows = [{"text": t, "label": "ab"[k % 2]} for k, t in enumerate(make_texts(24, 9))]
    data, val = write_rows(tmp_path / "d.jsonl", rows[:16]), write_rows(tmp_path / "v.jsonl", rows[16:])
    out = script(
        "train_cls.py",
        "--model",
        model_dir,
        "--data",
        "d.jsonl",
        "--val-data",
        "here=v.jsonl",
        "there=d.jsonl",
        "--out",
        "c",
        *TINY,
    )
    assert_refused(out, "no text of the label")  # all of `there` is held out
    out = script(
        "train_cls.py",
        "--model",
        model_dir,
        "--data",
        data.name,
        "--val-data",
        f"here={val.name}",
        "--out",
        "c",
        *TINY,
    )
    assert out.returncode == 0, out.stderr
    o = measure.open_model(str(tmp_path / "c"), classifier=True)
    sides, why = training_sides(o.directory)
    assert why is None and len(sides.training) == 16 and list(sides.validation) == ["here"]


def test_fields_of_ones_own(tmp_path):
    path = write_rows(tmp_path / "x.jsonl", [{"q": "Why?", "a": "so"}])
    fields = Fields(instruction="q", response="a")
    settings = Adapt(model="m", exclude=[str(path)], near_duplicates=0.8)
    excluded = heldout.read_excluded(settings, fields)
    assert has(excluded.held, Conversation.of("Why?", "", "else")) == [True] and excluded.texts == [
        "Why?\nso"
    ]


@pytest.mark.parametrize("name", ["train_cls.py", "train_sft.py"])
def test_the_overlap_is_said_in_every_script(train, trained_on, tmp_path, name):
    rows = [
        {"text": t, "label": "ab"[k % 2], "question": t, "answer": "yes"}
        for k, t in enumerate(make_texts(12, 4))
    ]
    data, val = write_rows(tmp_path / "d.jsonl", rows[:8]), write_rows(tmp_path / "v.jsonl", rows[8:])
    out = train(name, "--data", data, "--val-data", val, "--exclude", val)
    assert "4 documents or rows of --val-data are in --exclude too" in out.stdout, out.stderr


@pytest.mark.parametrize("name", ["train_clm.py", "train_cls.py", "train_sft.py"])
def test_when_everything_is_excluded_that_is_what_is_said(train, tmp_path, name):
    rows = [
        {"text": t, "label": "ab"[k % 2], "question": t, "answer": "yes"}
        for k, t in enumerate(make_texts(6, 4))
    ]
    data = write_rows(tmp_path / "d.jsonl", rows)
    out = train(name, "--data", data, "--exclude", data)
    assert_refused(out, "left to train on")
    assert "cannot be split" not in out.stderr


def test_bad_rows_of_an_exclusion_are_counted_and_other_fields_are_nobodys_business(
    script, trained_on, model_dir, tmp_path
):
    texts = make_texts(12, 7)
    docs = write_jsonl(tmp_path / "docs.jsonl", texts)
    odd = [
        {"text": texts[0], "question": "Which?", "answer": 3, "input": ["a"]},
        {"txt": texts[1]},
        {"text": texts[2]},
    ]
    held = write_rows(tmp_path / "held.jsonl", odd)
    args = (
        "train_clm.py",
        "--model",
        model_dir,
        "--data",
        docs,
        "--exclude",
        held,
        "--val-fraction",
        0,
        "--out",
        "o",
        *TINY,
    )
    assert_refused(script(*args), "row 2", "neither a text")
    out = script(*args, "--skip-bad-rows")
    assert "1 bad rows of --exclude left out" in out.stdout and trained_on["facts"]["documents"] == 10, (
        out.stderr
    )


def test_validation_rows_are_told_from_documents_by_the_first_good_one(
    script, trained_on, model_dir, tmp_path
):
    pairs = write_rows(tmp_path / "p.jsonl", [{"question": f"{k}?", "answer": "yes"} for k in range(8)])
    val = tmp_path / "v.jsonl"
    val.write_text("{broken\n" + json.dumps({"question": "new?", "answer": "no"}) + "\n")
    common = ("train_sft.py", "--model", model_dir, "--data", pairs, "--out", "o", *TINY)
    out = script(*common, "--val-data", val, "--skip-bad-rows")
    assert trained_on["facts"]["val_examples"] == 1, out.stderr
    odd = write_rows(tmp_path / "odd.jsonl", [{"q": "a", "a": "b"}])
    assert_refused(script(*common, "--val-data", odd), "--instruction-field", "--text-field", "fields: q, a")


def test_random_weights_have_no_earlier_phases(script, trained_on, model_dir, tmp_path):
    docs = write_jsonl(tmp_path / "docs.jsonl", make_texts(8, 1))
    own = tmp_path / "own"
    own.mkdir()
    for file in model_dir.iterdir():
        (own / file.name).write_bytes(file.read_bytes())
    heldout.write(heldout.HeldOut({heldout.digest(t) for t in make_texts(8, 1)}), own)
    common = ("--data", docs, "--out", "o", *TINY)
    assert "note: " in script("train_clm.py", "--model", own, *common).stdout
    assert "note: " not in script("train_clm.py", "--from-scratch", "--model", own, *common).stdout


def test_a_question_that_is_no_valid_unicode_is_no_traceback(train, trained_on, tmp_path):
    held = tmp_path / "held.jsonl"
    held.write_text('{"question": "\\ud800", "answer": "x"}\n')
    docs = write_jsonl(tmp_path / "docs.jsonl", make_texts(8, 1))
    out = train("train_clm.py", "--data", docs, "--exclude", held)
    assert "Traceback" not in out.stderr and trained_on["facts"]["documents"] == 7
