"""Check before the first step that the model to be trained still predicts what the start predicts.

Wrong reference energies, scales or adapters would otherwise look like fast learning, or like forgetting.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from torch import Tensor

from data_pipeline.graphs.batch import GraphBatch, collate
from data_pipeline.loading.datasets import Dataset
from foundation.potential import Potential

CHECKED_FRAMES = 8
"""Number of frames of each set that are compared."""
SEARCHED_FRAMES = 1000
"""Number of frames of each set that are searched for them: all may have a new element."""
TOLERANCE = 1e-4
"""Largest difference: energy per atom [eV], force component [eV/Å], stress component [eV/Å³]; relative to the largest
component if that is above one. Adding a level of theory or an element rescales weights, which rounds them once: in
float32 that changes forces by 1e-6 to 1e-5."""


class NotTheStart(ValueError):
    """The model to be trained does not predict what the start predicts."""


def first_batches(start: Potential, datasets: Sequence[Dataset]) -> Iterator[GraphBatch]:
    """Yield the first frames of each data set whose elements are all known to the start.

    Data at a new level of theory are compared at the start's first level.
    """
    for dataset in datasets:
        frames = itertools.islice(dataset.frames(), SEARCHED_FRAMES)
        known = (frame for frame in frames if np.isin(frame.numbers, start.elements).all())
        structures = list(itertools.islice(known, CHECKED_FRAMES))
        if structures:
            theory = dataset.theory_number if dataset.theory_number < len(start.theories) else 0
            yield collate(structures, start.cutoff, start.dtype, [theory] * len(structures)).to(start.device)


def check_step_zero(
    start: Potential, potential: Potential, batches: Iterable[GraphBatch], *, same_references: bool
) -> tuple[int, float]:
    """Compare the model to be trained with the start; return the number of frames and the largest force difference.

    The difference is in the units of TOLERANCE.

    Args:
        start: The start.
        potential: The model to be trained; in training mode afterwards.
        batches: Structures with elements and levels of theory known to the start.
        same_references: Whether reference energies must be equal; if not, energies are compared without them.

    Raises:
        NotTheStart: predictions differ by more than rounding.
    """
    count, largest = 0, 0.0
    start.eval()
    potential.eval()
    for batch in batches:
        ours, theirs = potential(batch), start(batch)
        energy = ours.energy - theirs.energy
        if not same_references:
            energy = energy - potential.composition_energy(batch) + start.composition_energy(batch)
        differences = {
            "energies per atom [eV]": float((energy / batch.num_atoms).abs().max()),
            "forces [eV/Å]": _difference(ours.forces, theirs.forces),
            "stresses [eV/Å³]": _difference(ours.stress, theirs.stress),
        }
        for name, difference in differences.items():
            if not difference <= TOLERANCE:
                raise NotTheStart(
                    f"before the first step, {name} differ from the start's by {difference:.3g} on {batch.ids[0]} and "
                    f"{batch.num_graphs - 1} more frames: the model to be trained is not the start"
                )
        count, largest = count + batch.num_graphs, max(largest, differences["forces [eV/Å]"])
    potential.train()
    return count, largest


def _difference(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference, relative to the largest component if that is above one."""
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1.0))
