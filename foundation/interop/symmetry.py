"""Symmetry of crystals by spglib: their space group, and forces and stress with the symmetry of a start."""

import contextlib
import importlib.util
import warnings
from typing import Any

import numpy as np
from jaxtyping import Float64

from data_pipeline.structure import Structure

WITHOUT = "spglib is not installed; pip install 'foundation[simulation]'"
"""Reason why there is no symmetry."""


def can_find_symmetry() -> bool:
    """Return whether spglib is installed."""
    return importlib.util.find_spec("spglib") is not None


def space_group(structure: Structure, precision: float) -> str | None:
    """Return the symbol and number of the space group of a crystal, such as 'Fm-3m (225)'.

    None if it does not repeat in all directions, spglib is not installed or finds no group.

    Args:
        structure: The crystal.
        precision: Largest distance of atoms from symmetric places [Å].
    """
    if not (structure.pbc.all() and can_find_symmetry()):
        return None
    found = _dataset(structure, precision)
    return None if found is None else f"{found.international} ({found.number})"


class Symmetry:
    """Operations of a crystal's space group."""

    def __init__(self, found: Any) -> None:
        """Take spglib's operations in fractions of the cell."""
        self._rotations = np.asarray(found.rotations, dtype=np.float64)
        self._translations = np.asarray(found.translations, dtype=np.float64)
        self._images: list[np.ndarray] = []

    @classmethod
    def of(cls, structure: Structure, precision: float) -> "Symmetry | None":
        """Return the symmetry of a crystal; None if it has none but translations of the lattice.

        Raises:
            ImportError: spglib is not installed.
        """
        if not can_find_symmetry():
            raise ImportError(WITHOUT)
        found = _dataset(structure, precision)
        return None if found is None or len(found.rotations) == 1 else cls(found)._with_images(structure)

    def _with_images(self, structure: Structure) -> "Symmetry":
        """Find the atom that each operation brings each atom to."""
        fractions = structure.positions @ np.linalg.inv(structure.cell)
        for rotation, translation in zip(self._rotations, self._translations, strict=True):
            moved = fractions @ rotation.T + translation
            apart = moved[:, None, :] - fractions[None, :, :]
            distances = np.linalg.norm((apart - np.round(apart)) @ structure.cell, axis=2)
            distances[structure.numbers[:, None] != structure.numbers[None, :]] = np.inf
            self._images.append(distances.argmin(axis=1))
        return self

    def of_forces(self, structure: Structure, forces: Float64[np.ndarray, "atoms 3"]) -> Float64[np.ndarray, "atoms 3"]:
        """Return forces averaged over the operations [eV/Å], with the lattice vectors of a structure."""
        total = np.zeros_like(forces)
        for rotation, images in zip(self._rotations, self._images, strict=True):
            total[images] += forces @ _cartesian(rotation, structure.cell).T
        return total / len(self._rotations)

    def of_stress(self, structure: Structure, stress: Float64[np.ndarray, "3 3"]) -> Float64[np.ndarray, "3 3"]:
        """Return a stress averaged over the operations [eV/Å³], with the lattice vectors of a structure."""
        turned = [_cartesian(rotation, structure.cell) for rotation in self._rotations]
        return np.mean([each @ stress @ each.T for each in turned], axis=0)


def _cartesian(rotation: Float64[np.ndarray, "3 3"], cell: Float64[np.ndarray, "3 3"]) -> Float64[np.ndarray, "3 3"]:
    """Return a rotation of fractions as one of Cartesian column vectors."""
    return cell.T @ rotation @ np.linalg.inv(cell.T)


def _dataset(structure: Structure, precision: float) -> Any:
    """Return what spglib finds, or None."""
    import spglib  # pyright: ignore[reportMissingImports]

    fractions = structure.positions @ np.linalg.inv(structure.cell)
    cell = (structure.cell.tolist(), fractions.tolist(), structure.numbers.tolist())
    with warnings.catch_warnings():
        # of a setting of how it reports errors: by version None, or an error of its own, where it finds nothing
        warnings.simplefilter("ignore", DeprecationWarning)
        with contextlib.suppress(spglib.SpglibError):
            return spglib.get_symmetry_dataset(cell, symprec=precision)  # pyright: ignore[reportArgumentType] (hints are lists)
    return None
