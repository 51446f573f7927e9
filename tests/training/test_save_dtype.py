"""What the weights of a run are written in (--save-dtype), and that a run goes on wherever its files lie."""

import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from nanomed import hub
from tests.conftest import assert_refused, make_hf_model, make_texts, write_jsonl

SHORT = ("--context", 16, "--batch-size", 2, "--max-steps", 2, "--val-fraction", 0.2, "--dtype", "fp32")
SHORT += ("--no-compile", "--lr", 1e-3)
KINDS = {"full": (), "merged": ("--lora-r", 2, "--merge")}


@pytest.fixture
def base(tmp_path, bpe_dir):
    """A base in bf16, and documents."""
    make_hf_model(tmp_path / "base", bpe_dir).to(torch.bfloat16).save_pretrained(tmp_path / "base")
    write_jsonl(tmp_path / "d.jsonl", make_texts(12, 3))
    return tmp_path / "base"


def dtype_of(directory):
    return json.loads((directory / "config.json").read_text())["dtype"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_written_as_its_base_is_stored_rounded_once(script, base, tmp_path, kind):
    train = ("train_clm.py", "--model", "base", "--data", "d.jsonl", *SHORT, *KINDS[kind])
    done = script(*train, "--out", "own")
    assert done.returncode == 0, done.stderr
    assert (
        f"weights written in bf16, as those of {base}" in done.stdout and "--save-dtype fp32" in done.stdout
    )
    done = script(*train, "--out", "exact", "--save-dtype", "fp32")
    assert "weights written in fp32\n" in done.stdout, done.stderr
    assert script(*train, "--out", "half", "--save-dtype", "fp16").returncode == 0
    exact = load_file(tmp_path / "exact" / "model.safetensors")
    for out, dtype in (("own", torch.bfloat16), ("half", torch.float16), ("exact", torch.float32)):
        assert dtype_of(tmp_path / out) == str(dtype).removeprefix("torch.")
        assert hub.stored_dtype(tmp_path / out) == {"own": "bf16", "half": "fp16", "exact": "fp32"}[out]
        state = load_file(tmp_path / out / "model.safetensors")
        assert all(torch.equal(value, exact[key].to(dtype)) for key, value in state.items())
        assert transformers.AutoModelForCausalLM.from_pretrained(tmp_path / out).dtype == dtype
        said = json.loads((tmp_path / out / "summary.json").read_text()).get("save_dtype", "fp32")
        assert said == hub.stored_dtype(tmp_path / out)
    sizes = [(tmp_path / d / "model.safetensors").stat().st_size for d in ("base", "own")]
    assert abs(sizes[0] - sizes[1]) < 200


def test_an_adapter_stays_fp32_and_so_does_what_had_no_weights(script, base, tmp_path):
    train = ("train_clm.py", "--model", "base", "--data", "d.jsonl", *SHORT)
    assert_refused(
        script(*train, "--out", "a", "--lora-r", 2, "--save-dtype", "bf16"), "--save-dtype bf16", "--merge"
    )
    assert script(*train, "--out", "a", "--lora-r", 2).returncode == 0
    assert {v.dtype for v in load_file(tmp_path / "a" / "adapter_model.safetensors").values()} == {
        torch.float32
    }
    assert script(*train, "--out", "new", "--from-scratch").returncode == 0
    assert hub.stored_dtype(tmp_path / "new") == "fp32"


def test_what_is_too_large_for_fp16_is_not_lost(script, base, tmp_path):
    """The training is over then, and its checkpoint is there: it is written otherwise."""
    state = load_file(base / "model.safetensors")
    state["transformer.ln_f.bias"] = state["transformer.ln_f.bias"].float()
    state["transformer.ln_f.bias"][0] = 1e5
    save_file(state, base / "model.safetensors", metadata={"format": "pt"})
    train = ("train_clm.py", "--model", "base", "--data", "d.jsonl", *SHORT)
    assert script(*train, "--out", "whole", "--save-dtype", "fp32").returncode == 0
    done = script(*train, "--out", "r", "--save-dtype", "fp16")
    assert done.returncode == 2 and "transformer.ln_f.bias holds numbers beyond 65,504" in done.stderr
    assert script(*train, "--out", "r", "--save-dtype", "fp32", "--resume").returncode == 0
    whole, resumed = (load_file(tmp_path / d / "model.safetensors") for d in ("whole", "r"))
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())


def test_quantise_leaves_the_rest_as_it_is_stored(script, base, tmp_path):
    quantise = ("nanomed/quantise.py", "--model", "base", "--quantize", "int8", "--out")
    assert script(*quantise, "own").returncode == 0 and dtype_of(tmp_path / "own") == "bfloat16"
    assert script(*quantise, "wide", "--save-dtype", "fp32").returncode == 0
    own, wide = (load_file(tmp_path / d / "model.safetensors") for d in ("own", "wide"))
    assert all(torch.equal(value.float(), wide[key].float()) for key, value in own.items())
    assert own["transformer.wte.weight"].dtype == torch.bfloat16
    assert "there already" in script(*quantise, "own").stdout
    assert_refused(script(*quantise, "own", "--save-dtype", "fp32"), "another model, or quantised otherwise")


def test_most_weights_decide_and_quantised_ones_do_not(tmp_path):
    big, small = torch.ones(8, 8), torch.ones(8)
    for stored, expected in (
        ({"a.weight": big.half(), "b.weight": small}, "fp16"),
        ({"a.weight": big.double(), "b.weight": small.half()}, "fp32"),
        ({"a.weight": big.to(torch.uint8), "a.weight.absmax": big, "b.bias": small.bfloat16()}, "bf16"),
    ):
        save_file(stored, tmp_path / "model.safetensors")
        assert hub.stored_dtype(tmp_path) == expected


# --- a run whose files were moved ---------------------------------------------------------------------------


def moved(tmp_path, *names):
    for name in names:
        copy = shutil.copytree if (tmp_path / name).is_dir() else shutil.copy
        copy(tmp_path / name, tmp_path / "elsewhere" / name)


def test_a_run_is_held_to_what_its_files_hold_and_not_to_where_they_lie(script, base, tmp_path):
    write_jsonl(tmp_path / "v.jsonl", make_texts(3, 5))
    write_jsonl(tmp_path / "other.jsonl", make_texts(12, 9))
    (tmp_path / "elsewhere").mkdir()
    moved(tmp_path, "base", "d.jsonl", "v.jsonl")

    def train(model, data, val, *more):
        flags = ("--model", model, "--data", data, "--val-data", f"med={val}", *SHORT[:6], *SHORT[8:])
        return script("train_clm.py", *flags, "--out", "r", *more)

    assert train("base", "d.jsonl:0.5", "v.jsonl").returncode == 0
    away = tmp_path / "elsewhere"
    for place in (tmp_path, away):
        done = train(place / "base", f"{place}/d.jsonl:0.5", place / "v.jsonl", "--resume")
        assert "this run is complete" in done.stdout, done.stderr
    assert_refused(train("base", "other.jsonl:0.5", "v.jsonl", "--resume"), "other.jsonl:0.5", "started with")
    assert_refused(train("base", f"{away}/d.jsonl:0.7", "v.jsonl", "--resume"), "d.jsonl:0.7")
    shutil.copy(tmp_path / "other.jsonl", away / "d.jsonl")
    assert_refused(train(base, f"{away}/d.jsonl:0.5", "v.jsonl", "--resume"), "started with")
    shutil.copy(tmp_path / "other.jsonl", tmp_path / "d.jsonl")
    assert_refused(train("base", "d.jsonl:0.5", "v.jsonl", "--resume"), "the data changed")


def test_a_run_on_an_adapter_goes_on_when_its_base_has_been_moved(script, base, tmp_path):
    train = ("train_clm.py", "--data", "d.jsonl", *SHORT, "--lora-r", 2, "--model")
    assert script(*train, "base", "--out", "a").returncode == 0
    assert script(*train, "a", "--out", "r").returncode == 0
    (tmp_path / "elsewhere").mkdir()
    shutil.move(base, tmp_path / "elsewhere" / "base")
    shutil.move(tmp_path / "a", tmp_path / "elsewhere" / "a")
    path = tmp_path / "elsewhere" / "a" / "adapter_config.json"
    gone = ("elsewhere/a: the adapter's base cannot be had", f"base_model_name_or_path in {path}")
    assert_refused(
        script(*train, "elsewhere/a", "--out", "r", "--resume"), gone[0], "base_model_name_or_path in"
    )
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"base_model_name_or_path": str(tmp_path / "elsewhere" / "base")}))
    done = script(*train, "elsewhere/a", "--out", "r", "--resume")
    assert "this run is complete" in done.stdout, done.stderr
    path.write_text(json.dumps(json.loads(path.read_text()) | {"lora_alpha": 99}))
    assert_refused(script(*train, "elsewhere/a", "--out", "r", "--resume"), "started with")


def test_sides_that_have_changed_places_are_another_run(script, base, tmp_path):
    write_jsonl(tmp_path / "v.jsonl", make_texts(12, 5))
    flags = ("--model", "base", *SHORT[:6], *SHORT[8:], "--out", "r")
    assert script("train_clm.py", *flags, "--data", "d.jsonl", "--val-data", "v.jsonl").returncode == 0
    swapped = script("train_clm.py", *flags, "--data", "v.jsonl", "--val-data", "d.jsonl", "--resume")
    assert_refused(swapped, "started with data")
    again = json.loads((tmp_path / "r" / "run.json").read_text())
    again["data"] = dict(reversed(again["data"].items()))  # as versions before wrote it
    (tmp_path / "r" / "run.json").write_text(json.dumps(again))
    resumed = script("train_clm.py", *flags, "--data", "d.jsonl", "--val-data", "v.jsonl", "--resume")
    assert "this run is complete" in resumed.stdout, resumed.stderr
