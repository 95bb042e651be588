"""Surfaces: energies of plain ASE, bonds that are cut, convergence, what does not relax, refusals."""

from typing import Any

import ase.build
import numpy as np
import pytest
from ase.calculators.emt import EMT
from ase.neighborlist import neighbor_list
from ase.optimize import FIRE

from foundation.evaluation.suites.crystals.equation_of_state import Crystal, relaxed
from foundation.evaluation.suites.crystals.relaxation import Convergence
from foundation.evaluation.suites.crystals.surfaces import FACES, Surfaces, slab
from foundation.interop.subject import CalculatorSubject
from launch.verbs import parse

COPPER = Crystal(elements=("Cu",), prototype="fcc", lattice_constant=3.6)
SILICON = Crystal(elements=("Si",), prototype="diamond", lattice_constant=5.43)
TUNGSTEN = Crystal(elements=("W",), prototype="bcc", lattice_constant=3.16)
EFFECTIVE_MEDIUM = CalculatorSubject(EMT())


def test_surface_energies_are_those_of_plain_ase() -> None:
    suite = Surfaces(cleaved=(COPPER,), references={"Cu fcc 111": 1.314}, thicknesses=(8.0, 16.0))
    findings = suite.run(EFFECTIVE_MEDIUM)
    cell = relaxed(COPPER, EFFECTIVE_MEDIUM)
    assert cell is not None
    unit = ase.build.bulk("Cu", "fcc", cell.cell[0, 0], cubic=True)
    unit.calc = EMT()
    bulk = unit.get_potential_energy() / 4
    for face in ("111", "100", "110"):
        atoms = ase.build.surface(unit, tuple(map(int, face)), 9, vacuum=10.0, periodic=True)
        atoms.calc = EMT()
        with FIRE(atoms, logfile=None) as optimizer:
            assert optimizer.run(fmax=0.002, steps=500)
        area = np.linalg.norm(np.cross(atoms.cell[0], atoms.cell[1]))
        # 1 eV/Å² is 16.02 J/m²
        theirs = 16.02176634 * (atoms.get_potential_energy() - len(atoms) * bulk) / (2 * area)
        assert findings.quantities[f"Cu fcc {face}"].value == pytest.approx(theirs, rel=2e-3)
    assert findings.quantities["Cu fcc 111"].unit == "J/m²"
    assert findings.quantities["Cu fcc 111"].reference == 1.314
    assert findings.quantities["Cu fcc 100"].reference is None
    curve = findings.charts["Surface energies of Cu fcc"].curves["110"]
    assert curve.x == (8.0, 16.0)
    assert curve.y[1] == findings.quantities["Cu fcc 110"].value
    assert curve.y[0] == pytest.approx(curve.y[1], rel=0.02)


@pytest.mark.parametrize(
    ("crystal", "face", "reach", "bulk", "surface"),
    [
        (COPPER, "111", 2.9, 12, 9),
        (COPPER, "100", 2.9, 12, 8),
        (COPPER, "110", 2.9, 12, 7),
        (TUNGSTEN, "110", 2.9, 8, 6),
        (TUNGSTEN, "100", 2.9, 8, 4),
        (SILICON, "111", 2.6, 4, 3),
        (SILICON, "100", 2.6, 4, 2),
    ],
)
def test_a_slab_has_two_equal_surfaces_with_the_bonds_of_its_face_cut(
    crystal: Crystal, face: str, reach: float, bulk: int, surface: int
) -> None:
    assert set(FACES[crystal.prototype]) >= {face}
    for thickness in (3.0, 11.0, 16.0):
        cut = slab(crystal, face, crystal.lattice_constant, thickness, 12.0)
        atoms = ase.Atoms(cut.numbers, cut.positions, cell=cut.cell, pbc=True)
        heights = atoms.positions[:, 2]
        assert np.ptp(heights) >= thickness
        assert atoms.cell[2, 2] - np.ptp(heights) == pytest.approx(12.0)
        neighbours = np.bincount(neighbor_list("i", atoms, reach), minlength=len(atoms))[np.argsort(heights)]
        assert neighbours[0] == neighbours[-1] == surface
        assert np.array_equal(neighbours, neighbours[::-1])
        assert thickness == 3.0 or bulk in neighbours


def test_what_does_not_relax_in_time_or_has_no_minimum_has_no_value() -> None:
    hasty = Convergence(max_force=1e-5, max_steps=1)
    found = Surfaces(cleaved=(COPPER,), thicknesses=(5.0,), convergence=hasty).run(EFFECTIVE_MEDIUM)
    assert [each.value for each in found.quantities.values()] == [None] * 3
    assert found.charts == {}
    far = Crystal(elements=("Cu",), prototype="fcc", lattice_constant=5.0)
    lost = Surfaces(cleaved=(far,), references={"Cu fcc 111": 1.3}).run(EFFECTIVE_MEDIUM).quantities
    assert [each.value for each in lost.values()] == [None] * 3
    assert lost["Cu fcc 111"].reference == 1.3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cleaved": (COPPER, COPPER)}, "occurs twice"),
        ({"references": {"Cu fcc 210": 1.0}}, "'Cu fcc 210' is not one of Cu fcc 111, Cu fcc 100, Cu fcc 110"),
        ({"thicknesses": ()}, "one or more numbers that rise"),
        ({"thicknesses": (9.0, 9.0)}, "one or more numbers that rise"),
        ({"thicknesses": (0.1,)}, "between 1 and 200 Å"),
        ({"vacuum": 0.0}, "vacuum must be between"),
    ],
)
def test_impossible_surfaces_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Surfaces(**{"cleaved": (COPPER,), **options})


def test_crystals_without_known_faces_are_refused() -> None:
    salt = Crystal(elements=("Na", "Cl"), prototype="rocksalt", lattice_constant=5.64)
    with pytest.raises(ValueError, match="NaCl rocksalt has several elements"):
        Surfaces(cleaved=(salt,))


def test_the_packaged_suite_is_read_by_name() -> None:
    _, config = parse(["evaluate", "--model", "m", "--suites", "surfaces"])  # configs/suite/surfaces.yaml
    assert isinstance(config.suites[0], Surfaces)
    assert config.suites[0].references["W bcc 100"] == 3.954
    assert config.suites[0].thicknesses == (10.0, 20.0)
