"""From one's own files to a potential, by the command line as a user types it: fine-tune, evaluate, export, run."""

import json
from collections.abc import Callable
from pathlib import Path

import ase.db
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from ase.md.verlet import VelocityVerlet

import foundation
from data_pipeline.store.manifest import Manifest, open_manifest
from launch.__main__ import main
from tests.data_pipeline.plain_files.written import energy_of, forces_of, labelled, named, outcar, unlabelled, xyz

NETWORK = (
    "--model.irreps 4x0e+2x1e --model.num_blocks 1 --model.max_degree 1 --model.radial_sizes 8 "
    "--model.readout_channels 4"
).split()
HERE = ["--machine.accelerator", "cpu", "--machine.num_workers", "0"]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run of a small potential that knows silicon and copper at the level PBE, made from files as well."""
    folder = tmp_path_factory.mktemp("start")
    xyz(folder / "silicon.xyz", labelled(24))
    for number in range(8):
        outcar(folder / "copper" / f"OUTCAR_{number}", first=3 * number)
    files = [str(folder / "silicon.xyz"), str(folder / "copper")]
    words = ["pretrain", "--data", *files, "--out", str(folder / "run"), "--read.level_of_theory", "PBE"]
    of_energies = "--loss.forces.weight 0 --loss.stress.weight 0 --optim.learning_rate 0.01 --optim.ema_decay 0"
    assert main([*words, *NETWORK, *HERE, *of_energies.split(), "--steps", "60"]) == 0
    return folder / "run"


def of_mace(folder: Path) -> list[str]:
    """Write frames with MACE's keys."""
    keys = {"energy": "REF_energy", "forces": "REF_forces", "stress": "REF_stress"}
    return [str(xyz(folder / "train.xyz", named(20, keys, first=30)))]


def ten_outcars(folder: Path) -> list[str]:
    """Write ten calculations of VASP."""
    for number in range(10):
        outcar(folder / "calc" / str(number) / "OUTCAR", 2, first=30 + 2 * number)
    return [str(folder / "calc" / "**" / "OUTCAR")]


def database(folder: Path) -> list[str]:
    """Write a database of ASE."""
    with ase.db.connect(folder / "mine.db") as rows:
        for atoms in labelled(20, first=30):
            rows.write(atoms)
    return [str(folder / "mine.db")]


def structure_list(folder: Path) -> list[str]:
    """Write SevenNet's list of calculations, of which the second gives every other step."""
    one, other = outcar(folder / "OUTCAR_1", 12, first=30), outcar(folder / "OUTCAR_2", 16, first=50)
    text = f"[copper]\n{one} :\n[more]\n{other} ::2\n"
    (folder / "structure_list").write_text(text)
    return [str(folder / "structure_list")]


def another_zero(folder: Path) -> list[str]:
    """Write frames whose energies are 5 eV an atom higher."""
    frames = labelled(20, first=30)
    for number, atoms in enumerate(frames, 30):
        atoms.calc = SinglePointCalculator(
            atoms, energy=energy_of(number) + 5.0 * len(atoms), forces=forces_of(number, len(atoms))
        )
    return [str(xyz(folder / "shifted.xyz", frames))]


def without_stress(folder: Path) -> list[str]:
    """Write frames of molecular dynamics without stress."""
    return [str(xyz(folder / "md.extxyz", labelled(20, first=30, stress=False)))]


def three_frames(folder: Path) -> list[str]:
    """Write three frames."""
    return [str(xyz(folder / "three.xyz", labelled(3, first=30)))]


KINDS = {
    each.__name__: (each, frames, stresses)
    for each, frames, stresses in (
        (of_mace, 20, 20),
        (ten_outcars, 20, 20),
        (database, 20, 20),
        (structure_list, 20, 20),
        (another_zero, 20, 0),
        (without_stress, 20, 0),
        (three_frames, 3, 3),
    )
}


def built_by(run: Path) -> Manifest:
    """Return the data set that a run has built."""
    (item,) = json.loads((run / "run.json").read_text())["data"]
    return open_manifest(Path(item["path"]))


@pytest.mark.parametrize("kind", KINDS)
def test_three_commands_make_a_potential_of_it(
    kind: str, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write: Callable[[Path], list[str]]
    write, frames, stresses = KINDS[kind]
    monkeypatch.chdir(tmp_path)
    files = write(tmp_path)
    assert main(["finetune", "--start", str(start), "--data", *files, "--out", "mine", "--steps", "3", *HERE]) == 0
    manifest = built_by(Path("mine"))
    sums = [split.statistics for split in manifest.splits.values()]
    assert sum(each.num_frames for each in sums) == frames
    assert sum(each.num_stress_frames for each in sums) == stresses
    assert sum(each.num_force_frames for each in sums) == frames
    moved = json.loads(Path("mine/potential/config.json").read_text())["provenance"].get("references")
    assert (moved is not None) == (kind == "another_zero")
    if moved is not None:
        (level,) = moved.values()
        assert level["elements"]["Si"]["moved"] == pytest.approx(5.0, abs=0.3)
    assert main(["evaluate", "--model", "mine", "--data", *files]) == 0
    assert json.loads(Path("mine/report/evaluation.json").read_text())["errors"]["num_frames"] == frames
    assert main(["export", "--run", "mine", "--private", "true", "--out", "release"]) == 0
    atoms = unlabelled(1, "Cu" if manifest.splits["train"].statistics.elements == (29,) else "Si")[0]
    atoms.calc = foundation.Calculator("release", dtype="float32")
    VelocityVerlet(atoms, timestep=0.1).run(2)
    assert np.isfinite(atoms.get_potential_energy())
    assert "Traceback" not in caplog.text


def test_energies_that_composition_does_not_explain_are_refused(
    start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = labelled(20, first=30)
    for number, atoms in enumerate(frames, 30):
        energy = energy_of(number) + 12.0 * (number % 3)
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces_of(number, len(atoms)))
    file = xyz(tmp_path / "other.xyz", frames)
    words = ["finetune", "--start", str(start), "--data", str(file), "--out", str(tmp_path / "mine"), *HERE]
    assert main(words) == 2
    assert "energ" in capsys.readouterr().err
    assert not (tmp_path / "mine").exists()


def test_one_system_is_pretrained_from_its_calculations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ten_outcars(tmp_path)
    assert main(["pretrain", "--data", "calc/**/OUTCAR", "--out", "small", *NETWORK, *HERE, "--epochs", "1"]) == 0
    assert built_by(Path("small")).provenance.level_of_theory == "PBE, VASP, 520 eV"
    assert foundation.load("small").theories == ("PBE, VASP, 520 eV",)
