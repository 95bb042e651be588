"""Forces against energy: a test of sign and unit of forces that needs no knowledge of the material.

Between two neighbouring frames of a trajectory in a cell at rest, the energy changes by minus the work of the forces on
the displacements. The average of both ends is exact for harmonic motion and right to third order for any other. If the
"forces" are gradients, the ratio of the two is -1; if Hartree/Bohr are taken for eV/Å, it is 0.019.
"""

import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

from data_pipeline.graphs.neighbors import complete_cell
from data_pipeline.structure import Structure

MAX_PAIRS = 128
"""Number of pairs compared in one call, evenly spaced: enough to judge a corpus. They cost some 3 ms."""
MAX_CELL_CHANGE = 1e-4
"""Largest change of a component of a lattice vector in a cell at rest [Å]."""
MAX_DISPLACEMENT = 1.0
"""Largest displacement of an atom [Å]; beyond some 0.5 Å, the change of the work excludes most pairs anyway."""
NOISE = 5e-4
"""Energy change per atom that could be the noise of a self-consistent field [eV]."""
MIN_WORK = 0.3
"""Smallest ratio of work to its change between the ends, over all atoms; below, the average is not the integral."""


def force_ratios(structures: Sequence[Structure]) -> Float64[np.ndarray, " pairs"]:
    """Return, for neighbouring frames of a group, minus the work of the forces over the energy change.

    Uninformative pairs are left out: different atoms, forces missing, another cell, an atom that moved further than
    MAX_DISPLACEMENT, an energy change within the noise, forces that reverse between the two. This choice does not
    depend on the unit or the sign of the forces.
    """
    pairs = [(one, two) for one, two in itertools.pairwise(structures) if comparable(one, two) and _at_rest(one, two)]
    if not pairs:
        return np.zeros(0)
    pairs = pairs[:: -(-len(pairs) // MAX_PAIRS)]
    cells = np.array([[complete_cell(frame.cell, frame.pbc) for frame in pair] for pair in pairs])
    ends, displacement = force_work(pairs, cells)
    starts = _starts(pairs)
    work = -np.add.reduceat(ends.mean(axis=1), starts)
    change = np.sqrt(np.add.reduceat(np.square(ends[:, 1] - ends[:, 0]), starts))
    energy = np.array([two.energy - one.energy for one, two in pairs])
    noise = NOISE * np.array([one.num_atoms for one, _ in pairs])
    telling = (displacement < MAX_DISPLACEMENT) & (np.abs(energy) > noise) & (np.abs(work) > MIN_WORK * change)
    return work[telling] / energy[telling]


def comparable(one: Structure, two: Structure) -> bool:
    """Return whether two frames have the same atoms and group, and forces."""
    return (
        one.group == two.group
        and len(one.numbers) == len(two.numbers)
        and one.has_forces
        and two.has_forces
        and one.numbers.tobytes() == two.numbers.tobytes()
    )


def force_work(
    pairs: Sequence[tuple[Structure, Structure]], cells: Float64[np.ndarray, "pairs 2 3 3"]
) -> tuple[Float64[np.ndarray, "atoms 2"], Float64[np.ndarray, " pairs"]]:
    """Return the work on each atom with the forces of either end [eV], and each pair's largest displacement [Å].

    Displacements are relative to the cell, to the nearest image in the directions that repeat.
    """
    num_atoms = np.array([one.num_atoms for one, _ in pairs])
    inverse, mean = np.repeat(np.linalg.inv(cells), num_atoms, axis=0), np.repeat(cells.mean(axis=1), num_atoms, axis=0)
    positions = np.stack([np.concatenate([pair[end].positions for pair in pairs]) for end in (0, 1)], axis=1)
    forces = np.stack([np.concatenate([pair[end].forces for pair in pairs]) for end in (0, 1)], axis=1)
    fractional = np.einsum("aei,aeij->aej", positions, inverse)
    moved = fractional[:, 1] - fractional[:, 0]
    moved -= np.rint(moved) * np.repeat([one.pbc for one, _ in pairs], num_atoms, axis=0)
    moved = np.einsum("ai,aij->aj", moved, mean)
    displacement = np.sqrt(np.maximum.reduceat(np.square(moved).sum(axis=1), _starts(pairs)))
    return np.einsum("aei,ai->ae", forces.astype(np.float64), moved), displacement


def _starts(pairs: Sequence[tuple[Structure, Structure]]) -> np.ndarray:
    num_atoms = np.array([one.num_atoms for one, _ in pairs])
    return np.cumsum(num_atoms) - num_atoms


def _at_rest(one: Structure, two: Structure) -> bool:
    return one.pbc.tobytes() == two.pbc.tobytes() and bool(
        (np.abs(one.cell - two.cell)[one.pbc] <= MAX_CELL_CHANGE).all()
    )
