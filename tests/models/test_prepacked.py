"""Layers laid out for the matrix library against the plain ones, and what reads them."""

import copy

import pytest
import torch
from torch import nn

from nanomed.evaluation.measure import open_model
from nanomed.evaluation.next_token import EXACT, next_logits
from nanomed.models.lora import LoRAConfig, inject, lora_layers
from nanomed.models.loss import head_logits, token_nll
from nanomed.models.prepacked import PrepackedLinear, available, head_of, in_blocks, prepack, product
from nanomed.models.quant import count_parameters
from nanomed.precision import store_frozen
from tests.conftest import every_family

pytestmark = pytest.mark.skipif(not available(torch.zeros(1)), reason="this PyTorch has no oneDNN")
needs_bf16 = pytest.mark.skipif(
    not available(torch.zeros(1), torch.bfloat16), reason="oneDNN has no bf16 on this CPU"
)


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs_bf16)])
@pytest.mark.parametrize("rows", [1, 3, 40, 700])
@pytest.mark.parametrize("bias", [True, False])
def test_product_is_the_plain_one(dtype, rows, bias):
    torch.manual_seed(0)
    weight, x = torch.randn(51, 33, dtype=dtype), torch.randn(2, rows, 33, dtype=dtype)
    b = torch.randn(51, dtype=dtype) if bias else None
    y = product(x, in_blocks(weight), b)
    assert y.dtype == dtype and y.shape == (2, rows, 51)
    exact = nn.functional.linear(x.double(), weight.double(), None if b is None else b.double())
    tolerance = 2**-7 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(y.double(), exact, rtol=tolerance, atol=tolerance)
    assert torch.equal(product(x, weight, b), nn.functional.linear(x, weight, b))


@every_family
@pytest.mark.parametrize("dtype", ["fp32", pytest.param("bf16", marks=needs_bf16)])
def test_a_prepacked_model_computes_the_same(model_dir, dtype):
    plain, laid_out = (open_model(str(model_dir), "cpu", dtype, plain=p).model for p in (True, False))
    assert any(isinstance(m, PrepackedLinear) for m in laid_out.modules())
    assert not any(isinstance(m, nn.Linear) for m in laid_out.backbone.modules())
    assert count_parameters(laid_out) == count_parameters(plain)
    idx = torch.randint(0, plain.config.vocab_size, (2, 20))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"):
        a, b = plain.backbone(idx), laid_out.backbone(idx)
    tolerance = 0.05 if dtype == "bf16" else 1e-4
    torch.testing.assert_close(a.float(), b.float(), rtol=tolerance, atol=tolerance)
    x, targets = a.float().flatten(0, 1), idx.flatten()
    nll = [token_nll(x, head_of(m), targets, torch.bfloat16) for m in (plain, laid_out)]
    torch.testing.assert_close(*nll, rtol=1e-5, atol=1e-5)  # fp32 on a CPU, whatever the layers are


def test_adapters_stay_plain_and_go_on_working(model_dir):
    o = open_model(str(model_dir), "cpu", "fp32", plain=True)
    inject(o.model, LoRAConfig(2, 4.0, 0.0, ("c_attn",)))
    for layer in lora_layers(o.model).values():
        nn.init.normal_(layer.lora_B.weight)
    o.model.requires_grad_(False)
    store_frozen(o.model, "fp32", torch.device("cpu"))
    idx = torch.randint(0, o.model.config.vocab_size, (2, 12))
    expected = o.model.backbone(idx)
    prepack(o.model)
    assert all(isinstance(m.base_layer, PrepackedLinear) for m in lora_layers(o.model).values())
    assert all(type(m.lora_A) is nn.Linear for m in lora_layers(o.model).values())
    torch.testing.assert_close(o.model.backbone(idx), expected, rtol=1e-5, atol=1e-5)


@needs_bf16
def test_the_next_token_is_exact_where_it_is_decided(model_dir):
    """With logits around -35, as GPT-2's are, all of bf16's likeliest are equal."""
    o = open_model(str(model_dir), "cpu", "bf16", plain=True)
    model, (V, C) = o.model, o.model.lm_head.weight.shape
    torch.manual_seed(0)
    x = torch.randn(5, C)
    with torch.no_grad():
        model.lm_head.weight.copy_(torch.randn(V, C) * 0.01 - 35 * x.mean(0) / x.mean(0).square().sum() / 5)
    exact = head_logits(x, model.lm_head.weight)
    coarse = exact.bfloat16().float()
    assert (
        (coarse == coarse.max(1, keepdim=True).values).sum(1) > 1
    ).any()  # ties, were it not for the exact ones
    prepack(model)
    found = next_logits(model, x, torch.bfloat16)
    assert found.dtype == torch.float32 and torch.equal(found.argmax(1), exact.argmax(1))
    top = found.topk(8).indices
    torch.testing.assert_close(found.gather(1, top), exact.gather(1, top), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(found, exact, rtol=2**-7, atol=2**-7)
    assert torch.equal(next_logits(copy.copy(model), x, torch.float32).argmax(1), exact.argmax(1))
    assert EXACT < V


def test_bf16_is_measured_on_every_cpu(model_dir):
    """Where oneDNN has no bf16, the layers and the head stay plain."""
    o = open_model(str(model_dir), "cpu", "bf16")
    laid_out = any(isinstance(m, PrepackedLinear) for m in o.model.modules())
    assert laid_out == available(torch.zeros(1), torch.bfloat16)
    x = torch.randn(3, o.model.lm_head.weight.shape[1])
    assert next_logits(o.model, x, torch.bfloat16).isfinite().all()
    assert head_of(o.model, torch.bfloat16).is_mkldnn == laid_out
