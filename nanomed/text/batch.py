"""What a micro-batch holds, and how items are dealt into the windows of optimiser updates."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

IGNORE = -100  # the target of a position that is not supervised: padding, or a prompt


@dataclass(frozen=True)
class Batch:
    """A micro-batch on the CPU: B rows of T tokens, padded on the right. What is None is not needed."""

    idx: torch.Tensor  # (B, T): token ids
    # (B, T): the id to predict at each, or IGNORE; of texts with labels (B,), or (B, K) of 0 and 1
    targets: torch.Tensor
    pos: torch.Tensor | None = None  # (B, T): positions, where a row holds several examples
    segments: torch.Tensor | None = None  # (B, T): the example that a token belongs to; -1 is padding
    replayed: torch.Tensor | None = None  # (B, T): True in replayed text, which is no answer
    lengths: torch.Tensor | None = None  # (B,): tokens of each text with a label

    @property
    def supervised(self) -> int:
        """How many targets there are: what the loss is a mean over."""
        return int((self.targets != IGNORE).sum())

    def map(self, f: Callable[[torch.Tensor], torch.Tensor]) -> "Batch":
        """The batch with f of every tensor in it."""
        return Batch(*(None if t is None else f(t) for t in vars(self).values()))


class Batches:
    """Items in a new random order each epoch, dealt into windows; collate makes a Batch of a list of them.

    A window holds the micro-batches of one update. Which items are in it is a function of the seed and its
    number, so that a run can be resumed anywhere. unit: what a target is, for people."""

    def __init__(
        self, items: list, collate, batch_size: int, grad_accum: int, seed: int, unit="supervised tokens"
    ):
        self.items, self.collate, self.seed, self.unit = items, collate, seed, unit
        self.batch_size, self.window_size = batch_size, batch_size * grad_accum
        self.windows_per_epoch = -(-len(items) // self.window_size)

    def window(self, k: int) -> list[Batch]:
        epoch, w = divmod(k, self.windows_per_epoch)
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.items))
        items = [self.items[i] for i in order[w * self.window_size : (w + 1) * self.window_size]]
        return [self.collate(items[i : i + self.batch_size]) for i in range(0, len(items), self.batch_size)]
