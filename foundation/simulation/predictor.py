"""Predictor: energies, forces and stresses of many structures at once; one that fails does not stop the others."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from data_pipeline.graphs.packing import EDGE_BUDGET, Pack, Refused, packed
from data_pipeline.quoting import one_line
from data_pipeline.structure import SYMBOLS, Structure
from foundation.last_layer import Uncertainty
from foundation.potential import Potential
from foundation.simulation.outcome import Evaluated

Predictor = Callable[[Sequence[Structure]], list[Evaluated | str]]
"""Function that predicts structures in order; for one that it cannot predict, the reason."""
MAX_ATOMS = 20_000
"""Number of atoms above which a structure is too large: SevenNet-0 takes about a megabyte per atom."""


class PotentialPredictor:
    """Predictions of a potential, in batches packed by edges."""

    def __init__(
        self, potential: Potential, theory: int = 0, *, edge_budget: int = EDGE_BUDGET, max_atoms: int = MAX_ATOMS
    ) -> None:
        """Take a potential that is ready to predict, at one of its levels of theory by number."""
        self._potential, self._theory = potential.eval(), theory
        self._edge_budget, self._max_atoms = edge_budget, max_atoms
        self._known = frozenset(potential.elements)

    def __call__(self, structures: Sequence[Structure]) -> list[Evaluated | str]:
        """Return the prediction of each structure in order, or the reason why there is none."""
        found: dict[int, Evaluated | str] = {}
        for place, structure in enumerate(structures):
            if reason := self._reason(structure):
                found[place] = reason
        fit = [place for place in range(len(structures)) if place not in found]
        packs = packed((structures[place] for place in fit), self._potential.cutoff, edge_budget=self._edge_budget)
        for pack in packs:
            if isinstance(pack, Refused):
                found[fit[pack.place]] = one_line(str(pack.error))
                continue
            found.update(zip((fit[place] for place in pack.places), self._of(pack), strict=True))
        return [found[place] for place in range(len(structures))]

    def _reason(self, structure: Structure) -> str | None:
        """Return why a structure cannot be predicted, if that is known beforehand."""
        if structure.num_atoms > self._max_atoms:
            return f"too large: {structure.num_atoms:,} atoms, and max_atoms is {self._max_atoms:,}"
        unknown = sorted(set(structure.numbers.tolist()) - self._known)
        return f"the potential does not know {', '.join(SYMBOLS[z] for z in unknown)}" if unknown else None

    def _of(self, pack: Pack) -> list[Evaluated | str]:
        """Return the predictions of a batch; if it needs too much memory, of its halves."""
        potential = self._potential
        try:
            prediction = potential(pack.batch(potential.dtype, self._theory).to(potential.device))
        except torch.OutOfMemoryError:
            if len(pack.places) == 1:
                return ["too large: it does not fit into the memory of the device"]
            middle = len(pack.places) // 2
            halves = (slice(None, middle), slice(middle, None))
            return [each for half in halves for each in self._of(_part(pack, half))]
        parts = prediction.split([each.num_atoms for each in pack.structures])
        return [
            evaluated(
                float(each.energy),
                each.forces.double().cpu().numpy(),
                each.stress[0].double().cpu().numpy(),
                each.uncertainty,
            )
            for each in parts
        ]


def _part(pack: Pack, chosen: slice) -> Pack:
    return Pack(
        cutoff=pack.cutoff,
        places=pack.places[chosen],
        structures=pack.structures[chosen],
        pairs=pack.pairs[chosen],
    )


def evaluated(
    energy: float, forces: np.ndarray, stress: np.ndarray, uncertainty: Uncertainty | None = None
) -> Evaluated | str:
    """Return a prediction, or the reason why it is none: a number that is not finite."""
    if math.isfinite(energy) and np.isfinite(forces).all() and np.isfinite(stress).all():
        if uncertainty is None:
            return Evaluated(energy=energy, forces=forces, stress=stress)
        return Evaluated(
            energy=energy,
            forces=forces,
            stress=stress,
            energy_uncertainty=float(uncertainty.energy),
            force_uncertainty=float(uncertainty.forces.max()),
            outside=uncertainty.reasons,
        )
    return "the predicted energy, forces or stress are not finite: the structure is far from the training data"
