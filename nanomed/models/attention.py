"""Scaled dot-product attention as every family here uses it: with a cache or without, causal or under a mask, over a window.

Letters: B batch, T time of the queries, S of the keys (more than T with a cache), nh heads, hs head size.
"""

import torch
import torch.nn.functional as F


def attend(q, k, v, mask=None, cache=None, scale=None, dropout=0.0, upcast=False):
    """Averages (B, T, nh * hs) of the values, for queries q (B, nh, T, hs) over keys and values (B, nh or fewer, T, hs).

    mask: True where a query may look at a key, (B, 1, T, S) or broadcast to it; None is causal attention. cache: keys and
    values of earlier calls, which come first (nanomed.evaluation.generate.KVCache). scale: of the scores, 1/sqrt(hs) if None.
    Fewer heads of keys than of queries are shared by neighbouring ones (Ainslie et al. 2023, GQA). upcast: scores, softmax
    and average in fp32, whatever autocast says. Raises ValueError for several queries after cached keys without a mask.
    """
    B, nh, T, _ = q.shape
    causal = mask is None
    if cache is not None:
        k, v = cache.append(k, v)  # all keys and values so far, (B, nh, S, hs)
        causal = causal and T > 1  # a single new token may look at everything
        if causal and k.size(2) > T:  # is_causal would align the first query with the first key
            raise ValueError("several tokens after others in a cache need a mask")
    how = {"attn_mask": mask, "dropout_p": dropout, "is_causal": causal, "scale": scale, "enable_gqa": k.size(1) < nh}
    if upcast:
        with torch.autocast(q.device.type, enabled=False):
            y = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), **how).to(v.dtype)
    else:
        y = F.scaled_dot_product_attention(q, k, v, **how)
    return y.transpose(1, 2).reshape(B, T, -1)


def within(window: int | None, mask, T: int, S: int, device):
    """The mask of a layer in which a query sees `window` keys, itself the last of them: key j of query i if i - window < j <= i.

    mask: that of the layers without a window, None if causal; the same is returned where the window changes nothing. Queries
    are the last T of S positions. Rows of a packed batch are contiguous, so that a distance in the row is one in the document.
    """
    if window is None or window >= S:
        return mask
    i = torch.arange(S - T, S, device=device)[:, None]
    j = torch.arange(S, device=device)
    near = (j <= i) & (j > i - window)  # (T, S)
    return near[None, None] if mask is None else mask & near
