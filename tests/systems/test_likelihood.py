"""eval.py tasks --ask: labels by their likelihood as a whole answer, plain and calibrated, beside writing."""

import json
import math

import numpy as np
import pytest
import torch
import transformers

from nanomed.errors import UserError
from nanomed.evaluation import measure as measuring
from nanomed.systems.tasks import likelihood, measure, sets
from nanomed.text.conversations import Conversation
from nanomed.text.templates import TEMPLATES
from tests.conftest import assert_refused, every_family, make_texts
from tests.systems.test_measure import built, made  # noqa: F401  (fixtures)
from tests.systems.test_sources import rows_of

# One is another's beginning, one begins within a token of the prompt's end (template "none").
TASK = {"form": "class", "labels": ["no", "no patient", "patients", "s of liver disease"]}
ROWS = [{"instruction": "Is it?", "input": text} for text in make_texts(5, 3, 2, 9)]
ROWS += [{"instruction": "Which?", "input": ROWS[0]["input"]}, ROWS[1]]
OPTIONS = {"form": "options", "labels": ["A", "B", "C"]}


def by_hand(model, template, tokenizer, instruction, input, label) -> float:
    """transformers' log-likelihood of the label and its end after the prompt, token by token."""
    asked = template.ask(instruction, input)
    prompt = tokenizer.prompt(asked).tolist()
    answer = [*tokenizer.continuation(asked, template.answer(label)).tolist(), tokenizer.eos]
    with torch.no_grad():
        logits = model(torch.tensor([(prompt + answer)[-65:-1]])).logits[0].double().log_softmax(-1)
    return sum(logits[k - len(answer), token].item() for k, token in enumerate(answer))


@every_family
def test_every_label_is_scored_with_its_end_as_a_plain_loop_scores_it(model_dir):
    o, rows = measuring.open_model(str(model_dir), "cpu", "fp32"), [ROWS[1], ROWS[-2]]
    model = transformers.AutoModelForCausalLM.from_pretrained(model_dir).eval()
    for template in (TEMPLATES["none"], TEMPLATES["flashcards"]):
        for row, answer in zip(rows, likelihood.ask(o, rows, TASK, template, 4), strict=True):

            def values_of(text, template=template, row=row):
                said = (model, template, o.tokenizer, row["instruction"], text)
                return {label: by_hand(*said, label) for label in TASK["labels"]}

            assert answer["loglikelihoods"] == pytest.approx(values_of(row["input"]), rel=1e-5)
            prior = dict.fromkeys(TASK["labels"], 0.0)
            for text in likelihood.CONTENT_FREE:  # of each, probabilities that sum to 1; then their mean
                p = {label: math.exp(value) for label, value in values_of(text).items()}
                prior = {label: prior[label] + p[label] / sum(p.values()) / 3 for label in p}
            logs = {label: math.log(value) for label, value in prior.items()}
            assert answer["content_free"] == pytest.approx(logs, rel=1e-4)


def test_batches_and_neighbours_change_nothing(model_dir):
    o = measuring.open_model(str(model_dir), "cpu", "fp32")
    alone = [likelihood.ask(o, [row], TASK, TEMPLATES["none"], 1)[0] for row in ROWS]
    together = likelihood.ask(o, ROWS, TASK, TEMPLATES["none"], 16)
    for one, other in zip(alone, together, strict=True):
        for key in ("loglikelihoods", "content_free"):
            assert one[key] == pytest.approx(other[key], rel=1e-5)
    assert together[6] == together[1]


def test_what_the_likelihoods_show_is_not_written_again(model_dir, monkeypatch):
    """A model that has learnt one label to each of some texts, and writes nonsense after the others."""
    o = measuring.open_model(str(model_dir), "cpu", "fp32", plain=True)
    template, rows = TEMPLATES["flashcards"], ROWS[:4]
    plain = measure.ask(o, rows, TASK, template, 4, 0)
    task = {"form": "class", "labels": ["no", *{answer["answer"].strip()[:8] or "x" for answer in plain}]}
    conversations = [Conversation.of(row["instruction"], row["input"], "no") for row in rows[:2]]
    examples = [template.encode(c, o.tokenizer)[0] for c in conversations]
    o.model.requires_grad_(True)
    optimizer = torch.optim.AdamW(o.model.parameters(), lr=3e-3)
    for _ in range(40):
        for ids, spans in examples:
            idx = torch.tensor(np.asarray(ids, np.int64))[None]
            start, end = spans[-1]
            logits = o.model(idx[:, : end - 1])[0, start - 1 :]
            torch.nn.functional.cross_entropy(logits, idx[0, start:end]).backward()
            optimizer.step()
            optimizer.zero_grad()
    o.model.requires_grad_(False)
    expected, asked = measure.ask(o, rows, task, template, 4, 0), []
    assert [answer["answer"] for answer in expected[:2]] == [" no", " no"]
    write = measure.ask
    monkeypatch.setattr(measure, "ask", lambda o, rows, *how: asked.append(len(rows)) or write(o, rows, *how))
    found = measure.ask_in(likelihood.WAYS, o, rows, task, template, 4, 0)
    assert [{k: answer[k] for k in ("answer", "stopped", "room")} for answer in found] == expected
    assert sum(asked) <= 2 and all("loglikelihoods" in answer for answer in found)
    assert "answer" not in measure.ask_in(["likelihood"], o, rows, task, template, 4, 0)[0]


def test_of_options_the_letters_that_a_question_has(model_dir):
    o = measuring.open_model(str(model_dir), "cpu", "fp32")
    rows = [{"instruction": "Letter?", "input": f"a cell?\nA. x\nB. y{more}"} for more in ("", "\nC. z")]
    two, three = likelihood.ask(o, rows, OPTIONS, TEMPLATES["none"], 4)
    assert list(two["loglikelihoods"]) == ["A", "B"] and list(three["loglikelihoods"]) == ["A", "B", "C"]
    assert math.fsum(map(math.exp, two["content_free"].values())) == pytest.approx(1)


def test_calibration_divides_by_the_probability_without_a_text():
    prior = likelihood.log_mean([np.log([0.6, 0.2]), np.log([0.01, 0.09])])  # 0.75, 0.25 and 0.1, 0.9
    np.testing.assert_allclose(np.exp(prior), [0.425, 0.575])
    assert np.isfinite(likelihood.log_mean([np.array([-3000.0, -10.0])])).all()
    answer = {"loglikelihoods": {"yes": math.log(0.5), "no": math.log(0.4)}}
    answer["content_free"] = {"yes": math.log(0.7), "no": math.log(0.3)}
    assert likelihood.likeliest(answer, "likelihood") == "yes"  # 0.5 / 0.7 < 0.4 / 0.3
    assert likelihood.likeliest(answer, "calibrated") == "no"
    tie = {"loglikelihoods": {"b": -1.0, "a": -1.0}, "content_free": {"b": -2.0, "a": -2.0}}
    assert likelihood.likeliest(tie, "likelihood") == likelihood.likeliest(tie, "calibrated") == "b"


def test_what_is_asked_in_which_ways():
    every = likelihood.WAYS
    assert likelihood.ways_of(TASK, every[::-1]) == every[::-1]
    for form in ("entities", "tags", "classes"):
        assert likelihood.ways_of({"form": form, "labels": ["a"]}, ["likelihood"]) == ("written",)
    many = {"form": "class", "labels": [str(k) for k in range(33)]}
    assert likelihood.ways_of(many, every) == ("written",)


def test_a_label_longer_than_the_model_is_refused(model_dir):
    o = measuring.open_model(str(model_dir), "cpu", "fp32")
    with pytest.raises(UserError, match="the label 'x q.* has .* tokens; the model has 64 positions"):
        likelihood.ask(o, ROWS[:1], {"form": "class", "labels": ["x q " * 70]}, TEMPLATES["none"], 1)


def test_the_way_that_is_named_first_counts(made):  # noqa: F811
    task, rows = sets.read_set(made)["topics"], rows_of(made / "topics.test.jsonl")
    baselines = json.loads((made / "topics.baselines.json").read_text())
    free = {"general": math.log(0.9), "medical": math.log(0.1)}
    answers = [
        {"answer": "well", "stopped": True, "room": True, "content_free": free}
        | {"loglikelihoods": {k: -1.0 if [k] == row["gold"] else -2.0 for k in free}}
        for row in rows
    ]
    for ways in (likelihood.WAYS, likelihood.WAYS[::-1], ("likelihood",)):
        found = measure.measure_task(task, rows, answers, baselines, 0, ways)
        assert list(found["ways"]) == list(ways)
        first = {k: found[k] for k in found["ways"][ways[0]]}
        assert first == found["ways"][ways[0]]
        assert found["ways"]["likelihood"]["accuracy"] == 1
        assert found["malformed_share"] == ("written" in ways)
    assert found["against_linear"]["difference"] == 1 - found["baselines"]["linear"]["macro_f1"]
    found = measure.measure_task(task, rows, answers, baselines, 0, ("written", "calibrated"))
    assert found["ways"]["calibrated"]["accuracy"] == 0.5 and found["accuracy"] == 0
    head, _, row = measure.table({"m": {"tasks": {"topics": found}}})
    assert head[2:4] == ["m, written", "m, calibrated"] and row[3].startswith("0.333 [")
    said = measure.say_linear({"topics": found})
    assert said[0] == "what counts: written of topics" and said[1].startswith(("WORSE", "no different"))
    assert said[2].startswith("calibrated, which does not count there: ")


def test_ways_in_the_table_the_result_and_the_predictions(made, model_dir, script, tmp_path):  # noqa: F811
    flags = ["eval.py", "tasks", "--model", model_dir, "--tasks", made, "--template", "none", "--limit", 4]
    flags += ["--predictions", tmp_path / "p", "--json", tmp_path / "t.json"]
    ways = ["--ask", "likelihood", "written"]
    done = script(*flags, *ways)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "t.json").read_text())
    assert result["ask"] == ways[1:] and list(result["tasks"]["topics"]["ways"]) == ways[1:]
    assert list(result["tasks"]["diseases"]["ways"]) == ["written"]
    assert "likelihood" in done.stdout and "written, which does not count there" in done.stdout
    rows = rows_of(tmp_path / "p" / "topics.jsonl")
    for row in rows:
        assert row["read"] == [max(row["loglikelihoods"], key=row["loglikelihoods"].get)]
        assert row["right"] == (row["read"] == row["gold"]) and row["answer"] is not None
    again = script(*flags, *ways)
    assert f"topics: 4 texts from {tmp_path / 'p' / 'topics.jsonl'}" in again.stdout, again.stderr
    second = json.loads((tmp_path / "t.json").read_text())["tasks"]
    assert second["topics"] == result["tasks"]["topics"] | {"seconds": None}
    assert_refused(script(*flags), "--predictions", "of another ask")
