"""Attention over packed rows, which hold several examples (nanomed.text.instructions): none may look at
another.

A mask of (B, 1, T, T) says so, but with it all T x T scores of a row are computed to keep those of its
examples: of ten examples a tenth, and of these the lower half. So on a CPU each example gets a row of its
own, and on a GPU a kernel is told where each begins.

Letters: B batch, T time, nh heads, hs head size."""

from dataclasses import dataclass, replace

import torch

from nanomed.models.attention import attend, within
from nanomed.precision import to_device


def packed(segments: torch.Tensor, device: torch.device):
    """For attend() in the place of a mask. segments (B, T), on the CPU: which example of its row each token
    belongs to, examples being contiguous; -1 where the row is filled up. The model is on `device`."""
    return _between(segments, device) if device.type == "cuda" else _apart(segments)


def _begins(segments) -> torch.Tensor:
    """Where in its row (B, T) another example begins."""
    begins = torch.ones_like(segments, dtype=torch.bool)
    begins[:, 1:] = segments[:, 1:] != segments[:, :-1]
    return begins


# --- on a CPU: each example in a row of its own -------------------------------------------------------------
#
# Tokens are dealt into slots, an example after another, filled up on the right to one of a few lengths; examples of a length are a
# batch, and its attention is plainly causal: the filling is behind every query that counts.

SHORTEST = 32  # of these lengths


@dataclass(frozen=True)
class Apart:
    """Where the tokens of packed rows stand when every example has a row of its own."""

    slots: torch.Tensor  # (N,): the token, of B * T, that a slot holds; some token where it is filled up
    real: torch.Tensor  # (N, 1): 1, and 0 where it is filled up
    back: torch.Tensor  # (B * T,): the slot of each token
    groups: tuple[tuple[int, int], ...]  # (examples, length) of the slots, in their order
    window: int | None = None  # as in within()

    def within(self, window: int) -> "Apart":
        return replace(self, window=window)

    def attend(self, q, k, v, scale, dropout, upcast):
        return _attend_apart(q, k, v, self, {"scale": scale, "dropout": dropout, "upcast": upcast})


def _apart(segments) -> Apart:
    """Filling is cut into pieces, which are examples to nobody's harm: every token has a slot. Lengths are
    powers of two or halfway between two of them, so that a batch has few."""
    B, T = segments.shape
    begins = _begins(segments) | (segments < 0) & (torch.arange(T) % SHORTEST == 0)
    starts = begins.flatten().nonzero().flatten()
    lengths = torch.diff(starts, append=torch.tensor([B * T]))
    sizes = [SHORTEST]
    while sizes[-1] < T:
        sizes += [sizes[-1] * 3 // 2, sizes[-1] * 2]
    kind = torch.bucketize(lengths, torch.tensor(sizes))  # of the least that is no shorter
    slots, real, groups = [], [], []
    for which in kind.unique().tolist():
        size, chosen = min(sizes[which], T), kind == which
        within_it = torch.arange(size) < lengths[chosen, None]
        slots.append(
            torch.where(within_it, starts[chosen, None] + torch.arange(size), starts[chosen, None]).flatten()
        )
        real.append(within_it.flatten())
        groups.append((int(chosen.sum()), size))
    slots, real = torch.cat(slots), torch.cat(real)
    back = torch.empty(B * T, dtype=torch.long)
    back[slots[real]] = real.nonzero().flatten()
    return Apart(slots, real[:, None], back, tuple(groups))


def _attend_apart(q, k, v, p: Apart, how: dict):
    """attend(), each example by itself."""
    B, _, T, hs = q.shape
    sizes = [n * size for n, size in p.groups]
    dealt = [
        _Deal.apply(t.transpose(1, 2).reshape(B * T, -1), p.slots, p.back, None).split(sizes)
        for t in (q, k, v)
    ]
    out = []
    for (n, size), *rows in zip(p.groups, *dealt, strict=True):
        own = (t.view(n, size, -1, hs).transpose(1, 2) for t in rows)
        out.append(attend(*own, within(p.window, None, size, size, q.device), **how).reshape(n * size, -1))
    return _Deal.apply(torch.cat(out), p.back, p.slots, p.real).view(B, T, -1)


def leave_uncompiled() -> None:
    """As attention.leave_uncompiled: it would be compiled again for each batch's lengths."""
    global _attend_apart
    _attend_apart = torch.compiler.disable(_attend_apart)


class _Deal(torch.autograd.Function):
    """x[there]. Every row of x that counts is taken once, so that its gradient is taken from where it went,
    by the index `back`, and not summed; times `real`, where a row that does not count is given a gradient of
    0."""

    @staticmethod
    def forward(ctx, x, there, back, real):
        ctx.back, ctx.real = back, real
        return x.index_select(0, there)

    @staticmethod
    def backward(ctx, grad):
        grad = grad.index_select(0, ctx.back)
        return grad if ctx.real is None else grad * ctx.real, None, None, None


# --- on a GPU: a kernel that is told where each begins ------------------------------------------------------

ENDS = 256  # their number, filled up to a multiple, so that most batches have the same


@dataclass(frozen=True)
class Between:
    """Where examples begin and end. The kernel (FlashAttention 2, Dao 2023) is for 16 bits, for cards of 2020
    and later, and without dropout; elsewhere the mask does the same."""

    ends: torch.Tensor  # int32 (N,): 0 and the end of each example, of B * T tokens; the last repeated
    mask: torch.Tensor  # (B, 1, T, T)
    has_kernel: bool
    window: int | None = None  # as in within()

    def within(self, window: int) -> "Between":
        return replace(self, window=window)

    def attend(self, q, k, v, scale, dropout, upcast):
        B, nh, T, hs = q.shape
        if not self.has_kernel or upcast or dropout or q.dtype == torch.float32 or hs % 8 or hs > 256:
            return attend(
                q, k, v, within(self.window, self.mask, T, T, q.device), None, scale, dropout, upcast
            )
        from torch.nn.attention.varlen import varlen_attn

        if k.size(1) < nh:
            k, v = (t.repeat_interleave(nh // t.size(1), 1) for t in (k, v))
        q, k, v = (t.transpose(1, 2).reshape(B * T, nh, hs) for t in (q, k, v))
        back = -1 if self.window is None else self.window - 1
        return varlen_attn(q, k, v, self.ends, self.ends, T, T, scale=scale, window_size=(back, 0)).view(
            B, T, -1
        )


def _between(segments, device) -> Between:
    B, T = segments.shape
    starts = _begins(segments).flatten().nonzero().flatten()
    ends = torch.full((ENDS * (1 + len(starts) // ENDS),), B * T, dtype=torch.int32)
    ends[: len(starts)] = starts
    there = to_device(segments, device)
    same = there[:, None, :, None] == there[:, None, None, :]
    mask = same & torch.ones(T, T, dtype=torch.bool, device=device).tril()
    has_kernel = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return Between(to_device(ends, device), mask, has_kernel)
