"""The list of engines, and a potential that is checked in each of them."""

import copy
import json
import math
from pathlib import Path

import ase
import ase.io
import numpy as np
import pytest
import torch

import foundation.engines
from foundation.checkpoint import GOLDEN, save, write_checksums
from foundation.engines import ENGINES, Check, EnginesConfig, drift_of, engines
from foundation.golden import golden_record
from foundation.interop.answers import Answer, Motion
from foundation.interop.calculator import to_structure
from foundation.interop.in_lammps import InLammps
from foundation.models import SymmetryFunctionsConfig
from foundation.potential import Potential
from launch.__main__ import main
from tests.foundation.engine.test_library import ELEMENTS, NETWORKS, crystal, potential_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(potential_of(NETWORKS["even-2-blocks"]), tmp_path / "potential", {})
    return tmp_path / "potential"


@pytest.fixture
def release(folder: Path) -> Path:
    """A potential with golden structures: a crystal and a chain at one level of theory, and a chain at the other."""
    chain = ase.Atoms("MgOCu", [[0, 0, 0], [0, 0.5, 2], [1.9, 0.2, 0.1]], cell=[0, 0, 4.1], pbc=[False, False, True])
    potential, asked = potential_of(NETWORKS["even-2-blocks"]), ((chain, "one"), (crystal(), "other"), (chain, "other"))
    write_golden(folder, [golden_record(potential, to_structure(atoms), theory) for atoms, theory in asked])
    return folder


def write_golden(folder: Path, golden: list[dict]) -> None:
    (folder / GOLDEN).write_text(json.dumps(golden))
    write_checksums(folder)


@pytest.mark.long
def test_every_engine_computes_and_moves_the_golden_structures(
    release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ase.io.write(tmp_path / "MgO.extxyz", crystal())
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- engines -->\nold\n<!-- end of engines -->\nafter\n")
    monkeypatch.setattr(foundation.engines, "DRIFT", math.inf)
    checks = engines(
        EnginesConfig(
            check=release,
            theory="other",
            out=tmp_path / "checks.json",
            docs=page,
            drift=(tmp_path / "MgO.extxyz",),
            steps=100,
            femtoseconds=0.1,
            temperature=30.0,
        )
    )
    assert {check.engine for check in checks} == {*ENGINES}
    assert {(check.verdict, check.reference) for check in checks} == {("ok", "golden.json")}
    assert {check.engine for check in checks if check.stress is None} == {"OpenMM", "i-PI"}
    assert [each["verdict"] for each in json.loads((tmp_path / "checks.json").read_text())] == ["ok"] * len(checks)
    # other velocities in i-PI; OpenMM's are half a step earlier
    drifts = {(each.engine, each.way): each.drift["MgO"] for each in checks if each.drift}
    assert {engine for engine, _ in drifts} == {*ENGINES}
    alike = [value for (engine, _), value in drifts.items() if engine not in ("OpenMM", "i-PI")]
    assert np.ptp(alike) < 0.02 * np.abs(alike).max() + 1e-3
    lines = page.read_text().splitlines()
    assert (lines[0], lines[-1], "old" in lines) == ("before", "after", False)
    assert len([line for line in lines if line.startswith("| LAMMPS | ")]) == 4


def test_a_golden_value_that_is_another_is_seen_in_the_engine(release: Path) -> None:
    golden = json.loads((release / GOLDEN).read_text())
    for name in ("energy", "forces", "stress"):
        changed = copy.deepcopy(golden)
        changed[1][name] = (np.array(changed[1][name]) + 1e-6).tolist()
        write_golden(release, changed)
        checks = engines(EnginesConfig(check=release, theory="other", only=("torch-sim",)))
        assert [each.verdict for each in checks] == ["differs", "ok"]


def test_the_drift_is_the_slope_of_the_energy_of_an_atom_after_the_beginning() -> None:
    times = np.arange(101) * 5 * 2.0 / 1000
    energies = 8 * (-3 + 2e-4 * times)
    energies[:20] += 5
    motion = Motion(steps=500, every=5, femtoseconds=2.0)
    assert drift_of(energies.tolist(), 8, motion) == pytest.approx(2e-4, rel=1e-9)
    with pytest.raises(ValueError, match="not finite"):
        drift_of([math.nan] * 20, 8, motion)
    check = Check(engine="ASE", way="", tolerance=1e-9, energy=0.0, force=0.0, drift={"Si": -2e-5})
    assert (check.verdict, check.bad) == ("drifts", True)


def test_options_that_make_no_sense_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no engine Lammps"):
        EnginesConfig(only=("Lammps",))
    with pytest.raises(ValueError, match="steps must be at least 100"):
        EnginesConfig(steps=5)
    (tmp_path / "page.md").write_text("no lines")
    with pytest.raises(ValueError, match="add them"):
        engines(EnginesConfig(check=folder, theory="one", only=("ASE",), docs=tmp_path / "page.md"))


def test_an_engine_that_computes_something_else_is_seen(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = InLammps.compute

    def shifted(lammps: InLammps, crystals: list[ase.Atoms]) -> list[Answer]:
        return [each._replace(forces=each.forces + 1e-6) for each in real(lammps, crystals)]

    monkeypatch.setattr(InLammps, "compute", shifted)
    monkeypatch.setattr(foundation.engines, "CHECKED", 1)
    assert main(["engines", "--check", str(folder), "--theory", "one", "--only", "[LAMMPS]"]) == 1
    assert "differs" in capsys.readouterr().out


def test_what_is_not_installed_or_cannot_run_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(foundation.engines.Engine, "version", None)
    assert main(["engines"]) == 0
    assert "pip install ipi" in capsys.readouterr().out
    torch.manual_seed(0)
    network = SymmetryFunctionsConfig(radial_functions="default").network(ELEMENTS)
    save(Potential(network, ELEMENTS, ("PBE",)), tmp_path / "potential", {})
    config = EnginesConfig(check=tmp_path / "potential", only=("LAMMPS", "torch-sim"))
    assert {check.verdict.partition(":")[0] for check in engines(config)} == {"not installed"}
    monkeypatch.undo()
    verdicts = {(check.engine, check.way): check.verdict for check in engines(config)}
    assert "symmetry_functions cannot be compiled" in verdicts["LAMMPS", "1 process, float64"]
    assert verdicts["torch-sim", "mode precise"] == "ok"


def test_an_engine_that_fails_is_bad(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("LAMMPS fails: no reason")

    monkeypatch.setattr(InLammps, "compute", broken)
    assert main(["engines", "--check", str(folder), "--theory", "one", "--only", "[LAMMPS]"]) == 1
    assert "reason" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [2e-9, math.nan])
def test_a_difference_is_more_than_rounding(wrong: float) -> None:
    for energy, force in ((0.0, wrong), (wrong, 0.0)):
        assert Check(engine="ASE", way="", tolerance=1e-9, energy=energy, force=force).bad


def test_the_tested_versions_are_the_pinned_ones() -> None:
    pinned = (Path(__file__).parents[2] / "constraints.txt").read_text().splitlines()
    assert {f"{engine.distribution}=={engine.tested}" for engine in ENGINES.values()} <= set(pinned)
