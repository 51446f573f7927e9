"""All phases on the families beside GPT-2, through the scripts: what each leaves loads in transformers and
peft, with the same logits. (GPT-2 itself: test_train_clm, test_train_sft, test_classifier.)"""

import json

import peft
import pytest
import torch
import transformers

from nanomed import hub
from nanomed.models.classifier import predict
from tests.conftest import assert_near, make_hf_model, make_texts, write_jsonl

X = torch.arange(60).reshape(2, 30)  # longer than GPT-Neo's window
TINY = ("--batch-size", 4, "--lr", 1e-2, "--max-steps", 3, "--log-every", 1, "--dtype", "fp32")


@pytest.fixture
def files(tmp_path):
    docs, other = (write_jsonl(tmp_path / f"{n}.jsonl", make_texts(30, n)) for n in (1, 2))
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(
        "".join(json.dumps({"question": t[:30], "answer": t[30:60]}) + "\n" for t in make_texts(20, 3, 15))
    )
    return docs, other, pairs


@pytest.mark.parametrize("family", ["gpt_neo", "llama"])
def test_adapt_instruct_classify_and_compare(script, tmp_path, bpe_dir, files, family):
    docs, other, pairs = files
    base = tmp_path / "base"
    make_hf_model(base, bpe_dir, family=family)
    (base / "chat_template.jinja").write_text("of its makers")

    def run(*args):
        done = script(*args)
        assert done.returncode == 0, done.stderr
        return done

    def ours(name):
        return hub.load_model(hub.find(str(tmp_path / name))).eval()

    run("train_clm.py", "--model", base, "--data", docs, "--out", "adapted", "--lora-r", 4, *TINY)
    config = json.loads((tmp_path / "adapted" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["q_proj", "v_proj"] and config["fan_in_fan_out"] is False
    theirs = transformers.AutoModelForCausalLM.from_pretrained(base)
    theirs = peft.PeftModel.from_pretrained(theirs, tmp_path / "adapted").eval()
    assert_near(ours("adapted")(X), theirs(X).logits)
    assert (ours("adapted")(X) - ours("base")(X)).abs().max() > 1e-3
    assert (tmp_path / "adapted" / "chat_template.jinja").read_text() == "of its makers"

    run(
        "train_sft.py",
        "--model",
        "adapted",
        "--data",
        pairs,
        "--out",
        "instructed",
        "--template",
        "response",
        "--lora-r",
        4,
        "--merge",
        *TINY,
    )
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "instructed").eval()
    assert_near(ours("instructed")(X), theirs(X).logits)
    assert "### Instruction" in (tmp_path / "instructed" / "chat_template.jinja").read_text()

    run(
        "train_cls.py",
        "--model",
        "instructed",
        "--positives",
        docs,
        "--negatives",
        other,
        "--out",
        "classifier",
        *TINY,
    )
    classifier = hub.load_classifier(hub.find(str(tmp_path / "classifier"))).eval()
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "classifier").eval()
    assert_near(
        predict(classifier, [row.numpy() for row in X], 0, 2, torch.device("cpu"), "fp32"), theirs(X).logits
    )

    args = (
        "--models",
        base,
        "adapted",
        "instructed",
        "--data",
        f"docs={docs}",
        "--context",
        48,
        "--max-new-tokens",
        4,
    )
    run("eval.py", "compare", *args, "--classifier", "classifier", "--out", "report", "--dtype", "fp32")
    models = json.loads((tmp_path / "report" / "report.json").read_text())["models"]
    assert models[1]["ppl"]["docs"]["ppl"] < models[0]["ppl"]["docs"]["ppl"]
    assert "documents begin with" in (tmp_path / "report" / "report.html").read_text()


@pytest.mark.parametrize("family", ["gpt_neo", "llama"])
def test_from_scratch_takes_the_shape_alone(script, tmp_path, bpe_dir, files, family):
    make_hf_model(tmp_path / "shape", bpe_dir, family=family)
    (tmp_path / "shape" / "model.safetensors").unlink()
    args = ("--model", "shape", "--data", files[0], "--out", "made", "--from-scratch", *TINY)
    assert script("train_clm.py", *args).returncode == 0
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "made").eval()
    assert_near(hub.load_model(hub.find(str(tmp_path / "made"))).eval()(X), theirs(X).logits)
