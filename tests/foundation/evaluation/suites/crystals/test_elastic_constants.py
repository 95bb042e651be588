"""Elastic constants: those of known interactions, with relaxed sublattices, without stress, and refusals."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from ase.calculators.lj import LennardJones

from data_pipeline.structure import Structure
from foundation.evaluation.suites.crystals.elastic import AXIAL, SHEAR, Elastic, elastic_constants
from foundation.evaluation.suites.crystals.equation_of_state import Crystal, EquationOfState, relaxed
from foundation.evaluation.suites.suite import Predicted
from foundation.interop.subject import CalculatorSubject
from launch.verbs import parse

COPPER = Crystal(elements=("Cu",), prototype="fcc", lattice_constant=3.6)
BLENDE = Crystal(elements=("Zn", "S"), prototype="zincblende", lattice_constant=5.4)
STIFFNESS, EDGE = 3.0, 5.4 * np.sqrt(3) / 4
"""Force constant [eV/Å²] and length [Å] of bonds."""


class Springs(CalculatorSubject):
    """Harmonic bonds between nearest neighbours of zincblende, and an elastic medium in which they lie."""

    def __init__(self) -> None:
        super().__init__(Calculator())

    def predict(self, structures: Sequence[Structure]) -> list[Predicted]:
        return [self.predicted(structure) for structure in structures]

    def predicted(self, structure: Structure) -> Predicted:
        forces, virial, energy = np.zeros((structure.num_atoms, 3)), np.zeros((3, 3)), 0.0
        images = np.array([[i, j, k] for i in (-1, 0, 1) for j in (-1, 0, 1) for k in (-1, 0, 1)]) @ structure.cell
        for i in range(4):
            for j in range(4, 8):
                for bond in structure.positions[j] + images - structure.positions[i]:
                    length = float(np.linalg.norm(bond))
                    if length < 1.3 * EDGE:
                        pull = STIFFNESS * (length - EDGE) * bond / length
                        energy += STIFFNESS * (length - EDGE) ** 2 / 2
                        forces[i] += pull
                        forces[j] -= pull
                        virial += np.outer(bond, pull)
        return Predicted(energy=energy, forces=forces, stress=virial / abs(np.linalg.det(structure.cell)))


def test_a_pair_potential_obeys_cauchy_and_its_bulk_modulus_is_that_of_the_equation_of_state() -> None:
    argon = Crystal(elements=("Ar",), prototype="fcc", lattice_constant=5.3)
    subject = CalculatorSubject(LennardJones(sigma=3.4, epsilon=0.5, rc=10.0, smooth=True))
    found = Elastic(strained=(argon,)).run(subject).quantities
    c11, c12, c44, modulus = (each.value for each in found.values())
    volume = EquationOfState(crystals=(argon,), span=0.04, num_volumes=7).run(subject).quantities
    assert c12 is not None
    assert c44 == pytest.approx(c12, rel=2e-3)
    assert modulus == pytest.approx(volume["Ar fcc: bulk modulus"].value, rel=5e-3)
    # the ratios of nearest and further neighbours with 12 and 6 powers: C11 / C12 = 1.77 (E. R. Dobbs, 1957)
    assert c11 / c12 == pytest.approx(1.76, abs=0.05)


def test_springs_of_zincblende_have_the_constants_of_keating_without_angles() -> None:
    # the shear relaxes to nothing because no spring resists it
    found = elastic_constants(BLENDE.with_side(5.4), Springs(), 1e-4)
    assert found is not None
    assert found.c11 == pytest.approx(found.c12, rel=1e-6)
    assert found.bulk_modulus == pytest.approx(STIFFNESS / (3 * 5.4), rel=1e-5)
    assert found.c44 == pytest.approx(0.0, abs=1e-5)


def test_constants_are_second_derivatives_of_the_energy() -> None:
    subject = CalculatorSubject(EMT())
    cell = relaxed(COPPER, subject)
    assert cell is not None
    found = elastic_constants(cell, subject, 0.002)
    assert found is not None

    def curvature(unit: np.ndarray) -> float:
        strains = [np.eye(3) + e * unit for e in (-0.004, 0.0, 0.004)]
        structures = [
            Structure.checked(
                numbers=cell.numbers, positions=cell.positions @ f, cell=cell.cell @ f, pbc=[True] * 3, energy=0.0
            )
            for f in strains
        ]
        low, middle, high = (each.energy for each in subject.predict(structures))
        return (low - 2 * middle + high) / (0.004**2 * cell.volume)

    assert found.c11 == pytest.approx(curvature(AXIAL), rel=5e-3)
    assert found.c44 == pytest.approx(curvature(SHEAR), rel=5e-3)


def test_a_subject_without_stress_and_a_crystal_without_a_minimum_are_undetermined() -> None:
    class NoStress(EMT):
        def get_stress(self, *args: object, **options: object) -> np.ndarray:
            raise NotImplementedError

    references = {"Cu fcc": (168.0, 121.0, 75.0)}
    found = Elastic(strained=(COPPER,), references=references).run(CalculatorSubject(NoStress())).quantities
    assert [each.value for each in found.values()] == [None] * 4
    assert [each.reference for each in found.values()] == [168.0, 121.0, 75.0, pytest.approx(136.67, abs=0.01)]
    far = Crystal(elements=("Cu",), prototype="fcc", lattice_constant=5.0, bulk_modulus=140.0)
    lost = Elastic(strained=(far,)).run(CalculatorSubject(EMT())).quantities
    assert [each.value for each in lost.values()] == [None] * 4
    assert lost["Cu fcc: bulk modulus"].reference == 140.0


def test_impossible_strains_are_refused() -> None:
    with pytest.raises(ValueError, match="strain must be between"):
        Elastic(strained=(COPPER,), strain=0.5)
    with pytest.raises(ValueError, match="references: 'Al fcc' is not one of Cu fcc"):
        Elastic(strained=(COPPER,), references={"Al fcc": (1.0, 1.0, 1.0)})
    with pytest.raises(ValueError, match="Cu fcc occurs twice"):
        Elastic(strained=(COPPER, COPPER))


def test_the_packaged_suite_is_read_by_name(tmp_path: Path) -> None:
    _, config = parse(["evaluate", "--model", "m", "--suites", "elastic"])  # configs/suite/elastic.yaml
    assert isinstance(config.suites[0], Elastic)
    assert config.suites[0].references["Cu fcc"] == (168, 121, 75)
