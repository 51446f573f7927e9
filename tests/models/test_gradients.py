"""Gradients that are written out: against finite differences, and autograd's of the formula."""

import pytest
import torch
import torch.nn.functional as F

from nanomed.models.gradients import gated, rms_norm
from nanomed.models.rope import rotate


def random(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype).requires_grad_()


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def angles(T, hs):
    turns = torch.randn(1, 1, T, hs // 2, dtype=torch.float64).repeat(1, 1, 1, 2)
    return turns.cos(), turns.sin()


@pytest.mark.parametrize("trained", [(True, True), (True, False), (False, True)])
def test_of_a_norm(trained):
    x, w = (t.requires_grad_(on) for t, on in zip((random(2, 3, 5), random(5)), trained, strict=True))
    assert torch.autograd.gradcheck(lambda x, w: rms_norm(x, w, 1e-2), (x, w))
    torch.testing.assert_close(rms_norm(x, w, 1e-2), F.rms_norm(x, (5,), w, 1e-2))


@pytest.mark.parametrize("act", [F.silu, torch.tanh, F.relu], ids=["silu", "tanh", "relu"])
def test_of_a_gate(act):
    gate, up = random(2, 3, 5), random(2, 3, 5)
    assert torch.autograd.gradcheck(lambda g, u: gated(act, g, u), (gate, up))
    assert gated(act, gate, up).equal(act(gate) * up)


def test_of_a_turn():
    x, (cos, sin) = random(2, 3, 4, 6), angles(4, 6)
    assert torch.autograd.gradcheck(lambda x: rotate(x, cos, sin), (x,))
    a, b = torch.complex(*x.chunk(2, -1)), torch.complex(cos, sin)[..., :3]
    torch.testing.assert_close(torch.complex(*rotate(x, cos, sin).chunk(2, -1)), a * b)


def test_in_bf16_a_norm_is_computed_in_fp32():
    x, w = random(64, 48, dtype=torch.bfloat16), random(48, dtype=torch.float32)
    exact = [t.detach().double().requires_grad_() for t in (x, w)]
    y, expected = rms_norm(x, w, 1e-5), F.rms_norm(exact[0], (48,), exact[1], 1e-5)
    dy = torch.randn_like(y)
    found, sound = torch.autograd.grad(y, (x, w), dy), torch.autograd.grad(expected, exact, dy.double())
    assert y.dtype == torch.float32 and found[0].dtype == torch.bfloat16
    for ours, theirs in zip((y, *found), (expected, *sound), strict=True):
        assert (ours.double() - theirs).norm() < 3e-3 * theirs.norm()


@pytest.mark.parametrize("function", [lambda x: rms_norm(x, x[0], 1e-2), lambda x: gated(F.silu, x, x)])
def test_a_gradients_own_gradient_is_refused_and_not_wrong(function):
    x = random(2, 5)
    (first,) = torch.autograd.grad(function(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_what_is_compiled_is_one_graph():
    x, w = random(2, 5), random(5)
    compiled = torch.compile(
        lambda x, w: gated(F.silu, rms_norm(x, w, 1e-2), x), backend="eager", fullgraph=True
    )
    torch.testing.assert_close(compiled(x, w), gated(F.silu, rms_norm(x, w, 1e-2), x))
