"""Attention in bf16 on a CPU, where the library's fused kernel takes two to eight times as long as the plain
products softmax(q k' / sqrt(hs)) v: one query after cached keys, and causal attention in training.

Letters: B batch, T time of the queries, S of the keys, nh heads, hs head size."""

import torch
import torch.nn.functional as F

TILE = 128  # queries at once
SCORES = 2**20  # about as many at once, of several heads and rows: 2 MB, which stay in the processor's cache


def fit(q: torch.Tensor) -> bool:
    return q.dtype == torch.bfloat16 and q.device.type == "cpu"


def one_query(q, k, v, allowed, scale: float):
    """Of a token that is being written, q (B, nh, 1, hs): softmax(q k' / sqrt(hs)) v. The heads that share
    keys are rows of one product, so that these are read once. In bf16 as it stands: there is one row of
    scores, so that nothing is gained by not holding it, and the fused kernel takes two to six times as long.
    """
    B, nh, _, hs = q.shape
    q = q.reshape(B, k.size(1), -1, hs)
    if not fit(q):
        return F.scaled_dot_product_attention(q, k, v, allowed, scale=scale).view(B, nh, 1, hs)
    with torch.autocast("cpu", enabled=False):
        scores = ((q * scale) @ k.transpose(-1, -2)).float()  # (B, heads of keys, heads that share one, S)
        if allowed is not None:
            scores = scores.masked_fill(~allowed, -torch.inf)
        return (torch.softmax(scores, dim=-1).to(v.dtype) @ v).view(B, nh, 1, hs)


# --- causal attention ---------------------------------------------------------------------------------------
#
# The plain products hold all T x T scores; the library's kernel never does. Between the two: a tile of
# queries at a time, against the keys up to its last query, so that the scores stay in cache and most of what
# causality forbids is never computed. As in FlashAttention (Dao et al. 2022, section 3.1), backward computes
# the weights again. Scores are rounded to bf16, as in transformers' eager attention, which is why only
# training uses it.


def tiled(q, k, v, scale: float):
    return _Tiled.apply(q, k, v, scale)


class _Tiled(torch.autograd.Function):
    """q (B, nh, T, hs), k and v (B, nh or fewer, T, hs) -> (B, nh, T, hs), all bf16."""

    @staticmethod
    def forward(ctx, q, k, v, scale):
        ctx.save_for_backward(q, k, v)
        ctx.scale = scale
        B, nh, T, hs = q.shape
        y = q.new_empty(B, T, nh, hs).transpose(1, 2)  # as the layer after it reads it
        with torch.autocast("cpu", enabled=False):  # under which softmax gives fp32
            for rows, qs, ks, vs in _rows(q, k, v, scale):
                for tile, weights in _weights(qs, ks):
                    y[rows, :, tile] = weights @ vs[:, :, : tile.stop]
        return y

    @staticmethod
    def backward(ctx, grad):
        q, k, v = ctx.saved_tensors
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        for rows, qs, ks, vs in _rows(q, k, v, ctx.scale):
            dks, dvs = (torch.zeros_like(qs, dtype=torch.float32) for _ in "kv")  # sums over tiles
            for tile, weights in _weights(qs, ks):
                seen, dy = slice(tile.stop), grad[rows, :, tile]
                dvs[:, :, seen] += weights.transpose(-1, -2) @ dy
                dweights = dy @ vs[:, :, seen].transpose(-1, -2)
                dscores = torch._softmax_backward_data(dweights, weights, -1, weights.dtype)
                dq[rows, :, tile] = (dscores @ ks[:, :, seen]) * ctx.scale
                dks[:, :, seen] += dscores.transpose(-1, -2) @ qs[:, :, tile]
            # over the heads that share one
            dk[rows], dv[rows] = (t.unflatten(1, (k.size(1), -1)).sum(2) for t in (dks, dvs))
        return dq, dk, dv, None


def _rows(q, k, v, scale):
    """(which rows, their queries, scaled, keys and values, a head of each for every head of queries), a few
    rows at a time."""
    B, nh, T, _ = q.shape
    n = max(1, SCORES // (nh * min(TILE, T) * T))
    for start in range(0, B, n):
        rows = slice(start, min(start + n, B))
        yield rows, q[rows] * scale, *(t[rows].repeat_interleave(nh // k.size(1), 1) for t in (k, v))


def _weights(q, k):
    """(which queries, how much of each key up to the last of them goes into their averages), a tile at a
    time."""
    T = q.size(2)
    later = torch.full((min(TILE, T), T), -torch.inf, dtype=q.dtype)
    for start in range(0, T, TILE):
        tile = slice(start, min(start + TILE, T))
        scores = q[:, :, tile] @ k[:, :, : tile.stop].transpose(-1, -2)
        scores[..., start:] += later[: tile.stop - start, : tile.stop - start].triu(1)
        yield tile, torch.softmax(scores, dim=-1)
