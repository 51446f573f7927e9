"""What docs/serving.md tells a reader to type, typed."""

import json

import torch

from nanomed import hub
from nanomed.text.templates import TEMPLATES
from tests.conftest import ROOT, make_hf_model, make_texts, run_script


def blocks(language):
    text = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    return [part.split("```")[0] for part in text.split(f"```{language}\n")[1:]]


def test_a_trained_directory_is_served_by_transformers_and_peft(tmp_path, bpe_dir, capsys):
    make_hf_model(tmp_path / "m", bpe_dir, n_positions=128)
    rows = zip(make_texts(12, 1, 2, 6), make_texts(12, 2, 2, 6), strict=True)
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in rows))
    for name, flags in (("runs/instructed", []), ("runs/instructed-lora", ["--lora-r", 2])):
        common = [
            "--data",
            "pairs.jsonl",
            "--out",
            name,
            "--max-steps",
            2,
            "--val-fraction",
            0,
            "--dtype",
            "fp32",
            "--context",
            128,
        ]
        done = run_script(tmp_path, "train_sft.py", "--model", "m", *common, *flags)
        assert done.returncode == 0, done.stderr
    full, adapter = (block.replace('"runs/', f'"{tmp_path}/runs/') for block in blocks("python"))
    place = {}
    exec(full, place)
    prompt = place["ids"]["input_ids"]
    ours = hub.load_model(hub.find(str(tmp_path / "runs" / "instructed"))).eval()
    with torch.no_grad():
        torch.testing.assert_close(place["model"](prompt).logits, ours(prompt), rtol=0, atol=1e-4)
    # asked as it was taught
    assert place["tokenizer"].decode(prompt[0]) == TEMPLATES["response"].ask("What is anthrax?")
    exec(adapter, place)
    ours = hub.load_model(hub.find(str(tmp_path / "runs" / "instructed-lora"))).eval()
    with torch.no_grad():
        torch.testing.assert_close(place["model"].eval()(prompt).logits, ours(prompt), rtol=0, atol=1e-4)


def test_every_command_of_the_page_that_is_ours_has_its_flags(tmp_path):
    (line,) = [line for block in blocks("") for line in block.splitlines() if "eval.py drift" in line]
    words = line.split("||")[0].split()[2:]
    done = run_script(tmp_path, "eval.py", *words)
    assert done.returncode == 2 and "runs/instructed" in done.stderr  # the flags are known; the model is not there
