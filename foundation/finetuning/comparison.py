"""Statistics of held-out errors, how they change in a fine-tuning, and how sure that is: a paired bootstrap.

A resample draws as many frames as a set has, with replacement. The draws depend on the seed and the number of frames
only, so that two potentials, before and after or of two runs, are compared on the same frames in every resample: what
is hard for both cancels in their difference (Efron & Tibshirani, An Introduction to the Bootstrap, chapter 13). Frames
are drawn one by one, those of molecular dynamics too; neighbours in time resemble each other, which makes the
intervals of such sets narrower than the truth. A resample costs one product of a matrix of counts with the sums.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from foundation.finetuning.forgetting import Measurement, SetErrors

RESAMPLES, SEED, LEVEL = 2000, 0, 0.95
"""Resamples of the bootstrap, seed of its draws, and probability of the intervals."""
MIN_FRAMES = 5
"""Frames below which no interval is given: it would say that what was drawn again and again is certain."""
CHUNK = 2**21
"""Counts of frames held at once, in numbers."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A statistic of a held-out set."""

    title: str
    """What it is called, in which unit."""
    factor: float = 1e3
    """Factor from the stored unit to the shown one."""


METRICS = {
    "energy_mae": Metric(title="energy MAE [meV/atom]"),
    "energy_median": Metric(title="energy, median absolute error [meV/atom]"),
    "force_mae": Metric(title="force MAE [meV/Å]"),
    "force_median": Metric(title="force MAE of the median frame [meV/Å]"),
    "stress_mae": Metric(title="stress MAE [meV/Å³]"),
    "softening": Metric(title="softening slope", factor=1.0),
}
"""Statistics by name: energies [eV/atom], forces [eV/Å] and stress [eV/Å³], means over frames and over components.

Of an energy the mean over frames hangs on a few outliers, which the median does not. The softening slope is
Σ F_label·F_predicted / Σ |F_label|² (Deng et al., npj Comput. Mater. 11, 9 (2025)): below one the surface is too soft.
"""


@dataclass(frozen=True, kw_only=True, eq=False)
class Statistic:
    """A number with what it is in every resample."""

    value: float
    """The number on all frames."""
    samples: Float64[np.ndarray, " resamples"]
    """The same number on the frames of every resample; NaN where these have no labels for it."""
    num_frames: int
    """Frames that have labels for it."""

    @property
    def interval(self) -> tuple[float, float] | None:
        """The middle LEVEL of the resamples; None where there are fewer than MIN_FRAMES frames."""
        finite = self.samples[np.isfinite(self.samples)]
        if self.num_frames < MIN_FRAMES or not len(finite):
            return None
        low, high = np.quantile(finite, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2])
        return float(low), float(high)

    def as_json(self) -> dict[str, float | None]:
        """Return value, low and high; null where one is not known."""
        low, high = self.interval or (math.nan, math.nan)
        numbers = {"value": self.value, "low": low, "high": high}
        return {name: number if math.isfinite(number) else None for name, number in numbers.items()}


Statistics = dict[str, Statistic]
"""Statistics of a set by name: those of METRICS that it has labels for, and force_mae/SYMBOL of each element."""


def statistics(errors: SetErrors, *, elements: bool = True) -> Statistics:
    """Return the statistics of a held-out set, with those of its elements if wanted."""
    count = len(errors.ids)
    value = _weighted(errors, np.ones((1, count)), elements)
    rows = max(1, CHUNK // count)
    rng = np.random.default_rng(SEED)
    parts: list[dict[str, np.ndarray]] = []
    for first in range(0, RESAMPLES, rows):
        size = min(rows, RESAMPLES - first)
        draws = rng.integers(count, size=(size, count)) + count * np.arange(size)[:, np.newaxis]
        counts = np.bincount(draws.reshape(-1), minlength=size * count).reshape(size, count)
        parts.append(_weighted(errors, counts.astype(np.float64), elements))
    frames = _labelled(errors)
    return {
        name: Statistic(
            value=float(number[0]),
            samples=np.concatenate([part[name] for part in parts]),
            num_frames=frames[name],
        )
        for name, number in value.items()
    }


def _labelled(errors: SetErrors) -> dict[str, int]:
    """Return for each statistic the number of frames that have labels for it."""
    forces, stress = (int((count > 0).sum()) for count in (errors.force_count, errors.stress_count))
    frames = {"energy_mae": len(errors.ids), "energy_median": len(errors.ids)}
    frames |= dict.fromkeys(("force_mae", "force_median", "softening"), forces) | {"stress_mae": stress}
    of_element = (errors.element_count > 0).sum(axis=0)
    return frames | {f"force_mae/{z}": int(n) for z, n in zip(errors.elements, of_element, strict=True)}


def _weighted(
    errors: SetErrors, weights: Float64[np.ndarray, "resamples frames"], elements: bool
) -> dict[str, Float64[np.ndarray, " resamples"]]:
    """Return every statistic with each frame counted as often as its weight says."""
    energy = np.abs(errors.energy_error)
    ratios = {"energy_mae": (energy, np.ones_like(energy))}
    medians = {"energy_median": energy}
    if errors.force_count.any():
        ratios["force_mae"] = (errors.force_sum, errors.force_count)
        ratios["softening"] = (errors.force_product, errors.force_square)
        with np.errstate(invalid="ignore"):
            medians["force_median"] = errors.force_sum / errors.force_count
    if errors.stress_count.any():
        ratios["stress_mae"] = (errors.stress_sum, errors.stress_count)
    if elements:
        for place, symbol in enumerate(errors.elements):
            ratios[f"force_mae/{symbol}"] = (errors.element_sum[:, place], errors.element_count[:, place])
    sums = [weights @ np.stack([pair[part] for pair in ratios.values()], axis=1) for part in (0, 1)]
    with np.errstate(invalid="ignore", divide="ignore"):
        quotients = sums[0] / sums[1]
    found = {name: quotients[:, place] for place, name in enumerate(ratios)}
    return found | {name: weighted_median(values, weights) for name, values in medians.items()}


def weighted_median(
    values: Float64[np.ndarray, " frames"], weights: Float64[np.ndarray, "resamples frames"]
) -> Float64[np.ndarray, " resamples"]:
    """Return the medians of values each of which is there as many times as its weight; those that are NaN are not."""
    known = np.flatnonzero(~np.isnan(values))
    order = known[np.argsort(values[known], kind="stable")]
    upto = np.cumsum(weights[:, order], axis=1)
    total = weights[:, order].sum(axis=1, keepdims=True)
    # of 2m values the median is the mean of those at m - 1 and m, of 2m + 1 both are the one at m
    places = [(upto <= place).sum(axis=1) for place in ((total - 1) // 2, total // 2)]
    ordered = np.append(values[order], np.nan)  # the place behind the end is that of a resample without values
    middle = [ordered[np.minimum(place, len(order))] for place in places]
    return np.where(total[:, 0] > 0, (middle[0] + middle[1]) / 2, np.nan)


def change(before: Statistics, after: Statistics) -> Statistics:
    """Return how much statistics change: errors relative to what they were, the softening slope by a difference.

    A relative change of a retained set above zero is forgetting; of a target below zero, it is adaptation.
    """
    return {
        name: _combined(before[name], after[name], _difference if name == "softening" else _relative_change)
        for name in before
        if name in after
    }


def difference(first: Statistic, second: Statistic) -> Statistic:
    """Return second less first, both of the same frames: its interval says whether two runs differ."""
    return _combined(first, second, _difference)


def mean_over_seeds(runs: Sequence[Statistic]) -> Statistic:
    """Return the mean over runs that differ in their seed; every resample draws seeds as well as frames.

    The draws of seeds depend on their number only: methods of as many seeds are compared with the same ones of both.
    """
    draws = np.random.default_rng(SEED).integers(len(runs), size=(RESAMPLES, len(runs)))
    samples = np.stack([run.samples for run in runs])
    return Statistic(
        value=float(np.mean([run.value for run in runs])),
        samples=samples[draws, np.arange(RESAMPLES)[:, np.newaxis]].mean(axis=1),
        num_frames=min(run.num_frames for run in runs),
    )


def check_pair(before: Measurement, after: Measurement, what: str) -> None:
    """Refuse to compare measurements of other sets or other frames.

    Args:
        before: Measurement of the start.
        after: Measurement to compare with it.
        what: What the second is of, for the message.

    Raises:
        ValueError: the sets differ; the message says which.
    """
    if before.sets.keys() != after.sets.keys():
        differ = ", ".join(sorted(before.sets.keys() ^ after.sets.keys()))
        raise ValueError(f"{what} cannot be compared: only one of the two measured {differ}")
    for name, ours in before.sets.items():
        theirs = after.sets[name]
        if (ours.ids, ours.elements, ours.role) != (theirs.ids, theirs.elements, theirs.role):
            raise ValueError(f"{what} cannot be compared: the held-out set {name!r} has other frames or another role")
        if (ours.fingerprint, ours.split) != (theirs.fingerprint, theirs.split):
            raise ValueError(f"{what} cannot be compared: the held-out set {name!r} is of other data")


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


def as_json(found: Mapping[str, Statistic]) -> dict[str, dict[str, float | None]]:
    """Return statistics with their intervals, without those of elements."""
    return {name: found[name].as_json() for name in METRICS if name in found}
