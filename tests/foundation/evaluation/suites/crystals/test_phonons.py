"""Phonons: those of ASE's own program and of springs, imaginary modes, heat capacities, and refusals."""

from collections.abc import Sequence
from pathlib import Path

import ase.build
import ase.data
import ase.units
import numpy as np
import pytest
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from ase.phonons import Phonons as AsePhonons

from data_pipeline.structure import Structure
from foundation.evaluation.suites.crystals.equation_of_state import Crystal, relaxed
from foundation.evaluation.suites.crystals.phonons import Phonons, frequencies, heat_capacity
from foundation.evaluation.suites.suite import Predicted
from foundation.interop.subject import CalculatorSubject
from launch.verbs import parse

COPPER = Crystal(elements=("Cu",), prototype="fcc", lattice_constant=3.6)
EFFECTIVE_MEDIUM = CalculatorSubject(EMT())


class Springs(CalculatorSubject):
    """Springs along the axes between the atoms of a simple cubic lattice, made of caesium chloride without centres."""

    def __init__(self, stiffness: float, side: float) -> None:
        super().__init__(Calculator())
        self.stiffness, self.side = stiffness, side

    def predict(self, structures: Sequence[Structure]) -> list[Predicted]:
        return [self.predicted(structure) for structure in structures]

    def predicted(self, structure: Structure) -> Predicted:
        # every coordinate is bound to that of the six neighbours, so waves along all axes add up
        times = round(structure.cell[0, 0] / self.side)
        sites = structure.positions[::2].reshape(times, times, times, 3)
        grid = np.stack(np.meshgrid(*(np.arange(times),) * 3, indexing="ij"), axis=-1) * self.side
        away = sites - grid
        pull = sum(np.roll(away, shift, axis) - away for axis in range(3) for shift in (1, -1))
        forces = np.zeros((structure.num_atoms, 3))
        forces[::2] = self.stiffness * np.asarray(pull).reshape(-1, 3)
        return Predicted(energy=0.0, forces=forces, stress=np.zeros((3, 3)))


def test_waves_of_springs_have_their_dispersion() -> None:
    crystal = Crystal(elements=("Cs", "Cl"), prototype="caesium chloride", lattice_constant=4.0)
    found = frequencies(crystal.with_side(4.0), Springs(2.0, 4.0), 4, 0.01)
    mass = ase.data.atomic_masses[55]
    phase = 2 * np.pi * np.arange(4) / 4
    sines = np.sin(phase / 2) ** 2
    sums = (sines[:, None, None] + sines[:, None] + sines).ravel()
    omega = np.sqrt(4 * 2.0 / mass * sums) * 1e3 * ase.units.fs / (2 * np.pi)
    # three polarizations; chlorine is free and its frequencies are zero
    expected = np.sort(np.concatenate([np.repeat(omega, 3), np.zeros(3 * 4**3)]))[3:]
    assert found == pytest.approx(expected, abs=1e-5)


def test_modes_are_those_of_ase(tmp_path: Path) -> None:
    cell = relaxed(COPPER, EFFECTIVE_MEDIUM)
    assert cell is not None
    found = frequencies(cell, EFFECTIVE_MEDIUM, 2, 0.02)
    atoms = ase.build.bulk("Cu", "fcc", a=cell.cell[0, 0], cubic=True)
    phonons = AsePhonons(atoms, EMT(), supercell=(2, 2, 2), delta=0.02, name=str(tmp_path / "phonons"))
    phonons.run()
    phonons.read(acoustic=True, symmetrize=0)
    points = [(i / 2, j / 2, k / 2) for i in range(2) for j in range(2) for k in range(2)]
    theirs = np.sort(np.concatenate([phonons.band_structure([point])[0] for point in points]))
    theirs = theirs / 4.135667696e-3
    assert found[-40:] == pytest.approx(theirs[-40:], rel=2e-3)


def test_a_stable_and_an_unstable_crystal_are_told_apart() -> None:
    body_centred = Crystal(elements=("Cu",), prototype="bcc", lattice_constant=2.87)
    references = {"Cu fcc": (7.4, None)}
    suite = Phonons(vibrating=(COPPER, body_centred), references=references, supercell=2)
    findings = suite.run(EFFECTIVE_MEDIUM)
    found = findings.quantities
    assert found["Cu fcc: share of imaginary modes"].value == 0
    assert found["Cu fcc: highest frequency"].value == pytest.approx(7.5, abs=1.0)
    assert found["Cu fcc: highest frequency"].reference == 7.4
    assert found["Cu fcc: heat capacity at 300 K"].value == pytest.approx(23.4, abs=0.2)
    assert (found["Cu bcc: share of imaginary modes"].value or 0) > 0.02
    assert (found["Cu bcc: lowest frequency"].value or 0) < -0.5
    assert found["Cu bcc: heat capacity at 300 K"].value is None
    curve = findings.charts["Density of states of Cu fcc"].curves[""]
    assert np.trapezoid(curve.y, curve.x) == pytest.approx(1.0, abs=1e-3)


def test_a_crystal_without_a_minimum_is_undetermined() -> None:
    far = Crystal(elements=("Cu",), prototype="fcc", lattice_constant=5.0)
    findings = Phonons(vibrating=(far,), references={"Cu fcc": (7.4, 24.4)}).run(EFFECTIVE_MEDIUM)
    assert [each.value for each in findings.quantities.values()] == [None] * 4
    assert [each.reference for each in findings.quantities.values()] == [0.0, None, 7.4, 24.4]
    assert findings.charts == {}


def test_heat_capacities_are_those_of_einstein_and_of_dulong_and_petit() -> None:
    modes = np.full(30000, 10.0)
    x = 4.135667696e-3 * 10.0 / (ase.units.kB * 300.0)
    einstein = 3 * 8.314462618 * x**2 * np.exp(x) / (np.exp(x) - 1) ** 2
    assert heat_capacity(modes, 300.0) == pytest.approx(einstein, rel=1e-3)
    assert heat_capacity(modes, 1e5) == pytest.approx(3 * 8.314462618, rel=1e-5)
    assert heat_capacity(modes, 1.0) < 0.01


def test_impossible_phonons_are_refused() -> None:
    with pytest.raises(ValueError, match="supercell must be between"):
        Phonons(vibrating=(COPPER,), supercell=0)
    with pytest.raises(ValueError, match="temperature must be between"):
        Phonons(vibrating=(COPPER,), temperature=0.0)
    with pytest.raises(ValueError, match="displacement must be between"):
        Phonons(vibrating=(COPPER,), displacement=1.0)
    with pytest.raises(ValueError, match="references: 'Al fcc' is not one of Cu fcc"):
        Phonons(vibrating=(COPPER,), references={"Al fcc": (1.0, 1.0)})


def test_the_packaged_suite_is_read_by_name() -> None:
    _, config = parse(["evaluate", "--model", "m", "--suites", "phonons"])  # configs/suite/phonons.yaml
    assert isinstance(config.suites[0], Phonons)
    assert config.suites[0].references["Cu fcc"] == (None, 24.4)
