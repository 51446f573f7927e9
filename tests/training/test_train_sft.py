"""Instruction tuning as a user runs it."""

import json

import pytest
import torch
import transformers

from nanomed import hub
from nanomed.models.loss import clm_loss
from nanomed.text.examples import encode_instructions
from nanomed.text.instructions import Fields, read_instructions
from nanomed.text.templates import TEMPLATES
from nanomed.text.tokenizer import load_tokenizer
from tests.conftest import assert_near, assert_refused, make_texts, write_jsonl
from tests.training.test_train_clm import summary, weights_of

TINY = ("--batch-size", 2, "--lr", 1e-3, "--log-every", 1, "--dtype", "fp32")


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "pairs.jsonl"
    colours = ["acute", "chronic", "renal", "tumor"]
    rows = [
        {"question": f"{c} {k}?", "answer": f"{c} disease", "topic": k % 10}
        for k in range(10)
        for c in colours
    ]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def test_it_learns_to_answer_and_to_stop(script, model_dir, pairs, tmp_path):
    out = script(
        "train_sft.py",
        "--model",
        model_dir,
        "--data",
        pairs,
        "--out",
        "out",
        "--epochs",
        8,
        *TINY,
        "--lr",
        3e-3,
    )
    assert out.returncode == 0, out.stderr
    for word in ("38 examples", "2 validation examples", "template response", "% filled", "parameters"):
        assert word in out.stdout
    assert "eval.py generate" in out.stdout.splitlines()[-1]
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    done = script(
        "eval.py",
        "qa",
        "--model",
        "out",
        "--data",
        pairs,
        "--limit",
        12,
        "--json",
        "r.json",
        "--dtype",
        "fp32",
    )
    assert done.returncode == 0, done.stderr
    r = json.loads((tmp_path / "r.json").read_text())
    assert r["stopped"] == 1 and r["exact_match"] > 0.8


def test_validation_is_the_answers_perplexity_by_transformers(script, model_dir, pairs, tmp_path):
    out = script(
        "train_sft.py",
        "--model",
        model_dir,
        "--data",
        pairs,
        "--val-data",
        pairs,
        "--out",
        "out",
        "--max-steps",
        1,
        "--exclude",
        pairs,
        *TINY,
    )
    assert_refused(out, "no example")  # every question is held out
    extra = tmp_path / "extra.jsonl"
    extra.write_text(json.dumps({"instruction": "new", "response": "answer"}) + "\n")
    out = script(
        "train_sft.py",
        "--model",
        model_dir,
        "--data",
        extra,
        "--val-data",
        pairs,
        "--out",
        "out",
        "--max-steps",
        1,
        *TINY,
    )
    assert out.returncode == 0, out.stderr
    theirs = transformers.AutoModelForCausalLM.from_pretrained(model_dir).eval()
    items, _, _ = read_instructions([str(pairs)], Fields(), None, False)
    nll, n = 0.0, 0
    for e in encode_instructions(items, load_tokenizer(model_dir), TEMPLATES["response"], 64).examples:
        ids = torch.from_numpy(e.ids)[None]
        labels = ids.clone()
        labels[0, : e.spans[0][0]] = -100
        with torch.no_grad():
            nll += theirs(ids, labels=labels).loss.item() * (len(e.ids) - e.spans[0][0])
        n += len(e.ids) - e.spans[0][0]
    assert summary(tmp_path / "out")["first_val"]["loss"] == pytest.approx(nll / n, rel=1e-5)


def test_packed_and_unpacked_training_are_the_same_in_one_window(script, model_dir, pairs, tmp_path):
    """All examples in one update: the sum over them does not depend on the rows they lie in."""
    (tmp_path / "short.toml").write_text('prompt = "{instruction}"\n')
    for name, flags in (("packed", ()), ("separate", ("--no-packing",))):
        out = script(
            "train_sft.py",
            "--model",
            model_dir,
            "--data",
            pairs,
            "--out",
            name,
            "--val-fraction",
            0,
            "--max-steps",
            1,
            "--batch-size",
            40,
            "--lr",
            1e-3,
            "--dtype",
            "fp32",
            "--template",
            "short.toml",
            *flags,
        )
        assert out.returncode == 0, out.stderr
    assert summary(tmp_path / "packed")["rows"] < 0.6 * summary(tmp_path / "separate")["rows"]
    assert summary(tmp_path / "packed")["train_loss"] == pytest.approx(
        summary(tmp_path / "separate")["train_loss"], rel=1e-5
    )
    assert summary(tmp_path / "packed")["tokens"] == summary(tmp_path / "separate")["tokens"]


def test_an_adapter_goes_on_or_is_merged(script, model_dir, pairs, tmp_path):
    docs = write_jsonl(tmp_path / "docs.jsonl", make_texts(20, 3))
    script(
        "train_clm.py",
        "--model",
        model_dir,
        "--data",
        docs,
        "--out",
        "a",
        "--lora-r",
        2,
        "--max-steps",
        2,
        *TINY,
    )
    same = script(
        "train_sft.py",
        "--model",
        "a",
        "--data",
        pairs,
        "--out",
        "same",
        "--lora-r",
        2,
        "--max-steps",
        2,
        *TINY,
    )
    assert "the adapter goes on" in same.stdout, same.stderr
    config = json.loads((tmp_path / "same" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(model_dir)
    other = script(
        "train_sft.py",
        "--model",
        "a",
        "--data",
        pairs,
        "--out",
        "other",
        "--lora-r",
        4,
        "--max-steps",
        2,
        *TINY,
    )
    assert other.returncode == 0, other.stderr
    config = json.loads((tmp_path / "other" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "other" / "base")
    merged = script(
        "train_sft.py",
        "--model",
        "a",
        "--data",
        pairs,
        "--out",
        "merged",
        "--lora-r",
        2,
        "--max-steps",
        2,
        "--merge",
        *TINY,
    )
    assert merged.returncode == 0, merged.stderr
    x = torch.arange(20)[None]
    whole, adapter = (hub.load_model(hub.find(str(tmp_path / n))).eval() for n in ("merged", "same"))
    assert_near(whole(x), adapter(x))


def test_replayed_text_is_trained_on_with_the_answers(script, model_dir, pairs, tmp_path):
    docs = write_jsonl(tmp_path / "docs.jsonl", make_texts(60, 3, 5, 10))
    out = script(
        "train_sft.py",
        "--model",
        model_dir,
        "--data",
        pairs,
        "--replay",
        docs,
        "--replay-ratio",
        0.5,
        "--out",
        "out",
        "--val-fraction",
        0,
        "--max-steps",
        1,
        *TINY,
    )
    assert out.returncode == 0, out.stderr
    assert "40 examples" in out.stdout and "20 pieces of text replayed" in out.stdout
    hashes = json.loads((tmp_path / "out" / "run.json").read_text())["data"]
    assert set(hashes) == {f"data: {pairs}", f"replay: {docs}", "template"}


def test_resumed_equals_uninterrupted(script, model_dir, pairs, tmp_path, monkeypatch):
    common = ("train_sft.py", "--model", model_dir, "--data", pairs, "--save-every", 2, "--epochs", 2, *TINY)
    assert script(*common, "--out", "whole").returncode == 0
    original, calls = clm_loss, []

    def stop(model, batch):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return original(model, batch)

    monkeypatch.setattr("nanomed.models.loss.clm_loss", stop)
    assert script(*common, "--out", "parts").returncode == 130
    monkeypatch.setattr("nanomed.models.loss.clm_loss", original)
    assert script(*common, "--out", "parts", "--resume").returncode == 0
    whole, parts = weights_of(tmp_path / "whole"), weights_of(tmp_path / "parts")
    assert all(torch.equal(whole[k], parts[k]) for k in whole)


def test_another_template_or_other_groups_are_another_run(script, model_dir, pairs, tmp_path):
    template = tmp_path / "t.toml"
    template.write_text('prompt = "Q {instruction}\\n"\n')
    command = (
        "train_sft.py",
        "--model",
        model_dir,
        "--data",
        pairs,
        "--template",
        "t.toml",
        "--out",
        "out",
        "--max-steps",
        1,
        "--group-field",
        "topic",
        "--resume",
        *TINY,
    )
    assert script(*command).returncode == 0
    assert "nothing to do" in script(*command).stdout
    template.write_text('prompt = "R {instruction}\\n"\n')
    assert_refused(script(*command), "the data changed")
    template.write_text('prompt = "Q {instruction}\\n"\n')
    pairs.write_text(pairs.read_text().replace('"topic": 3', '"topic": 4'))
    assert_refused(script(*command), "the data changed")


def test_wrong_rows_and_flags(script, model_dir, pairs, tmp_path):
    common = ("train_sft.py", "--model", model_dir, "--out", "out", *TINY)
    assert_refused(script(*common, "--data", pairs, "--template", "nothing"), "unknown", "alpaca")
    assert_refused(script(*common, "--data", pairs, "--context", 5), "no example fits --context 5", "dropped")
    bad = tmp_path / "bad.jsonl"
    bad.write_text(pairs.read_text() + '{"question": "only"}\n')
    assert_refused(script(*common, "--data", bad), "row 41", "--response-field")
    ok = script(*common, "--data", bad, "--skip-bad-rows", "--max-steps", 1)
    assert ok.returncode == 0 and "1 bad rows left out" in ok.stdout
    assert_refused(script(*common, "--data", pairs, "--group-field", "nothing", "--resume"), "--group-field")
