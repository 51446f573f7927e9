"""Scaled dot-product attention as every family here uses it (Vaswani et al. 2017, section 3.2), and its mask.

Letters: B batch, T time of the queries, S of the keys (more than T with a cache), nh heads, hs head size."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from nanomed.models import kernels
from nanomed.models.packed import Ends, Slots
from nanomed.precision import to_device


@dataclass(frozen=True)
class Mask:
    """Which keys a query may look at: itself and all before it. The fields restrict that, or replace it."""

    # (B, 1, T, S), or broadcast to it: True where it may look, in place of causality
    allowed: torch.Tensor | None = None
    window: int | None = None  # how many keys a query sees, itself the last of them
    slots: Slots | None = None  # packed rows on a CPU: where each example has a row of its own
    ends: Ends | None = None  # packed rows on a GPU: where each example ends; `allowed` says the same
    pos: torch.Tensor | None = None  # (B, T): where tokens stand, if that is not where they lie in the row

    def within(self, window: int | None, T: int, S: int, device, first=0) -> "Mask":
        """This mask for a layer with a sliding window: key j of query i only if i - window < j <= i.

        The queries are T of the S positions, from `first` on (a number or a tensor). Packed examples are
        contiguous, so that a distance in the row is one in the example."""
        if window is None or window >= S:
            return self
        if self.slots is not None:
            return replace(self, window=window)
        if self.pos is not None:
            near = (self.pos[:, None, :] > self.pos[:, :, None] - window)[:, None]  # (B, 1, T, T)
            return replace(self, window=window, allowed=self.allowed & near)
        if T == 1 and not isinstance(first, torch.Tensor):  # attend() leaves the keys before them out
            recent = None if self.allowed is None else self.allowed[..., -window:]
            return replace(self, window=window, allowed=recent)
        i = torch.arange(T, device=device)[:, None] + first
        j = torch.arange(S, device=device)
        near = ((j <= i) & (j > i - window))[None, None]  # (1, 1, T, S)
        return replace(self, window=window, allowed=near if self.allowed is None else self.allowed & near)


CAUSAL = Mask()


def packed(segments: torch.Tensor, device: torch.device) -> Mask:
    """The mask of rows that hold several examples, none of which may look at another.

    segments (B, T), on the CPU: which example of its row each token belongs to, examples being contiguous; -1
    is padding. device: where the model is."""
    return _packed_on_gpu(segments, device) if device.type == "cuda" else Mask(slots=Slots.of(segments))


def _packed_on_gpu(segments, device) -> Mask:
    here = to_device(segments, device)
    same_example = here[:, :, None] == here[:, None, :]  # (B, T, T)
    return Mask(same_example.tril()[:, None], ends=Ends.of(segments, device))


def attend(q, k, v, mask=CAUSAL, cache=None, scale=None, dropout=0.0, upcast=False):
    """Averages (B, T, nh * hs) of the values, for queries q (B, nh, T, hs) over keys and values (B, nh or
    fewer, T, hs).

    cache: keys and values of earlier calls, which come first (nanomed.models.cache.KVCache). scale: of the
    scores, 1/sqrt(hs) if None. Fewer heads of keys than of queries are shared by neighbouring ones (Ainslie
    et al. 2023, GQA). upcast: scores, softmax and average in fp32, whatever autocast says. Raises ValueError
    for several queries after cached keys without a mask."""
    B, nh, T, hs = q.shape
    scale = hs**-0.5 if scale is None else scale
    q, k = q.to(v.dtype), k.to(v.dtype)  # under autocast, Qwen3's norms of heads give fp32
    if mask.slots is not None:
        return _by_length(q, k, v, mask, scale, dropout, upcast)
    if mask.ends is not None and mask.ends.fit(q, dropout, upcast):
        return mask.ends.average(q, k, v, mask.window, scale)
    if cache is not None:
        k, v = cache.append(k, v)  # all so far, (B, heads of keys, S, hs)
        if T == 1 and mask.window is not None and cache.at is None:
            k, v = k[:, :, -mask.window :], v[:, :, -mask.window :]
        if T == 1 and q.device.type == "cpu" and not upcast:
            return kernels.one_query(q, k, v, mask.allowed, scale).transpose(1, 2).reshape(B, T, -1)
    causal = mask.allowed is None and not (cache is not None and T == 1)  # one new token looks at everything
    if causal and k.size(2) > T:  # is_causal would align the first query with the first key
        raise ValueError("several tokens after others in a cache need a mask")
    how = {"attn_mask": mask.allowed, "is_causal": causal, "scale": scale, "dropout_p": dropout}
    how["enable_gqa"] = k.size(1) < nh
    if upcast:
        with torch.autocast(q.device.type, enabled=False):
            y = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), **how).to(v.dtype)
    elif cache is None and causal and not dropout and kernels.tiles_fit(q):
        y = kernels.tiled(q, k, v, scale)
    else:
        y = F.scaled_dot_product_attention(q, k, v, **how)
    return y.transpose(1, 2).reshape(B, T, -1)


def _by_length(q, k, v, mask: Mask, scale, dropout, upcast):
    """attend() of packed rows: examples of about one length are a batch, in which attention is causal."""
    B, _, T, _ = q.shape
    averages = []
    for own in mask.slots.deal(q, k, v):
        n, _, size, _ = own[0].shape
        causal = CAUSAL.within(mask.window, size, size, q.device)
        averages.append(attend(*own, causal, None, scale, dropout, upcast).reshape(n * size, -1))
    return mask.slots.collect(averages).view(B, T, -1)


def leave_uncompiled() -> None:
    """Have torch.compile call these two as they are: it would unroll the tiles, and compile anew for each
    batch's lengths. Only a run that compiles says so: the decorator loads the compiler, half a second."""
    global _by_length
    _by_length = torch.compiler.disable(_by_length)
    kernels.tiled = torch.compiler.disable(kernels.tiled)
