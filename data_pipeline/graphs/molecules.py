"""Molecules as points: atoms unwrapped across boundaries, centres, and the cutoff between them.

A graph of molecules has one point for each, at the mean of its atoms' positions, whatever their masses. Its edges are
found by the same search as those of atoms.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from data_pipeline.graphs.neighbors import complete_cell
from data_pipeline.structure import InvalidStructure, Structure

MAX_EXTENT = 0.45
"""Largest distance of an atom from the middle of its molecule, as a fraction of a periodic lattice vector: beyond,
which of its images belongs to the molecule is not clear."""


MOLECULE_ARRAYS = ("molecule", "grain", "molecule-id", "mol-id")
"""Names under which files label each atom's molecule, in the order in which they are looked for; the last is that of
LAMMPS's data files."""


class MoleculeCutoff(float):
    """A distance [Å] below which the centres of two molecules are neighbours; never equal to one between atoms."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MoleculeCutoff) and float(self) == float(other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(("molecules", float(self)))


def described(cutoff: float) -> str:
    """Return a cutoff [Å] in words, without the unit: between atoms or between molecules."""
    return f"{cutoff:g} between molecules" if isinstance(cutoff, MoleculeCutoff) else f"{cutoff:g}"


def as_json(cutoff: float) -> float | str:
    """Return a cutoff [Å] as JSON: a number between atoms, words between molecules."""
    return described(cutoff) if isinstance(cutoff, MoleculeCutoff) else cutoff


def molecule_labels(arrays: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """Return the labels of each atom's molecule among arrays by name, or None.

    They are whole numbers, of whatever type: of names, it could not be known what they mean.
    """
    return next((arrays[each] for each in MOLECULE_ARRAYS if each in arrays and _all_whole(arrays[each])), None)


def _all_whole(values: np.ndarray) -> bool:
    return values.dtype.kind in "iu" or (values.dtype.kind == "f" and bool((values == np.rint(values)).all()))


class Molecules(NamedTuple):
    """Molecules of a structure."""

    molecule: Int64[np.ndarray, " atoms"]
    """Number of each atom's molecule, from 0 in the order of the labels."""
    images: Int64[np.ndarray, "atoms 3"]
    """Whole lattice vectors to each atom's image that is beside the others of its molecule."""
    centres: Structure
    """The centres of the molecules in place of the atoms, without labels."""


def molecules_of(structure: Structure) -> Molecules:
    """Return the molecules that a structure's labels say it is made of.

    Raises:
        InvalidStructure: it has no such labels, or a molecule is too large for its cell.
    """
    if not structure.has_molecules:
        name = f"structure {structure.id!r}" if structure.id else "the structure"
        raise InvalidStructure(
            f"{name} does not say which atoms are one molecule, by an array of whole numbers of the name "
            f"{', '.join(MOLECULE_ARRAYS[:-1])} or {MOLECULE_ARRAYS[-1]}. `foundation build` finds molecules from "
            "bonds with --source.molecule_key bonds, Python with data_pipeline.sources.bonds.Bonds().molecules(atoms)"
        )
    labels, molecule = np.unique(structure.molecules, return_inverse=True)
    sizes = np.bincount(molecule).astype(np.float64)
    images = _images(structure, molecule, len(labels))
    unwrapped = structure.positions + images @ structure.cell
    centres = np.stack([np.bincount(molecule, axis, len(labels)) for axis in unwrapped.T], axis=1) / sizes[:, None]
    points = replace(
        structure,
        numbers=np.ones(len(labels), np.uint8),
        positions=centres,
        forces=np.zeros((len(labels), 3), np.float32),
        molecules=labels.astype(np.int32),
    )
    return Molecules(molecule.astype(np.int64), images.astype(np.int64), points)


def _images(structure: Structure, molecule: Int64[np.ndarray, " atoms"], count: int) -> Float64[np.ndarray, "atoms 3"]:
    """Return the lattice vectors that bring the atoms of each molecule together around its middle.

    The middle is the mean direction of the atoms on a circle of the length of the lattice vector, so that it does not
    depend on their images.
    """
    images = np.zeros((structure.num_atoms, 3))
    if not structure.pbc.any() or count == structure.num_atoms:
        return images
    fractions = structure.positions @ np.linalg.inv(complete_cell(structure.cell, structure.pbc))
    for axis in np.flatnonzero(structure.pbc).tolist():
        angles = 2 * np.pi * fractions[:, axis]
        sine, cosine = (np.bincount(molecule, part, count) for part in (np.sin(angles), np.cos(angles)))
        offsets = fractions[:, axis] - (np.arctan2(sine, cosine) / (2 * np.pi))[molecule]
        images[:, axis] = -np.rint(offsets)
        far = np.abs(offsets + images[:, axis])
        if far.max() > MAX_EXTENT:
            atom = int(far.argmax())
            raise InvalidStructure(
                f"structure {structure.id!r}: molecule {structure.molecules[atom]} is too large for its cell, so that "
                f"the image of atom {atom} which belongs to it is not clear; repeat the cell, or correct the labels"
            )
    return images
