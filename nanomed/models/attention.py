"""Scaled dot-product attention as every family here uses it: with a cache or without, causal or under a mask,
over a window, of rows that hold several examples.

Letters: B batch, T time of the queries, S of the keys (more than T with a cache), nh heads, hs head size."""

import torch
import torch.nn.functional as F

TILE = 128  # queries at once
SCORES = 2**20  # about as many at once, of several heads and rows: 2 MB, which stay in the processor's cache


def attend(q, k, v, mask=None, cache=None, scale=None, dropout=0.0, upcast=False):
    """Averages (B, T, nh * hs) of the values, for queries q (B, nh, T, hs) over keys and values (B, nh or
    fewer, T, hs).

    mask: True where a query may look at a key, (B, 1, T, S) or broadcast to it; None is causal attention, and
    what nanomed.models.packed makes that of each example in a row by itself. cache: keys and values of
    earlier calls, which come first (nanomed.models.cache.KVCache). scale: of the scores, 1/sqrt(hs) if
    None. Fewer heads of keys than of queries are shared by neighbouring ones (Ainslie et al. 2023, GQA).
    upcast: scores, softmax and average in fp32, whatever autocast says. Raises ValueError for several queries
    after cached keys without a mask."""
    B, nh, T, hs = q.shape
    if not (mask is None or torch.is_tensor(mask)):
        return mask.attend(q, k, v, hs**-0.5 if scale is None else scale, dropout, upcast)
    causal = mask is None
    if cache is not None:
        k, v = cache.append(k, v)  # all keys and values so far, (B, nh, S, hs)
        causal = causal and T > 1  # a single new token may look at everything
        if causal and k.size(2) > T:  # is_causal would align the first query with the first key
            raise ValueError("several tokens after others in a cache need a mask")
    how = {
        "attn_mask": mask,
        "dropout_p": dropout,
        "is_causal": causal,
        "scale": scale,
        "enable_gqa": k.size(1) < nh,
    }
    if upcast:
        with torch.autocast(q.device.type, enabled=False):
            y = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), **how).to(v.dtype)
    elif T == 1 and cache is not None and _in_bf16_on_a_cpu(q):
        y = _one_query(q, k, v, mask, hs**-0.5 if scale is None else scale)
    elif causal and cache is None and not dropout and _in_bf16_on_a_cpu(q) and torch.is_grad_enabled():
        y = _tiled(q, k, v, hs**-0.5 if scale is None else scale)
    else:
        y = F.scaled_dot_product_attention(q, k, v, **how)
    return y.transpose(1, 2).reshape(B, T, -1)


def within(window: int | None, mask, T: int, S: int, device, first=0):
    """The mask of a layer in which a query sees `window` keys, itself the last of them: key j of query i if i
    - window < j <= i.

    mask: that of the layers without a window, None if causal; the same is returned where the window changes
    nothing. Queries are T positions of S from `first` on, a number or a tensor. Rows of a packed batch are
    contiguous, so that a distance in the row is one in the document."""
    if window is None or window >= S:
        return mask
    if not (mask is None or torch.is_tensor(mask)):
        return mask.within(window)
    i = torch.arange(T, device=device)[:, None] + first
    j = torch.arange(S, device=device)
    near = (j <= i) & (j > i - window)  # (T, S)
    return near[None, None] if mask is None else mask & near


def _in_bf16_on_a_cpu(x) -> bool:
    return x.dtype == torch.bfloat16 and x.device.type == "cpu"


def _one_query(q, k, v, mask, scale: float):
    """Of a token that is being written, q (B, nh, 1, hs): softmax(q k' / sqrt(hs)) v as it stands. There is
    one row of scores, so that nothing is gained by not holding it: the fused kernel takes two to six times as
    long."""
    B, nh, _, hs = q.shape
    q = (q * scale).reshape(B, k.size(1), -1, hs)  # the heads that share keys are rows of one product
    with torch.autocast("cpu", enabled=False):
        scores = (q @ k.transpose(-1, -2)).float()  # (B, heads of keys, heads that share one, S)
        if mask is not None:
            scores = scores.masked_fill(~mask, -torch.inf)
        return (torch.softmax(scores, dim=-1).to(v.dtype) @ v).view(B, nh, 1, hs)


def leave_uncompiled() -> None:
    """Have torch.compile call the tiles as they are, which it would unroll. Said only to who compiles, since
    the decorator would load the compiler, half a second, at every start."""
    global _tiled
    _tiled = torch.compiler.disable(_tiled)


# --- causal attention in bf16 on a CPU ----------------------------------------------------------------------
#
# The library's fused kernel never holds all T x T scores, but in bf16 on a CPU it takes two to eight times as long as the plain
# products softmax(q k' / sqrt(hs)) v (Vaswani et al. 2017, section 3.2.1), which hold all of them. Between the two: a tile of
# queries at a time, against the keys up to its last query, so that the scores stay in cache and most of what causality forbids is
# never computed. As in FlashAttention (Dao et al. 2022, section 3.1), backward computes the weights again. Scores are rounded to
# bf16, as in transformers' eager attention, which is why only training uses it.


def _tiled(q, k, v, scale: float):
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
            dks, dvs = (
                torch.zeros_like(qs, dtype=torch.float32),
                torch.zeros_like(qs, dtype=torch.float32),
            )  # sums over tiles
            for tile, weights in _weights(qs, ks):
                seen, dy = slice(tile.stop), grad[rows, :, tile]
                dvs[:, :, seen] += weights.transpose(-1, -2) @ dy
                dweights = dy @ vs[:, :, seen].transpose(-1, -2)
                dscores = torch._softmax_backward_data(dweights, weights, -1, weights.dtype)
                dq[rows, :, tile] = (dscores @ ks[:, :, seen]) * ctx.scale
                dks[:, :, seen] += dscores.transpose(-1, -2) @ qs[:, :, tile]
            dk[rows], dv[rows] = (
                t.unflatten(1, (k.size(1), -1)).sum(2) for t in (dks, dvs)
            )  # over the heads that share one
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
