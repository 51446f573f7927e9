"""How far a figure can be trusted: a bootstrap over whatever is independent of one another; of a share,
without drawing."""

import math

import numpy as np

from nanomed.optional import need


def interval(statistic, n: int, samples: int = 1000, seed: int = 0) -> list[float] | None:
    """95 % percentile bootstrap of statistic(indices) over n items drawn with replacement (Efron 1979); None
    if there is but one, or the statistic is defined for no draw."""
    if n < 2:
        return None
    rng = np.random.default_rng(seed)
    draws = np.array([statistic(rng.integers(n, size=n)) for _ in range(samples)])
    if np.isnan(draws).all():
        return None
    with np.errstate(invalid="ignore"):  # NaN lies between two draws that are infinite
        ends = np.nanpercentile(draws, [2.5, 97.5])
    return [math.inf if math.isnan(q) else float(q) for q in ends]


def interval_of_two(statistic, n: int, m: int, samples: int = 1000, seed: int = 0) -> list[float]:
    """The same of statistic(indices, indices) over n items of one side and m of another, each side drawn by
    itself."""
    rng = np.random.default_rng(seed)
    draws = [statistic(rng.integers(n, size=n), rng.integers(m, size=m)) for _ in range(samples)]
    return [float(q) for q in np.percentile(draws, [2.5, 97.5])]


def wilson(hits: np.ndarray) -> list[float] | None:
    """95 % interval (Wilson 1927) of the share of `hits`, a boolean each, that are true: also where all or
    none are, where a bootstrap has no width; None if there is but one."""
    if len(hits) < 2:
        return None
    found = need("scipy.stats").binomtest(int(hits.sum()), len(hits)).proportion_ci(method="wilson")
    return [float(found.low), float(found.high)]
