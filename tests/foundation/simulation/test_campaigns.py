"""Campaigns: files in, table and structures out; kills change nothing; failures are put aside; parts share the work."""

import csv
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase
import ase.io
import numpy as np
import pytest
import torch
from ase.build import bulk, molecule

from data_pipeline.store.manifest import Manifest
from data_pipeline.store.untrusted import CorruptFile
from foundation.checkpoint import save
from foundation.interop.calculator import Calculator
from foundation.md import MdConfig, md
from foundation.models import EquivariantConfig
from foundation.potential import new_potential
from foundation.predict import PredictConfig, predict
from foundation.relax import RelaxConfig, relax
from foundation.simulation.campaign import CampaignConfig, Summary
from launch.__main__ import main

MODEL = EquivariantConfig(irreps="4x0e+2x1e", num_blocks=2, max_degree=1, radial_sizes=(8,), readout_channels=4)
FEW: dict[type[CampaignConfig], dict[str, Any]] = {
    PredictConfig: {},
    RelaxConfig: {"max_steps": 4, "max_force": 1e-3},
    MdConfig: {"steps": 3, "mode": "md", "every": 2},
}
VERBS: dict[type[CampaignConfig], Callable[..., Summary | None]] = {
    PredictConfig: predict,
    RelaxConfig: relax,
    MdConfig: md,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, emt_manifest: Manifest) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model") / "potential"
    save(new_potential(MODEL, {"EMT": emt_manifest.split("train").statistics}), folder, {})
    return folder


def structures(count: int) -> list[ase.Atoms]:
    """Return copper and aluminium, some with a neighbour list that is refused or an element that is unknown."""
    found = []
    for number in range(count):
        atoms = bulk(("Cu", "Al")[number % 2], cubic=True).repeat((1, 1, 1 + number % 3))
        atoms.rattle(0.08, seed=number)
        if number % 10 == 7:
            atoms.positions[1] = atoms.positions[0] + 0.01
        if number % 10 == 4:
            atoms.symbols[0] = "U"
        found.append(atoms)
    return found


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("structures") / "some.extxyz"
    ase.io.write(path, structures(18))
    return path


def configured(kind: type[CampaignConfig], model: Path, data: Path, out: Path, **options: Any) -> CampaignConfig:
    return kind(model=model, data=data, out=out, **({"edge_budget": 500} | FEW[kind] | options))


def table(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((out / "results.csv").read_text().splitlines()))


def test_predictions_are_the_calculators_and_failures_have_their_reason(
    model: Path, file: Path, tmp_path: Path
) -> None:
    found = predict(configured(PredictConfig, model, file, tmp_path / "out"))
    assert found is not None
    rows, written = table(tmp_path / "out"), ase.io.read(tmp_path / "out" / "results.extxyz", ":")
    assert [int(row["number"]) for row in rows] == list(range(18))
    by_number = {atoms.info["number"]: atoms for atoms in written}
    calculator = Calculator(model)
    for number, (row, atoms) in enumerate(zip(rows, ase.io.read(file, ":"), strict=True)):
        assert row["id"] == f"some.extxyz:{number}"
        if number % 10 == 7:
            assert "two atoms at the same place" in row["error"]
        elif number % 10 == 4:
            assert row["error"] == "the potential does not know U"
        else:
            assert row["error"] == ""
            atoms.calc = calculator
            assert float(row["energy"]) == pytest.approx(atoms.get_potential_energy(), abs=1e-9)
            assert np.abs(by_number[number].get_forces() - atoms.get_forces()).max() < 1e-7
            assert np.abs(by_number[number].get_stress() - atoms.get_stress()).max() < 1e-7
            assert np.abs(by_number[number].positions - atoms.positions).max() < 1e-7
    assert set(by_number) == {number for number in range(18) if number % 10 not in (4, 7)}


def in_a_process_that_is_killed(run: Callable[[], object], seconds: float) -> bool:
    """Run in a forked process that is killed after some time; return whether it ended before."""
    child = os.fork()
    if child == 0:
        try:
            run()
        finally:
            os._exit(0)
    time.sleep(seconds)
    ended, _ = os.waitpid(child, os.WNOHANG)
    if ended:
        return True
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


@pytest.mark.parametrize(
    "kind", [PredictConfig, *(pytest.param(kind, marks=pytest.mark.long) for kind in (RelaxConfig, MdConfig))]
)
def test_twenty_kills_give_the_same_table_as_none(
    kind: type[CampaignConfig], model: Path, file: Path, tmp_path: Path
) -> None:
    once, often = (configured(kind, model, file, tmp_path / name) for name in ("once", "often"))
    began = time.monotonic()
    assert VERBS[kind](once) is not None
    seconds = time.monotonic() - began
    random = np.random.default_rng(0)
    kills = 0
    for _ in range(20):
        kills += not in_a_process_that_is_killed(lambda: VERBS[kind](often), random.uniform(0.1, 0.6) * seconds / 3)
        for part in (tmp_path / "often").glob("parts/*.jsonl"):
            # as a kill in the middle of a write leaves it
            if random.uniform() < 0.3:
                part.write_bytes(part.read_bytes()[: -int(random.integers(1, 40))])
    assert kills >= 5
    assert VERBS[kind](often) is not None
    if kind is RelaxConfig:  # its batches depend on what is left, and rounding on the batch
        for mine, other in zip(table(tmp_path / "often"), table(tmp_path / "once"), strict=True):
            assert (mine["steps"], mine["error"]) == (other["steps"], other["error"])
            assert mine["energy"] == other["energy"] or abs(float(mine["energy"]) - float(other["energy"])) < 1e-10
        return
    for name in ("results.csv", "results.extxyz"):
        assert (tmp_path / "often" / name).read_bytes() == (tmp_path / "once" / name).read_bytes()
    if kind is MdConfig:
        names = sorted(path.name for path in (tmp_path / "once" / "trajectories").iterdir())
        assert names == sorted(path.name for path in (tmp_path / "often" / "trajectories").iterdir())
        assert len(names) == 14


def test_what_is_done_is_not_done_again(model: Path, file: Path, tmp_path: Path) -> None:
    config = configured(PredictConfig, model, file, tmp_path / "out")
    predict(config)
    (part,) = (tmp_path / "out" / "parts").iterdir()
    before = part.read_bytes()
    lines = before.splitlines(keepends=True)
    assert len(lines) > 3
    part.write_bytes(b"".join(lines[:2]))
    assert predict(config) is not None
    assert part.read_bytes() == before


def test_parts_and_processes_share_the_work_and_the_last_writes_the_results(
    model: Path, file: Path, tmp_path: Path
) -> None:
    predict(configured(PredictConfig, model, file, tmp_path / "whole"))
    for part in ("2/3", "1/3"):
        assert predict(configured(PredictConfig, model, file, tmp_path / "parts", part=part)) is None
        assert not (tmp_path / "parts" / "results.csv").exists()
    assert predict(configured(PredictConfig, model, file, tmp_path / "parts", part="3/3")) is not None
    assert predict(configured(PredictConfig, model, file, tmp_path / "processes", processes=2)) is not None
    for name in ("parts", "processes"):
        for mine, other in zip(table(tmp_path / name), table(tmp_path / "whole"), strict=True):
            assert (mine["id"], mine["error"]) == (other["id"], other["error"])
            assert mine["energy"] == other["energy"] or abs(float(mine["energy"]) - float(other["energy"])) < 1e-10
    assert len(list((tmp_path / "processes" / "parts").iterdir())) == 2


def test_a_folder_goes_on_with_its_own_settings_only(model: Path, file: Path, tmp_path: Path) -> None:
    relax(configured(RelaxConfig, model, file, tmp_path / "out"))
    with pytest.raises(ValueError, match=r"options\.max_steps was 4 and is 5"):
        relax(configured(RelaxConfig, model, file, tmp_path / "out", max_steps=5))
    with pytest.raises(ValueError, match="verb was relax and is predict"):
        predict(configured(PredictConfig, model, file, tmp_path / "out"))
    relax(configured(RelaxConfig, model, file, tmp_path / "out", part="1/2"))
    (tmp_path / "out" / "parts" / "1-of-1.jsonl").write_text(json.dumps([{"number": "one", "id": ""}]) + "\n")
    with pytest.raises(CorruptFile, match="not a line of results"):
        relax(configured(RelaxConfig, model, file, tmp_path / "out"))


def test_too_large_structures_are_put_aside(model: Path, file: Path, tmp_path: Path) -> None:
    found = predict(configured(PredictConfig, model, file, tmp_path / "out", max_atoms=8))
    assert found is not None
    assert {each.error for each in found.outcomes if len(each.atomic_numbers) > 8} == {
        "too large: 12 atoms, and max_atoms is 8"
    }


def test_dynamics_at_a_pressure_needs_a_crystal(model: Path, tmp_path: Path) -> None:
    ase.io.write(tmp_path / "mixed.extxyz", [bulk("Cu", cubic=True), molecule("H2O")])
    config = configured(MdConfig, model, tmp_path / "mixed.extxyz", tmp_path / "out", ensemble="npt")
    found = md(config)
    assert found is not None
    assert [each.error for each in found.outcomes] == [None, "npt needs a cell that repeats in all directions"]


def test_data_sets_and_several_formats_are_read(model: Path, emt_manifest: Manifest, tmp_path: Path) -> None:
    for name in ("one.cif", "POSCAR"):
        ase.io.write(tmp_path / name, bulk("Cu", cubic=True))
    data = (tmp_path / "one.cif", tmp_path / "POSCAR", Path(emt_manifest.place))
    found = predict(PredictConfig(model=model, data=data, out=tmp_path / "out"))
    assert found is not None
    assert len(found.outcomes) == 122
    assert not [each.error for each in found.outcomes if each.error]


def test_the_command_says_what_it_found(
    model: Path, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", "--model", str(model), "--data", str(file), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "structures: 18" in said
    assert "put aside: 4" in said
    assert f"results: {tmp_path / 'out' / 'results.csv'}" in said
