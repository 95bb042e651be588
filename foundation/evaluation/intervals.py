"""Confidence intervals of statistics of independent rows, such as trajectories, blocks or shells, by a bootstrap."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float64

RESAMPLES, SEED = 2000, 0
"""Number of bootstrap resamples, and seed of the draws."""


def interval_over(
    statistic: Callable[[Float64[np.ndarray, "..."]], float], rows: Float64[np.ndarray, "rows ..."]
) -> tuple[float, float]:
    """Return the 95 % confidence interval of a statistic by a bootstrap over rows (Efron, Ann. Stat. 7, 1 (1979)).

    Args:
        statistic: Function of rows.
        rows: Independent rows; frames of one trajectory are not.
    """
    rng = np.random.default_rng(SEED)
    drawn = [float(statistic(rows[rng.integers(len(rows), size=len(rows))])) for _ in range(RESAMPLES)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(low), float(high)
