"""Zero of energy of data against that of a potential: the same, another one, or a contradiction.

Energies of different programs and conventions differ by a constant for each atom of an element: total energies of other
pseudopotentials, atomisation or formation energies, corrections. Trained on as they are, such energies spoil the
weights: all of them move to explain the constants. A difference that composition explains is therefore removed by the
references (references.py). One that it does not explain is no matter of the zero. Energies in another unit, or per atom
where totals are expected, vary by another factor from structure to structure than the potential's, and are refused:
references would hide the constant part, and forces and energies would contradict each other for the whole training.
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float64

from data_pipeline.loading.datasets import Dataset
from foundation.potential import Potential
from foundation.surgery.references import Choice, Energies, energies_of, fit_shifts

MAX_STRUCTURES = 200
"""Largest number of structures to compare."""
SHIFT = 0.2
"""Difference that composition explains above which the zero is another one [eV per atom]; errors of universal
potentials are tenths of it."""
EXPLAINED = 0.5
"""Largest part of the difference that another zero leaves unexplained."""
SCATTER = 1.0
"""Median difference that composition does not explain above which energies are refused [eV per atom]."""
LEAST_FACTOR = 3.0
"""Factor between the variations of energies and predictions above which their units differ."""
LEAST_STRUCTURES, LEAST_VARIATION, LEAST_CORRELATION = 8, 0.003, 0.7
"""Number of structures, variation of the predictions [eV per atom] and correlation that such a factor needs."""
UNITS = {
    "Hartree": 1 / 27.211386,
    "Rydberg": 1 / 13.605693,
    "kcal/mol": 23.060548,
    "kJ/mol": 96.485332,
    "meV": 1000.0,
}
"""Size of 1 eV in other units of energy (CODATA 2018)."""
SAME_UNIT = 0.3
"""Relative difference of a factor from that of a unit by which it may be this one."""

Zero = Literal["same", "another"]


def energy_zero(potential: Potential, datasets: Sequence[Dataset], seed: int = 0) -> tuple[Zero, str]:
    """Return whether data at one level of theory have another zero of energy than a potential, and a sentence on it.

    Args:
        potential: Potential that predicts the energies.
        datasets: Training data at one of its levels of theory.
        seed: Seed of the choice of structures.

    Raises:
        ValueError: the energies contradict the predictions, as in another unit or per atom; the message says as which.
    """
    found = energies_of(potential, Choice(datasets, None, MAX_STRUCTURES, seed))
    names = ", ".join(dataset.manifest.provenance.name for dataset in datasets)
    return compared(found, names)


def compared(energies: Energies, names: str) -> tuple[Zero, str]:
    """Return whether energies have another zero than the predictions, and a sentence on it.

    Raises:
        ValueError: they contradict the predictions.
    """
    residuals = energies.labels - energies.predictions
    shifts = energies.fractions @ fit_shifts(energies.fractions, residuals)
    before, moved, after = (_rms(each) for each in (residuals, shifts, residuals - shifts))
    size = f"{before:.3g} eV per atom (root mean square over {len(residuals)} structures)"
    if before > SHIFT:
        _refuse_contradiction(energies, residuals - shifts, names)
    if moved > SHIFT and after < EXPLAINED * before:
        return "another", (
            f"zero of energy: {names} differ from the start by {size}, of which composition explains all but "
            f"{after:.3g}: the reference energies are refitted (--references keep to keep them)"
        )
    return "same", f"zero of energy: {names} agree with the start to {size}: the reference energies are kept"


def _refuse_contradiction(energies: Energies, scatter: Float64[np.ndarray, " structures"], names: str) -> None:
    """Refuse energies that vary otherwise than the predictions, agree with them in another unit, or are unrelated."""
    factor, median = variation_factor(energies), float(np.median(np.abs(scatter)))
    different = factor is not None and abs(math.log(factor)) > math.log(LEAST_FACTOR)
    likely = "" if factor is not None and not different else _agreeing(energies)
    if factor is not None and different and not likely:
        likely = _nearest(factor, float(np.median(energies.num_atoms)))
    if not different and not likely and median <= SCATTER:
        return
    seen = f"they differ by {median:.3g} eV per atom in the median even where composition is accounted for"
    if different:
        seen = f"from structure to structure they vary {factor:.3g} times as much"
    reason = f", as {likely} would" if likely else ""
    raise ValueError(
        f"the energies of {names} contradict the start's: {seen}{reason}. Give total energies in eV (another key with "
        "--read.energy_key), or set --references keep to train on them nevertheless"
    )


def variation_factor(energies: Energies) -> float | None:
    """Return the slope of energies against the predictions among structures of the same composition.

    None if these are too few or too much alike, or if the two hardly correlate.
    """
    both = np.stack([energies.labels, energies.predictions], axis=1)
    fitted, _, _, _ = np.linalg.lstsq(energies.fractions, both, rcond=None)
    label, predicted = (both - energies.fractions @ fitted).T
    if len(label) < LEAST_STRUCTURES or _rms(predicted) < LEAST_VARIATION or _rms(label) == 0:
        return None
    correlation = float(label @ predicted) / (len(label) * _rms(label) * _rms(predicted))
    return correlation * _rms(label) / _rms(predicted) if correlation > LEAST_CORRELATION else None


def _agreeing(energies: Energies) -> str:
    """Return the reading of energies that agrees with the predictions without another zero, or ''."""
    read = {f"energies in {unit}": energies.labels / size for unit, size in UNITS.items()}
    read["energies per atom"] = energies.labels * energies.num_atoms
    apart = {name: _rms(values - energies.predictions) for name, values in read.items()}
    best = min(apart, key=lambda name: apart[name])
    return best if apart[best] < SHIFT else ""


def _nearest(factor: float, num_atoms: float) -> str:
    """Return the reading of energies that a factor suggests, or ''."""
    factors = {f"energies in {unit}": size for unit, size in UNITS.items()} | {"energies per atom": 1 / num_atoms}
    near = min(factors, key=lambda name: abs(math.log(factor / factors[name])))
    return near if abs(factor / factors[near] - 1) < SAME_UNIT else ""


def _rms(values: Float64[np.ndarray, " values"]) -> float:
    return float(np.sqrt(np.square(values).mean()))
