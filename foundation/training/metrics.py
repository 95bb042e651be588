"""Errors of predictions as sums and counts, which add up exactly over any number of batches and processes.

Vectors of sums rather than a torchmetrics object per label: all that is to be known goes into one reduction, in which a
process without any batch takes part like the others. Labels that are absent are multiplied out rather than left out:
a selection would make an accelerator wait for the number of its rows.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from data_pipeline.graph import GraphBatch
from data_pipeline.structure import MAX_ATOMIC_NUMBER, SYMBOLS
from foundation.potential import Prediction

LABELS = ("energy_mae", "force_mae", "stress_mae")
"""Mean absolute errors: energy per atom [eV], force component [eV/Å], stress component [eV/Å³]."""


class ErrorSums:
    """Sums and counts of absolute errors over any number of batches."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.sums: Float64[Tensor, " 7"] = torch.zeros(7, dtype=torch.float64)
        """Sum and count of the errors of energy, forces and stress; frames."""

    def update(self, prediction: Prediction, batch: GraphBatch) -> None:
        """Add a batch."""
        labelled = batch.has_forces[batch.graph_of_atom]
        energy = ((prediction.energy - batch.energy) / batch.num_atoms).detach().abs()
        forces = torch.where(labelled[:, None], (prediction.forces - batch.forces).detach().abs(), 0.0)
        stress = torch.where(batch.has_stress[:, None, None], (prediction.stress - batch.stress).detach().abs(), 0.0)
        frames = energy.new_full((), batch.num_graphs)
        sums = [energy.sum(), frames, forces.double().sum(), 3.0 * labelled.sum()]
        sums += [stress.double().sum(), 9.0 * batch.has_stress.sum(), frames]
        self.sums = self.sums.to(energy.device) + torch.stack(sums)

    def add(self, other: "ErrorSums") -> None:
        """Add what another object has seen."""
        self.sums = self.sums.to(other.sums.device) + other.sums

    def compute(self, reduce: Callable[[Tensor], Tensor] = lambda sums: sums) -> dict[str, float]:
        """Return the errors there are labels for, and the number of frames.

        Args:
            reduce: Adds a tensor up over processes.
        """
        return mean_errors(reduce(self.sums).tolist())


def mean_errors(sums: Sequence[float]) -> dict[str, float]:
    """Return the errors (LABELS) that the sums of an ErrorSums have labels for, and the number of frames."""
    *pairs, frames = sums
    named = zip(LABELS, pairs[::2], pairs[1::2], strict=True)
    return {**{name: total / count for name, total, count in named if count}, "frames": frames}


class ElementSums:
    """Sums and counts of absolute errors by element: of the forces on its atoms, of the energies of its structures."""

    def __init__(self) -> None:
        self.sums: Float64[Tensor, "elements 4"] = torch.zeros(MAX_ATOMIC_NUMBER + 1, 4, dtype=torch.float64)
        """By atomic number: sum and count of force components' errors, sum and count of structures' energy errors."""

    def update(self, prediction: Prediction, batch: GraphBatch) -> None:
        """Add a batch."""
        labelled = batch.has_forces[batch.graph_of_atom].double()
        energy = ((prediction.energy - batch.energy) / batch.num_atoms).detach().abs()
        forces = (prediction.forces - batch.forces).detach().abs().double().sum(dim=1)
        of_atoms = torch.stack([forces * labelled, 3.0 * labelled], dim=1)
        holds = energy.new_zeros(batch.num_graphs, len(self.sums))
        holds[batch.graph_of_atom, batch.numbers] = 1.0
        sums = torch.zeros_like(self.sums, device=energy.device)
        sums[:, :2].index_add_(0, batch.numbers, of_atoms)
        sums[:, 2], sums[:, 3] = energy @ holds, holds.sum(dim=0)
        self.sums = self.sums.to(energy.device) + sums


class ValidationErrors:
    """The errors of a validation: over everything, by data set and by element."""

    def __init__(self, datasets: Sequence[str], *, num_watched: int = 0) -> None:
        """Prepare for data sets of these names; the last ones may be watched only, and count in no sum over sets."""
        self.datasets, self._num_own = tuple(datasets), len(datasets) - num_watched
        self._of_dataset, self._of_element = [ErrorSums() for _ in datasets], ElementSums()

    def update(self, prediction: Prediction, batch: GraphBatch, dataset: int) -> None:
        """Add a batch of a data set, given by number."""
        self._of_dataset[dataset].update(prediction, batch)
        if dataset < self._num_own:
            self._of_element.update(prediction, batch)

    def compute(self, reduce: Callable[[Tensor], Tensor]) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
        """Return the errors and those of each element, over all processes.

        The first go by 'force_mae' and, if there are several data sets or only watched ones, 'NAME/force_mae' as well.
        An element has the error of forces on its atoms, the energy error of the structures that hold it, and how many
        atoms (with labelled forces) and structures there were.

        Args:
            reduce: Adds a tensor up over processes; called once.
        """
        elements = self._of_element.sums
        sums = torch.cat([*(errors.sums.to(elements.device) for errors in self._of_dataset), elements.flatten()])
        parts = reduce(sums).split([*(7 for _ in self.datasets), elements.numel()])
        own = torch.stack([elements.new_zeros(7), *parts[: self._num_own]]).sum(dim=0)
        values = mean_errors(own.tolist())
        if self.datasets[1:] or not self._num_own:
            for name, part in zip(self.datasets, parts[:-1], strict=True):
                values |= {f"{name}/{error}": value for error, value in mean_errors(part.tolist()).items()}
        rows = enumerate(parts[-1].view(elements.shape).tolist())
        return values, {SYMBOLS[number]: _of_element(*row) for number, row in rows if row[3]}


def _of_element(forces: float, components: float, energies: float, frames: float) -> dict[str, float]:
    of_forces = {"force_mae": forces / components} if components else {}
    return {**of_forces, "energy_mae": energies / frames, "atoms": components / 3, "frames": frames}
