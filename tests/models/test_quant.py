"""Quantised layers: codes, scales and what they stand for against bitsandbytes, bit by bit; products and
gradients against plain layers that hold the dequantised weights."""

import bitsandbytes.functional as bnb
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nanomed import hub
from nanomed.models import quant
from nanomed.models.lora import LoRAConfig, LoRALinear, adapter_state, inject, merge_and_unwrap
from nanomed.precision import autocast, store_frozen
from tests.conftest import every_family, linears

SHAPES = [(64, 64), (48, 64), (192, 128), (1000, 320)]
KINDS = [("nf4", {"double": True}), ("nf4", {"double": False}), ("int8", {})]
every_kind = pytest.mark.parametrize(("kind", "how"), KINDS, ids=["nf4, scales in 8 bits", "nf4", "int8"])


def weight(shape, dtype=torch.float32, seed=0):
    w = (
        torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        * torch.linspace(0.01, 0.2, shape[0])[:, None]
    )
    return w.to(dtype)


# --- bitsandbytes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_nf4_is_that_of_bitsandbytes_bit_by_bit(shape, dtype):
    w = weight(shape, dtype)
    theirs, state = bnb.quantize_4bit(w, quant_type="nf4")
    packed, scales = quant.quantise_nf4(w)
    assert torch.equal(packed, theirs) and torch.equal(scales, state.absmax)
    assert torch.equal(
        quant.dequantise_nf4(packed, scales, shape).to(dtype), bnb.dequantize_4bit(theirs, state)
    )


@pytest.mark.parametrize("shape", SHAPES)
def test_scales_in_8_bits_are_those_of_bitsandbytes_bit_by_bit(shape):
    w = weight(shape)
    theirs, state = bnb.quantize_4bit(w, quant_type="nf4", compress_statistics=True)
    packed, scales = quant.quantise_nf4(w)
    codes, largest, offset = quant.quantise_scales(scales)
    assert (
        torch.equal(codes, state.absmax)
        and torch.equal(largest, state.state2.absmax)
        and offset == state.offset
    )
    scales = quant.dequantise_scales(codes, largest, offset)
    assert torch.equal(quant.dequantise_nf4(packed, scales, shape), bnb.dequantize_4bit(theirs, state))


def test_the_dynamic_map_is_that_of_bitsandbytes():
    assert torch.equal(quant.DYNAMIC, bnb.create_dynamic_map())


@pytest.mark.parametrize("shape", SHAPES)
def test_int8_is_that_of_bitsandbytes_bit_by_bit(shape):
    w = weight(shape).half()
    theirs, largest, _ = bnb.int8_vectorwise_quant(w)
    codes, ours = quant.quantise_int8(w)
    assert torch.equal(codes, theirs) and torch.equal(ours, largest)
    layer = quant.Int8Linear(shape[1], shape[0], bias=False)
    layer.load_state_dict(layer.quantise(w))
    assert torch.equal(layer.dequantise(), bnb.int8_vectorwise_dequant(theirs, largest))


def test_a_block_of_zeros_is_zeros():
    w = torch.zeros(4, 64)
    w[1] = 1.0
    packed, scales = quant.quantise_nf4(w)
    assert torch.equal(quant.dequantise_nf4(packed, scales, w.shape), w)
    codes, largest = quant.quantise_int8(w)
    assert torch.equal(codes * largest[:, None] / 127, w)


def test_weights_that_do_not_fill_their_last_block_keep_their_places():
    w = weight((10, 30))
    packed, scales = quant.quantise_nf4(w)
    assert (packed.shape, scales.shape) == ((150, 1), (5,))
    back, steps = quant.dequantise_nf4(packed, scales, w.shape), (quant.NF4[1:] - quant.NF4[:-1]).max() / 2
    error = (F.pad((back - w).flatten(), (0, 20)).view(5, 64).abs() / scales[:, None]).max()
    assert error <= steps + 1e-6


def test_an_error_is_at_most_half_a_step():
    w = weight((64, 640))
    back = quant.dequantise_nf4(*quant.quantise_nf4(w), w.shape)
    largest_gap = (quant.NF4[1:] - quant.NF4[:-1]).max().item()
    assert (
        (back - w).view(-1, 64).abs().amax(1) <= w.view(-1, 64).abs().amax(1) * (largest_gap / 2 + 1e-6)
    ).all()


# --- layers -------------------------------------------------------------------------------------------------


def pair(kind, how, bias=True, dtype=torch.float32):
    """A quantised layer, and a plain frozen one that holds the weight which its codes stand for."""
    layer = quant.KINDS[kind](96, 40, bias, **how)
    layer.load_state_dict(
        layer.quantise(weight((40, 96), dtype)) | ({"bias": torch.linspace(-1, 1, 40)} if bias else {})
    )
    layer.dtype = dtype
    plain = nn.Linear(96, 40, bias)
    plain.weight.data = layer.dequantise().float()
    if bias:
        plain.bias.data = layer.bias.clone()
    return layer, plain.requires_grad_(False)


@every_kind
@pytest.mark.parametrize("compute", ["fp32", "bf16"])
def test_products_and_gradients_are_those_of_the_dequantised_weight_exactly(kind, how, compute):
    """LoRA over codes against LoRA over a plain frozen layer, which is stored in the compute dtype, as a
    training stores it."""
    cpu, config = torch.device("cpu"), LoRAConfig(4, 8, 0.0, ("x",))
    ours, theirs = (LoRALinear(base, config) for base in pair(kind, how))
    nn.init.normal_(ours.lora_B.weight)
    theirs.load_state_dict({k: v for k, v in ours.state_dict().items() if "lora" in k}, strict=False)
    store_frozen(theirs, compute, cpu)
    results = []
    for layer in (ours, theirs):
        x = torch.randn(3, 7, 96, generator=torch.Generator().manual_seed(1)).requires_grad_()
        with autocast(cpu, compute):
            y = layer(x.clone())  # not a leaf, whose cast autocast would share between codes and adapter
        y.float().pow(2).sum().backward()
        results.append((y, x.grad, layer.lora_A.weight.grad, layer.lora_B.weight.grad))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@every_kind
def test_nothing_of_a_weight_is_kept_for_backward(kind, how):
    layer, _ = pair(kind, how)
    kept, codes = [], {b.data_ptr() for b in layer.buffers()}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = layer(torch.randn(2, 96, requires_grad=True))
    assert not [t for t in kept if t.data_ptr() not in codes and t.numel() >= 96 * 40]
    y.sum().backward()


def test_a_weight_that_was_bf16_is_rounded_to_it_again():
    layer, _ = pair("nf4", {"double": True}, dtype=torch.bfloat16)
    assert layer.dequantise().dtype == torch.bfloat16


@every_family
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_a_quantised_model_is_the_model_of_its_dequantised_weights(model_dir, kind):
    source, ids = hub.find(str(model_dir)), torch.arange(40).view(2, 20)
    model = hub.load_model(source, quantize=kind).eval()
    assert sum(isinstance(m, quant.QUANTISED) for m in model.modules()) == 3 * len(linears(model)) + (
        3 if model.config.model_type == "gpt2" else 0  # c_proj is two layers of a block
    )
    assert not any(isinstance(m, nn.Linear) for m in model.backbone.modules())
    full = hub.load_model(source).eval()
    assert quant.count_parameters(model) == quant.count_parameters(full)
    assert quant.stored_bytes(model) < quant.stored_bytes(full)
    plain = hub.load_model(source, quantize=kind).eval()
    quant.dequantise(plain)
    assert not any(isinstance(m, quant.QUANTISED) for m in plain.modules())
    with torch.no_grad():
        assert torch.equal(model(ids), plain(ids))
        assert not torch.allclose(model(ids), full(ids), atol=1e-3)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_an_adapter_is_merged_into_what_the_codes_stand_for(model_dir, kind, capsys):
    ids = torch.arange(40).view(2, 20)
    model = hub.load_model(hub.find(str(model_dir)), quantize=kind).eval()
    inject(model, LoRAConfig(2, 4, 0.0, ("c_attn", "c_fc")))
    for name, p in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(p)
    assert len(adapter_state(model)) == 3 * 2 * 2
    with torch.no_grad():
        before = model(ids)
        merge_and_unwrap(model)
        torch.testing.assert_close(model(ids), before, rtol=0, atol=1e-4 * before.abs().max().item())
    assert not any(isinstance(m, quant.QUANTISED) for m in model.modules())
    assert "dequantised before the adapter is merged" in capsys.readouterr().out


def test_checkpointed_activations_give_the_same_gradients(model_dir):
    grads = []
    for checkpoint in (False, True):
        model = hub.load_model(hub.find(str(model_dir)), dropout=0.0, quantize="nf4")
        torch.manual_seed(0)
        inject(model, LoRAConfig(2, 4, 0.0, ("c_attn",)))
        model.backbone.grad_checkpoint = checkpoint
        model(torch.arange(40).view(2, 20)).sum().backward()
        grads.append([p.grad for p in model.parameters() if p.requires_grad])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))
