"""Structures as the atoms of ASE."""

import ase
import numpy as np

from data_pipeline.graphs.molecules import MOLECULE_ARRAYS
from data_pipeline.structure import Structure


def to_atoms(structure: Structure) -> ase.Atoms:
    """Return a Structure as ASE's Atoms, without energies; the labels of its molecules are the array `molecule`."""
    atoms = ase.Atoms(structure.numbers, structure.positions, cell=structure.cell, pbc=structure.pbc)
    if structure.has_molecules:
        atoms.new_array(MOLECULE_ARRAYS[0], structure.molecules.astype(np.int64))
    return atoms
