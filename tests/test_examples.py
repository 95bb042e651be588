"""The examples run as they are written, one after another in an empty folder, and do what they say."""

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase.units import kJ, mol
from openmm import unit

import foundation
from data_pipeline.graphs.batch import GraphBatch
from foundation.models import EnergyModel
from foundation.potential import Potential

EXAMPLES = sorted((Path(__file__).resolve().parents[1] / "examples").glob("*.py"))


@pytest.fixture(scope="module")
def empty_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("examples")


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_as_written(
    example: Path, empty_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(empty_folder)
    monkeypatch.setattr("sys.argv", [str(example)])
    names = runpy.run_path(str(example), run_name="__main__")
    name = example.stem.split("_")[1].replace("-", "_")
    globals()[f"_check_{name}"](names, capsys.readouterr().out)


def _check_predict(names: dict[str, Any], printed: str) -> None:
    assert "89 elements, cutoff 5.0 Å, trained on PBE" in printed
    assert 5.6 < names["atoms"].cell.lengths()[0] < 5.75


def _check_train(names: dict[str, Any], printed: str) -> None:
    assert abs(names["atoms"].get_potential_energy() - names["labelled"]) < 0.3
    assert (names["FOLDER"] / "train" / "release" / "README.md").is_file()


def _check_finetune(names: dict[str, Any], printed: str) -> None:
    sets = names["report"].sets
    assert [row.role for row in sets.values()] == ["target", "retained"]
    assert sets["my-frames"].change["energy_mae"].value < -0.5
    assert abs(sets["emt-alloys"].change["force_mae"].value) < 0.2
    assert (names["FOLDER"] / "finetune" / "forgetting" / "index.html").is_file()


def _check_torch_sim(names: dict[str, Any], printed: str) -> None:
    assert names["lengths"] == pytest.approx([4.04, 3.61, 3.51], abs=0.03)
    assert torch.isfinite(names["moved"].energy).all()
    assert "Al4: 4.0" in printed


def _check_openmm(names: dict[str, Any], printed: str) -> None:
    atoms = names["atoms"]
    atoms.calc = foundation.Calculator("sevennet-0")
    found = names["start"].getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole) * kJ / mol
    assert found == pytest.approx(atoms.get_potential_energy(), abs=1e-9)
    assert "kJ/mol" in printed


def _check_i_pi(names: dict[str, Any], printed: str) -> None:
    assert names["code"] == 0
    out = Path("simulation.out").read_text()
    assert out in printed
    rows = np.array([line.split() for line in out.splitlines() if not line.startswith("#")], float)
    assert rows[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert np.ptp(rows[:, 1]) < 1e-3 * len(names["atoms"]), "the conserved energy [eV]"


def _check_lammps(names: dict[str, Any], printed: str) -> None:
    atoms, energies = names["atoms"], names["energies"]
    atoms.calc = foundation.Calculator("sevennet-0", mode="md", engine="compiled")
    (first,) = [line for line in printed.splitlines() if line.split()[:1] == ["0"]]
    assert float(first.split()[1]) == pytest.approx(atoms.get_potential_energy(), abs=1e-3)
    assert np.ptp(energies) < 1e-3 * len(atoms)


def _check_add(names: dict[str, Any], printed: str) -> None:
    assert names["errors"][-1] < 0.5 * names["errors"][0]
    potential, batch = names["potential"].eval(), names["batch"]
    network = potential.network
    assert network.config.num_parameters(2) == sum(each.numel() for each in network.parameters())
    # the contract: what is added leaves the predictions of the rest
    for changed, elements, theories in (
        (network.with_elements((13, 29, 79), (0, 0, 1)), (13, 29, 79), ("EMT",)),
        (network.with_theories(torch.tensor([[1.0], [1.0]], dtype=torch.float64)), (29, 79), ("EMT", "other")),
    ):
        _assert_same(potential, changed, elements, theories, batch)


def _assert_same(
    potential: Potential, network: EnergyModel, elements: tuple[int, ...], theories: tuple[str, ...], batch: GraphBatch
) -> None:
    changed = Potential(network, elements, theories)
    torch.testing.assert_close(changed.eval()(batch).energy, potential(batch).energy)
