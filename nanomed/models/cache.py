"""The keys and values of the tokens that a model has read, so that the next token costs one position.

nanomed.evaluation (generate, writing) makes one a layer, and hands them to the model as an argument."""

import copy

import torch


class KVCache:
    """Keys and values of one layer, (B, heads of keys, S, hs), allocated for the longest S and filled from
    the left."""

    def __init__(self, B, n_head, length, head_size, device, dtype):
        self.k = torch.empty(B, n_head, length, head_size, device=device, dtype=dtype)
        self.v = torch.empty_like(self.k)
        self.n = 0  # how many there are
        self.first = 0  # of these, the first that is looked at
        self.at = None  # a tensor (1,): where the next ones go, all that a recorded step knows of it

    def append(self, k, v):
        """Take the keys and values of T more tokens, of the first rows; returns all that these rows have so
        far, or after fix() the whole room."""
        if self.at is not None:
            new = ((self.k, k.to(self.k.dtype)), (self.v, v.to(self.v.dtype)))
            return tuple(t.index_copy_(2, self.at, more) for t, more in new)
        rows, start, self.n = len(k), self.n, self.n + k.size(2)
        self.k[:rows, :, start : self.n], self.v[:rows, :, start : self.n] = k, v
        return self.k[:rows, :, self.first : self.n], self.v[:rows, :, self.first : self.n]

    def rewind(self, n: int, length: int):
        """Forget all but the first n, and have room for `length`."""

        def longer(t):
            out = t.new_empty(*t.shape[:2], length, t.size(3))
            out[:, :, :n] = t[:, :, :n]
            return out

        if length > self.k.size(2):
            self.k, self.v = longer(self.k), longer(self.v)
        self.n, self.at = n, None

    def extent(self, T: int):
        """(how many keys T more tokens will look at, where these come among them)."""
        n = self.n - self.first
        return (n + T, n) if self.at is None else (self.k.size(2), self.at)

    def fix(self, at):
        """From here on all shapes stay the same: one token at a time is written where `at` (1,) says, and
        attention needs a mask."""
        for t in (self.k, self.v):
            t[:, :, self.n :] = 0  # what is there may be no number, and times a weight of 0 that is none
        self.at = at

    # --- rows that come and go (nanomed.evaluation.writing) ---

    def part(self, rows: slice, width: int, n: int) -> "KVCache":
        """The last `width` columns of some rows, of which the first n are there, as a cache of their own in
        the same memory. What else these rows held becomes 0: a masked key may be any number, but must be
        one."""
        out = copy.copy(self)
        out.k, out.v = self.k[rows, :, : self.n], self.v[rows, :, : self.n]
        for t in (out.k, out.v):
            t[:, :, : self.n - width + n] = 0
        out.k, out.v = out.k[:, :, self.n - width :], out.v[:, :, self.n - width :]
        out.n, out.first = n, 0
        return out

    def put(self, row: int, at: int, begun: "KVCache"):
        """Copy the beginning of another cache's first row into this row, from column `at` to its last."""
        n = max(self.n - at, 0)
        self.k[row, :, at : at + n], self.v[row, :, at : at + n] = begun.k[0, :, :n], begun.v[0, :, :n]

    def copy_row(self, source: int, to: int):
        for t in (self.k, self.v):
            t[to, :, : self.n] = t[source, :, : self.n]

    def move_left(self, by: int, rows: int):
        """Forget the first columns of the first rows."""
        for t in (self.k, self.v):
            t[:rows, :, : self.n - by] = t[:rows, :, by : self.n].clone()
        self.n -= by


def make_cache(config, B: int, length: int, device, dtype) -> list[KVCache]:
    """One cache a layer for B rows of up to `length` tokens."""
    n_layer, n_head, head_size = config.cache_shape
    return [KVCache(B, n_head, length, head_size, device, dtype) for _ in range(n_layer)]


class Kept:
    """What a conversation keeps from one answer to the next: the ids that were read, and a cache of them."""

    def __init__(self, config, B: int, device, dtype):
        self.ids = []  # of the first row; of several, none is kept
        self.cache = make_cache(config, B, 0, device, dtype)

    def rewind(self, prompt: list[int], length: int) -> int:
        """How many tokens a prompt has in common with those that were read; the others are forgotten. At most
        all but its last, whose logits are wanted. length: of the prompt and what is written after it."""
        most = min(len(self.ids), len(prompt) - 1)
        n = next((k for k in range(most) if self.ids[k] != prompt[k]), most)
        self.ids = prompt[:n]
        for layer in self.cache:
            layer.rewind(n, length)
        return n
