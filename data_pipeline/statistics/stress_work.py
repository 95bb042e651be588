"""Stress against energy: what tells a wrong sign or unit of stress without knowing anything about the material.

Between two neighbouring frames of a trajectory, the energy changes by the work of the stress on the strain less the
work of the forces on the displacements: dE = V σ:ε - F·dx, with σ positive in tension. The averages of both ends make
this right to third order. Where the sign is turned, the ratio of the two sides is -1; where kbar are taken for eV/Å³,
it is 1602. It costs two milliseconds a block where every frame is a neighbour of the one before.
"""

import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64

from data_pipeline.statistics.force_work import NOISE, comparable, force_work
from data_pipeline.structure import Structure

MAX_PAIRS = 64
"""Pairs compared in one call, evenly spaced: a verdict on a corpus needs no more."""
MAX_STRAIN = 0.1
"""Largest component of the strain between two frames that are compared."""
MIN_STRAIN = 1e-5
"""Smallest largest component: below it the cell did not move."""
MAX_DISPLACEMENT = 0.5
"""Largest displacement of an atom relative to the cell [Å]."""
ANHARMONIC = 0.1
"""The error of averaging over both ends, as a part of the change of work from one end to the other."""


def stress_ratios(structures: Sequence[Structure]) -> Float64[np.ndarray, " pairs"]:
    """Return, for neighbouring frames of a group, the work of the stress over the energy change it should explain.

    Pairs that say nothing are left out: other atoms, labels missing, not periodic, the cell at rest or strained by more
    than MAX_STRAIN, an atom that moved further than MAX_DISPLACEMENT, an energy change within the noise, a stress that
    changes sign between the two. Which pairs these are does not depend on the unit or the sign of the stress.
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
