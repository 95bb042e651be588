"""A fast ASE calculator for tests: a Morse potential between all pairs of metal atoms."""

from typing import Any, ClassVar

import ase
import numpy as np
from ase.calculators.calculator import Calculator, all_changes
from ase.data import covalent_radii
from vesin import ase_neighbor_list

METALS = ("Al", "Cu", "Ag", "Au", "Ni", "Pd", "Pt")
DEPTH, STEEPNESS, CUTOFF = 0.3, 1.5, 6.0
"""Depth of a pair's well [eV], its steepness [1/Å], and the largest distance [Å]."""


class Morse(Calculator):
    """φ(r) = D (x² - 2x) with x = exp(-a (r - r₀)), r₀ the sum of the covalent radii; φ and φ' vanish at the cutoff."""

    implemented_properties: ClassVar[list[str]] = ["energy", "forces", "stress"]

    def calculate(self, atoms: ase.Atoms, properties: Any = ("energy",), system_changes: Any = all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        if unknown := set(atoms.symbols) - set(METALS):
            raise NotImplementedError(f"no potential for {', '.join(sorted(unknown))}")
        first, second, vectors, distances = ase_neighbor_list("ijDd", atoms, CUTOFF)
        lengths = covalent_radii[atoms.numbers[first]] + covalent_radii[atoms.numbers[second]]
        energy, slope = well(distances, lengths)
        end, end_slope = well(np.full_like(distances, CUTOFF), lengths)
        energy, slope = energy - end - (distances - CUTOFF) * end_slope, slope - end_slope
        pulls = (slope / distances)[:, None] * vectors
        forces = np.zeros((len(atoms), 3))
        np.add.at(forces, first, pulls)
        stress = vectors.T @ pulls / (2 * atoms.cell.volume)
        self.results = {
            "energy": float(energy.sum() / 2),
            "forces": forces,
            "stress": stress.ravel()[[0, 4, 8, 5, 2, 1]],
        }


def well(distances: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the Morse potential of pairs and its derivative."""
    factor = np.exp(-STEEPNESS * (distances - lengths))
    return DEPTH * (factor**2 - 2 * factor), 2 * STEEPNESS * DEPTH * (factor - factor**2)
