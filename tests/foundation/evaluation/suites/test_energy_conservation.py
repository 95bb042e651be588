"""Conservation of energy: forces with an energy and with a curl, lost trajectories, two float types, refusals."""

from typing import Any

import ase
import numpy as np
import pytest
from ase import units
from ase.build import bulk
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from ase.md.verlet import VelocityVerlet

from foundation.evaluation.intervals import common_slope
from foundation.evaluation.suites.crystals.equation_of_state import Crystal
from foundation.evaluation.suites.dynamics import thermal_momenta
from foundation.evaluation.suites.energy_conservation import EnergyConservation
from foundation.interop.subject import CalculatorSubject
from launch.verbs import parse

COPPER = Crystal(elements=("Cu",), prototype="fcc", lattice_constant=3.6)
SHORT = {"length": 0.2, "equilibration": 0.05, "supercell": 1, "blocks": 5}


class Curl(EMT):
    """Effective medium, and a force around an axis through each atom's site, which belongs to no energy."""

    strength = 0.7
    """Force per displacement [eV/Å²]: circular motion one way gains energy, and doubles it in about 0.15 ps."""

    def calculate(self, atoms: ase.Atoms, *args: Any) -> None:
        super().calculate(atoms, *args)
        sites = np.round(atoms.get_scaled_positions(wrap=False) * 2) / 2 @ np.asarray(atoms.cell)
        away = atoms.positions - sites
        around = self.strength * np.stack([-away[:, 1], away[:, 0], 0 * away[:, 0]], axis=1)
        self.results["forces"] = self.results["forces"] + around - around.mean(axis=0)


class Lost(EMT):
    """Effective medium whose forces are not numbers when atoms have moved."""

    def calculate(self, atoms: ase.Atoms, *args: Any) -> None:
        super().calculate(atoms, *args)
        if np.abs(self.results["forces"]).max() > 1e-6:
            self.results["forces"] = np.full((len(atoms), 3), np.nan)


class Both(CalculatorSubject):
    """A subject with two float types, one of which is not exact."""

    def exact_calculator(self) -> Calculator:  # type: ignore[override]
        return EMT()


def found(calculator: Calculator, **options: Any) -> dict[str, Any]:
    suite = EnergyConservation(microcanonical=(COPPER,), **{**SHORT, **options})
    return suite.run(CalculatorSubject(calculator)).quantities


def test_forces_of_an_energy_do_not_drift_and_their_fluctuation_is_quadratic_in_the_time_step() -> None:
    quantities = found(EMT(), time_steps=(2.0, 4.0))
    assert quantities["Cu fcc: exponent of the fluctuation over the time step"].value == pytest.approx(2.0, abs=0.15)
    fine = quantities["Cu fcc, 2 fs: drift"]
    assert abs(fine.value) < 0.2
    assert fine.interval[0] < 0 < fine.interval[1]
    assert (fine.unit, fine.reference) == ("meV/atom/ps", 0.0)
    assert 0 < quantities["Cu fcc, 2 fs: fluctuation"].value < 0.5
    assert quantities["Cu fcc, 2 fs: speed of the centre of mass over the thermal speed"].value < 1e-12
    assert quantities["Cu fcc, 2 fs: stable trajectories"].value == 1.0


def test_the_energy_is_that_of_plain_dynamics() -> None:
    suite = EnergyConservation(microcanonical=(COPPER,), trajectories=1, equilibration=0.0, length=0.1, blocks=5)
    assert suite.supercell == 2
    findings = suite.run(CalculatorSubject(EMT()))
    side = 3.6
    for _ in range(6):  # Newton's method for the minimum, from energies alone
        energies = [bulk_energy(side + shift) for shift in (-1e-3, 0.0, 1e-3)]
        side -= 1e-3 * (energies[2] - energies[0]) / 2 / (energies[2] - 2 * energies[1] + energies[0])
    atoms = bulk("Cu", "fcc", side, cubic=True).repeat(2)
    atoms.calc = EMT()
    # twice the temperature: half of it goes into the bonds
    atoms.set_momenta(thermal_momenta(atoms, 600.0, np.random.default_rng(0)))
    assert atoms.get_temperature() == pytest.approx(600.0, rel=0.2)
    with VelocityVerlet(atoms, 2 * units.fs) as dynamics:
        energies = [atoms.get_total_energy() for _ in dynamics.irun(50)]
    assert atoms.get_temperature() == pytest.approx(300.0, rel=0.35)
    changes = 1e3 * (np.array(energies) - energies[0]) / 32
    curve = findings.charts["Total energy of Cu fcc"].curves["Cu fcc"]
    assert curve.x[-1] == pytest.approx(0.1)
    assert curve.y == pytest.approx(changes, abs=0.02 * np.ptp(changes))


def bulk_energy(side: float) -> float:
    atoms = bulk("Cu", "fcc", side, cubic=True)
    atoms.calc = EMT()
    return atoms.get_potential_energy()


def test_forces_of_no_energy_are_found_out_and_both_float_types_are_judged() -> None:
    suite = EnergyConservation(microcanonical=(COPPER,), **{**SHORT, "length": 0.4})
    findings = suite.run(Both(Curl()))
    drift = findings.quantities["Cu fcc, float32: drift"]
    assert drift.value > drift.interval[0] > 10.0
    assert abs(findings.quantities["Cu fcc, float64: drift"].value) < 0.5
    assert list(findings.charts["Total energy of Cu fcc"].curves) == ["Cu fcc, float32", "Cu fcc, float64"]


def test_the_same_subject_has_the_same_findings() -> None:
    assert found(EMT(), length=0.06) == found(EMT(), length=0.06)


def test_a_lost_trajectory_and_a_crystal_without_a_minimum_have_no_drift() -> None:
    lost = found(Lost())
    assert lost["Cu fcc: drift"].value is None
    assert lost["Cu fcc: stable trajectories"].value == 0.0
    far = Crystal(elements=("Cu",), prototype="fcc", lattice_constant=5.0)
    suite = EnergyConservation(microcanonical=(far,), **SHORT)
    findings = suite.run(CalculatorSubject(EMT()))
    assert [each.value for each in findings.quantities.values()] == [None] * 4
    assert findings.charts == {}


def test_the_slope_of_parallel_lines_covers_the_true_one() -> None:
    random, hits = np.random.default_rng(0), 0
    for _ in range(400):
        slope, (low, high) = common_slope(np.arange(6.0), 2.0 * np.arange(6.0) + random.standard_normal((2, 6)))
        assert low < slope < high
        hits += low < 2.0 < high
    # 95 % of 400, with a binomial standard error of 4.4
    assert 366 <= hits <= 394


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": 0.0}, "temperature must be between"),
        ({"time_steps": ()}, "one or more are needed"),
        ({"time_steps": (1.0, 1.0)}, "each once"),
        ({"time_steps": (1000.0,)}, "time_steps must be between"),
        ({"length": 0.02}, "too few steps"),
        ({"equilibration": -1.0}, "must not be negative"),
        ({"blocks": 2}, "blocks must be at least 3"),
        ({"supercell": 0}, "supercell must be at least 1"),
        ({"microcanonical": (COPPER, COPPER)}, "occurs twice"),
    ],
)
def test_impossible_dynamics_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        EnergyConservation(**{"microcanonical": (COPPER,), **options})


def test_the_packaged_suite_is_read_by_name() -> None:
    _, config = parse(["evaluate", "--model", "m", "--suites", "nve"])  # configs/suite/nve.yaml
    assert isinstance(config.suites[0], EnergyConservation)
    assert config.suites[0].time_steps == (2.0,)
    assert config.suites[0].elements() == {11, 17, 29}
