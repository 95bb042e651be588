"""The list of engines, and a potential that is checked in each of them."""

import json
import math
from pathlib import Path

import pytest
import torch

import foundation.engines
from foundation.checkpoint import save
from foundation.engines import ENGINES, Check, EnginesConfig, engines
from foundation.interop import in_engines
from foundation.models import SymmetryFunctionsConfig
from foundation.potential import Potential
from launch.__main__ import main
from tests.foundation.engine.test_library import ELEMENTS, NETWORKS, potential_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(potential_of(NETWORKS["even-2-blocks"]), tmp_path / "potential", {})
    return tmp_path / "potential"


def test_every_engine_computes_what_the_potential_does(folder: Path, tmp_path: Path) -> None:
    checks = engines(EnginesConfig(check=folder, theory="other", out=tmp_path / "checks.json"))
    assert {check.engine for check in checks} == {*ENGINES} - {"i-PI"}
    assert {check.verdict for check in checks} == {"ok"}
    assert [each["verdict"] for each in json.loads((tmp_path / "checks.json").read_text())] == ["ok"] * len(checks)


def test_an_engine_that_computes_something_else_is_seen(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = in_engines.computed_in_lammps

    def shifted(*arguments: object) -> list:
        return [(energy, forces + 1e-6) for energy, forces in real(*arguments)]

    monkeypatch.setattr(in_engines, "computed_in_lammps", shifted)
    assert main(["engines", "--check", str(folder), "--theory", "one"]) == 1
    (row, *_) = [line for line in capsys.readouterr().out.splitlines() if "1 process" in line]
    assert "differs" in row


def test_what_is_not_installed_or_cannot_run_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(foundation.engines.Engine, "version", None)
    assert main(["engines"]) == 0
    assert "pip install ipi" in capsys.readouterr().out
    torch.manual_seed(0)
    network = SymmetryFunctionsConfig(radial_functions="default").network(ELEMENTS)
    save(Potential(network, ELEMENTS, ("PBE",)), tmp_path / "potential", {})
    config = EnginesConfig(check=tmp_path / "potential")
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

    monkeypatch.setattr(in_engines, "computed_in_lammps", broken)
    assert main(["engines", "--check", str(folder), "--theory", "one"]) == 1
    assert "no reason" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [2e-9, math.nan])
def test_a_difference_is_more_than_rounding(wrong: float) -> None:
    for energy, force in ((0.0, wrong), (wrong, 0.0)):
        assert Check(engine="ASE", way="", tolerance=1e-9, energy=energy, force=force).bad


def test_the_tested_versions_are_the_pinned_ones() -> None:
    pinned = (Path(__file__).parents[2] / "constraints.txt").read_text().splitlines()
    assert {f"{engine.distribution}=={engine.tested}" for engine in ENGINES.values()} <= set(pinned)
