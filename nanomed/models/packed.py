"""Packed rows, which hold several examples (nanomed.text.examples), told apart without a mask of T x T.

A T x T mask would do, but it wastes work: with ten examples in a row, nine tenths of the scores are thrown
away. So on a CPU each example gets a row of its own (Slots), and on a GPU a kernel is told where each ends
(Ends).

Letters: B batch, T time, nh heads, hs head size."""

from dataclasses import dataclass

import torch

from nanomed.precision import to_device

SHORTEST = 32  # tokens of the shortest row on a CPU
ENDS = 256  # `ends` is filled up to a multiple of this, so that most batches have one shape


def _begins(segments) -> torch.Tensor:
    """Where in its row (B, T) another example begins."""
    begins = torch.ones_like(segments, dtype=torch.bool)
    begins[:, 1:] = segments[:, 1:] != segments[:, :-1]
    return begins


@dataclass(frozen=True)
class Slots:
    """On a CPU, where the tokens of packed rows stand when every example has a row of its own, padded on the
    right to one of a few lengths; causal queries never see the padding."""

    slots: torch.Tensor  # (N,): the token, of B * T, that a slot holds; some token where it is filled up
    real: torch.Tensor  # (N, 1): 1, and 0 where it is filled up
    back: torch.Tensor  # (B * T,): the slot of each token
    groups: tuple[tuple[int, int], ...]  # (examples, length) of the slots, in their order

    @classmethod
    def of(cls, segments: torch.Tensor) -> "Slots":
        """Padding is cut into pieces, as if it were examples: every token has a slot. Lengths are few, and no
        example is padded by much: powers of two, halfway between two of them, from 128 on multiples of 64."""
        B, T = segments.shape
        begins = _begins(segments) | (segments < 0) & (torch.arange(T) % SHORTEST == 0)
        starts = begins.flatten().nonzero().flatten()
        lengths = torch.diff(starts, append=torch.tensor([B * T]))
        sizes = [SHORTEST]
        while sizes[-1] < T:
            sizes += [sizes[-1] + 64] if sizes[-1] >= 128 else [sizes[-1] * 3 // 2, sizes[-1] * 2]
        kind = torch.bucketize(lengths, torch.tensor(sizes))  # the least of them that is no shorter
        slots, real, groups = [], [], []
        for which in kind.unique().tolist():
            size, chosen = min(sizes[which], T), kind == which
            place, start = torch.arange(size), starts[chosen, None]
            is_real = place < lengths[chosen, None]
            slots.append(torch.where(is_real, start + place, start).flatten())
            real.append(is_real.flatten())
            groups.append((int(chosen.sum()), size))
        slots, real = torch.cat(slots), torch.cat(real)
        back = torch.empty(B * T, dtype=torch.long)
        back[slots[real]] = real.nonzero().flatten()
        return cls(slots, real[:, None], back, tuple(groups))

    def deal(self, *tensors):
        """Yields, for each length, the tensors (B, nh, T, hs) as (examples, nh, length, hs)."""
        sizes = [n * length for n, length in self.groups]
        dealt = []
        for t in tensors:
            rows = t.transpose(1, 2).reshape(len(self.back), -1)  # (B * T, nh * hs)
            dealt.append(_Deal.apply(rows, self.slots, self.back, None).split(sizes))
        hs = tensors[0].size(-1)
        for (n, length), *group in zip(self.groups, *dealt, strict=True):
            yield [t.view(n, length, -1, hs).transpose(1, 2) for t in group]

    def collect(self, groups: list[torch.Tensor]) -> torch.Tensor:
        """What deal() took apart, (examples * length, C) of each group, as (B * T, C)."""
        return _Deal.apply(torch.cat(groups), self.back, self.slots, self.real)


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


@dataclass(frozen=True)
class Ends:
    """Where examples end, for FlashAttention 2 (Dao 2023): a kernel for 16 bits, for cards of 2020 and later,
    without dropout. Elsewhere a mask does the same."""

    ends: torch.Tensor  # int32 (N,): 0 and the end of each example, of B * T tokens; the last repeated
    has_kernel: bool

    @classmethod
    def of(cls, segments: torch.Tensor, device: torch.device) -> "Ends":
        starts = _begins(segments).flatten().nonzero().flatten()
        ends = torch.full((ENDS * (1 + len(starts) // ENDS),), segments.numel(), dtype=torch.int32)
        ends[: len(starts)] = starts  # an example ends where the next one starts
        has_kernel = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
        return cls(to_device(ends, device), has_kernel)

    def fit(self, q: torch.Tensor, dropout: float, upcast: bool) -> bool:
        """Whether the kernel can do it."""
        hs = q.size(-1)
        wide = upcast or q.dtype == torch.float32
        return self.has_kernel and not wide and not dropout and hs % 8 == 0 and hs <= 256

    def average(self, q, k, v, window: int | None, scale: float) -> torch.Tensor:
        """attend() of packed rows, (B, T, nh * hs)."""
        from torch.nn.attention.varlen import varlen_attn

        B, nh, T, hs = q.shape
        k, v = (t.repeat_interleave(nh // t.size(1), 1) if t.size(1) < nh else t for t in (k, v))
        q, k, v = (t.transpose(1, 2).reshape(B * T, nh, hs) for t in (q, k, v))
        seen = (-1 if window is None else window - 1, 0)
        return varlen_attn(q, k, v, self.ends, self.ends, T, T, scale=scale, window_size=seen).view(B, T, -1)
