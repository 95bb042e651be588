"""Diffusion: a crystal that does not diffuse, references, lost trajectories, refusals."""

from pathlib import Path
from typing import Any

import ase
import ase.io
import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT

from foundation.evaluation.suites import Findings
from foundation.evaluation.suites.diffusion import Condition, Diffusion
from foundation.interop.subject import CalculatorSubject
from launch.verbs import parse

SHORT = {"trajectories": 2, "length": 0.2, "equilibration": 0.02, "sample_every": 2, "lag": 0.02, "blocks": 2}


class Lost(Calculator):
    """Forces that are not numbers."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012 (as ASE declares it)

    def calculate(
        self, atoms: ase.Atoms | None = None, properties: Any = ("energy",), system_changes: Any = all_changes
    ) -> None:
        super().calculate(atoms, properties, system_changes)
        assert atoms is not None
        self.results = {"energy": 0.0, "forces": np.full((len(atoms), 3), np.nan)}


@pytest.fixture
def start(tmp_path: Path) -> Path:
    """Copper with one atom of aluminium in 32."""
    atoms = bulk("Cu", "fcc", 3.6, cubic=True).repeat(2)
    atoms.symbols[0] = "Al"
    ase.io.write(tmp_path / "start.extxyz", atoms)
    return tmp_path / "start.extxyz"


def found(start: Path, *conditions: Condition, subject: CalculatorSubject | None = None, **options: Any) -> Findings:
    suite = Diffusion(diffusing="Al", start=start, conditions=conditions, **{**SHORT, **options})
    return suite.run(subject or CalculatorSubject(EMT()))


def test_a_crystal_does_not_diffuse(start: Path) -> None:
    condition = Condition(temperature=300.0, diffusivity=2e-4)
    findings = found(start, condition)
    quantities = findings.quantities
    value = quantities["300 K: diffusivity"].value
    assert value is not None
    assert abs(value) < 2e-5
    interval = quantities["300 K: diffusivity"].interval
    assert interval is not None
    assert interval[0] < value < interval[1]
    assert quantities["300 K: stable trajectories"].value == 1.0
    assert quantities["300 K: framework atoms displaced"].value == 0.0
    signed = quantities["mean percentage error of the diffusivity"].value
    assert signed == pytest.approx(100 * (value / 2e-4 - 1))
    assert quantities["mean absolute percentage error of the diffusivity"].value == pytest.approx(abs(signed))
    assert findings == found(start, condition)
    curve = findings.charts["Mean squared displacement at 300 K"].curves[""]
    assert curve.x[-1] == pytest.approx(0.1)
    # vibrations: <u²> of order 0.01 Å², a plateau
    assert 0.001 < (curve.y[-1] or 0.0) < 0.3


def test_references_are_a_table_and_a_trajectory(start: Path, tmp_path: Path) -> None:
    (tmp_path / "table.dat").write_text("".join(f"{10 * n} {0.6 * n}\n" for n in range(50)))
    atoms = ase.io.read(start)
    assert isinstance(atoms, ase.Atoms)
    frames = []
    for seed in range(6):
        frames.append(atoms.copy())
        frames[-1].rattle(0.05, seed=seed)
        frames[-1].wrap()
    ase.io.write(tmp_path / "frames.extxyz", frames)
    condition = Condition(temperature=300.0, msd=tmp_path / "table.dat", frames=tmp_path / "frames.extxyz")
    findings = found(start, condition)
    # 0.6 Å² in 20 fs
    assert findings.quantities["300 K: diffusivity"].reference == pytest.approx(1e-4 * 0.6 / 0.02 / 6)
    assert findings.quantities["300 K: framework atoms displaced"].reference == 0.0
    likeness = findings.quantities["300 K: likeness of the framework's pair distances"].value
    assert likeness is not None
    assert 0.3 < likeness <= 1.0
    compared = findings.quantities["300 K: mean squared displacement at 0.02 ps"]
    assert compared.reference == pytest.approx(6 * 0.05**2, rel=1.0)
    curves = findings.charts["Mean squared displacement at 300 K"].curves
    assert set(curves) == {"", "reference frames", "reference table"}
    assert curves["reference table"].reference


def test_lost_trajectories_are_counted_and_have_no_diffusivity(start: Path) -> None:
    findings = found(start, Condition(temperature=300.0), subject=CalculatorSubject(Lost()))
    assert findings.quantities["300 K: stable trajectories"].value == 0.0
    assert findings.quantities["300 K: diffusivity"].value is None
    assert not findings.charts


def test_elements_are_those_of_the_structure(start: Path) -> None:
    assert Diffusion(diffusing="Al", start=start, conditions=(Condition(temperature=300.0),)).elements() == {13, 29}


def test_wrong_options_and_files_are_refused(start: Path, tmp_path: Path) -> None:
    hot = Condition(temperature=300.0)
    for options, words in (
        ({"diffusing": "Li"}, "there is no Li in"),
        ({"length": 0.01}, "too few"),
        ({"lag": 0.0}, "lag must be positive"),
        ({"trajectories": 0}, "trajectories must be at least 1"),
        ({"diffusing": "X"}, "not the symbol of an element"),
        ({"conditions": ()}, "each once"),
        ({"conditions": (hot, hot)}, "each once"),
    ):
        with pytest.raises(ValueError, match=words):
            Diffusion(**{"diffusing": "Al", "start": start, "conditions": (hot,), **SHORT, **options}).elements()
    for options, words in (
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": 1.0, "diffusivity": 0.0}, "positive"),
    ):
        with pytest.raises(ValueError, match=words):
            Condition(**options)
    with pytest.raises(FileNotFoundError, match="missing"):
        Diffusion(diffusing="Al", start=tmp_path / "missing.xyz", conditions=(hot,)).elements()
    ase.io.write(tmp_path / "other.extxyz", [bulk("Cu", cubic=True)] * 3)
    with pytest.raises(ValueError, match=r"other\.extxyz: its atoms or its cell"):
        found(start, Condition(temperature=300.0, frames=tmp_path / "other.extxyz"))
    ase.io.write(tmp_path / "molecule.xyz", ase.Atoms("AlCu", positions=[[0, 0, 0], [0, 0, 2]]))
    with pytest.raises(ValueError, match="must be periodic"):
        found(tmp_path / "molecule.xyz", hot)


def test_the_packaged_suite_is_lithium_at_two_temperatures(real_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, config = parse(["evaluate", "--model", "m", "--suites", "diffusion"])  # configs/suite/diffusion.yaml
    suite = config.suites[0]
    assert isinstance(suite, Diffusion)
    assert [each.temperature for each in suite.conditions] == [600.0, 1200.0]
    monkeypatch.setenv("FOUNDATION_DATA", str(real_data))
    assert suite.elements() == {3, 15, 16, 17}
    monkeypatch.delenv("FOUNDATION_DATA")
    with pytest.raises(FileNotFoundError, match=r"FOUNDATION_DATA.*: the environment variable in this path is not set"):
        suite.elements()
