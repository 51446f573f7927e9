"""Rows split into two sides."""

import numpy as np

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
