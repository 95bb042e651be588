"""Metrics of Matbench Discovery: crystals that a potential finds stable, its relaxed structures, thermal conductivity.

Definitions and the combined score follow the benchmark (Riebesell et al., Nat. Mach. Intell. 7, 836 (2025), and its
published code): a crystal is stable if its energy is not above the convex hull of known ones, a prediction that is
missing counts as unstable, a relaxation that failed as the largest deviation.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64

STABLE = 0.0
"""Largest energy above the convex hull of a stable crystal [eV/atom]."""
FAILED_DEVIATION = 1.0
"""Deviation of the structure of a crystal whose relaxation failed, in units of the distance between atoms."""
FAILED_SRME = 2.0
"""Error of the conductivity of a crystal without one: the largest possible."""
WORST_DEVIATION = 0.15
"""Mean deviation of structures from which on they add nothing to the combined score."""
WEIGHTS = {"f1": 0.5, "conductivity": 0.4, "structure": 0.1}
"""Weights of the parts of the combined score."""


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """Counts of crystals by true and predicted stability."""

    true_positives: int
    """Stable, and predicted so."""
    false_positives: int
    """Unstable, but predicted stable."""
    true_negatives: int
    """Unstable, and predicted so."""
    false_negatives: int
    """Stable, but predicted unstable or not at all."""

    @property
    def precision(self) -> float:
        """Share of stable ones among those predicted stable."""
        return _ratio(self.true_positives, self.true_positives + self.false_positives)

    @property
    def recall(self) -> float:
        """Share of those predicted stable among the stable ones."""
        return _ratio(self.true_positives, self.true_positives + self.false_negatives)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall."""
        wrong = self.false_positives + self.false_negatives
        return _ratio(2 * self.true_positives, 2 * self.true_positives + wrong)

    @property
    def accuracy(self) -> float:
        """Share of right predictions."""
        return _ratio(self.true_positives + self.true_negatives, self.total)

    @property
    def prevalence(self) -> float:
        """Share of stable ones."""
        return _ratio(self.true_positives + self.false_negatives, self.total)

    @property
    def total(self) -> int:
        """Number of crystals."""
        return self.true_positives + self.false_positives + self.true_negatives + self.false_negatives

    def acceleration(self, prevalence: float | None = None) -> float:
        """Return the discovery acceleration factor: precision over that of a random choice.

        Args:
            prevalence: Share of stable crystals; None: that of the counts. The leaderboard's is of labels that are not
                rounded, 0.1529 for unique prototypes; rounding to three decimals makes it 0.1549.
        """
        return self.precision / (self.prevalence if prevalence is None else prevalence)


def confusion(
    true: Float64[np.ndarray, " crystals"], predicted: Float64[np.ndarray, " crystals"], threshold: float = STABLE
) -> Confusion:
    """Return the counts for energies above the convex hull [eV/atom]; NaN as a prediction is unstable.

    Raises:
        ValueError: a true energy is not finite.
    """
    if not np.isfinite(true).all():
        raise ValueError("true energies above the hull must be finite: leave crystals without one out")
    stable, found = true <= threshold, predicted <= threshold
    return Confusion(
        true_positives=_count(stable & found),
        false_positives=_count(~stable & found),
        true_negatives=_count(~stable & ~found),
        false_negatives=_count(stable & ~found),
    )


@dataclass(frozen=True, kw_only=True)
class Regression:
    """Errors of energies above the hull, over the crystals with a prediction."""

    mae: float
    """Mean absolute error [eV/atom]."""
    rmse: float
    """Root mean square error [eV/atom]."""
    r2: float
    """Coefficient of determination."""
    missing: int
    """Number of crystals without a prediction."""


def regression(true: Float64[np.ndarray, " crystals"], predicted: Float64[np.ndarray, " crystals"]) -> Regression:
    """Return errors of energies above the convex hull [eV/atom]; rows with NaN are left out.

    Raises:
        ValueError: no crystal has a prediction.
    """
    known = ~(np.isnan(true) | np.isnan(predicted))
    if not known.any():
        raise ValueError("no crystal has a predicted energy")
    errors = predicted[known] - true[known]
    spread = float(((true[known] - true[known].mean()) ** 2).sum())
    return Regression(
        mae=float(np.abs(errors).mean()),
        rmse=float(np.sqrt((errors**2).mean())),
        r2=1.0 - float((errors**2).sum()) / spread if spread else math.nan,
        missing=_count(~known),
    )


def mean_deviation(deviations: Float64[np.ndarray, " crystals"]) -> float:
    """Return the mean deviation of relaxed structures (RMSD), in units of (V/N)^(1/3); NaN, a failure, counts 1."""
    return float(np.where(np.isnan(deviations), FAILED_DEVIATION, deviations).mean())


def conductivity_error(
    predicted: Float64[np.ndarray, "points bands"],
    true: Float64[np.ndarray, "points bands"],
    weights: Float64[np.ndarray, " points"],
) -> float:
    """Return the symmetric relative mean error (SRME) of the modes' thermal conductivities of one crystal, in 0-2.

    2 Σ w |κ - κ'| / Σ w (κ + κ'): errors of modes do not cancel.

    Args:
        predicted: Conductivity of each phonon mode, its trace over three [W/m/K].
        true: The same of the reference.
        weights: Multiplicity of each q-point.
    """
    numbers = np.concatenate([predicted, true])
    column = weights[:, None]
    total = float((column * (predicted + true)).sum())
    if not np.isfinite(numbers).all() or total <= 0:
        return FAILED_SRME
    return float(2 * (column * np.abs(predicted - true)).sum() / total)


def mean_conductivity_error(errors: Iterable[float | None]) -> float:
    """Return κ_SRME, the mean over crystals; None or NaN (imaginary modes, changed symmetry, failure) counts 2.

    Raises:
        ValueError: there is no crystal.
    """
    values = [FAILED_SRME if error is None or math.isnan(error) else error for error in errors]
    if not values:
        raise ValueError("no crystal has a thermal conductivity to compare with")
    return float(np.mean(values))


def combined_score(f1: float | None, conductivity: float | None, deviation: float | None) -> float | None:
    """Return the combined performance score (CPS); None if a part is missing.

    Args:
        f1: F1 score of stability.
        conductivity: κ_SRME, 0-2.
        deviation: Mean deviation of relaxed structures.
    """
    if f1 is None or conductivity is None or deviation is None:
        return None
    parts = {
        "f1": f1,
        "conductivity": 1.0 - conductivity / 2.0,
        "structure": min(max(1.0 - deviation / WORST_DEVIATION, 0.0), 1.0),
    }
    return sum(weight * parts[name] for name, weight in WEIGHTS.items())


def energies_above_hull(
    hull: Sequence[float], formation: Sequence[float], predicted: Sequence[float]
) -> Float64[np.ndarray, " crystals"]:
    """Return predicted energies above the fixed hull: the reference's plus the error of the formation energy [eV/atom].

    Args:
        hull: Energies above the hull by the reference.
        formation: Formation energies by the reference.
        predicted: Predicted formation energies; NaN if missing.
    """
    return np.asarray(hull, dtype=np.float64) + np.asarray(predicted, dtype=np.float64) - np.asarray(formation)


def _ratio(top: int, bottom: int) -> float:
    return top / bottom if bottom else math.nan


def _count(mask: Bool[np.ndarray, " crystals"]) -> int:
    return int(np.count_nonzero(mask))
