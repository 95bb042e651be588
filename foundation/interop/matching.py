"""Deviations of relaxed structures from references, by pymatgen's StructureMatcher as Matbench Discovery has them."""

import functools
import importlib.util
from typing import Any

import ase
import numpy as np

WITHOUT = "pymatgen is not installed; pip install 'foundation[discovery]' and run the same command again"
"""Reason why there are no deviations."""


def can_match() -> bool:
    """Return whether pymatgen is installed."""
    return importlib.util.find_spec("pymatgen") is not None


def deviation(one: ase.Atoms, other: ase.Atoms) -> float:
    """Return the root mean square distance of matched atoms in units of (V/N)^(1/3); NaN if structures do not match.

    Raises:
        ImportError: pymatgen is not installed.
    """
    found = _matcher().get_rms_dist(_structure(one), _structure(other))
    return np.nan if found is None else float(found[0])


@functools.cache
def _matcher() -> Any:
    from pymatgen.analysis.structure_matcher import StructureMatcher  # pyright: ignore[reportMissingImports]

    return StructureMatcher(stol=1.0, scale=False)


def _structure(atoms: ase.Atoms) -> Any:
    from pymatgen.core import Lattice, Structure  # pyright: ignore[reportMissingImports]

    lattice = Lattice(np.asarray(atoms.cell), pbc=tuple(atoms.pbc.tolist()))
    return Structure(lattice, list(atoms.symbols), atoms.positions, coords_are_cartesian=True)
