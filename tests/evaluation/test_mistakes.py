"""`eval.py ppl --also`: each mistake equals the program that makes it, written as its authors would, with
transformers."""

import json
import math

import pytest
import torch
import transformers

from nanomed.commands.ppl import MISTAKES
from nanomed.evaluation import measure
from tests.conftest import assert_refused, every_family, make_texts, write_jsonl

ALL = ",".join(MISTAKES)


def ppl(script, model, data, *more):
    out = script(
        "eval.py", "ppl", "--model", model, "--data", data, "--json", "r.json", "--dtype", "fp32", *more
    )
    assert out.returncode == 0, out.stderr
    return out.stdout


def encoded(model_dir, texts, context):
    """What a data collator of transformers makes of the texts: ids (N, context), attention mask."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_dir)
    tokenizer.pad_token = tokenizer.eos_token
    texts = [tokenizer.eos_token + text for text in texts]
    return tokenizer(texts, padding="max_length", truncation=True, max_length=context, return_tensors="pt")


@every_family
def test_against_programs_that_make_them(script, model_dir, tmp_path):
    texts = [*make_texts(9, 3, 4, 9), *make_texts(2, 4, 40, 60)]  # the last two are longer than the context
    data = write_jsonl(tmp_path / "d.jsonl", texts)
    ppl(
        script,
        model_dir,
        data,
        "--context",
        48,
        "--batch-size",
        4,
        "--also",
        "batch-mean,document-mean,truncated",
    )
    r = json.loads((tmp_path / "r.json").read_text())
    model = transformers.AutoModelForCausalLM.from_pretrained(
        model_dir, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    batch = encoded(model_dir, texts, 48)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    with torch.no_grad():
        truncated = model(**batch, labels=labels).loss.item()
        alone = []
        for k in range(len(texts)):
            o = measure.open_model(str(model_dir), dtype="fp32")
            one = write_jsonl(tmp_path / "one.jsonl", [texts[k]])
            alone.append(measure.measure_ppl(o, measure.encode(o, [str(one)]), 48, 24))
    assert r["also"]["truncated"] == pytest.approx(math.exp(truncated), rel=1e-4)
    assert r["also"]["document-mean"] == pytest.approx(sum(a["ppl"] for a in alone) / len(alone), rel=1e-4)
    batches = [alone[i : i + 4] for i in range(0, len(alone), 4)]
    means = [sum(a["nll"] for a in b) / sum(a["tokens_scored"] for a in b) for b in batches]
    assert r["also"]["batch-mean"] == pytest.approx(math.exp(sum(means) / len(means)), rel=1e-4)
    assert r["ppl"] == pytest.approx(
        math.exp(sum(a["nll"] for a in alone) / sum(a["tokens_scored"] for a in alone)), rel=1e-5
    )


@pytest.mark.parametrize("model_dir", ["gpt2", "llama"], indirect=True)
def test_padding_that_is_counted_equals_transformers_with_labels_that_are_the_ids(
    script, model_dir, tmp_path
):
    texts = make_texts(7, 3, 4, 9)
    data = write_jsonl(tmp_path / "d.jsonl", texts)
    ppl(script, model_dir, data, "--context", 48, "--batch-size", 3, "--also", "padding-counted")
    found = json.loads((tmp_path / "r.json").read_text())
    model = transformers.AutoModelForCausalLM.from_pretrained(
        model_dir, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    batch = encoded(model_dir, texts, 48)
    positions = torch.arange(48).expand_as(batch["input_ids"])
    with torch.no_grad():
        loss = model(
            **batch, position_ids=positions, labels=batch["input_ids"]
        ).loss.item()  # the mistake: labels are all ids
    assert found["also"] == {"padding-counted": pytest.approx(math.exp(loss), rel=1e-4)}
    assert abs(found["also"]["padding-counted"] / found["ppl"] - 1) > 0.01


@pytest.mark.parametrize("model_dir", ["gpt_neo"], indirect=True)
def test_padding_beyond_a_window_is_no_nan(script, model_dir, tmp_path):
    data = write_jsonl(tmp_path / "d.jsonl", make_texts(3, 3, 4, 9))
    ppl(script, model_dir, data, "--context", 64, "--also", "padding-counted")
    assert json.loads((tmp_path / "r.json").read_text())["also"]["padding-counted"] > 1


def test_of_a_model_that_was_trained_here(script, model_dir, tmp_path):
    train, test = (write_jsonl(tmp_path / f"{n}.jsonl", make_texts(12, n, 5, 20)) for n in (1, 2))
    flags = [
        "--context",
        32,
        "--batch-size",
        4,
        "--max-steps",
        5,
        "--val-fraction",
        0,
        "--log-every",
        2,
        "--lr",
        "1e-2",
    ]
    out = script(
        "train_clm.py",
        "--model",
        model_dir,
        "--data",
        train,
        "--exclude",
        test,
        "--out",
        "m",
        "--dtype",
        "fp32",
        *flags,
    )
    assert out.returncode == 0, out.stderr
    said = ppl(script, tmp_path / "m", test, "--context", 32, "--also", "all")
    found = json.loads((tmp_path / "r.json").read_text())["also"]
    assert found.keys() == MISTAKES.keys() and all(name in said for name in MISTAKES)
    last = json.loads((tmp_path / "m" / "metrics.jsonl").read_text().splitlines()[-1])["loss"]
    assert found["last-loss"] == pytest.approx(math.exp(last))
    ppl(script, tmp_path / "m", train, "--context", 32)
    assert found["train-set"] == pytest.approx(json.loads((tmp_path / "r.json").read_text())["ppl"], rel=1e-5)
    # What is held out is not what it was trained on, though it may stand in the same file.
    both = write_jsonl(tmp_path / "both.jsonl", make_texts(12, 2, 5, 20) + make_texts(12, 1, 5, 20))
    out = script(
        "train_clm.py",
        "--model",
        model_dir,
        "--data",
        both,
        "--exclude",
        test,
        "--out",
        "n",
        "--dtype",
        "fp32",
        *flags,
    )
    assert out.returncode == 0, out.stderr
    ppl(script, tmp_path / "n", test, "--context", 32, "--also", "train-set")
    again = json.loads((tmp_path / "r.json").read_text())["also"]
    assert again["train-set"] == pytest.approx(found["train-set"], rel=1e-5)
    write_jsonl(train, make_texts(30, 9))  # more than are measured
    said = ppl(script, tmp_path / "m", test, "--context", 32, "--also", "train-set")
    assert (
        json.loads((tmp_path / "r.json").read_text())["also"] == {"train-set": None}
        and "changed since" in said
    )


def test_what_there_is_not(script, model_dir, tmp_path):
    data = write_jsonl(tmp_path / "d.jsonl", make_texts(3, 3))
    assert_refused(
        script("eval.py", "ppl", "--model", model_dir, "--data", data, "--also", "mean"),
        "mean",
        "document-mean",
    )
    said = ppl(script, model_dir, data, "--also", ALL)
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["also"]["train-set"] is None and found["also"]["last-loss"] is None and "run.json" in said
    assert found["also_missing"].keys() == {"train-set", "last-loss"}
