"""Packed rows against the mask that says the same, and tiles against the library's kernel in double
precision."""

import itertools

import pytest
import torch

from nanomed import hub
from nanomed.models import attention, kernels
from nanomed.models.attention import CAUSAL, Mask, _packed_on_gpu, attend, packed
from nanomed.models.cache import KVCache
from nanomed.models.loss import clm_loss
from nanomed.models.packed import SHORTEST
from nanomed.text.batch import Batch
from tests.conftest import every_family_compiled

CPU = torch.device("cpu")


def heads(B, T, nh, hs=16, dtype=torch.float64):
    return torch.randn(B, T, nh, hs, dtype=dtype).transpose(1, 2).requires_grad_()


def of_lengths(*rows, T):
    """Segments (B, T) of rows of examples of these lengths, the rest of a row filling."""
    segments = torch.full((len(rows), T), -1)
    for b, row in enumerate(rows):
        at = 0
        for k, n in enumerate(row):
            segments[b, at : at + n] = k
            at += n
    return segments


def dense(segments):
    """The mask, by its definition."""
    T = segments.size(1)
    return (segments[:, None, :, None] == segments[:, None, None, :]) & torch.ones(
        T, T, dtype=torch.bool
    ).tril()


ROWS = {
    "several lengths": of_lengths([1, 33, 64, 2], [100], [31, 32, 37], [7], T=100),
    "full rows, as long as a row may be": of_lengths([64], [32, 32], T=64),
    "one token": of_lengths([1], [1], T=1),
    "no power of two": of_lengths([3, 40], [43], T=43),
}


@pytest.mark.parametrize("window", [None, 5, 200])
@pytest.mark.parametrize("kv", [4, 2])
@pytest.mark.parametrize("rows", ROWS)
def test_packed_rows_are_the_mask(rows, kv, window):
    torch.manual_seed(0)
    segments = ROWS[rows]
    (B, T), real = segments.shape, segments[..., None] >= 0
    qkv = heads(B, T, 4), heads(B, T, kv), heads(B, T, kv)
    grad = torch.randn(B, T, 4 * 16, dtype=torch.float64) * real  # nothing looks at what filling becomes

    def run(mask):
        y = attend(*qkv, mask.within(window, T, T, "cpu"))
        return [y * real, *torch.autograd.grad(y, qkv, grad)]

    expected = run(Mask(dense(segments)))
    for way in (
        packed(segments, CPU),
        _packed_on_gpu(segments, CPU),
    ):  # the latter is a GPU's, here without its kernel
        for ours, theirs in zip(run(way), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rows", ROWS)
def test_a_gpus_kernel_is_told_where_examples_end(rows):
    segments = ROWS[rows]
    ends = _packed_on_gpu(segments, CPU).ends.ends.tolist()
    spans = [range(a, b) for a, b in itertools.pairwise(ends) if a < b]
    assert ends[-1] == segments.numel() and ends[0] == 0 and len(ends) % 256 == 0
    T = segments.size(1)
    assert all(len({(t // T, segments.flatten()[t].item()) for t in span}) == 1 for span in spans)
    assert len(spans) == sum(len(row.unique()) for row in segments)


def test_packed_rows_are_dealt_into_few_lengths():
    torch.manual_seed(0)
    lengths = torch.randint(1, 300, (40,)).tolist()
    p = packed(of_lengths(*[[n] for n in lengths], T=512), CPU).slots
    sizes = [size for _, size in p.groups]
    assert len(set(sizes)) == len(sizes) <= 9 and max(sizes) <= 384 and min(sizes) == SHORTEST
    assert p.back.unique().numel() == p.back.numel() == 40 * 512  # every token has a slot of its own
    assert (p.slots[p.back] == torch.arange(40 * 512)).all()
    assert int(p.real.sum()) == 40 * 512


@pytest.mark.parametrize("B, T", [(1, 1), (3, 50), (2, 128), (9, 200), (1, 385)])
@pytest.mark.parametrize("kv", [4, 2])
@pytest.mark.parametrize("scale", [None, 1.0])
@pytest.mark.parametrize(
    "dtype, error", [(torch.bfloat16, 0.05), (torch.float32, 1e-5)], ids=["bf16", "fp32"]
)
def test_training_in_tiles_against_double_precision(B, T, kv, scale, dtype, error, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(kernels, "SCORES", 4 * 128 * 200 * 4)  # four rows at once of the fourth case
    monkeypatch.setattr(kernels, "LONG", 1)
    qkv = [heads(B, T, n, dtype=dtype) for n in (4, kv, kv)]
    exact = [t.detach().double().requires_grad_() for t in qkv]
    grad = torch.randn(B, T, 64, dtype=dtype)
    kernel, calls = torch.nn.functional.scaled_dot_product_attention, []
    monkeypatch.setattr(
        "torch.nn.functional.scaled_dot_product_attention", lambda *a, **k: calls.append(1) or kernel(*a, **k)
    )
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        y = attend(*qkv, scale=scale)
    assert not calls and y.dtype == dtype
    expected = attend(*exact, scale=scale)
    assert calls
    found = [y, *torch.autograd.grad(y, qkv, grad)]
    for ours, theirs in zip(
        found, [expected, *torch.autograd.grad(expected, exact, grad.double())], strict=True
    ):
        assert (ours.double() - theirs).norm() <= error * theirs.norm() + 1e-9
    with torch.no_grad():
        attend(*qkv, scale=scale)
    assert len(calls) == 2  # measured with the library's kernel


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_training_where_norms_widen_queries_and_keys(dtype, monkeypatch):
    """Qwen3's, under autocast: values stay narrow."""
    torch.manual_seed(0)
    kernel, calls = torch.nn.functional.scaled_dot_product_attention, []
    monkeypatch.setattr(
        "torch.nn.functional.scaled_dot_product_attention", lambda *a, **k: calls.append(1) or kernel(*a, **k)
    )
    qkv = [heads(1, kernels.LONG, 2, dtype=kind) for kind in (torch.float32, torch.float32, dtype)]
    exact = [t.detach().double().requires_grad_() for t in qkv]
    with torch.autocast("cpu", dtype):
        y = attend(*qkv)
    assert len(calls) == (dtype == torch.float16)  # bf16 is for tiles
    expected = attend(*exact)
    found, sound = (torch.autograd.grad(out.sum(), of) for out, of in ((y, qkv), (expected, exact)))
    for ours, theirs in zip((y, found[2]), (expected, sound[2]), strict=True):
        assert (ours.double() - theirs).norm() <= 0.05 * theirs.norm()


@torch.no_grad()
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kv", [4, 2, 1])
@pytest.mark.parametrize("B, S", [(1, 1), (3, 40), (8, 129)])
def test_one_query_in_bf16_against_double_precision(B, S, kv, masked, monkeypatch):
    torch.manual_seed(0)
    q, k, v = (heads(B, n, h, dtype=torch.bfloat16).detach() for n, h in ((1, 4), (S, kv), (S, kv)))
    allowed = torch.rand(B, 1, 1, S) < 0.7
    allowed[..., -1] = True  # a token sees itself
    mask = Mask(allowed) if masked else CAUSAL

    def after(k, v):
        cache = KVCache(B, kv, S, 16, "cpu", k.dtype)
        if S > 1:
            cache.append(k[:, :, :-1], v[:, :, :-1])
        return cache, k[:, :, -1:], v[:, :, -1:]

    cache, last_k, last_v = after(k.double(), v.double())
    expected = attend(q.double(), last_k, last_v, mask, cache)
    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", None)
    cache, last_k, last_v = after(k, v)
    with torch.autocast("cpu", torch.bfloat16):
        found = attend(q, last_k, last_v, mask, cache)
    assert found.dtype == torch.bfloat16 and found.shape == (B, 1, 64)
    assert (found.double() - expected).norm() <= 0.02 * expected.norm()


def test_no_tile_looks_ahead():
    torch.manual_seed(0)
    q, k, v = (heads(2, 300, 4, dtype=torch.bfloat16) for _ in range(3))
    v2 = v.detach().clone()
    v2[:, :, 200:] = 1e4
    a, b = attend(q, k, v), attend(q, k, v2)
    assert torch.equal(a[:, :200], b[:, :200]) and not torch.isclose(a[:, 200:], b[:, 200:]).any(0).all()


def test_dropout_of_attention_is_the_librarys():
    torch.manual_seed(0)
    q, k = heads(2, 64, 4, dtype=torch.bfloat16), heads(2, 64, 4, dtype=torch.bfloat16)
    v = torch.ones(2, 4, 64, 16, dtype=torch.bfloat16)
    y = attend(q, k, v, dropout=0.5)
    assert 0.9 < y.mean() < 1.1 and y.std() > 0.1


@every_family_compiled
def test_packed_batches_of_other_lengths_do_not_compile_again(model_dir, monkeypatch):
    for module, name in ((kernels, "tiled"), (attention, "_by_length")):
        monkeypatch.setattr(module, name, getattr(module, name))  # so that both are put back
    model = hub.load_model(hub.find(str(model_dir)), dropout=0.0)
    idx, targets = torch.randint(0, 400, (2, 60)), torch.randint(0, 400, (2, 60))
    pos = torch.zeros(2, 60, dtype=torch.long)
    batches = [
        Batch(idx, targets, pos, of_lengths(*rows, T=60))
        for rows in (([7, 40], [60]), ([20, 20, 20], [3, 50]), ([59], [33, 9]))
    ]

    def losses(dtype):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"):
            return [clm_loss(model, batch)[0].item() for batch in batches]

    plain = {dtype: losses(dtype) for dtype in ("fp32", "bf16")}
    attention.leave_uncompiled()
    model.backbone.compile(backend="aot_eager")
    for dtype, expected in plain.items():
        losses(dtype)  # compiles
        with torch._dynamo.config.patch(error_on_recompile=True):
            found = losses(dtype)
        assert found == pytest.approx(expected, rel=1e-5 if dtype == "fp32" else 1e-2)
