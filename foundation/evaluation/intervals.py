"""Confidence intervals: of statistics of independent rows, such as trajectories, by a bootstrap, and of slopes."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64
from scipy import stats

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


def interval_around(value: float, parts: Float64[np.ndarray, " parts"]) -> tuple[float, float] | None:
    """Return the 95 % confidence interval of a value by the spread of those of parts of its data; None with one part.

    The mean over the parts may be another value, if these are short: only their spread is taken.
    """
    if len(parts) < 2:
        return None
    low, high = interval_over(np.mean, parts)
    return value + low - float(parts.mean()), value + high - float(parts.mean())


class Slope(NamedTuple):
    """Slope of a line, with its 95 % confidence interval."""

    value: float
    """Slope."""
    interval: tuple[float, float]
    """Limits of the interval."""


def common_slope(x: Float64[np.ndarray, " points"], y: Float64[np.ndarray, "series points"]) -> Slope:
    """Return the slope of parallel lines through several series, by least squares with Student's t.

    Errors must be independent: of a correlated series, give the means of blocks longer than its correlation. A
    bootstrap over so few points is too sure of itself: over 20 it covers the true slope in 87 % of cases, not in 95 %.

    Args:
        x: Abscissas of the points, those of every series.
        y: Ordinates; each series has a line of its own, of the same slope. Three or more points are needed.
    """
    centred, ordinates = x - x.mean(), y - y.mean(axis=1, keepdims=True)
    weight = float(centred @ centred) * len(y)
    slope = float((ordinates @ centred).sum()) / weight
    freedom = y.size - len(y) - 1
    variance = float(((ordinates - slope * centred) ** 2).sum()) / freedom
    width = float(stats.t.ppf(0.975, freedom)) * float(np.sqrt(variance / weight))
    return Slope(slope, (slope - width, slope + width))
