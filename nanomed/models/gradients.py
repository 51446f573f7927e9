"""What stands between Llama's matrix products, with its gradient written out: a norm, and the MLP's gate.

Autograd takes a formula apart, keeps what each part read, and goes over memory once for each on the way back,
which costs narrow layers much. Here a function keeps its inputs alone.
Its gradient has none itself: asking for one is an error."""

import torch
from torch.autograd.function import once_differentiable


def rms_norm(x, weight, eps: float):
    """weight * x / sqrt(mean(x^2) + eps) along the last dimension (Zhang & Sennrich 2019); x (..., C), weight
    (C,). Computed in fp32 at least, and rounded to x's dtype before it is multiplied by the weight."""
    return _RMSNorm.apply(x, weight, eps)


class _RMSNorm(torch.autograd.Function):
    """With r = 1 / sqrt(mean(x^2) + eps), of which dr/dx_i = -r^3 x_i / C, and y_j = w_j x_j r:

    dL/dw_j = sum over rows of r x_j dy_j
    dL/dx_i = r w_i dy_i - x_i (r^3 / C) sum_j w_j x_j dy_j"""

    @staticmethod
    def forward(ctx, x, weight, eps):
        wide = torch.promote_types(x.dtype, torch.float32)
        r = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
        r = r.square_().div_(x.size(-1)).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, r)
        y = (x * r).to(x.dtype)
        return y.mul_(weight) if y.dtype == weight.dtype else y * weight

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, weight, r = ctx.saved_tensors
        C, shape = x.size(-1), x.shape
        x, dy, r, w = x.reshape(-1, C), dy.reshape(-1, C), r.reshape(-1), weight.to(r.dtype)
        terms = (dy * x).to(r.dtype)  # of both sums
        dw = (r @ terms).to(weight.dtype) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, dw, None
        pull = (r**3 / C * (terms @ w))[:, None]
        dx = (dy * w).mul_(r[:, None]).addcmul_(x.to(r.dtype), pull, value=-1)
        return dx.to(x.dtype).view(shape), dw, None


def gated(act, gate, up):
    """act(gate) * up, elementwise (Shazeer 2020); act: any function of one tensor. torch.compile, which fuses
    this by itself, would stop at a gradient that is asked for within one."""
    return act(gate) * up if torch.compiler.is_compiling() else _Gated.apply(act, gate, up)


class _Gated(torch.autograd.Function):
    """act(gate) is computed twice and never kept."""

    @staticmethod
    def forward(ctx, act, gate, up):
        ctx.act = act
        ctx.save_for_backward(gate, up)
        return act(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        gate, up = (t.detach().requires_grad_() for t in ctx.saved_tensors)
        with torch.enable_grad():
            y = ctx.act(gate) * up
        return None, *torch.autograd.grad(y, (gate, up), dy)
