"""How far a figure can be trusted: a bootstrap over whatever is independent of one another; of a share, without drawing."""

import numpy as np

from nanomed.optional import need


def interval(statistic, n: int, samples: int = 1000, seed: int = 0) -> list[float] | None:
    """95 % percentile bootstrap of statistic(indices) over n items drawn with replacement (Efron 1979); None if there is
    but one, or the statistic is defined for no draw."""
    if n < 2:
        return None
    rng = np.random.default_rng(seed)
    draws = np.array([statistic(rng.integers(n, size=n)) for _ in range(samples)])
    return None if np.isnan(draws).all() else [float(q) for q in np.nanpercentile(draws, [2.5, 97.5])]


def difference(a, n: int, b, m: int, samples: int = 1000, seed: int = 0) -> list[float] | None:
    """95 % percentile bootstrap of a(indices of n) - b(indices of m) over two independent groups, each drawn anew; None if one of
    them has but one item."""
    if min(n, m) < 2:
        return None
    rng = np.random.default_rng(seed)
    draws = np.array([a(rng.integers(n, size=n)) - b(rng.integers(m, size=m)) for _ in range(samples)])
    return [float(q) for q in np.percentile(draws, [2.5, 97.5])]


def share(hits: np.ndarray) -> list[float] | None:
    """95 % interval (Wilson 1927) of the share of `hits`, a boolean each, that are true: also where all or none are, where a
    bootstrap has no width; None if there is but one."""
    if len(hits) < 2:
        return None
    found = need("scipy.stats").binomtest(int(hits.sum()), len(hits)).proportion_ci(method="wilson")
    return [float(found.low), float(found.high)]
