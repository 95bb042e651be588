"""Quantities of held-out frames, their changes between two potentials, and intervals by a paired bootstrap.

A resample draws as many frames as a set has, with replacement. The draws depend only on the seed and the number of
frames, so that two potentials (before and after, or of two runs) are compared on the same frames in every resample:
common difficulties cancel in their difference (Efron & Tibshirani, An Introduction to the Bootstrap, chapter 13).
Frames are drawn one by one, also from molecular dynamics; neighbours in time resemble each other, which makes the
intervals of such sets too narrow. A resample costs one product of a matrix of counts with the sums.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from foundation.evaluation.frame_errors import FrameErrors
from foundation.evaluation.held_out import Measurement
from foundation.evaluation.quantities import QUANTITIES, labelled_frames, weighted

RESAMPLES, SEED, LEVEL = 2000, 0, 0.95
"""Number of bootstrap resamples, seed of the draws, and probability of the intervals."""
MIN_FRAMES = 5
"""Number of frames below which no interval is given: repeated draws of few frames would appear certain."""
CHUNK = 2**21
"""Number of counts held at once."""


@dataclass(frozen=True, kw_only=True)
class Resampling:
    """Options of the bootstrap, as reports state them."""

    resamples: int = RESAMPLES
    """Number of resamples."""
    seed: int = SEED
    """Seed of the draws."""
    level: float = LEVEL
    """Probability of the intervals."""
    min_frames: int = MIN_FRAMES
    """Number of frames below which no interval is given."""


RESAMPLING = Resampling()


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number with its interval, as reports hold it; None where one is unknown."""

    value: float | None
    """The number."""
    low: float | None
    """Lower end of the interval."""
    high: float | None
    """Upper end of the interval."""

    @property
    def alone(self) -> "Estimate":
        """The number without its interval."""
        return Estimate(value=self.value, low=None, high=None)


@dataclass(frozen=True, kw_only=True, eq=False)
class Statistic:
    """A statistic and its bootstrap samples."""

    value: float
    """Value on all frames."""
    samples: Float64[np.ndarray, " resamples"]
    """Value on the frames of every resample; NaN if these have no labels for it."""
    num_frames: int
    """Number of frames that have labels for it."""

    @property
    def interval(self) -> tuple[float, float] | None:
        """The middle LEVEL of the resamples; None with fewer than MIN_FRAMES frames."""
        finite = self.samples[np.isfinite(self.samples)]
        if self.num_frames < MIN_FRAMES or not len(finite):
            return None
        low, high = np.quantile(finite, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2])
        return float(low), float(high)

    @property
    def estimate(self) -> Estimate:
        """The number and its interval."""
        numbers = (self.value, *(self.interval or (math.nan, math.nan)))
        value, low, high = (number if math.isfinite(number) else None for number in numbers)
        return Estimate(value=value, low=low, high=high)


Bootstrap = dict[str, Statistic]
"""Quantities of a set with labels, by name, and, if requested, force_mae/SYMBOL of each element."""


def bootstrap(errors: FrameErrors, *, elements: bool = True) -> Bootstrap:
    """Return the quantities of a set of frames, by default with those of its elements."""
    count = len(errors.ids)
    value = weighted(errors, np.ones((1, count)), elements=elements)
    rows = max(1, CHUNK // count)
    rng = np.random.default_rng(SEED)
    parts: list[dict[str, np.ndarray]] = []
    for first in range(0, RESAMPLES, rows):
        size = min(rows, RESAMPLES - first)
        draws = rng.integers(count, size=(size, count)) + count * np.arange(size)[:, np.newaxis]
        counts = np.bincount(draws.reshape(-1), minlength=size * count).reshape(size, count)
        parts.append(weighted(errors, counts.astype(np.float64), elements=elements))
    return {
        name: Statistic(
            value=float(number[0]),
            samples=np.concatenate([part[name] for part in parts]),
            num_frames=labelled_frames(errors, name),
        )
        for name, number in value.items()
    }


def change(before: Bootstrap, after: Bootstrap) -> Bootstrap:
    """Return the changes of quantities: relative to `before` for errors, the difference for others.

    A relative change of a retained set above zero is forgetting; of a target below zero, it is adaptation.
    """
    return {
        name: _combined(before[name], after[name], _relative_change if _is_error(name) else _difference)
        for name in before
        if name in after
    }


def _is_error(name: str) -> bool:
    return QUANTITIES[name.partition("/")[0]].is_error


def difference(first: Statistic, second: Statistic) -> Statistic:
    """Return second minus first, both of the same frames; its interval tells whether two runs differ."""
    return _combined(first, second, _difference)


def mean_over_seeds(runs: Sequence[Statistic]) -> Statistic:
    """Return the mean over runs that differ in their seed; every resample draws seeds as well as frames.

    The draws of seeds depend only on their number, so that methods with as many seeds are compared on the same draws.
    """
    draws = np.random.default_rng(SEED).integers(len(runs), size=(RESAMPLES, len(runs)))
    samples = np.stack([run.samples for run in runs])
    return Statistic(
        value=float(np.mean([run.value for run in runs])),
        samples=samples[draws, np.arange(RESAMPLES)[:, np.newaxis]].mean(axis=1),
        num_frames=min(run.num_frames for run in runs),
    )


def check_pair(before: Measurement, after: Measurement, what: str) -> None:
    """Check that two measurements are of the same sets and frames.

    Args:
        before: Measurement of the start.
        after: Measurement to compare with it.
        what: Description of the second, for the message.

    Raises:
        ValueError: the sets differ; the message names them.
    """
    if before.sets.keys() != after.sets.keys():
        differ = ", ".join(sorted(before.sets.keys() ^ after.sets.keys()))
        raise ValueError(f"{what} cannot be compared: only one of the two measured {differ}")
    for name, ours in before.sets.items():
        theirs = after.sets[name]
        if (ours.errors.ids, ours.errors.elements, ours.role) != (
            theirs.errors.ids,
            theirs.errors.elements,
            theirs.role,
        ):
            raise ValueError(f"{what} cannot be compared: the held-out set {name!r} has other frames or another role")
        if (ours.fingerprint, ours.split) != (theirs.fingerprint, theirs.split):
            raise ValueError(f"{what} cannot be compared: the held-out set {name!r} comes from other data")


def _combined(
    first: Statistic, second: Statistic, operation: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> Statistic:
    return Statistic(
        value=float(operation(np.array([first.value]), np.array([second.value]))[0]),
        samples=operation(first.samples, second.samples),
        num_frames=min(first.num_frames, second.num_frames),
    )


def _difference(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return second - first


def _relative_change(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    with np.errstate(invalid="ignore", divide="ignore"):
        return second / first - 1.0


def estimates(found: Mapping[str, Statistic]) -> dict[str, Estimate]:
    """Return statistics with their intervals, without those of elements."""
    return {name: found[name].estimate for name in QUANTITIES if name in found}
