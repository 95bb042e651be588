"""Runs on plain files: built into the run folder, kept for going on, and removed with a run that is refused."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

import foundation
from data_pipeline.loading.datasets import Frames
from data_pipeline.plain_files import ReadConfig
from data_pipeline.sources.atoms import to_atoms
from data_pipeline.store.manifest import Manifest, open_manifest
from data_pipeline.structure import Structure
from foundation import datasets
from foundation.datasets import DatasetConfig, PlainFiles, with_plain_built
from foundation.evaluate import EvaluateConfig, evaluate
from foundation.finetune import FinetuneConfig, finetune
from foundation.finetuning.forgetting import ForgettingConfig, HeldOutConfig
from foundation.inspect import InspectConfig, inspect
from foundation.models import EquivariantConfig
from foundation.pretrain import PretrainConfig, pretrain
from foundation.training.fit_config import FitConfig
from tests.machine import CPU

MODEL = EquivariantConfig(irreps="4x0e+2x1e", num_blocks=1, max_degree=1, radial_sizes=(8,), readout_channels=4)
THEORY = "effective medium theory"
"""Level of theory of the start."""
FIT = FitConfig(steps=2, lanes=2, edge_budget=3000, validate_every=2, checkpoint_every=1, log_every=1)


def written(path: Path, frames: list[Structure]) -> Path:
    """Write labelled frames as extxyz."""
    atoms = []
    for frame in frames:
        atoms.append(to_atoms(frame))
        atoms[-1].calc = SinglePointCalculator(atoms[-1], energy=frame.energy, forces=frame.forces, stress=frame.stress)
    write(path, atoms, format="extxyz")
    return path


@pytest.fixture(scope="module")
def frames(emt_manifest: Manifest) -> list[Structure]:
    return list(Frames(emt_manifest, "train"))[:24]


@pytest.fixture
def file(tmp_path: Path, frames: list[Structure]) -> Path:
    return written(tmp_path / "alloys.extxyz", frames)


@pytest.fixture(scope="module")
def start(emt_manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("start") / "run"
    pretrain(PretrainConfig(data=emt_manifest.root, out=out, model=MODEL, fit=FIT, machine=CPU))
    return out


def tuning(start: Path, data: datasets.Data, out: Path, **options: object) -> FinetuneConfig:
    given = {"theory": THEORY, "fit": FIT, "machine": CPU, "references": "keep"} | options
    return FinetuneConfig(start=start, data=data, out=out, **given)  # type: ignore[arg-type]


def data_of(run: Path) -> list[Path]:
    return [Path(each["path"]) for each in json.loads((run / "run.json").read_text())["data"]]


def test_a_file_is_built_into_the_run_folder_and_the_record_names_it(start: Path, file: Path, tmp_path: Path) -> None:
    run = tmp_path / "mine"
    finetune(tuning(start, file, run))
    (built,) = data_of(run)
    assert built.parent == run / "data"
    assert built.name.startswith("alloys-")
    manifest = open_manifest(built)
    assert sum(split.statistics.num_frames for split in manifest.splits.values()) == 24
    assert manifest.provenance.licence == "not stated"
    # the record alone starts the same run
    again = tmp_path / "again"
    finetune(tuning(start, (DatasetConfig(path=built, theory=THEORY),), again))
    weights = [(each / "potential" / "model.safetensors").read_bytes() for each in (run, again)]
    assert weights[0] == weights[1]


def test_files_for_validation_and_evaluation(start: Path, frames: list[Structure], tmp_path: Path) -> None:
    files = {
        name: written(tmp_path / f"{name}.xyz", part)
        for name, part in {"train": frames[:12], "val": frames[12:15], "test": frames[15:20]}.items()
    }
    run = tmp_path / "mine"
    finetune(tuning(start, files["train"], run, val=(files["val"],), test=(files["test"],)))
    splits = open_manifest(data_of(run)[0]).splits
    assert {name: split.statistics.num_frames for name, split in splits.items()} == {"train": 12, "val": 3, "test": 5}


def test_held_out_files_are_measured_whole(start: Path, file: Path, frames: list[Structure], tmp_path: Path) -> None:
    other = written(tmp_path / "other.xyz", frames[:7])
    run = tmp_path / "mine"
    kept = ForgettingConfig(transfer=(HeldOutConfig(path=other, theory=THEORY),))
    small = written(tmp_path / "small.xyz", frames[7:])
    finetune(tuning(start, small, run, forgetting=kept))
    sets = json.loads((run / "forgetting" / "forgetting.json").read_text())["sets"]
    assert sets["other"]["num_frames"] == 7


def test_a_refused_run_leaves_no_folder(start: Path, file: Path, tmp_path: Path) -> None:
    small = dataclasses.replace(FIT, edge_budget=10)
    with pytest.raises(ValueError, match="edge_budget"):
        finetune(tuning(start, file, tmp_path / "mine", fit=small))
    assert not (tmp_path / "mine").exists()


def test_a_refused_replacement_leaves_the_older_run_as_it_was(start: Path, file: Path, tmp_path: Path) -> None:
    run = tmp_path / "mine"
    finetune(tuning(start, file, run))
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    other = written(tmp_path / "others.xyz", list(Frames(open_manifest(data_of(run)[0]), "train"))[:11])
    with pytest.raises(ValueError, match="edge_budget"):
        finetune(tuning(start, other, run, overwrite=True, fit=dataclasses.replace(FIT, edge_budget=10)))
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    finetune(tuning(start, other, run, overwrite=True))
    assert [path.name for path in (run / "data").iterdir()] == [data_of(run)[0].name]
    assert data_of(run)[0].name.startswith("others-")


@pytest.mark.parametrize("change", ["grown", "gone"])
def test_a_resumed_run_goes_on_with_its_own_copy(
    start: Path, file: Path, frames: list[Structure], tmp_path: Path, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    longer = dataclasses.replace(FIT, steps=4, validate_every=4)
    finetune(tuning(start, file, whole, fit=longer))
    finetune(tuning(start, file, stopped, fit=longer))
    for path in sorted((stopped / "checkpoints").glob("step=*"))[4:]:
        path.unlink()
    for name in ("potential", "forgetting"):
        (stopped / name).rename(tmp_path / f"{name}-aside")
    if change == "gone":
        file.unlink()
    else:
        written(file, frames[:20])
    finetune(tuning(start, file, stopped, fit=dataclasses.replace(longer, resume=True)))
    assert "changed since the run began" in caplog.text
    weights = [(each / "potential" / "model.safetensors").read_bytes() for each in (whole, stopped)]
    assert weights[0] == weights[1]


def test_evaluation_and_inspection_of_a_file_leave_nothing_but_the_report(
    start: Path, file: Path, tmp_path: Path, frames: list[Structure]
) -> None:
    before = {path.name for path in tmp_path.iterdir()}
    found = evaluate(EvaluateConfig(model=start, data=file, out=tmp_path / "report", theory=THEORY))
    assert found.errors["num_frames"] == len(frames)
    manifest, _ = inspect(InspectConfig(data=(file,)))
    assert manifest.splits["train"].statistics.num_frames == len(frames)
    assert {path.name for path in tmp_path.iterdir()} == before | {"report"}


def test_several_processes_do_not_build(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = PlainFiles(folder=tmp_path / "data", read=ReadConfig(), cutoff=5.0)
    monkeypatch.setenv("SLURM_NTASKS", "4")
    with pytest.raises(ValueError, match=r"alloys\.extxyz is not a data set yet.*foundation build --data"):
        with_plain_built(file, plain)
    monkeypatch.setenv("SLURM_NTASKS", "1")
    built = with_plain_built(file, plain)
    monkeypatch.setenv("SLURM_NTASKS", "4")
    assert with_plain_built(file, plain) == built  # made already


def test_data_sets_stay_as_they_are_given(emt_manifest: Manifest, file: Path, tmp_path: Path) -> None:
    plain = PlainFiles(folder=tmp_path / "data", read=ReadConfig(), cutoff=5.0)
    assert with_plain_built(emt_manifest.root, plain) == emt_manifest.root
    with pytest.raises(ValueError, match="--val and --test go with plain files"):
        with_plain_built(emt_manifest.root, plain, val=(file,))
    item = DatasetConfig(path=emt_manifest.root, repeat=0.5)
    both = with_plain_built((item, file), plain, theory=THEORY)
    assert isinstance(both, tuple)
    assert [each.theory for each in both if isinstance(each, DatasetConfig)] == [THEORY, THEORY]
    assert dataclasses.replace(item, theory=THEORY) in both
    assert not any(np.isnan(structure.energy) for structure in Frames(open_manifest(emt_manifest.root), "train"))


def test_the_result_is_a_potential(start: Path, file: Path, tmp_path: Path, frames: list[Structure]) -> None:
    finetune(tuning(start, (file, file), tmp_path / "mine"))
    atoms = to_atoms(frames[0])
    atoms.calc = foundation.Calculator(tmp_path / "mine", theory=THEORY)
    assert np.isfinite(atoms.get_potential_energy())


def test_the_folder_of_a_data_set_has_its_name(tmp_path: Path, frames: list[Structure]) -> None:
    for folder in ("one", "other"):
        (tmp_path / folder).mkdir()
        written(tmp_path / folder / "a.xyz", frames[:12])
    plain = PlainFiles(folder=tmp_path / "data", read=ReadConfig(), cutoff=5.0)
    for words, name in (([tmp_path / "one", tmp_path / "other"], tmp_path.name), ([tmp_path / "one"], "one")):
        built = plain.build(words)
        assert built.name.rpartition("-")[0] == open_manifest(built).provenance.name == name


def test_a_held_out_file_with_frames_that_are_trained_on_is_refused(
    start: Path, file: Path, frames: list[Structure], tmp_path: Path
) -> None:
    other = written(tmp_path / "kept.xyz", frames[:3])
    kept = ForgettingConfig(retained=(HeldOutConfig(path=other, theory=THEORY),))
    with pytest.raises(
        ValueError, match=r"alloys \(train\) is trained on and kept \(test\) is held out, .* = kept\.xyz:"
    ):
        finetune(tuning(start, file, tmp_path / "mine", forgetting=kept))
    assert not (tmp_path / "mine").exists()
