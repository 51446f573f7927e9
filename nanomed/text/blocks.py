"""Documents packed into blocks, and blocks dealt into the windows of optimiser updates: what phase 2 trains
on.

Selection -> Stream -> Mixture -> fit"""

import numpy as np
import torch

from nanomed.text.batch import IGNORE, Batch
from nanomed.text.corpus import Selection


class Stream:
    """The selected documents one after another, cut into blocks of `context` predicted tokens, as GPT-2 was
    trained.

    Each pass shuffles the documents before cutting and the blocks after it, by a seed of its own, so that
    block i of pass p is the same whenever it is asked for: the position in the data is a number."""

    def __init__(self, selection: Selection, context: int, seed):
        self.selection, self.context, self.seed = selection, context, seed
        self.lengths = selection.table()["length"]
        self.n_tokens = int(self.lengths.sum()) - 1  # predicted ones: the first has no predecessor
        self.n_blocks = -(-self.n_tokens // context)
        # of the pass at hand, and of the one before: an epoch of a mixture may reach into both
        self._orders = {}

    def block(self, passed: int, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets of block i, both (context,); the last block of the stream is filled up with
        IGNORE."""
        documents, ends, blocks = self._order(passed)
        start = int(blocks[i]) * self.context
        stop = min(start + self.context + 1, self.n_tokens + 1)
        parts, d = [], int(np.searchsorted(ends, start, side="right"))
        while start < stop:
            ids = self.selection.ids(documents[d])
            begin = int(ends[d]) - len(ids)
            parts.append(ids[start - begin : stop - begin])
            start, d = int(ends[d]), d + 1
        ids = np.concatenate(parts).astype(np.int64)
        idx, targets = np.zeros(self.context, np.int64), np.full(self.context, IGNORE)
        idx[: len(ids) - 1], targets[: len(ids) - 1] = ids[:-1], ids[1:]
        return idx, targets

    def _order(self, passed: int):
        """Of one pass: the documents' order, where each ends in the stream, and the blocks' order."""
        if passed not in self._orders:
            rng = np.random.default_rng([*self.seed, passed])
            documents = rng.permutation(len(self.lengths))
            order = (documents, np.cumsum(self.lengths[documents]), rng.permutation(self.n_blocks))
            self._orders = dict([*self._orders.items()][-1:]) | {passed: order}
        return self._orders[passed]


def batch_of(blocks: list[tuple[np.ndarray, np.ndarray]]) -> Batch:
    """A row for each block."""
    idx, targets = (torch.from_numpy(np.stack(side)) for side in zip(*blocks, strict=True))
    return Batch(idx, targets)


class Mixture:
    """Blocks of one or more streams, dealt into the windows of optimiser updates.

    Without weights there is one stream, and an epoch is one pass over it. With weights, they are the streams'
    shares of the blocks, and an epoch ends where the first stream has been read once, so that none is
    repeated within it; the next epoch reads the longer ones on from there."""

    unit = "supervised tokens"  # what a target is, for people

    def __init__(self, selections: list[Selection], weights, context, batch_size, grad_accum, seed):
        self.streams = [Stream(s, context, (seed, k)) for k, s in enumerate(selections)]
        shares = np.array(weights) / np.sum(weights)
        epoch = min(s.n_blocks / share for s, share in zip(self.streams, shares, strict=True))
        self.counts = [max(1, round(epoch * share)) for share in shares]
        self.batch_size, self.window_size, self.seed = batch_size, batch_size * grad_accum, seed
        self.windows_per_epoch = -(-sum(self.counts) // self.window_size)
        self._epoch = None

    def __str__(self) -> str:
        each = f" ({' + '.join(f'{c:,}' for c in self.counts)} blocks)" if len(self.counts) > 1 else ""
        context = self.streams[0].context
        return f"{sum(self.counts) * context:,} tokens an epoch in blocks of {context}{each}"

    def window(self, k: int) -> list[Batch]:
        """The micro-batches of the k-th update, each of up to batch_size blocks."""
        epoch, w = divmod(k, self.windows_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._deal = epoch, self._dealt(epoch)
        blocks = []
        for which, nth in self._deal[w * self.window_size : (w + 1) * self.window_size]:
            stream = self.streams[which]
            blocks.append(stream.block(*divmod(epoch * self.counts[which] + int(nth), stream.n_blocks)))
        return [batch_of(blocks[i : i + self.batch_size]) for i in range(0, len(blocks), self.batch_size)]

    def _dealt(self, epoch: int) -> np.ndarray:
        """(stream, number of the block among this epoch's of that stream), (blocks, 2), in the order of
        training."""
        which = np.repeat(np.arange(len(self.streams)), self.counts)
        nth = np.concatenate([np.arange(c) for c in self.counts])
        deal = np.stack([which, nth], 1)  # a single stream shuffles its blocks itself
        return np.random.default_rng([self.seed, epoch]).permutation(deal) if len(self.streams) > 1 else deal
