"""Bonds from covalent radii: the molecules that they make, and whether any was lost or made."""

import ase
import ase.build
import numpy as np
import pytest

from data_pipeline.sources.bonds import Bonds
from data_pipeline.structure import InvalidStructure


def test_molecules_are_found_from_bonds_across_boundaries() -> None:
    atoms, labels = ase.Atoms(cell=np.eye(3) * 9.0, pbc=True), np.repeat(np.arange(3), 3)
    for place in ([0.1, 0.2, 0.1], [4.0, 8.9, 4.0], [8.8, 4.0, 8.9]):
        water = ase.build.molecule("H2O")
        water.translate(place)
        atoms += water
    atoms.wrap()
    # lithium has no bonds, however close it is
    atoms += ase.Atoms("Li", positions=[atoms.positions[0] + [0.0, 0.0, 1.9]])
    bonds = Bonds()
    found = bonds.molecules(atoms)
    np.testing.assert_array_equal(found, [*labels, 3])
    assert len(bonds.within(atoms)) == 6


def test_a_change_of_bonds_is_said() -> None:
    atoms = ase.build.molecule("CH3OH", vacuum=4.0)
    bonds = Bonds()
    before = bonds.within(atoms)
    assert len(before) == 5
    assert bonds.change(atoms, before) is None
    stretched = atoms.copy()
    stretched.rattle(0.03, seed=1)
    assert bonds.change(stretched, before) is None
    broken = atoms.copy()
    broken.positions[1] += [0.0, 4.0, 0.0]
    assert "a bond was broken: atoms 0 (C) and 1 (O)" in str(bonds.change(broken, before))
    made = atoms + ase.Atoms("H", positions=[atoms.positions[1] + [-0.9, 0.3, 0.3]])
    assert "a bond was made" in str(bonds.change(made, before))


def test_labels_come_from_an_array_of_the_file() -> None:
    atoms = ase.build.molecule("CH3OH", vacuum=4.0)
    bonds = Bonds()
    assert bonds.labels(atoms) is None
    atoms.new_array("grain", np.arange(6))
    atoms.new_array("other", np.ones(6, int))
    for key, expected in ((None, np.arange(6)), ("other", np.ones(6)), ("bonds", np.zeros(6))):
        np.testing.assert_array_equal(bonds.labels(atoms, key), expected)
    atoms.set_array("grain", None)
    atoms.new_array("grain", np.array(list("abcdef")))
    assert bonds.labels(atoms) is None
    with pytest.raises(InvalidStructure, match="no array 'absent'"):
        bonds.labels(atoms, "absent")
