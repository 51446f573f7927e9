"""eval.py compare --runs: trainings beside each other; what differs, what can be compared, what is refused."""

import json
import math
import re

import pytest

from nanomed.evaluation import runs
from nanomed.text import heldout
from nanomed.training.settings import PHASES


@pytest.fixture
def made(tmp_path):
    """A function that writes the records of a training into a directory."""

    def make(name, losses, phase="adapt", *, given="", record=None, missing=(), summary=None, **settings):
        d = tmp_path / name
        d.mkdir()
        s = PHASES[phase](model="nano", data=["x/docs.jsonl"], **settings)
        kept = {key: value for key, value in s.recorded().items() if key not in missing}
        found = {"program": "nanomed.training", "format": 1, "phase": phase, "settings": kept}
        found |= {
            "command": f"train_clm.py --model nano --data x/docs.jsonl {given}",
            "data": {"x/docs.jsonl": "d0"},
        }
        found |= {"tokenizer": "t0", "model": "m0", "versions": {"nanomed": "0.1.0", "torch": "2.13"}}
        (d / "run.json").write_text(
            json.dumps(found | {"machine": {"cpu": "EPYC", "cuda": None}} | (record or {}))
        )
        lines = [
            {
                "step": 10 * k,
                "tokens": 640 * k,
                "loss": loss + 0.5,
                "lr": 1e-4,
                "val_loss": loss,
                "grad_norm": 1.0,
            }
            for k, loss in enumerate(losses)
        ]
        (d / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        heldout.write(heldout.HeldOut(documents={b"0" * 16}), d)
        if summary is not None:
            (d / "summary.json").write_text(json.dumps(summary))
        return d

    return make


def differ(*directories) -> dict[str, list[str]]:
    found = runs.read(list(map(str, directories)), [d.name for d in directories])
    return {row[0]: row[1:] for row in runs.differences(found)[2:]}


def test_what_differs_is_shown_and_nothing_else(made):
    a, b = made("a", [4.0]), made("b", [4.0], given="--lr=1e-4 --no-compile", lr=1e-4, batch_size=4)
    assert differ(a, b) == {"batch-size": ["8 (default)", "4 (default)"], "lr": ["none (default)", "0.0001"]}
    assert runs.claims(runs.read([a], ["a"])) == [
        "a is the only run: give others to see in what they differ."
    ]
    same = made("same", [3.0])
    assert differ(a, same) == {}
    assert (
        runs.claims(runs.read([a, same], ["a", "same"]))[-1] == "They differ in nothing that run.json holds."
    )


def test_versions_machine_texts_and_model_are_told_apart_by_what_they_hold(made):
    a = made("a", [4.0])
    record = {"versions": {"nanomed": "0.2.0", "torch": "2.13"}, "machine": {"cpu": "EPYC", "cuda": "H200"}}
    record |= {"data": {"x/docs.jsonl": "d1"}, "model": "m1", "directory": "/elsewhere"}
    b = made("b", [4.0], record=record)
    assert differ(a, b) == {
        "texts (SHA-256)": ["docs.jsonl d0", "docs.jsonl d1"],
        "model (SHA-256)": ["m0", "m1"],
        "nanomed": ["0.1.0", "0.2.0"],
        "cuda": ["none", "H200"],
    }


def test_a_setting_that_an_older_version_did_not_record_is_what_its_absence_means(made):
    old, new = (
        made("old", [4.0], missing=["near_duplicates", "dropout"]),
        made("new", [4.0], near_duplicates=0.8),
    )
    assert differ(old, new) == {"near-duplicates": ["0 (not recorded)", "0.8 (default)"]}


def test_a_recipe_may_have_given_what_the_command_does_not_name(made):
    a, b = made("a", [4.0], given="--config r.toml", lr=1e-3), made("b", [4.0], lr=1e-4)
    assert differ(a, b) == {"lr": ["0.001", "0.0001 (default)"]}


def test_a_flag_that_begins_with_no_was_given(made):
    a = made("a", [4.0], "instruct", given="--no-packing", no_packing=True)
    b = made("b", [4.0], "instruct")
    assert differ(a, b) == {"no-packing": ["yes", "no (default)"]}


def of_sets(directory, losses: list[dict]) -> None:
    """metrics.jsonl of a run that was validated on several sets."""
    lines = [
        {"step": 10 * k, "tokens": k, "loss": 9.0 - k, "val_loss": next(iter(sets.values()))}
        | {"val": {name: {"loss": loss} for name, loss in sets.items()}}
        for k, sets in enumerate(losses)
    ]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_every_set_that_two_runs_share_is_spoken_of(made):
    """The best weights are those of the best loss on the first set, whatever the others say."""
    shas = ({"val-data own": "o", "val-data other": n} for n in "12")
    a, b = (made(n, [], keep="best", record={"data": sha}) for n, sha in zip("ab", shas, strict=True))
    of_sets(a, [{"own": 4.0, "other": 1.0}, {"own": 3.0, "other": 2.0}])
    of_sets(b, [{"other": 1.5, "own": 4.0}, {"other": 0.5, "own": 3.5}, {"other": 1.0, "own": 2.0}])
    found = runs.read([a, b], ["a", "b"])
    assert runs.claims(found)[:2] == [
        "On own, b has a loss of 3.5000 (perplexity 33.12), a of 3.0000 (perplexity 20.09).",
        "The losses of b and a on other cannot be compared: they differ in validation texts.",
    ]
    head, _, *rows = runs.curve_table(found)
    assert head[0] == "loss on own after update" and rows[-1] == ["20", "", "2.0000"]
    c = made("c", [3.0], "classify")
    of_sets(c, [{"other": 4.0}])
    found = runs.read([c, a, b], ["c", "a", "b"])
    assert [[run.name for run in these] for these in runs.of_phases(found)] == [["c"], ["a", "b"]]
    assert runs.claims(found)[0].startswith("On own, b has") and runs.claims(found)[1:-1] == [
        "The losses of a and c on other cannot be compared: they differ in phase.",
        "The losses of b and c on other cannot be compared: they differ in phase.",
    ]
    best = {row[0]["text"]: [cell.get("best") for cell in row] for row in runs.results(found)["rows"]}
    assert best["b"][4:7] == [None, True, True] and not any(best["a"][1:4])
    of_sets(b, [{"second": 4.0}])
    head, _, *rows = runs.curve_table(runs.read([a, b], ["a", "b"]))
    assert head[0] == "training loss after update" and rows[0] == ["0", "9.0000", "9.0000"]


def test_the_weights_that_a_run_left_are_compared(made):
    a, b = made("a", [4.0, 3.0, 3.5]), made("b", [4.0, 2.0, 2.5], keep="best")
    found = runs.read([a, b], ["a", "b"])
    said = f"(perplexity {math.exp(2):.2f}), a of 3.5000 (perplexity {math.exp(3.5):.2f})."
    assert runs.claims(found)[0] == f"On validation, b has a loss of 2.0000 {said}"
    table = runs.results(found)
    assert table["groups"] == [("", 1), ("loss on validation", 3), ("training", 3)]
    assert [[c["text"] for c in row] for row in table["rows"]] == [
        ["a", "4.0000", "3.0000", "3.5000", "20, unfinished", "1,280", "4.0000"],
        ["b", "4.0000", "2.0000", "2.5000", "20, unfinished", "1,280", "3.0000"],
    ]
    assert [[bool(c.get("best")) for c in row[1:4]] for row in table["rows"]] == [
        [False] * 3,
        [False, True, True],
    ]


@pytest.mark.parametrize(
    "other, why",
    [
        ({"phase": "classify", "label_field": "topic"}, "phase"),
        ({"context": 32}, "context"),
        ({"record": {"tokenizer": "t1"}}, "tokenizer"),
        ({"record": {"data": {"x/docs.jsonl": "d0", "val-data validation": "v1"}}}, "validation texts"),
        ({"phase": "instruct", "template": "alpaca"}, "phase"),
    ],
)
def test_losses_that_are_of_different_things_are_not_compared(made, other, why):
    found = runs.read([made("a", [4.0]), made("b", [3.0], **other)], ["a", "b"])
    assert (
        runs.claims(found)[0]
        == f"The losses of b and a on validation cannot be compared: they differ in {why}."
    )
    assert not any(cell.get("best") for row in runs.results(found)["rows"] for cell in row)


@pytest.mark.parametrize(
    "one, other, why",
    [
        ({}, {"label_field": "topic"}, "label-field"),
        ({}, {"balance": "sampling"}, "class weights"),
        ({"balance": "none"}, {"balance": "sampling"}, ""),
        ({}, {"record": {"data": {"data: x": "2", "val-data validation: v": "v"}}}, "class weights"),
        ({}, {"record": {"data": {"data: x": "1", "val-data validation: w": "w"}}}, "validation texts"),
        ({}, {"record": {"data": {"data: y": "1", "val-data validation: w": "v"}}}, ""),
    ],
)
def test_losses_of_classifiers_are_of_their_labels_and_their_weights(made, one, other, why):
    record = {"record": {"data": {"data: x": "1", "val-data validation: v": "v"}}}
    a, b = (made(n, [1.0], "classify", **(record | how)) for n, how in (("a", one), ("b", other)))
    said = runs.claims(runs.read([a, b], ["a", "b"]))[0]
    assert said.endswith(f"they differ in {why}.") if why else said.startswith("On validation, ")


def test_templates_of_one_name_are_told_apart(made):
    a, b = (made(n, [1.0], "instruct", record={"data": {"template": n}}) for n in "ab")
    assert runs.claims(runs.read([a, b], ["a", "b"]))[0].endswith("they differ in template.")


def test_the_curves_on_a_terminal_have_the_last_update_and_not_too_many(made):
    a, b = made("a", [5 - k / 10 for k in range(31)]), made("b", [4.0, 3.0])
    head, _, *rows = runs.curve_table(runs.read([a, b], ["a", "b"]))
    assert head == ["loss on validation after update", "a", "b"] and rows[0] == ["0", "5.0000", "4.0000"]
    assert rows[-1] == ["300", "2.0000", ""] and len(rows) <= runs.ROWS + 1


def test_runs_of_every_kind_on_one_page(made, script, tmp_path):
    """Of two phases, one unfinished, one that has logged nothing yet: the curves of a phase share a picture."""
    made("a", [4.0, 3.0], summary={"tokens_per_s": 1234.5, "peak_rss_bytes": 2**30, "steps": 10}, lr=1e-4)
    made("b", [4.0, 2.5], lr=2e-4, given="--lr 2e-4")
    share = {"accuracy": 0.9, "accuracy_ci95": [0.8, 0.95], "macro_f1": 0.7}
    made("c", [0.7], "classify", summary={"tokens_per_s": 9.0, "classification": {"model": share}})
    (made("d", []) / "metrics.jsonl").unlink()
    done = script("eval.py", "compare", "--runs", "a", "b", "c", "d", "--out", "r")
    assert done.returncode == 0, done.stderr
    html, terminal = (
        (tmp_path / "r" / "report.html").read_text(),
        script("eval.py", "compare", "--runs", "a", "b"),
    )
    for text in ("a, b", "0.0002", "0.900", "1,234", "10, unfinished", "0, unfinished", "What differs"):
        assert text in html, text
    assert html.count("data:image/svg+xml") == 4 and "What they write" not in html
    assert json.loads((tmp_path / "r" / "report.json").read_text())["differences"]["head"] == ["", *"abcd"]
    assert max(map(len, terminal.stdout.splitlines())) <= 80
    assert re.search(r"^lr +0.0001 \(default\) +0.0002$", terminal.stdout, re.M), terminal.stdout
    assert re.search(r"^ *10 +3.0000 +2.5000$", terminal.stdout, re.M), terminal.stdout
