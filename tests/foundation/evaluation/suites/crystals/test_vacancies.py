"""Vacancies: energies of plain ASE, what does not relax or has no minimum, refusals."""

import ase.build
import numpy as np
import pytest
from ase.calculators.emt import EMT
from ase.optimize import FIRE

from foundation.evaluation.suites.crystals.equation_of_state import Crystal, relaxed
from foundation.evaluation.suites.crystals.relaxation import Convergence
from foundation.evaluation.suites.crystals.vacancies import Vacancies
from foundation.interop.subject import CalculatorSubject
from launch.verbs import parse

COPPER = Crystal(elements=("Cu",), prototype="fcc", lattice_constant=3.6)
EFFECTIVE_MEDIUM = CalculatorSubject(EMT())


def test_formation_energies_are_those_of_plain_ase() -> None:
    suite = Vacancies(emptied=(COPPER,), references={"Cu fcc": 1.07}, least_side=7.0)
    found = suite.run(EFFECTIVE_MEDIUM).quantities
    cell = relaxed(COPPER, EFFECTIVE_MEDIUM)
    assert cell is not None
    atoms = ase.build.bulk("Cu", "fcc", cell.cell[0, 0], cubic=True).repeat(2)
    atoms.calc = EMT()
    perfect = atoms.get_potential_energy()
    del atoms[17]
    atoms.calc = EMT()
    assert len(atoms) == 31
    unrelaxed = atoms.get_potential_energy() - 31 / 32 * perfect
    assert found["Cu fcc: formation energy, unrelaxed"].value == pytest.approx(unrelaxed, abs=1e-9)
    atoms.rattle(0.02, seed=3)
    with FIRE(atoms, logfile=None) as optimizer:
        assert optimizer.run(fmax=0.002, steps=500)
    at_rest = atoms.get_potential_energy() - 31 / 32 * perfect
    assert found["Cu fcc: formation energy"].value == pytest.approx(at_rest, abs=1e-3)
    assert 0.8 < at_rest < unrelaxed - 0.005
    assert found["Cu fcc: formation energy"].reference == 1.07
    assert found["Cu fcc: formation energy"].unit == "eV"
    nudged = found["Cu fcc: energy of the nudged crystal"]
    assert nudged.value == pytest.approx(0.0, abs=0.05)
    assert (nudged.unit, nudged.reference) == ("meV/atom", 0.0)
    assert found == suite.run(EFFECTIVE_MEDIUM).quantities


def test_an_unstable_crystal_has_no_relaxed_vacancy() -> None:
    body_centred = Crystal(elements=("Cu",), prototype="bcc", lattice_constant=2.87)
    found = Vacancies(emptied=(body_centred,), least_side=5.0).run(EFFECTIVE_MEDIUM).quantities
    assert (found["Cu bcc: formation energy, unrelaxed"].value or 0.0) > 0.5
    assert found["Cu bcc: formation energy"].value is None
    assert (found["Cu bcc: energy of the nudged crystal"].value or 0.0) < -1.0


def test_what_does_not_relax_in_time_or_has_no_minimum_has_no_value() -> None:
    hasty = Convergence(max_force=1e-5, max_steps=2)
    found = Vacancies(emptied=(COPPER,), least_side=5.0, convergence=hasty).run(EFFECTIVE_MEDIUM).quantities
    assert (found["Cu fcc: formation energy, unrelaxed"].value or 0.0) > 0.5
    assert found["Cu fcc: formation energy"].value is None
    far = Crystal(elements=("Cu",), prototype="fcc", lattice_constant=5.0)
    lost = Vacancies(emptied=(far,), references={"Cu fcc": 1.07}).run(EFFECTIVE_MEDIUM).quantities
    assert [each.value for each in lost.values()] == [None] * 3
    assert lost["Cu fcc: formation energy"].reference == 1.07


def test_forces_that_are_not_numbers_relax_nothing() -> None:
    class Lost(EMT):
        def calculate(self, *args: object, **options: object) -> None:
            super().calculate(*args, **options)
            self.results["forces"] = np.full_like(self.results["forces"], np.nan)

    found = Vacancies(emptied=(COPPER,), least_side=3.0).run(CalculatorSubject(Lost())).quantities
    assert found["Cu fcc: formation energy"].value is None


def test_impossible_vacancies_are_refused() -> None:
    salt = Crystal(elements=("Na", "Cl"), prototype="rocksalt", lattice_constant=5.64)
    with pytest.raises(ValueError, match="NaCl rocksalt has several elements"):
        Vacancies(emptied=(salt,))
    with pytest.raises(ValueError, match="least_side must be between"):
        Vacancies(emptied=(COPPER,), least_side=0.0)
    with pytest.raises(ValueError, match="references: 'Al fcc' is not one of Cu fcc"):
        Vacancies(emptied=(COPPER,), references={"Al fcc": 0.6})
    with pytest.raises(ValueError, match="max_force must be between"):
        Convergence(max_force=0.0)
    with pytest.raises(ValueError, match="max_steps must be between"):
        Convergence(max_steps=0)


def test_the_packaged_suite_is_read_by_name() -> None:
    _, config = parse(["evaluate", "--model", "m", "--suites", "vacancies"])  # configs/suite/vacancies.yaml
    assert isinstance(config.suites[0], Vacancies)
    assert config.suites[0].references["W bcc"] == 3.23
    _, changed = parse(["evaluate", "--model", "m", "--suites", "{emptied: [], convergence: {max_steps: 7}}"])
    assert changed.suites[0].convergence == Convergence(max_steps=7)
