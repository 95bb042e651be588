"""Stress against energy: a test of sign and unit of stress that needs no knowledge of the material.

Between two neighbouring frames of a trajectory, the energy changes by the work of the stress on the strain less the
work of the forces on the displacements: dE = V σ:ε - F·dx, with σ positive in tension. The averages of both ends make
this right to third order. If the sign is reversed, the ratio of the two sides is -1; if kbar are taken for eV/Å³, it is
1602. It costs two milliseconds per block in which every frame is a neighbour of the previous one.
"""

import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

from data_pipeline.statistics.force_work import NOISE, comparable, force_work
from data_pipeline.structure import Structure

MAX_PAIRS = 64
"""Number of pairs compared in one call, evenly spaced: enough to judge a corpus."""
MAX_STRAIN = 0.1
"""Largest component of the strain between two compared frames."""
MIN_STRAIN = 1e-5
"""Smallest value of the largest component: below it the cell is at rest."""
MAX_DISPLACEMENT = 0.5
"""Largest displacement of an atom relative to the cell [Å]."""
ANHARMONIC = 0.1
"""Error of averaging over both ends, as a fraction of the change of work between the ends."""


def stress_ratios(structures: Sequence[Structure]) -> Float64[np.ndarray, " pairs"]:
    """Return, for neighbouring frames of a group, the work of the stress over the energy change it should explain.

    Uninformative pairs are left out: different atoms, labels missing, not periodic, the cell at rest or strained by
    more than MAX_STRAIN, an atom that moved further than MAX_DISPLACEMENT, an energy change within the noise, a stress
    that changes sign between the two. This choice does not depend on the unit or the sign of the stress.
    """
    pairs = [(one, two) for one, two in itertools.pairwise(structures) if _comparable(one, two)]
    cells = np.array([(one.cell, two.cell) for one, two in pairs]).reshape(-1, 2, 3, 3)
    deformation = np.linalg.solve(cells[:, 0], cells[:, 1] - cells[:, 0])
    size = np.abs(deformation).max(axis=(1, 2))
    kept = np.flatnonzero((size > MIN_STRAIN) & (size < MAX_STRAIN))
    if len(kept) == 0:
        return np.zeros(0)
    kept = kept[:: -(-len(kept) // MAX_PAIRS)]
    # relative to the mean of both cells, so that the error is of third order
    strain = np.linalg.solve(np.eye(3) + deformation[kept] / 2, deformation[kept])
    pairs, cells = [pairs[k] for k in kept], cells[kept]
    volume = np.abs(np.linalg.det(cells))
    tension = np.array([(one.stress, two.stress) for one, two in pairs]) * volume[:, :, None, None]
    ends = np.einsum("peij,pij->pe", tension, strain)
    work, work_change = ends.mean(axis=1), np.abs(ends[:, 1] - ends[:, 0])
    on_atoms, displacement = force_work(pairs, cells)
    starts = np.cumsum([0, *(one.num_atoms for one, _ in pairs[:-1])])
    force_change = np.add.reduceat(np.abs(on_atoms[:, 1] - on_atoms[:, 0]), starts)
    energy = np.array([two.energy - one.energy for one, two in pairs])
    energy += np.add.reduceat(on_atoms.mean(axis=1), starts)
    noise = NOISE * np.array([one.num_atoms for one, _ in pairs]) + ANHARMONIC * force_change
    telling = (displacement < MAX_DISPLACEMENT) & (np.abs(energy) > noise) & (np.abs(work) > ANHARMONIC * work_change)
    return work[telling] / energy[telling]


def _comparable(one: Structure, two: Structure) -> bool:
    stresses = one.has_stress and two.has_stress
    return stresses and comparable(one, two) and all(one.pbc.tolist()) and all(two.pbc.tolist())
