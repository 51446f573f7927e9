"""Rows split into two sides, and items dealt into the windows of optimiser updates, whatever they are."""

import numpy as np
import torch

from nanomed.errors import UserError


def split_rows(items: list, groups: list[str], fraction: float, seed: int) -> tuple[list, list]:
    """(training, validation), drawn by group: the rows of one group stay together. Raises UserError if there
    are too few."""
    names = sorted(set(groups))
    n_val = max(1, round(fraction * len(names))) if fraction > 0 else 0
    if n_val >= len(names):
        raise UserError(
            f"{len(names)} row(s) or group(s) cannot be split; give --val-data, or --val-fraction 0"
        )
    held_out = set(np.random.default_rng(seed).permutation(names)[:n_val].tolist())
    sides = ([], [])
    for item, group in zip(items, groups, strict=True):
        sides[group in held_out].append(item)
    return sides


class Batches:
    """Items in a new random order each epoch, dealt into the windows of optimiser updates, `collate`d by the
    micro-batch. Which items a window holds is a function of the seed and its number, so that a run can be
    resumed anywhere."""

    def __init__(self, items: list, collate, batch_size: int, grad_accum: int, seed: int):
        self.items, self.collate, self.seed = items, collate, seed
        self.batch_size, self.window_size = batch_size, batch_size * grad_accum
        self.windows_per_epoch = -(-len(items) // self.window_size)

    def window(self, k: int) -> list[tuple[torch.Tensor, ...]]:
        epoch, w = divmod(k, self.windows_per_epoch)
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.items))
        items = [self.items[i] for i in order[w * self.window_size : (w + 1) * self.window_size]]
        return [self.collate(items[i : i + self.batch_size]) for i in range(0, len(items), self.batch_size)]
