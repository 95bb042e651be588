"""What a fine-tuning begins with is the start: checked in every run, before the first step.

Wrong reference energies, scales or adapters would otherwise show up as fast learning, or as forgetting.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from torch import Tensor

from data_pipeline.graphs.batch import GraphBatch, collate
from data_pipeline.loading.datasets import Dataset
from foundation.potential import Potential

CHECKED_FRAMES = 8
"""Frames of each set that are compared."""
SEARCHED_FRAMES = 1000
"""Frames of each set among which these are looked for: all may have an element that is new."""
TOLERANCE = 1e-4
"""Largest difference: energy per atom [eV], force component [eV/Å], stress component [eV/Å³]; of forces and stresses
above one, in units of the largest. Adding a level of theory or an element rescales weights, which rounds them once: in
float32 that moves forces by 1e-6 to 1e-5."""


class NotTheStart(ValueError):
    """What training would begin with does not predict what the start does."""


def first_batches(start: Potential, datasets: Sequence[Dataset]) -> Iterator[GraphBatch]:
    """Yield the first frames of each data set that a start knows all elements of.

    Data at a level of theory that it does not know are taken at its first level: what it says of them must stay too.
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
    """Compare what training begins with with the start; return on how many frames, and how far forces differ.

    The latter in the units of TOLERANCE.

    Args:
        start: The start.
        potential: What training begins with; in training mode afterwards.
        batches: Structures of which the start knows elements and levels of theory.
        same_references: Whether reference energies have to be the same; else energies are compared without them.

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
                    f"{batch.num_graphs - 1} more frames: what training would begin with is not the start"
                )
        count, largest = count + batch.num_graphs, max(largest, differences["forces [eV/Å]"])
    potential.train()
    return count, largest


def _difference(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference, in units of the largest component where that is above one."""
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1.0))
