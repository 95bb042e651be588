"""Pre-flight of fine-tunings, and of plain files: all that is checked of a pretraining, as one types the run itself."""

import json
from multiprocessing.util import get_temp_dir
from pathlib import Path

import pytest

import foundation
from data_pipeline.loading.datasets import Frames
from data_pipeline.store.manifest import Manifest
from foundation.models import EquivariantConfig
from foundation.pretrain import PretrainConfig, pretrain
from foundation.training.fit_config import FitConfig
from foundation.training.probe import Trial
from launch.__main__ import main
from tests.foundation.test_plain_data import written
from tests.launch.test_preflight import checked, failed, measured
from tests.machine import CPU


@pytest.fixture(scope="module")
def start(emt_manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose potential is fine-tuned."""
    out = tmp_path_factory.mktemp("start") / "run"
    model = EquivariantConfig(irreps="4x0e+2x1e", num_blocks=1, max_degree=1, radial_sizes=(8,), readout_channels=4)
    fit = FitConfig(steps=2, lanes=2, edge_budget=1500)
    pretrain(PretrainConfig(data=emt_manifest.root, out=out, fit=fit, model=model, machine=CPU))
    return out


def tuned(start: Path, data: Path, folder: Path, *arguments: str) -> tuple[int, dict[str, dict], dict[str, float]]:
    """Run preflight of a fine-tuning; return exit code, checks by name and numbers."""
    file, out = folder / "report.json", folder / "runs" / "mine"
    words = ["preflight", "finetune", "--start", str(start), "--data", str(data), "--out", str(out)]
    code = main([*words, "--report", str(file), "--accelerator", "cpu", *arguments])
    report = json.loads(file.read_text())
    assert report["exit_code"] == code
    return code, {check["name"]: check for check in report["checks"]}, report["numbers"]


@pytest.mark.parametrize("kind", ["data set", "file"])
def test_a_fine_tuning_is_checked_as_it_is_typed_and_nothing_is_written(
    kind: str, start: Path, emt_manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    get_temp_dir()  # multiprocessing's own, which stays until this process ends, and whose path must be short
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    data, theory = emt_manifest.root, ()
    if kind == "file":
        frames = list(Frames(emt_manifest, "train"))[:20]
        data, theory = written(tmp_path / "mine.extxyz", frames), ("--theory", "effective medium theory")
    code, checks, numbers = tuned(start, data, tmp_path, "--recipe", "quick", *theory)
    assert code == 0
    assert failed(checks) == []
    assert numbers["steps"] == 200
    assert numbers["hours"] >= 200 * numbers["seconds_per_step"] / 3600 > 0
    for name in ("run folder", "start", "lanes", "strategy", "devices", "edge budget", "micro-batches", "memory"):
        assert name in checks
    parameters = sum(each.numel() for each in foundation.load(start).parameters())
    assert numbers["parameters"] == parameters
    assert list(temporary.iterdir()) == []
    assert not (tmp_path / "runs").exists()


@pytest.mark.long
def test_parameters_that_are_frozen_are_not_counted(start: Path, emt_manifest: Manifest, tmp_path: Path) -> None:
    _, _, numbers = tuned(start, emt_manifest.root, tmp_path, "--steps", "2", "--freeze", "all-but-readout")
    readout = [each for name, each in foundation.load(start).named_parameters() if "readout" in name]
    assert numbers["parameters"] == sum(each.numel() for each in readout)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--start", "nowhere"), "nowhere"),
        (("--data", "nothing.xyz"), "nothing.xyz"),
        (("--freeze", "no-such-layer"), "no-such-layer"),
        (("--penalty.weight", "1.0", "--penalty.fisher", "gone"), "gone"),
        (("--rehearsal.data", "lost", "--rehearsal.split", "train"), "lost"),
    ],
)
def test_what_would_stop_a_fine_tuning_is_said(
    arguments: tuple[str, ...], said: str, start: Path, emt_manifest: Manifest, tmp_path: Path
) -> None:
    code, checks, _ = tuned(start, emt_manifest.root, tmp_path, "--steps", "2", *arguments)
    assert code == 2
    assert failed(checks) == ["start and data"]
    assert said in checks["start and data"]["finding"]
    assert checks["run folder"]["verdict"] == "ok"


@pytest.mark.long
def test_rehearsal_is_planned_and_a_missing_protection_is_a_warning(
    start: Path, emt_manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = [Trial(name="", num_graphs=1, num_atoms=9, num_edges=n, seconds=n / 1e3, peak=n) for n in (500, 1000)]
    monkeypatch.setattr("launch.preflight.measure", lambda probe: [measured(tuple(trials))])
    options = ["--steps", "2", "--rehearsal.ratio", "2.0", "--loss", '{"stress": {"weight": 1.0}}']
    data = ["--rehearsal.data", str(emt_manifest.root), "--rehearsal.labels", "start"]
    _, alone, before = tuned(start, emt_manifest.root, tmp_path, "--steps", "2")
    code, checks, numbers = tuned(start, emt_manifest.root, tmp_path, *options, *data)
    assert code == 0
    assert numbers["seconds_per_step"] > 2 * before["seconds_per_step"]
    assert "rehearsal" not in alone
    assert "joint" in checks["rehearsal"]["finding"]
    code, checks, _ = tuned(start, emt_manifest.root, tmp_path, "--recipe", "reewc", "--steps", "2")
    assert code == 0
    assert checks["protection"]["verdict"] == "warn"
    assert "foundation protect" in checks["protection"]["advice"]


@pytest.mark.long
def test_frames_that_fill_a_micro_batch_each_give_a_line_of_memory(
    start: Path, emt_manifest: Manifest, tmp_path: Path
) -> None:
    options = ("--fit.edge_budget", "1", "--fit.lanes", "1", "--oversize", "alone", "--steps", "2")
    _, checks, _ = tuned(start, emt_manifest.root, tmp_path, *options)
    assert "a guess" not in checks["memory"]["finding"]
    sizes = checks["memory"]["finding"].partition("fitted at ")[2].partition(" edges")[0].split(", ")
    assert len(sizes) >= 2


def test_plain_files_of_a_pretraining_are_checked(emt_manifest: Manifest, tmp_path: Path) -> None:
    file = written(tmp_path / "mine.extxyz", list(Frames(emt_manifest, "train"))[:20])
    code, checks, numbers = checked(file, tmp_path)
    assert code == 0
    assert failed(checks) == []
    assert numbers["frames"] > 0
