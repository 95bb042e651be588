"""fit(): resuming is exact, and what does not fit is refused before or at the first step."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.store.manifest import Manifest
from foundation.checkpoint import load
from foundation.models import EquivariantConfig
from foundation.pretrain import PretrainConfig, pretrain
from foundation.training.fault_tolerance.reading import newest_checkpoint
from foundation.training.fit_config import FitConfig
from foundation.training.module import TrainingModule
from foundation.training.monitoring.metrics_file import read_rows
from foundation.training.optim import OptimConfig
from tests.machine import CPU

MODEL = EquivariantConfig(irreps="4x0e+2x1e", num_blocks=1, max_degree=1, radial_sizes=(8,), readout_channels=4)
FIT = FitConfig(
    steps=8,
    lanes=2,
    edge_budget=1500,
    validate_every=3,
    checkpoint_every=2,
    keep_checkpoints=2,
    log_every=2,
)


def config(manifest: Manifest, out: Path, **changes: object) -> PretrainConfig:
    return PretrainConfig(
        data=manifest.root,
        out=out,
        model=MODEL,
        optim=OptimConfig(warmup_steps=2, ema_decay=0.9),
        fit=dataclasses.replace(FIT, **changes),
        machine=CPU,
    )


def state(run: Path) -> dict:
    return torch.load(newest_checkpoint(run).path, weights_only=True)


def best(run: Path) -> str:
    return json.loads((run / "checkpoints" / "best.json").read_text())["file"]


@pytest.fixture(scope="module")
def undisturbed(emt_manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    pretrain(config(emt_manifest, out))
    return out


def test_a_radial_table_trains_to_almost_the_same_weights(
    undisturbed: Path, emt_manifest: Manifest, tmp_path: Path
) -> None:
    exact = load(undisturbed)
    pretrain(config(emt_manifest, tmp_path / "run", radial_table=64))
    ours = load(tmp_path / "run")
    expected, found = (torch.cat([p.detach().flatten() for p in potential.parameters()]) for potential in (exact, ours))
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    # weights may round to the same after so few steps, losses do not: the table was there
    losses = [[row.get("train/loss") for row in read_rows(run / "logs")] for run in (undisturbed, tmp_path / "run")]
    assert losses[0] != losses[1]


class Crash(RuntimeError):
    """Stands for whatever kills a run."""


@pytest.mark.parametrize("crash_at", [1, 4, 5])
def test_a_crashed_run_resumes_to_the_same_bits(
    crash_at: int, undisturbed: Path, emt_manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step_as_written = TrainingModule.training_step

    def step_that_crashes(module: TrainingModule, batches: list, step: int) -> None:
        if step == crash_at:
            raise Crash
        step_as_written(module, batches, step)

    monkeypatch.setattr(TrainingModule, "training_step", step_that_crashes)
    with pytest.raises(Crash):
        pretrain(config(emt_manifest, tmp_path / "run"))
    assert newest_checkpoint(tmp_path / "run").path.name == f"step={crash_at:09d}.ckpt"
    monkeypatch.setattr(TrainingModule, "training_step", step_as_written)
    pretrain(config(emt_manifest, tmp_path / "run", resume=True))
    expected, found = state(undisturbed), state(tmp_path / "run")
    for key in ("state_dict", "current_model_state"):
        for name, tensor in expected[key].items():
            assert torch.equal(tensor, found[key][name]), f"{key} {name}"


def test_a_crash_inside_validation_saves_the_weights_in_training(
    undisturbed: Path, emt_manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_written = TrainingModule.validation_step

    def crash(module: TrainingModule, batch: object, number: int) -> None:
        raise Crash

    monkeypatch.setattr(TrainingModule, "validation_step", crash)
    with pytest.raises(Crash):
        pretrain(config(emt_manifest, tmp_path / "run"))
    monkeypatch.setattr(TrainingModule, "validation_step", as_written)
    pretrain(config(emt_manifest, tmp_path / "run", resume=True))
    expected, found = state(undisturbed), state(tmp_path / "run")
    for name, tensor in expected["current_model_state"].items():
        assert torch.equal(tensor, found["current_model_state"][name]), name


def test_a_run_that_was_stopped_after_its_last_step_still_releases_the_moving_average(
    undisturbed: Path, emt_manifest: Manifest, tmp_path: Path
) -> None:
    shutil.copytree(undisturbed, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "potential")
    pretrain(config(emt_manifest, tmp_path / "run", resume=True))
    found = load(tmp_path / "run").state_dict()
    assert all(torch.equal(value, found[name]) for name, value in load(undisturbed).state_dict().items())


def test_only_the_newest_checkpoints_are_kept(undisturbed: Path) -> None:
    names = sorted(path.name for path in (undisturbed / "checkpoints").iterdir())
    kept = {"step=000000006.ckpt", "step=000000008.ckpt", best(undisturbed)}
    assert set(names) == {"best.json", *kept, *(f"{name}.sha256" for name in kept)}


def test_the_released_weights_are_the_moving_average(undisturbed: Path) -> None:
    from foundation.checkpoint import load

    potential, checkpoint = load(undisturbed), state(undisturbed)
    averaged = {
        name.removeprefix("potential."): value
        for name, value in checkpoint["state_dict"].items()
        if name.startswith("potential.")
    }
    for name, parameter in potential.named_parameters():
        assert torch.equal(parameter, averaged[name])
    moved = [
        n
        for n, p in potential.named_parameters()
        if not torch.equal(p, checkpoint["current_model_state"]["potential." + n])
    ]
    assert moved


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"seed": 1}, "seed: 0 in the checkpoint, 1 now"),
        ({"edge_budget": 1600}, "edge_budget: 1500 in the checkpoint, 1600 now"),
        ({"lanes": 4}, "lanes: 2 in the checkpoint, 4 now"),
    ],
)
def test_another_stream_is_not_resumed(
    change: dict, difference: str, undisturbed: Path, emt_manifest: Manifest, tmp_path: Path
) -> None:
    shutil.copytree(undisturbed, tmp_path / "run")
    with pytest.raises(ValueError, match=rf"cannot resume with another stream of data\. {difference}\. Restore"):
        pretrain(config(emt_manifest, tmp_path / "run", resume=True, **change))


def test_a_length_of_other_rates_is_not_resumed(undisturbed: Path, emt_manifest: Manifest, tmp_path: Path) -> None:
    shutil.copytree(undisturbed, tmp_path / "run")
    with pytest.raises(ValueError, match=r"fit\.steps 10: the run was planned for 8, and its schedule \(cosine\)"):
        pretrain(config(emt_manifest, tmp_path / "run", resume=True, steps=10))


def test_nothing_to_resume_is_an_error(emt_manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint to resume from"):
        pretrain(config(emt_manifest, tmp_path / "run", resume=True))


def test_an_existing_run_is_not_overwritten(undisturbed: Path, emt_manifest: Manifest) -> None:
    with pytest.raises(FileExistsError, match=r"--fit\.resume true"):
        pretrain(config(emt_manifest, undisturbed))


def test_a_budget_smaller_than_a_structure_is_an_error_before_training(emt_manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Raise the budget"):
        pretrain(config(emt_manifest, tmp_path / "run", edge_budget=50, oversize="error"))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_structures_that_are_left_out_are_counted_in_the_log(
    emt_manifest: Manifest, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    index = emt_manifest.index("train")
    edges = index.counts(0, index.num_frames)[1][:, 0]
    budget = int(np.median(edges))
    with caplog.at_level("WARNING"):
        pretrain(config(emt_manifest, tmp_path / "run", steps=2, edge_budget=budget, oversize="skip"))
    assert f"{(edges > budget).sum()} structures are larger than the budget and left out" in caplog.text


def test_lanes_that_the_processes_do_not_divide_are_an_error(emt_manifest: Manifest, tmp_path: Path) -> None:
    whole = config(emt_manifest, tmp_path / "run", lanes=4)
    with pytest.raises(ValueError, match=r"use one of \[1, 2, 4\]"):
        dataclasses.replace(whole, machine=dataclasses.replace(CPU, devices=3))
