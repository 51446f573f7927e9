"""The keys and values of the tokens that a model has read, so that the next token costs one position.

The generator (nanomed.evaluation.generate) makes them, and hands them to the model as an argument."""

import torch


class KVCache:
    """Keys and values of one layer, (B, heads of keys, S, hs), allocated once for the longest S and filled
    from the left."""

    def __init__(self, B, n_head, length, head_size, device, dtype):
        self.k = torch.empty(B, n_head, length, head_size, device=device, dtype=dtype)
        self.v = torch.empty_like(self.k)
        self.n = 0  # how many there are
        self.at = None  # a tensor (1,): where the next ones go, all that a recorded step knows of it

    def append(self, k, v):
        """Keys and values of T more tokens; returns all so far, or after fix() those of the whole room."""
        if self.at is not None:
            return self.k.index_copy_(2, self.at, k.to(self.k.dtype)), self.v.index_copy_(
                2, self.at, v.to(self.v.dtype)
            )
        start, self.n = self.n, self.n + k.size(2)
        self.k[:, :, start : self.n], self.v[:, :, start : self.n] = k, v
        return self.k[:, :, : self.n], self.v[:, :, : self.n]

    def extent(self, T: int):
        """(how many keys T more tokens will look at, where these come among them)."""
        return (self.n + T, self.n) if self.at is None else (self.k.size(2), self.at)

    def fix(self, at):
        """From here on all shapes stay: one token at a time, written where `at` (1,) says, and who looks
        needs a mask."""
        for t in (self.k, self.v):
            t[:, :, self.n :] = 0  # what is there may be no number, and times a weight of 0 that is none
        self.at = at


def make_cache(config, B: int, length: int, device, dtype) -> list[KVCache]:
    """One cache a layer for B rows of up to `length` tokens."""
    n_layer, n_head, head_size = config.cache_shape
    return [KVCache(B, n_head, length, head_size, device, dtype) for _ in range(n_layer)]
