"""Quantised directories: ours in transformers, theirs here, and the scripts over both."""

import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from nanomed import hub
from nanomed.errors import UserError
from nanomed.models import quant
from tests.conftest import assert_refused, make_hf_model, make_texts, run_script, write_jsonl

SIZES = {
    "llama": {"hidden_size": 64, "intermediate_size": 128},
    "gpt2": {"n_embd": 64},
}  # whole blocks of 64 in a row
IDS = torch.arange(40).view(2, 20)
THEIRS = {
    "nf4, scales in 8 bits": {
        "load_in_4bit": True,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
    },
    "nf4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "int8": {"load_in_8bit": True},
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory, bpe_dir):
    """{family: a directory of full-precision weights}."""
    found = {}
    for family, sizes in SIZES.items():
        found[family] = tmp_path_factory.mktemp(family)
        make_hf_model(found[family], bpe_dir, family=family, **sizes)
    return found


def open_theirs(directory):
    """The model that transformers loads, with the weights that its codes stand for: its own products on a CPU
    round the scales (to bf16, NF4) or what is multiplied (to int8)."""
    return AutoModelForCausalLM.from_pretrained(directory, device_map="cpu").dequantize().eval()


def logits(model):
    with torch.no_grad():
        out = model(IDS)
    return getattr(out, "logits", out)


def assert_same(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * theirs.abs().max().item())


@pytest.mark.parametrize("family", SIZES)
@pytest.mark.parametrize("kind", THEIRS)
def test_what_transformers_quantised_loads_here(plain, family, kind, tmp_path):
    how = BitsAndBytesConfig(**THEIRS[kind])
    AutoModelForCausalLM.from_pretrained(
        plain[family], quantization_config=how, device_map="cpu"
    ).save_pretrained(tmp_path)
    model = hub.load_model(hub.find(str(tmp_path))).eval()
    assert any(isinstance(m, quant.QUANTISED) for m in model.modules())
    assert_same(logits(model), logits(open_theirs(tmp_path)))


@pytest.mark.parametrize("family", SIZES)
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_what_is_quantised_here_loads_in_transformers(plain, family, kind, tmp_path):
    done = run_script(
        tmp_path, "nanomed/quantise.py", "--model", plain[family], "--quantize", kind, "--out", tmp_path / "q"
    )
    assert done.returncode == 0, done.stderr
    assert_same(
        logits(hub.load_model(hub.find(str(tmp_path / "q"))).eval()), logits(open_theirs(tmp_path / "q"))
    )
    # and is, tensor by tensor, what transformers would have written
    how = BitsAndBytesConfig(**THEIRS["nf4, scales in 8 bits" if kind == "nf4" else "int8"])
    AutoModelForCausalLM.from_pretrained(
        plain[family], quantization_config=how, device_map="cpu"
    ).save_pretrained(tmp_path / "t")
    ours, theirs = (load_file(tmp_path / d / "model.safetensors") for d in ("q", "t"))
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name
    raw, _ = hub.read_config(tmp_path / "q")
    assert BitsAndBytesConfig(**raw["quantization_config"]).quantization_method() == (
        "nf4" if kind == "nf4" else "llm_int8"
    )


def test_quantised_on_the_way_in_is_quantised_on_disk(plain, tmp_path):
    model = hub.load_model(hub.find(str(plain["llama"])), quantize="nf4").eval()
    hub.save_model(model, tmp_path, plain["llama"])
    assert torch.equal(logits(model), logits(hub.load_model(hub.find(str(tmp_path))).eval()))


def test_a_tied_head_stays_the_embedding(tmp_path, bpe_dir):
    make_hf_model(tmp_path / "m", bpe_dir, family="llama", tie_word_embeddings=True, **SIZES["llama"])
    model = hub.load_model(hub.find(str(tmp_path / "m")), quantize="nf4").eval()
    hub.save_model(model, tmp_path / "q", tmp_path / "m")
    assert "lm_head.weight" not in load_file(tmp_path / "q" / "model.safetensors")
    assert_same(logits(model), logits(open_theirs(tmp_path / "q")))


# --- scripts ------------------------------------------------------------------------------------------------


@pytest.fixture
def docs(tmp_path):
    return write_jsonl(tmp_path / "docs.jsonl", make_texts(20, 1))


COMMON = [
    "--context",
    32,
    "--batch-size",
    2,
    "--max-steps",
    3,
    "--val-fraction",
    0.2,
    "--dtype",
    "fp32",
    "--lora-r",
    2,
]


def train(docs, model, out, *flags):
    done = run_script(
        docs.parent, "train_clm.py", "--model", model, "--data", docs, "--out", out, *COMMON, *flags
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_an_adapter_over_quantised_weights(plain, docs, tmp_path, kind):
    """Trained over weights that are quantised as they are read, or over a directory that is stored so: the
    same adapter."""
    model = hub.load_model(hub.find(str(plain["llama"])), quantize=kind)
    hub.save_model(model, tmp_path / "q", plain["llama"])
    said = train(docs, plain["llama"], tmp_path / "a", "--quantize", kind)
    assert f"over {kind}" in said
    train(docs, tmp_path / "q", tmp_path / "b")
    a, b = (load_file(tmp_path / d / "adapter_model.safetensors") for d in "ab")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert json.loads((tmp_path / "a" / "run.json").read_text())["settings"]["quantize"] == kind
    ppl = {}
    for name, flags in (("a", []), ("b", []), ("full", ["--quantize", "none"])):
        model = tmp_path / ("a" if name == "full" else name)
        measure = [
            "--model",
            model,
            "--data",
            docs,
            "--context",
            32,
            "--dtype",
            "fp32",
            "--json",
            tmp_path / "p.json",
            *flags,
        ]
        done = run_script(tmp_path, "eval.py", "ppl", *measure)
        assert done.returncode == 0, done.stderr
        assert (f"over {kind};" in done.stdout) == (name == "a")  # the default is what it was trained over
        ppl[name] = json.loads((tmp_path / "p.json").read_text())["ppl"]
    assert ppl["a"] == ppl["b"] != ppl["full"]


def test_a_merged_adapter_is_plain_and_computes_the_same(plain, docs, tmp_path):
    train(docs, plain["llama"], tmp_path / "a", "--quantize", "nf4")
    said = train(docs, plain["llama"], tmp_path / "m", "--quantize", "nf4", "--merge")
    assert "dequantised before the adapter is merged" in said
    assert "quantization_config" not in json.loads((tmp_path / "m" / "config.json").read_text())
    merged = logits(transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m").eval())
    assert_same(merged, logits(hub.load_model(hub.find(str(tmp_path / "a")), quantize="nf4").eval()))


def test_a_classifier_over_quantised_weights(plain, docs, tmp_path):
    other = write_jsonl(tmp_path / "other.jsonl", [t.upper() for t in make_texts(20, 2)])
    flags = [
        "--positives",
        docs,
        "--negatives",
        other,
        "--quantize",
        "nf4",
        "--lora-r",
        2,
        "--max-steps",
        2,
        "--context",
        32,
    ]
    done = run_script(tmp_path, "train_cls.py", "--model", plain["llama"], *flags, "--out", tmp_path / "c")
    assert done.returncode == 0, done.stderr
    measure = ["--model", tmp_path / "c", "--positives", docs, "--negatives", other, "--quantize", "nf4"]
    done = run_script(tmp_path, "eval.py", "cls", *measure)
    assert done.returncode == 0 and "over nf4" in done.stdout, done.stderr


def test_a_dry_run_counts_the_codes(plain, docs, tmp_path):
    said = {}
    for flags in ([], ["--quantize", "nf4"]):
        out = train(docs, plain["llama"], tmp_path / "d", "--dry-run", "--lora-targets", "q_proj", *flags)
        said[len(flags)] = out
    assert said[0] != said[2] and "weights" in said[2]
    size = {n: float(text.split("weights ")[1].split()[0]) for n, text in said.items()}
    codes = 3 * (64 * 64 * 2 + 32 * 64 * 2 + 64 * 128 * 3)  # of three layers' linears
    assert size[0] - size[2] == pytest.approx(codes * (4 - 0.5 - 1 / 64) / 1e6, abs=0.06)


def test_a_run_over_codes_resumes(plain, docs, tmp_path):
    train(docs, plain["llama"], tmp_path / "whole", "--quantize", "nf4")
    whole = load_file(tmp_path / "whole" / "adapter_model.safetensors")
    flags = ["--out", tmp_path / "whole", "--resume", *COMMON]
    done = run_script(tmp_path, "train_clm.py", "--model", plain["llama"], "--data", docs, *flags)
    assert_refused(done, "quantize")  # the weights that it is trained on cannot change on the way
    assert "nothing to do" in train(docs, plain["llama"], tmp_path / "whole", "--quantize", "nf4", "--resume")
    assert all(
        torch.equal(v, whole[k])
        for k, v in load_file(tmp_path / "whole" / "adapter_model.safetensors").items()
    )


def test_all_weights_cannot_be_trained(plain, docs, tmp_path):
    flags = ["--data", docs, "--out", tmp_path / "o", "--context", 32]
    done = run_script(tmp_path, "train_clm.py", "--model", plain["llama"], *flags, "--quantize", "nf4")
    assert_refused(done, "--quantize nf4 needs --lora-r")
    hub.save_model(
        hub.load_model(hub.find(str(plain["llama"])), quantize="int8"), tmp_path / "q", plain["llama"]
    )
    assert_refused(
        run_script(tmp_path, "train_clm.py", "--model", tmp_path / "q", *flags), "quantised", "--lora-r"
    )
    done = run_script(
        tmp_path, "eval.py", "ppl", "--model", tmp_path / "q", "--data", docs, "--quantize", "nf4"
    )
    assert_refused(done, "--quantize nf4", "stored in int8")


@pytest.fixture
def stored(plain, tmp_path):
    hub.save_model(
        hub.load_model(hub.find(str(plain["llama"])), quantize="nf4"), tmp_path / "q", plain["llama"]
    )
    return tmp_path / "q"


def damaged(stored, change):
    tensors = load_file(stored / "model.safetensors")
    change(tensors)
    save_file(tensors, stored / "model.safetensors")
    return stored


LAYER = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(f"{LAYER}.absmax"), ["up_proj.absmax is missing"]),
        (lambda t: t.pop(f"{LAYER}.quant_state.bitsandbytes__nf4"), ["up_proj.nested_offset is missing"]),
        (
            lambda t: t.update({LAYER: t[LAYER][:-1].clone()}),
            [f"{LAYER} is torch.uint8 (4095, 1)", "(4096, 1)"],
        ),
        (lambda t: t.update({LAYER: torch.zeros(128, 64)}), [f"{LAYER} is torch.float32"]),
        (lambda t: t.update({f"{LAYER}.quant_map": torch.zeros(16)}), ["quant_map", "NF4's 16 numbers"]),
        (
            lambda t: t.update({f"{LAYER}.nested_quant_map": torch.zeros(256)}),
            ["nested_quant_map", "dynamic map"],
        ),
        (lambda t: t.update({f"{LAYER}.SCB": torch.zeros(2)}), ["SCB is unexpected"]),
        (
            lambda t: t.update({f"{LAYER}.quant_state.bitsandbytes__nf4": torch.zeros(9, dtype=torch.uint8)}),
            ["not what bitsandbytes"],
        ),
    ],
)
def test_damaged_directories_are_named(stored, change, words):
    done = run_script(
        stored.parent, "eval.py", "generate", "--model", damaged(stored, change), "--prompt", "the"
    )
    assert_refused(done, "model.safetensors" if "missing" not in words[0] else stored, *words)


def test_parts_of_codes_among_plain_weights_are_unexpected(plain, tmp_path):
    shutil.copytree(plain["llama"], tmp_path / "m")
    file, key = tmp_path / "m" / "model.safetensors", "model.layers.1.mlp.up_proj"
    tensors = load_file(file)
    save_file(tensors | {f"{key}.absmax": torch.zeros_like(tensors[f"{key}.weight"])}, file)
    with pytest.raises(UserError, match=f"unexpected tensor {key}.absmax"):
        hub.load_model(hub.find(str(tmp_path / "m")), quantize="nf4")


@pytest.mark.parametrize(
    ("how", "word"),
    [
        ({"quant_method": "gptq", "bits": 4}, "not of bitsandbytes"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}, "neither nf4"),
        (
            {"quant_method": "bitsandbytes", "load_in_8bit": True, "llm_int8_skip_modules": ["up_proj"]},
            "llm_int8_skip_modules",
        ),
        ("nf4", "not of bitsandbytes"),
    ],
)
def test_other_quantisations_are_refused(stored, how, word):
    config = json.loads((stored / "config.json").read_text())
    (stored / "config.json").write_text(json.dumps(config | {"quantization_config": how}))
    assert_refused(
        run_script(stored.parent, "eval.py", "generate", "--model", stored, "--prompt", "the"),
        "config.json",
        word,
    )


def test_a_directory_that_holds_a_model_is_not_written_over(plain, stored, tmp_path):
    flags = ["--quantize", "nf4", "--out", stored]
    assert_refused(
        run_script(tmp_path, "nanomed/quantise.py", "--model", plain["llama"], *flags), "config.json is none"
    )
    shutil.rmtree(stored)
