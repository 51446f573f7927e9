"""The blocks that are only measured with, and layers of 16 bits, against the plain ones."""

import pytest
import torch
from torch import nn

from nanomed.errors import UserError
from nanomed.evaluation.generate import stream
from nanomed.evaluation.measure import open_model
from nanomed.evaluation.next_token import Sampling, next_logits
from nanomed.models import FAMILIES, narrow
from nanomed.models.cache import make_cache
from nanomed.models.fused import Block, fuse
from nanomed.models.language_model import LanguageModel
from nanomed.models.lora import LoRAConfig, inject
from nanomed.models.narrow import HalfLinear
from nanomed.models.prepacked import prepack
from nanomed.models.quant import count_parameters
from tests.conftest import every_family

SIZES = {
    "vocab_size": 90,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
GEMMA = {"layer_types": ["sliding_attention", "sliding_attention", "full_attention"], "sliding_window": 7}
MODELS = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "mistral": {"sliding_window": 6},
    "qwen2": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    "qwen3": {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}},
    "gemma3_text": GEMMA | {"query_pre_attn_scalar": 20, "attention_bias": True},
}
every_member = pytest.mark.parametrize("kind", MODELS)


def random_model(kind):
    torch.manual_seed(0)
    config = FAMILIES[kind].Config(model_type=kind, **(SIZES | MODELS[kind]))
    model = LanguageModel(FAMILIES[kind], config).requires_grad_(False).eval()
    for p in model.parameters():  # also the biases and gains
        nn.init.normal_(p, std=0.3)
    return model


@every_member
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fused_block_computes_the_same(kind, dtype):
    plain, fused = random_model(kind), random_model(kind)
    fuse(fused)
    assert sum(isinstance(m, Block) for m in fused.modules()) == 3
    assert count_parameters(fused) == count_parameters(plain)
    idx = torch.randint(0, 90, (2, 20))
    with torch.no_grad(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        a, b = plain.backbone(idx), fused.backbone(idx)
    tolerance = 0.1 if dtype == torch.bfloat16 else 2e-5
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@every_member
def test_it_writes_as_the_plain_model_reads(kind):
    """A token at a time after a cache, over the windows' edges, padded rows among them."""
    plain, fused = random_model(kind), random_model(kind)
    fuse(fused)
    prompts = [[1, 2, 3, 4, 5, 6, 7, 8, 9], [10, 11, 12]]
    tokens = list(stream(fused, prompts, 12, Sampling(), (0, 1), torch.device("cpu"), "fp32"))
    for prompt, written in zip(prompts, zip(*tokens, strict=True), strict=True):
        ids = torch.tensor([[*prompt, *written]])
        with torch.no_grad():
            likeliest = plain(ids)[0].argmax(-1)
        assert likeliest[len(prompt) - 1 : -1].tolist() == list(written)


@every_member
def test_a_token_after_a_cache_looks_at_its_window(kind):
    plain, fused = random_model(kind), random_model(kind)
    fuse(fused)
    idx = torch.randint(0, 90, (2, 16))
    cache = make_cache(fused.config, 2, 16, "cpu", torch.float32)
    with torch.no_grad():
        whole = plain.backbone(idx)
        steps = [fused.backbone(idx[:, :8], torch.arange(8)[None], cache=cache)]
        for n in range(8, 16):
            steps.append(fused.backbone(idx[:, n : n + 1], torch.tensor([[n]]), cache=cache))
    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=2e-5, atol=2e-5)


def test_what_holds_an_adapter_stays_plain():
    model = random_model("llama")
    inject(model, LoRAConfig(2, 4.0, 0.0, ("q_proj",)))
    fuse(model)
    assert not any(isinstance(m, Block) for m in model.modules())


@pytest.mark.parametrize("rows", [1, 3, 40])
@pytest.mark.parametrize("bias", [True, False])
def test_layers_of_16_bits(rows, bias):
    torch.manual_seed(0)
    plain, x = nn.Linear(64, 48, bias=bias), torch.randn(2, rows, 64)
    exact, y = plain(x).detach(), HalfLinear(plain)(x)
    assert y.shape == exact.shape and (y - exact).norm() / exact.norm() < 2**-11
    plain.weight.data = plain.weight.data.bfloat16().float()
    torch.testing.assert_close(HalfLinear(plain)(x), plain(x).detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("odd", [1e5, torch.nan])
def test_what_fp16_has_no_number_for_stays(odd):
    """FBGEMM would make it 65,504, in the plain layer too."""
    model = random_model("llama")
    model.lm_head.weight.data[3, 0] = model.model.layers[1].mlp.down_proj.weight.data[0, 0] = odd
    narrow.narrow(model, "fp16")
    layers = [m for m in model.backbone.modules() if isinstance(m, nn.Linear | HalfLinear)]
    assert [type(m) for m in layers].count(nn.Linear) == 1 and model.writing_head is None
    logits = next_logits(model, torch.ones(1, 32), torch.float32)
    torch.testing.assert_close(logits[0], model.lm_head.weight.sum(1), equal_nan=True)


@pytest.mark.parametrize("write_in", narrow.LOSS)
def test_small_weights_among_others_are_held_and_small_layers_stay(write_in):
    """Of which fp16 would keep a bit or two, however a norm behind them scales what comes out."""
    weight = (0.02 * torch.randn(600, 64)).bfloat16()
    weight[550:] *= 1e-6
    assert narrow.fits(weight, narrow.LOSS[write_in]) and narrow.fits(0 * weight, narrow.LOSS[write_in])
    assert not narrow.fits(weight * 1e-5, narrow.LOSS[write_in])


def test_weights_of_16_bits_are_written_in_16():
    model = random_model("llama")
    exact = next_logits(model, torch.ones(2, 32), torch.float32)
    for p in model.parameters():
        p.data = p.bfloat16().float()
    idx = torch.randint(0, 90, (2, 12))
    with torch.no_grad():
        expected = model(idx)
        fuse(model)
        narrow.narrow(model, "stored")
        prepack(model)
        x = model.backbone(idx)
    assert sum(isinstance(m, HalfLinear) for m in model.modules()) == 3 * 4 + 1
    logits = next_logits(model, x[:, -1], torch.float32)
    torch.testing.assert_close(logits, expected[:, -1], rtol=1e-5, atol=1e-5)
    assert exact.shape == logits.shape


@every_family
@pytest.mark.parametrize("write_in", ["stored", "fp16"])
def test_every_family_writes_in_16_bits(model_dir, write_in):
    plain, o = (
        open_model(str(model_dir), "cpu", "fp32"),
        open_model(str(model_dir), "cpu", "fp32", write_in=write_in),
    )
    head = {"stored": type(None), "fp16": HalfLinear}[write_in]
    assert type(o.model.writing_head) is head
    assert count_parameters(o.model) == count_parameters(plain.model)
    x = torch.randn(3, o.model.config.n_embd)
    a, b = (next_logits(m.model, x, torch.float32) for m in (plain, o))
    assert (a - b).norm() / a.norm() < 1e-3


def test_where_16_bits_cannot_be_had(model_dir, monkeypatch):
    with pytest.raises(UserError, match="in nf4 already; --quantize none"):
        open_model(str(model_dir), "cpu", "fp32", quantize="nf4", write_in="fp16")
    with pytest.raises(UserError, match="stored in 8 or 4 bits"):
        narrow.narrow(open_model(str(model_dir), "cpu", "fp32", quantize="nf4").model, "fp16")
    with pytest.raises(UserError, match="for a CPU, and the model is on cuda"):
        narrow.check(torch.device("cuda"), None)
    monkeypatch.setattr(narrow, "available", lambda: False)
    with pytest.raises(UserError, match="no FBGEMM"):
        narrow.check(torch.device("cpu"), None)
