"""Reference energies for data with another zero of energy, estimated from a potential's residuals.

The residuals (label minus prediction) are fitted to the compositions, not the energies as for an untrained potential:
what the network knows of binding stays, and only the difference between two conventions remains. The cost is one
evaluation of the energies, without forces, of at most MAX_STRUCTURES structures.

References should move if the data are at a level of theory, or follow an energy convention, that the potential was not
trained on. Otherwise every prediction for these elements at this level moves by its composition, old structures
included: forgetting that no regularisation prevents. The report therefore lists the shift of each element.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from data_pipeline.graphs.batch import GraphBatch, collate
from data_pipeline.loading.datasets import BlockCache, Dataset
from data_pipeline.statistics.element_energies import element_energies
from data_pipeline.structure import SYMBOLS
from foundation.datasets import refuse_unlabelled
from foundation.potential import Potential
from foundation.provenance import EnergyErrors, MovedReference, MovedReferences, Residuals

MAX_STRUCTURES = 1000
"""Largest number of structures to predict."""


def refit_references(
    potential: Potential,
    datasets: Sequence[Dataset],
    *,
    elements: Sequence[int] | None = None,
    max_structures: int = MAX_STRUCTURES,
    seed: int = 0,
) -> tuple[Float64[Tensor, "theories elements"], dict[str, MovedReferences]]:
    """Return reference energies that suit data [eV], and what moved at each level; the potential is left alone.

    Each level of theory is fitted separately, only for elements in its data.

    Args:
        potential: Potential that predicts the energies.
        datasets: Splits of data, with their level of theory.
        elements: Atomic numbers that may move; structures without them are skipped. None: all.
        max_structures: Largest number of structures per level, chosen at random.
        seed: Seed of the choice.

    Raises:
        ValueError: no structures to choose from, or they have no labels.
        UnknownElement: the data contain an element that the potential does not know.
    """
    if max_structures < 1:
        raise ValueError(f"max_structures must be at least 1, not {max_structures}")
    refuse_unlabelled(datasets)
    movable = np.isin(potential.elements, potential.elements if elements is None else list(elements))
    references = potential.get_buffer("reference_energies").cpu().clone()
    report = {}
    for theory in sorted({dataset.theory_number for dataset in datasets}):
        structures = Choice([d for d in datasets if d.theory_number == theory], elements, max_structures, seed)
        if not len(structures):
            continue
        energies = energies_of(potential, structures)
        fractions, residuals = energies.fractions, energies.labels - energies.predictions
        moving = movable & fractions.any(axis=0)
        shifts = np.zeros(len(potential.elements))
        shifts[moving] = fit_shifts(fractions[:, moving], residuals)
        before = references[theory].numpy().copy()
        references[theory] += torch.from_numpy(shifts)
        report[potential.theories[theory]] = MovedReferences(
            num_structures=len(residuals),
            elements={
                SYMBOLS[potential.elements[place]]: MovedReference(
                    before=float(before[place]), after=float(references[theory, place]), moved=float(shifts[place])
                )
                for place in np.flatnonzero(moving).tolist()
            },
            energy_error=EnergyErrors(before=_sizes(residuals), after=_sizes(residuals - fractions @ shifts)),
        )
    return references, report


def fit_shifts(
    fractions: Float64[np.ndarray, "structures elements"], residuals: Float64[np.ndarray, " structures"]
) -> Float64[np.ndarray, " elements"]:
    """Return the shift of each element's energy [eV] that explains energy residuals per atom [eV].

    Least squares, with x the fraction of each element. Elements that the compositions do not distinguish, as in a
    trajectory of one material, get the best common shift.
    """
    share = fractions.sum(axis=1)
    common = float(share @ residuals) / float(share @ share) if share.any() else 0.0
    centre = np.full(fractions.shape[1], common)
    return element_energies(fractions.T @ fractions, fractions.T @ residuals, centre)


class Choice:
    """Structures of some data sets, chosen at random."""

    def __init__(
        self, datasets: Sequence[Dataset], elements: Sequence[int] | None, max_structures: int, seed: int
    ) -> None:
        """Choose at most so many structures with one of the elements (None: any), in the order of the data."""
        cache = BlockCache()
        self._datasets = datasets
        self._frames = [dataset.frames(cache) for dataset in datasets]
        self._first = np.cumsum([0, *map(len, self._frames)])
        if self._first[-1] == 0:
            names = ", ".join(dataset.manifest.provenance.name for dataset in datasets)
            raise ValueError(f"{names}: no structures to estimate reference energies from")
        chosen = np.arange(self._first[-1])
        if elements is not None:
            each = itertools.chain.from_iterable(self._frames)
            chosen = np.flatnonzero([np.isin(structure.numbers, list(elements)).any() for structure in each])
        if len(chosen) > max_structures:
            chosen = np.sort(np.random.default_rng(seed).choice(chosen, max_structures, replace=False))
        self._chosen: list[int] = chosen.tolist()

    def __len__(self) -> int:
        return len(self._chosen)

    def batches(self, potential: Potential) -> Iterator[GraphBatch]:
        """Yield each structure as a batch of one, as a potential needs it."""
        for number in self._chosen:
            which = int(np.searchsorted(self._first, number, side="right")) - 1
            structure = self._frames[which][number - int(self._first[which])]
            batch = collate([structure], potential.cutoff, potential.dtype, [self._datasets[which].theory_number])
            yield batch.to(potential.device)


@dataclass(frozen=True, kw_only=True, eq=False)
class Energies:
    """Energies of structures beside a potential's."""

    fractions: Float64[np.ndarray, "structures elements"]
    """Fraction of each of the potential's elements."""
    num_atoms: Float64[np.ndarray, " structures"]
    """Number of atoms."""
    labels: Float64[np.ndarray, " structures"]
    """Energies of the data [eV per atom]."""
    predictions: Float64[np.ndarray, " structures"]
    """Energies of the potential [eV per atom]."""


def energies_of(potential: Potential, structures: Choice) -> Energies:
    """Return the energies of structures beside a potential's."""
    training, rows = potential.training, []
    potential.eval()
    try:
        with torch.no_grad():
            for batch in structures.batches(potential):
                count = int(batch.num_atoms)
                parts = [float((batch.numbers == z).sum()) / count for z in potential.elements]
                predicted = float(potential.atom_energies(batch).sum()) / count
                rows.append([float(count), float(batch.energy) / count, predicted, *parts])
    finally:
        potential.train(training)
    table = np.array(rows, dtype=np.float64).reshape(len(rows), 3 + len(potential.elements))
    return Energies(num_atoms=table[:, 0], labels=table[:, 1], predictions=table[:, 2], fractions=table[:, 3:])


def _sizes(residuals: Float64[np.ndarray, " structures"]) -> Residuals:
    return Residuals(
        mean=float(residuals.mean()),
        mae=float(np.abs(residuals).mean()),
        rmse=float(np.sqrt(np.square(residuals).mean())),
    )
