"""Potentials with known answers, as functions that predict structures: they stand in for a network."""

from collections.abc import Sequence

import numpy as np
from ase.calculators.emt import EMT

from data_pipeline.sources.atoms import to_atoms
from data_pipeline.structure import Structure
from foundation.simulation.outcome import Evaluated

BOX = 12.0


def nothing(structures: Sequence[Structure]) -> list[Evaluated | str]:
    """An ideal gas."""
    return [Evaluated(energy=0.0, forces=np.zeros_like(each.positions), stress=np.zeros((3, 3))) for each in structures]


def springs(structures: Sequence[Structure], constant: float = 2.0) -> list[Evaluated | str]:
    """Each atom is held at the origin by a spring [eV/Å²]."""
    return [
        Evaluated(
            energy=0.5 * constant * float((each.positions**2).sum()),
            forces=-constant * each.positions,
            stress=np.zeros((3, 3)),
        )
        for each in structures
    ]


def emt(structures: Sequence[Structure]) -> list[Evaluated | str]:
    """Effective medium theory, by ASE."""
    found: list[Evaluated | str] = []
    for each in structures:
        atoms = to_atoms(each)
        atoms.calc = EMT()
        stress = atoms.get_stress(voigt=False) if each.pbc.all() else np.zeros((3, 3))
        found.append(Evaluated(energy=atoms.get_potential_energy(), forces=atoms.get_forces(), stress=stress))
    return found


def gas(num_atoms: int, seed: int = 0) -> Structure:
    """Argon atoms at random places of a box."""
    positions = np.random.default_rng(seed).uniform(0, BOX, (num_atoms, 3))
    return Structure.checked(
        numbers=[18] * num_atoms, positions=positions, cell=BOX * np.eye(3), pbc=[True] * 3, energy=0.0
    )
