"""Forces and stress of data against a potential's: another unit or the wrong sign is refused before the first step.

Energies are compared in energy_zero.py. Forces have no zero, so their factor against the predictions shows by itself:
gradients given as forces have -1, forces in Hartree/bohr 0.019. Trained on, they would spoil the weights, and the run's
errors would be measured with the same wrong labels. A start that hardly knows the material gives no verdict.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float64
from torch import Tensor

from data_pipeline.loading.datasets import Dataset
from foundation.potential import Potential
from foundation.surgery.references import Choice

MAX_STRUCTURES, MAX_EDGES = 32, 200_000
"""Largest number of structures to compare, and the number of their directed edges after which no more are."""
LEAST_VALUES = 24
"""Smallest number of components that give a verdict: forces on eight atoms."""
LEAST_SIZE = {"forces": 0.02, "stress": 0.0005}
"""Root mean square of the predictions that gives a verdict [eV/Å, eV/Å³]."""
LEAST_CORRELATION = 0.7
"""Correlation of labels and predictions, or of their negatives, that gives a verdict."""
LEAST_FACTOR = 4.0
"""Factor between labels and predictions above which their units differ; those of universal potentials are within 2."""
SAME_UNIT = 0.3
"""Relative difference of a factor from that of a unit by which it may be this one."""
UNITS: Mapping[str, Mapping[str, float]] = {
    "forces": {
        "Hartree/bohr": 1 / 51.422067,
        "Rydberg/bohr": 1 / 25.711034,
        "kcal/mol/Å": 23.060548,
        "kJ/mol/Å": 96.485332,
        "eV/nm": 10.0,
        "meV/Å": 1000.0,
    },
    "stress": {"GPa": 160.21766, "kbar": 1602.1766},
}
"""Size of 1 eV/Å and 1 eV/Å³ in other units (CODATA 2018)."""
ADVICE = {
    "forces": "Give forces in eV/Å, the negative gradients of the energy",
    "stress": "Give stress in eV/Å³, positive in tension, or its unit and sign (--read.stress_unit, "
    "--read.stress_positive_in compression)",
}


def refuse_contradictions(potential: Potential, datasets: Sequence[Dataset], seed: int = 0) -> None:
    """Compare the forces and stress of data with a potential's predictions.

    Args:
        potential: Potential that predicts.
        datasets: Training data at one of its levels of theory.
        seed: Seed of the choice of structures.

    Raises:
        ValueError: they are in another unit or have the wrong sign; the message says which.
    """
    names = ", ".join(dataset.manifest.provenance.name for dataset in datasets)
    for kind, (labels, predictions) in _pairs(potential, datasets, seed).items():
        sentence = contradiction(kind, labels, predictions, names)
        if sentence is not None:
            raise ValueError(sentence)


def contradiction(
    kind: str, labels: Float64[np.ndarray, " values"], predictions: Float64[np.ndarray, " values"], names: str
) -> str | None:
    """Return a sentence on labels in another unit or with the wrong sign, or None.

    Args:
        kind: 'forces' or 'stress'.
        labels: Components [eV/Å, eV/Å³].
        predictions: The same of a potential.
        names: Names of the data.
    """
    label, predicted = (float(np.sqrt(np.square(each).mean())) if len(each) else 0.0 for each in (labels, predictions))
    if len(labels) < LEAST_VALUES or predicted < LEAST_SIZE[kind] or label == 0:
        return None
    correlation = float(labels @ predictions) / (len(labels) * label * predicted)
    if abs(correlation) < LEAST_CORRELATION:
        return None
    size = label / predicted
    different = abs(math.log(size)) > math.log(LEAST_FACTOR)
    if correlation > 0 and not different:
        return None
    units = [unit for unit, factor in UNITS[kind].items() if abs(size / factor - 1) < SAME_UNIT]
    looks = "as with the wrong sign" if not different else f"as in {units[0]}" if units else "as in another unit"
    return (
        f"the {kind} of {names} contradict{'s' * (kind == 'stress')} the start's: they are {correlation * size:.3g} "
        f"times as large, {looks}{' and with the wrong sign' * (different and correlation < 0)}. {ADVICE[kind]}; or "
        "set --references keep to train on them nevertheless"
    )


def _pairs(
    potential: Potential, datasets: Sequence[Dataset], seed: int
) -> dict[str, tuple[Float64[np.ndarray, " values"], Float64[np.ndarray, " values"]]]:
    """Return labels and predictions of forces, and of stress without its mean over the structures, which may differ."""
    training, edges = potential.training, 0
    forces, stress = [np.zeros((2, 0))], list[np.ndarray]()
    potential.eval()
    try:
        for batch in Choice(datasets, None, MAX_STRUCTURES, seed).batches(potential):
            if edges > MAX_EDGES:
                break
            edges += batch.num_edges
            predicted = potential(batch)
            if bool(batch.has_forces.all()):
                forces.append(_beside(batch.forces, predicted.forces))
            if bool(batch.has_stress.all()):
                stress.append(_beside(batch.stress, predicted.stress))
    finally:
        potential.train(training)
    labels, predictions = np.concatenate(forces, axis=1)
    table = np.stack(stress or [np.zeros((2, 9))])
    stresses, predicted_stresses = np.moveaxis(table - table.mean(axis=0), 1, 0).reshape(2, -1)
    return {"forces": (labels, predictions), "stress": (stresses, predicted_stresses)}


def _beside(labels: Tensor, predictions: Tensor) -> Float64[np.ndarray, "two components"]:
    return np.stack([each.detach().double().cpu().numpy().ravel() for each in (labels, predictions)])
