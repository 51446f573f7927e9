"""The chunked loss equals the plain one: value, every gradient, every way of being called."""

import math

import pytest
import torch
import torch.nn.functional as F

from nanomed.models import loss
from nanomed.models.loss import linear_cross_entropy, token_nll
from nanomed.text.batch import IGNORE
from tests.conftest import assert_near


@pytest.fixture
def problem():
    torch.manual_seed(0)
    x = torch.randn(2, 13, 16, dtype=torch.float64, requires_grad=True)
    w = torch.randn(50, 16, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 50, (2, 13))
    targets[0, :5] = IGNORE
    targets[1, -1] = IGNORE
    return x, w, targets


@pytest.mark.parametrize("tokens_a_chunk", [1, 4, 7, 100])
def test_value_and_gradients_equal_plain_cross_entropy(problem, monkeypatch, tokens_a_chunk):
    monkeypatch.setattr(loss, "CHUNK_ELEMENTS", 50 * tokens_a_chunk)
    x, w, targets = (t.float() if t.is_floating_point() else t for t in problem)
    x, w = x.detach().requires_grad_(), w.detach().requires_grad_()
    plain = F.cross_entropy(
        (x @ w.t()).flatten(0, 1), targets.flatten(), reduction="sum", ignore_index=IGNORE
    )
    expected = torch.autograd.grad(plain * 0.37, [x, w])
    nll, count = linear_cross_entropy(x, w, targets)
    assert count == 20
    assert_near(nll, plain)
    for ours, theirs in zip(torch.autograd.grad(nll * 0.37, [x, w]), expected, strict=True):
        assert_near(ours, theirs)


def test_a_frozen_head_gets_no_gradient_and_hidden_states_the_same(problem):
    x, w, targets = problem[0].detach().float().requires_grad_(), problem[1].detach().float(), problem[2]
    nll, _ = linear_cross_entropy(x, w, targets)
    nll.backward()
    plain = torch.autograd.grad(
        F.cross_entropy((x @ w.t()).flatten(0, 1), targets.flatten(), reduction="sum", ignore_index=IGNORE), x
    )[0]
    assert_near(x.grad, plain)
    assert w.grad is None


def test_nothing_supervised_is_zero_with_zero_gradients(problem):
    x, w, targets = (
        problem[0].detach().float().requires_grad_(),
        problem[1].detach().float().requires_grad_(),
        problem[2],
    )
    nll, count = linear_cross_entropy(x, w, torch.full_like(targets, IGNORE))
    nll.backward()
    assert (nll.item(), count) == (0.0, 0)
    assert not x.grad.any() and not w.grad.any()


def test_backward_twice_is_refused(problem):
    x, w, targets = (
        problem[0].detach().float().requires_grad_(),
        problem[1].detach().float().requires_grad_(),
        problem[2],
    )
    nll, _ = linear_cross_entropy(x, w, targets)
    nll.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="only once"):
        nll.backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_it_is_as_near_as_plain_autocast(problem, dtype):
    x, w, targets = (
        problem[0].detach().float().requires_grad_(),
        problem[1].detach().float().requires_grad_(),
        problem[2],
    )

    def plain(x, w):
        logits = F.linear(x, w).float().flatten(0, 1)
        return F.cross_entropy(logits, targets.flatten(), reduction="sum", ignore_index=IGNORE)

    exact = torch.autograd.grad(plain(x, w), [x, w])
    with torch.autocast("cpu", dtype):
        reference = torch.autograd.grad(plain(x, w), [x, w])
        ours = torch.autograd.grad(linear_cross_entropy(x, w, targets)[0], [x, w])
    for o, r, e in zip(ours, reference, exact, strict=True):
        assert o.dtype == torch.float32
        assert (o - e).abs().mean() <= 1.5 * (r - e).abs().mean() + 1e-6


def test_fp16_head_gradients_do_not_overflow():
    """3,000 times the same word after hidden states of 60: the summed gradient is 120,000, beyond fp16's
    65,504."""
    x = torch.full((3000, 8), 60.0, requires_grad=True)
    w = torch.zeros(3, 8, requires_grad=True)
    with torch.autocast("cpu", torch.float16):
        nll, _ = linear_cross_entropy(x, w, torch.zeros(3000, dtype=torch.long))
    (nll / 3000).backward()
    torch.testing.assert_close(w.grad[0], torch.full((8,), -40.0), rtol=1e-2, atol=0)


def test_no_tensor_of_all_logits(problem, monkeypatch):
    """The largest tensor that the loss makes is one chunk of logits (or the head's gradient)."""
    monkeypatch.setattr(loss, "CHUNK_ELEMENTS", 64 * 1000)
    x, w = torch.randn(640, 8, requires_grad=True), torch.randn(1000, 8, requires_grad=True)
    largest = [0]

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for t in out if isinstance(out, tuple | list) else [out]:
                if isinstance(t, torch.Tensor):
                    largest[0] = max(largest[0], t.numel())
            return out

    with Watch():
        linear_cross_entropy(x, w, torch.randint(0, 1000, (640,)))[0].backward()
    assert largest[0] == 64 * 1056  # rows of 1,000, with room behind them


def test_token_nll_is_each_tokens_loss_even_far_from_zero():
    """Logits around -1000 that differ by 0.1: fp32 tells them apart."""
    x = torch.tensor([[1.0, 0.0]] * 3)
    w = torch.stack([torch.full((4,), -1000.0) + torch.arange(4) * 0.1, torch.zeros(4)], 1)
    targets = torch.tensor([0, 1, 3])
    z = sum(math.exp(0.1 * i) for i in range(4))
    expected = torch.tensor([math.log(z) - 0.1 * t for t in targets.tolist()])
    torch.testing.assert_close(token_nll(x, w, targets), expected, atol=1e-4, rtol=0)
