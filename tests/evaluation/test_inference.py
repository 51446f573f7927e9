"""bench/inference.py: what pruning zeroes and what it leaves, the loop without a cache, and a whole run."""

import importlib.util
import json

import numpy as np
import pytest
import torch

from nanomed import hub
from nanomed.evaluation import measure
from nanomed.evaluation.generate import Ending, Sampling, generate
from nanomed.models.lora import LoRAConfig, inject
from tests.conftest import ROOT, assert_refused, every_family, linears, make_texts, write_jsonl

spec = importlib.util.spec_from_file_location("bench_inference", ROOT / "bench" / "inference.py")
inference = importlib.util.module_from_spec(spec)
spec.loader.exec_module(inference)


@pytest.fixture
def opened(model_dir):
    return measure.open_model(str(model_dir), "cpu", "fp32", plain=True)


def arrays(model) -> dict[str, np.ndarray]:
    return {name: t.detach().float().numpy().copy() for name, t in model.state_dict().items()}


def in_blocks(name: str, model) -> bool:
    """By its name alone whether a parameter is a linear layer's weight in a block."""
    *_, layer, kind = name.split(".")
    return kind == "weight" and layer in linears(model)


@every_family
def test_half_of_the_weights_are_zero_the_smallest_of_all_layers_together(opened):
    before = arrays(opened.model)
    pruned = inference.variant(opened, "fp32", 0.5)
    after = arrays(pruned.model)
    names = [name for name in before if in_blocks(name, opened.model)]
    assert len(names) == len(inference.block_linears(opened.model)) >= 12
    weights = np.concatenate([before[name].ravel() for name in names])
    smallest = np.argsort(np.abs(weights), kind="stable")[: weights.size // 2]
    expected = weights.copy()
    expected[smallest] = 0
    np.testing.assert_array_equal(np.concatenate([after[name].ravel() for name in names]), expected)
    shares = [np.mean(after[name] == 0) for name in names]
    assert max(shares) - min(shares) > 0.001  # jointly: not half of each layer
    assert before.keys() == after.keys()  # neither a mask nor a hook stays
    assert not any(m._forward_pre_hooks for m in pruned.model.modules())
    others = before.keys() - names  # embeddings, norms, biases, head
    assert any("bias" in name or "norm" in name for name in others) and "lm_head.weight" in others
    for name in others:
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)
    now = arrays(opened.model)
    assert all(
        (now[name] == before[name]).all() for name in before
    )  # the next sparsity starts from the original


@every_family
def test_nothing_pruned_changes_nothing(opened):
    before, after = arrays(opened.model), arrays(inference.variant(opened, "fp32").model)
    assert all((after[name] == before[name]).all() for name in before)


@every_family
def test_the_loop_without_a_cache_writes_what_generate_writes(opened):
    prompt, steps = [5, 17, 33, 250, 7], 24
    written = inference.write_uncached(opened, prompt, steps)
    assert written == inference.write_cached(opened, [prompt], steps)[0]
    ending = Ending(opened.tokenizer)
    done = generate(opened.model, [prompt], steps, Sampling(), ending, opened.device, "fp32")[0]
    assert written[: len(done.ids)] == done.ids
    assert len(done.ids) == steps or written[len(done.ids)] in opened.tokenizer.ends


def test_bytes_are_those_of_the_tensors(opened):
    c = opened.model.config  # 3 layers of 32 channels in 4 heads, tied
    linear, bias, norms = 12 * 32 * 32, 9 * 32, 4 * 32
    rest = (c.vocab_size + c.n_positions) * 32 + 2 * 32
    count = inference.n_bytes(opened.model.parameters())
    assert count == 4 * (3 * (linear + bias + norms) + rest)
    narrow = inference.n_bytes(inference.variant(opened, "bf16").model.parameters())
    assert count - narrow == 2 * 3 * (linear + bias)  # on a CPU neither embeddings nor head
    rows = inference.writing_rows(opened, [[1, 2, 3, 4]] * 32, 2, 1)
    assert [r["cache_bytes"] for r in rows.values()] == [
        0,
        *(B * 2 * 3 * 32 * (4 + 2) * 4 for B in (1, 8, 32)),
    ]


def test_turns_are_taken_in_both_directions():
    order = []
    runs = {name: lambda name=name: (order.append(name) or name.upper(), len(order)) for name in "ab"}
    assert inference.in_turn(runs, 3) == {"a": ("A", [3, 6, 7]), "b": ("B", [4, 5, 8])}
    assert "".join(order) == "ab" + "ab" + "ba" + "ab"
    assert inference.speed(10, [2.0, 4.0, 3.0], [4.0, 4.0, 9.0]) == {
        "tokens_per_s": 10 / 3,
        "times": 2,
        "seconds": [2, 4, 3],
    }


def test_no_sparse_kernel_is_said_in_words(opened, monkeypatch):
    def missing(*_):
        raise NotImplementedError("no CSR here\nand a long list of backends")

    monkeypatch.setattr(inference.torch, "sparse_csr_tensor", lambda *a, **k: missing())
    assert inference.sparse_rows(opened.model, 4, 1, 0) == {"unavailable": "no CSR here"}


@pytest.fixture
def data(tmp_path):
    return write_jsonl(tmp_path / "d.jsonl", make_texts(3, 5, 20, 30))


FEW = (
    "--context",
    32,
    "--repeats",
    1,
    "--prompt-tokens",
    8,
    "--new-tokens",
    3,
    "--device",
    "cpu",
    "--dtype",
    "fp32",
)


def test_a_whole_run(script, data, tmp_path):
    done = script(
        "bench/inference.py",
        "--model",
        "nano",
        "--data",
        data,
        "--limit",
        2,
        *FEW,
        "--json",
        "i.json",
        "--plot",
        "i.png",
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    result = json.loads((tmp_path / "i.json").read_text())
    *shown, last = done.stdout.splitlines()
    assert json.loads(last) == result
    assert any(line.startswith("score, fp32, 90 % pruned") for line in shown)
    assert (
        result["documents"] == 2
        and result["dtype"] == "fp32"
        and result["machine"]["torch"] == torch.__version__
    )
    assert list(result["storage"]) == ["fp32", "bf16"]
    assert list(result["pruned"]) == ["0", "10", "30", "50", "70", "90"]
    for percent, r in result["pruned"].items():
        assert r["zeros"] == pytest.approx(int(percent) / 100, abs=1e-4)
        assert r["weight_bytes"] == result["storage"]["fp32"]["weight_bytes"]
        low, high = r["ppl_ci95"]
        assert low <= r["ppl"] <= high
        assert {"tokens_per_s", "times", "dense_seconds"} <= r.keys()
    assert result["pruned"]["0"]["ppl"] == result["storage"]["fp32"]["ppl"] < result["pruned"]["90"]["ppl"]
    if "unavailable" not in result["sparse"]:
        assert len(result["sparse"]) == 6
        dense, sparse = (result["sparse"][f"{way}, 32 at once"]["weight_bytes"] for way in ("dense", "CSR"))
        assert (
            0.2 * dense < sparse < 0.21 * dense
        )  # a value and an index for each tenth weight, and the rows' starts
    assert list(result["writing"]) == ["no cache", *(f"cache, batch {B}" for B in (1, 8, 32))]
    assert result["cached_equals_uncached"] is True
    assert (tmp_path / "i.png").read_bytes().startswith(b"\x89PNG")
    assert (result["context"], result["stride"]) == (32, 16)


@every_family
def test_an_adapter_is_merged_before_anything_is_pruned(model_dir, tmp_path):
    model = hub.load_model(hub.find(str(model_dir)))
    plain = arrays(model)
    target = linears(model)[0]
    inject(model, LoRAConfig(2, 4.0, 0.0, (target,)))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.fill_(0.1)
    hub.save_adapter(model, tmp_path / "adapter", str(model_dir), model_dir)
    merged = inference.open_plain(str(tmp_path / "adapter"), "cpu").model
    after = arrays(merged)
    assert after.keys() == plain.keys()
    assert {name for name in plain if (plain[name] != after[name]).any()} == {
        n for n in plain if n.endswith(f".{target}.weight")
    }
    assert not any(p.requires_grad for p in merged.parameters())


@pytest.mark.parametrize(
    "flags, words",
    [
        (("--new-tokens", 300), ("--new-tokens 300", "256 positions")),
        (("--prompt-tokens", 200), ("no document has 200 tokens", "--prompt-tokens")),
        (("--context", 500), ("context 500", "256 positions")),
        (("--json", "none/i.json"), ("--json", "no such directory")),
        (("--plot", "."), ("--plot", "directory")),
        (("--repeats", 0), ("--repeats", "at least 1")),
    ],
)
def test_bad_input_is_one_line(script, data, flags, words):
    assert_refused(script("bench/inference.py", "--model", "nano", "--data", data, *FEW, *flags), *words)
