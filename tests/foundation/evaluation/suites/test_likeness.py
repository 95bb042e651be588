"""Likeness of dynamics: the same potential is alike, another is less so, an unstable one is found, a faster one too."""

import importlib
import time
from pathlib import Path
from typing import ClassVar

import ase
import ase.io
import pytest
from ase.build import bulk
from ase.calculators.calculator import Calculator
from ase.units import kB

from data_pipeline.store.untrusted import CorruptFile
from foundation.evaluate import UNFINISHED, EvaluateConfig, judge
from foundation.evaluation.suites.likeness import Likeness
from foundation.interop.subject import CalculatorSubject
from foundation.reports.suite_report import SuitesRecord

HERE = "tests.foundation.evaluation.suites.test_likeness"
LABEL = "copper, 900 K"


class Springs(Calculator):
    """Atoms on springs of 3 eV/Å² to where they were first."""

    implemented_properties: ClassVar[list[str]] = ["energy", "forces"]
    strength = 3.0

    def calculate(self, atoms: ase.Atoms, *_: object) -> None:
        if not hasattr(self, "sites"):
            self.sites = atoms.positions.copy()
        moved = atoms.positions - self.sites
        self.results = {"energy": self.strength / 2 * float((moved**2).sum()), "forces": -self.strength * moved}


class Softer(Springs):
    """At the same temperature, atoms move five times as far."""

    strength = 0.12


class Slow(Springs):
    """A third of a millisecond more of work for a step."""

    def calculate(self, *args: object) -> None:
        super().calculate(*args)
        began = time.process_time()
        while time.process_time() - began < 3e-4:
            pass


class Exploding(Springs):
    """Springs that grow stiff."""

    def calculate(self, *args: object) -> None:
        self.strength *= 1.02
        super().calculate(*args)


class Few(Springs):
    """Springs for four atoms, which count their calculations."""

    calls: ClassVar[list[int]] = []

    def calculate(self, atoms: ase.Atoms, *args: object) -> None:
        self.calls.append(len(atoms))
        if len(atoms) > 4:
            raise ValueError("too many atoms")
        super().calculate(atoms, *args)


class Tearing(Springs):
    """Springs that refuse more than four atoms once they have moved."""

    def calculate(self, atoms: ase.Atoms, *args: object) -> None:
        if len(atoms) != len(getattr(self, "sites", ())):
            self.sites = atoms.positions.copy()
        super().calculate(atoms, *args)
        if len(atoms) > 4 and self.results["energy"] > 0.1:
            raise ValueError("a molecule flew apart")


@pytest.fixture
def copper(tmp_path: Path) -> Path:
    ase.io.write(tmp_path / "copper.xyz", bulk("Cu", cubic=True))
    return tmp_path / "copper.xyz"


def suite(copper: Path, **options: object) -> Likeness:
    sizes = {"length": 0.6, "compared": 0.3, "equilibration": 0.1, "least_length": 5.0, "time_step": 2.0}
    alike = {"alike": f"{HERE}:Springs"}
    return Likeness(starts=(copper,), temperatures=(900.0,), **{**sizes, **alike, **options})


def test_a_potential_is_like_itself_and_more_than_another_is(copper: Path) -> None:
    same = suite(copper).run(CalculatorSubject(Springs())).quantities
    again = suite(copper).run(CalculatorSubject(Springs())).quantities
    other = suite(copper).run(CalculatorSubject(Softer())).quantities
    pairs = f"{LABEL}: likeness of pair distances"
    assert same[f"{LABEL}: share of the trajectory"].value == 1.0
    assert 0.8 < same[pairs].value < 1.0
    # two halves of one trajectory are as like as two trajectories are, and shorter
    assert abs(same[pairs].value - same[pairs].reference) < 0.15
    assert other[pairs].value < same[pairs].value - 0.05
    timed = "copper: steps in a CPU second over the other's"
    assert {name: each for name, each in same.items() if name != timed} == {
        name: each for name, each in again.items() if name != timed
    }


def test_a_cell_that_cannot_be_timed_is_refused_before_the_dynamics(copper: Path) -> None:
    with pytest.raises(ValueError, match="too many atoms"):
        suite(copper, least_length=3.0, timed_length=7.0).run(CalculatorSubject(Few()))
    assert Few.calls == [32]


def test_a_cell_that_is_lost_in_the_timing_leaves_the_other_findings(
    copper: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = suite(copper, least_length=3.0, timed_length=7.0).run(CalculatorSubject(Tearing())).quantities
    assert found["copper: steps in a CPU second over the other's"].value is None
    assert found[f"{LABEL}: share of the trajectory"].value == 1.0
    assert "was lost: a molecule flew apart" in caplog.text


def test_elements_and_pairs_of_them_are_compared(tmp_path: Path) -> None:
    ase.io.write(tmp_path / "salt.xyz", bulk("NaCl", "rocksalt", a=5.6, cubic=True))
    # half a radian of a vibration from frame to frame, and many of them
    options = {
        "displacements": ("Na",),
        "distances": ("Na-Cl", "Na-Na"),
        "length": 12.0,
        "compared": 4.0,
        "least_length": 9.0,
    }
    found = suite(tmp_path / "salt.xyz", **options).run(CalculatorSubject(Springs()))
    softer = suite(tmp_path / "salt.xyz", **options).run(CalculatorSubject(Softer()))
    label = "salt, 900 K"
    for pair in ("pair", "Na-Cl", "Na-Na"):
        name = f"{label}: likeness of {pair} distances"
        assert found.quantities[name].value > softer.quantities[name].value + 0.02
    distances = found.charts[f"Radial distribution of Na-Cl: {label}"].curves
    assert max(zip(distances[""].y, distances[""].x, strict=True))[1] == pytest.approx(2.8, abs=0.3)
    assert [each.reference for each in distances.values()] == [False, True]
    # on a spring: 2 * 3 kT / k, of which a Langevin thermostat's centre of mass takes a part
    moved = found.charts[f"Mean squared displacement of Na: {label}"].curves
    for curve in moved.values():
        assert (curve.x[0], curve.y[0]) == (0.0, pytest.approx(0.0, abs=1e-12))
        assert curve.y[-1] == pytest.approx(6 * 900 * kB / Springs.strength, rel=0.3)
    further = softer.charts[f"Mean squared displacement of Na: {label}"].curves
    assert further[""].y[-1] > 10 * further[f"{HERE}:Springs"].y[-1]
    low, high = found.quantities[f"{label}: diffusivity of Na"].interval
    assert low < found.quantities[f"{label}: diffusivity of Na"].value < high


def test_elements_that_are_not_there_are_named(copper: Path) -> None:
    with pytest.raises(ValueError, match="there is no Na in copper"):
        suite(copper, displacements=("Na",)).run(CalculatorSubject(Springs()))
    with pytest.raises(ValueError, match="'Xx' is not the symbol"):
        suite(copper, displacements=("Xx",))
    with pytest.raises(ValueError, match="written like Li-O, not 'Cu'"):
        suite(copper, distances=("Cu",))


def test_speed_is_over_the_others(copper: Path) -> None:
    found = suite(copper).run(CalculatorSubject(Slow())).quantities["copper: steps in a CPU second over the other's"]
    assert 0.02 < found.value < 0.7


def test_a_trajectory_that_is_lost_has_a_share_and_no_likeness(copper: Path) -> None:
    found = suite(copper, length=2.0, equilibration=0.0).run(CalculatorSubject(Exploding())).quantities
    assert found[f"{LABEL}: share of the trajectory"].value < 1.0
    assert f"{LABEL}: likeness of pair distances" not in found


def test_a_cell_is_periodic_and_long_enough(copper: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="length >= compared"):
        suite(copper, length=0.1)
    with pytest.raises(ValueError, match="at least 20 steps"):
        suite(copper, compared=0.03)
    ase.io.write(tmp_path / "free.xyz", ase.Atoms("Cu2", [(0, 0, 0), (0, 0, 2.4)]))
    with pytest.raises(ValueError, match="free does not repeat"):
        suite(tmp_path / "free.xyz").run(CalculatorSubject(Springs()))
    assert suite(copper).elements() == {29}


class Counted(Springs):
    """Springs that count their calculations, and can break off a command."""

    calls: ClassVar[dict[str, int]] = {}
    last: ClassVar[dict[str, int]] = {}

    def calculate(self, *args: object) -> None:
        name = type(self).__name__
        self.calls[name] = self.calls.get(name, 0) + 1
        if self.calls[name] > self.last.get(name, 10**9):
            raise KeyboardInterrupt
        super().calculate(*args)


class Other(Counted):
    """The same by another name."""


def test_trajectories_of_an_interrupted_command_are_not_run_again(copper: Path, tmp_path: Path) -> None:
    counted = importlib.import_module(HERE).Counted  # of the module that judge() imports

    def judged(out: Path) -> SuitesRecord:
        counted.calls.clear()
        one = suite(copper, alike=f"{HERE}:Other")
        return judge(EvaluateConfig(calculator=f"{HERE}:Counted", suites=(one,), out=out))

    whole, out = judged(tmp_path / "whole"), tmp_path / "out"
    calls = counted.calls.copy()
    counted.last["Other"] = 100  # in the second trajectory
    with pytest.raises(KeyboardInterrupt):
        judged(out)
    counted.last.clear()
    again = judged(out)
    assert counted.calls["Other"] == calls["Other"]
    assert counted.calls["Counted"] <= calls["Counted"] - 350  # 0.1 and 0.6 ps in steps of 2 fs
    for found in (whole, again):
        del found.suites["likeness"].quantities["copper: steps in a CPU second over the other's"]
    assert again.suites == whole.suites
    assert not (out / UNFINISHED).exists()


def test_a_damaged_trajectory_is_named(copper: Path, tmp_path: Path) -> None:
    subject = CalculatorSubject(Springs())
    subject.kept = tmp_path / "kept"
    suite(copper).run(subject)
    for file in subject.kept.iterdir():
        file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(CorruptFile, match=r"\.safetensors: damaged \(.*\); remove it"):
        suite(copper).run(subject)
