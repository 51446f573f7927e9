"""Attention on a CPU, where the library's fused kernel takes longer than the plain products softmax(q k' /
sqrt(hs)) v, in bf16 two to eight times as long: one query after cached keys, and causal attention.

Letters: B batch, T time of the queries, S of the keys, nh heads, hs head size."""

import torch
import torch.nn.functional as F

TILE = 128  # queries at once, over the heads that share keys
SCORES = 2**20  # about as many at once, of several heads and rows, which stay in the processor's cache
LONG = 384  # queries from which on tiles pay in fp32


def tiles_fit(q: torch.Tensor) -> bool:
    """Whether tiled() is for it: in training alone, since in bf16 it rounds scores, as transformers' eager
    attention does and the library's kernel does not."""
    pays = q.dtype == torch.bfloat16 or (q.dtype == torch.float32 and q.size(2) >= LONG)
    return torch.is_grad_enabled() and q.device.type == "cpu" and pays


def one_query(q, k, v, allowed, scale: float):
    """Of a token that is being written, q (B, nh, 1, hs): softmax(q k' / sqrt(hs)) v. The heads that share
    keys are rows of one product, so that these are read once. In bf16 as it stands: there is one row of
    scores, so that nothing is gained by not holding it, and the fused kernel takes two to six times as long.
    """
    B, nh, _, hs = q.shape
    q = q.reshape(B, k.size(1), -1, hs)
    if q.dtype != torch.bfloat16:
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
# the weights again. Heads that share keys are rows of one product: of g such heads, a tile has g times as
# many rows as it has queries.


def tiled(q, k, v, scale: float):
    return _Tiled.apply(q, k, v, scale)


class _Tiled(torch.autograd.Function):
    """q (B, nh, T, hs), k and v (B, nh or fewer, T, hs) -> (B, nh, T, hs), all of one dtype."""

    @staticmethod
    def forward(ctx, q, k, v, scale):
        ctx.save_for_backward(q, k, v)
        ctx.scale = scale
        B, nh, T, hs = q.shape
        y = q.new_empty(B, T, nh, hs).transpose(1, 2)  # as the layer after it reads it
        with torch.autocast("cpu", enabled=False):  # under which softmax gives fp32
            for rows, keys, values in _rows(q, k, v):
                for tile, _, weights in _weights(q[rows], keys, scale):
                    y[rows, :, tile] = (weights @ values[:, : tile.stop]).view(y[rows, :, tile].shape)
        return y

    @staticmethod
    def backward(ctx, dy):
        q, k, v = ctx.saved_tensors
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        for rows, keys, values in _rows(q, k, v):
            dkeys, dvalues = (torch.zeros_like(keys, dtype=torch.float32) for _ in "kv")  # sums over tiles
            for tile, queries, weights in _weights(q[rows], keys, ctx.scale):
                seen, d = slice(tile.stop), dy[rows, :, tile].reshape(queries.shape)
                _add_product(dvalues[:, seen], weights.transpose(1, 2), d)
                dweights = d @ values[:, seen].transpose(1, 2)
                dscores = torch._softmax_backward_data(dweights, weights, -1, weights.dtype)
                dq[rows, :, tile] = (dscores @ keys[:, seen]).mul_(ctx.scale).view(q[rows, :, tile].shape)
                _add_product(dkeys[:, seen], dscores.transpose(1, 2), queries)
            dk[rows], dv[rows] = dkeys.view(k[rows].shape), dvalues.view(v[rows].shape)
        return dq, dk, dv, None


def _add_product(total, a, b):
    """total += a @ b, in fp32."""
    if a.dtype == total.dtype:
        total.baddbmm_(a, b)
    else:
        total += a @ b


def _size(q, k) -> int:
    """Queries of a tile."""
    return max(32, TILE // (q.size(1) // k.size(1)))


def _rows(q, k, v):
    """(which rows, their keys and values (rows * heads, T, hs)), a few rows of the batch at a time."""
    B, nh, T, hs = q.shape
    parts = -(-B * nh * min(_size(q, k), T) * T // SCORES)
    n = -(-B // min(B, parts))
    for first in range(0, B, n):
        rows = slice(first, min(first + n, B))
        yield rows, *(t[rows].reshape(-1, T, hs) for t in (k, v))


def _weights(q, keys, scale):
    """(which queries, themselves, scaled, (heads of keys, queries of all that share one, hs), and how much of
    each key up to the last of them goes into their averages), a tile at a time."""
    R, nh, T, hs = q.shape
    size = _size(q, keys.unflatten(0, (R, -1)))
    later = torch.full((size, size), -torch.inf, dtype=q.dtype).triu(1)
    for start in range(0, T, size):
        tile = slice(start, min(start + size, T))
        n = tile.stop - start
        queries = (q[:, :, tile] * scale).reshape(len(keys), -1, hs)
        scores = queries @ keys[:, : tile.stop].transpose(1, 2)
        scores.view(R * nh, n, -1)[..., start:] += later[:n, :n]
        yield tile, queries, torch.softmax(scores, dim=-1)
