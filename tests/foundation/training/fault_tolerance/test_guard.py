"""The guard rails: what would spoil the weights is skipped, named, rolled back from or stopped at, as configured."""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from data_pipeline.graphs.batch import GraphBatch, collate
from data_pipeline.store.manifest import Manifest
from foundation.checkpoint import load
from foundation.models import EquivariantConfig
from foundation.pretrain import PretrainConfig, pretrain
from foundation.training.additions import Parts
from foundation.training.fault_tolerance.guard import Diverged, GuardConfig
from foundation.training.fault_tolerance.reading import newest_checkpoint
from foundation.training.fit_config import FitConfig
from foundation.training.module import TrainingModule
from foundation.training.monitoring.metrics_file import read_rows
from foundation.training.optim import OptimConfig
from tests.machine import CPU

MODEL = EquivariantConfig(irreps="4x0e+2x1e", num_blocks=1, max_degree=1, radial_sizes=(8,), readout_channels=4)
FIT = FitConfig(
    steps=8,
    lanes=1,
    edge_budget=1500,
    validate_every=100,
    checkpoint_every=2,
    keep_checkpoints=9,
    log_every=1,
)


def config(manifest: Manifest, out: Path, resume: bool = False, **guard: Any) -> PretrainConfig:
    fit = replace(FIT, guard=GuardConfig(**guard), resume=resume)
    return PretrainConfig(
        data=manifest.root, out=out, model=MODEL, optim=OptimConfig(warmup_steps=2), fit=fit, machine=CPU
    )


def disturb(
    monkeypatch: pytest.MonkeyPatch, steps: set[int], change: Callable[[GraphBatch], GraphBatch]
) -> list[tuple[str, ...]]:
    """Change the labels of some steps, and return the ids of the frames that will be in them."""
    as_written, ids = TrainingModule.training_step, []

    def disturbed(module: TrainingModule, parts: Parts, step: int) -> None:
        if step in steps:
            ids.append(parts[0][0].ids)
            parts = [[change(parts[0][0])]]
        as_written(module, parts, step)

    monkeypatch.setattr(TrainingModule, "training_step", disturbed)
    return ids


def second_energy_nan(batch: GraphBatch) -> GraphBatch:
    energy = batch.energy.clone()
    energy[1] = float("nan")
    return replace(batch, energy=energy)


def huge_forces(batch: GraphBatch) -> GraphBatch:
    return replace(batch, forces=batch.forces + 1e5)


def saved(out: Path) -> dict:
    return torch.load(newest_checkpoint(out).path, weights_only=True)


def guard_of(state: dict) -> dict:
    (name,) = [name for name in state["callbacks"] if name.startswith("Guard")]
    return state["callbacks"][name]


def test_a_step_with_a_label_that_is_not_finite_is_skipped_and_its_frame_named(
    emt_manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ids = disturb(monkeypatch, {3}, second_energy_nan)
    weights = []
    before = TrainingModule.training_step

    def recorded(module: TrainingModule, parts: Parts, step: int) -> None:
        before(module, parts, step)
        weights.append(torch.cat([p.detach().flatten().clone() for p in module.potential.parameters()]))

    monkeypatch.setattr(TrainingModule, "training_step", recorded)
    pretrain(config(emt_manifest, tmp_path / "run"))
    assert torch.equal(weights[3], weights[2])
    assert not torch.equal(weights[4], weights[3])
    assert all(torch.isfinite(row).all() for row in weights)
    assert f"step 4, process 0: skipped, the loss is nan. Not finite in frames {ids[0][1]}." in caplog.text
    assert guard_of(saved(tmp_path / "run"))["num_skipped"] == 1
    assert saved(tmp_path / "run")["global_step"] == 8


def test_a_micro_batch_of_which_nothing_could_be_read_is_no_error(
    emt_manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disturb(monkeypatch, {3}, lambda batch: collate([], MODEL.cutoff))
    pretrain(config(emt_manifest, tmp_path / "run"))
    assert saved(tmp_path / "run")["global_step"] == 8
    assert guard_of(saved(tmp_path / "run"))["num_skipped"] == 0


def test_too_many_bad_steps_stop_the_run_with_the_frames(
    emt_manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = disturb(monkeypatch, {4, 5}, second_energy_nan)
    with pytest.raises(Diverged, match="2 steps in a row up to step 6 were unusable") as caught:
        pretrain(config(emt_manifest, tmp_path / "run", max_bad_steps=2, then="stop"))
    assert ids[1][1] in str(caught.value)
    assert newest_checkpoint(tmp_path / "run").path.name == "step=000000004.ckpt"
    assert not (tmp_path / "run" / "potential").exists()


def test_a_run_that_has_lost_its_way_goes_back_and_on_at_a_lower_rate(
    emt_manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    disturb(monkeypatch, {4, 5}, second_energy_nan)
    pretrain(config(emt_manifest, tmp_path / "run", max_bad_steps=2, rate_factor=0.25))
    assert "Back to the weights of step=000000004.ckpt, at 0.25 of the learning rate" in caplog.text
    state = saved(tmp_path / "run")
    assert state["global_step"] == 8
    assert guard_of(state)["num_rollbacks"] == 1
    rates = {group["name"]: group["initial_lr"] for group in state["optimizer_states"][0]["param_groups"]}
    assert rates["network.blocks.0.self_connection.weight"] == pytest.approx(0.25 * OptimConfig().learning_rate)
    assert state["lr_schedulers"][0]["last_epoch"] == 8
    logged = {row["step"]: row for row in read_rows(tmp_path / "run" / "logs") if row["kind"] == "train"}
    assert logged[3]["train/learning_rate"] == pytest.approx(OptimConfig().learning_rate)
    assert logged[7]["train/learning_rate"] < 0.25 * OptimConfig().learning_rate
    assert all(torch.isfinite(p).all() for p in load(tmp_path / "run").parameters())


def test_rolling_back_is_exact_across_a_crash(
    emt_manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disturb(monkeypatch, {4, 5}, second_energy_nan)
    pretrain(config(emt_manifest, tmp_path / "whole", max_bad_steps=2))
    for step in (5, 7):
        out = tmp_path / f"crash-{step}"
        disturbed = TrainingModule.training_step

        def crash(module: TrainingModule, batches: list, number: int, step: int = step, go_on: Any = disturbed) -> None:
            if number == step:
                raise RuntimeError("crash")
            go_on(module, batches, number)

        monkeypatch.setattr(TrainingModule, "training_step", crash)
        with pytest.raises(RuntimeError, match="crash"):
            pretrain(config(emt_manifest, out, max_bad_steps=2))
        monkeypatch.setattr(TrainingModule, "training_step", disturbed)
        pretrain(config(emt_manifest, out, resume=True, max_bad_steps=2))
        whole, found = saved(tmp_path / "whole"), saved(out)
        assert all(torch.equal(tensor, found["state_dict"][name]) for name, tensor in whole["state_dict"].items())


def test_a_batch_that_explodes_is_a_spike_and_skipped(
    emt_manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    disturb(monkeypatch, {5}, huge_forces)
    pretrain(config(emt_manifest, tmp_path / "run", spike_window=4, spike_factor=20.0))
    assert "step 6, process 0: skipped, the loss is" in caplog.text
    assert "the median of the last 4 was" in caplog.text
    assert guard_of(saved(tmp_path / "run"))["num_skipped"] == 1


def test_rollbacks_come_to_an_end(emt_manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disturb(monkeypatch, {4, 5, 6, 7}, second_energy_nan)
    with pytest.raises(Diverged, match="unusable"):
        pretrain(config(emt_manifest, tmp_path / "run", max_bad_steps=1, max_rollbacks=2))


def test_nothing_to_go_back_to_is_an_error(
    emt_manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disturb(monkeypatch, {0}, second_energy_nan)
    with pytest.raises(Diverged, match="No checkpoint to go back to"):
        pretrain(config(emt_manifest, tmp_path / "run", max_bad_steps=1))


@pytest.mark.parametrize("values", [{"rate_factor": 0.0}, {"max_bad_steps": 0}, {"spike_factor": 1.0}])
def test_guards_that_guard_nothing_are_refused(values: dict) -> None:
    with pytest.raises(ValueError, match=r"must be|needs"):
        GuardConfig(**values)


def test_the_guard_is_part_of_the_resolved_configuration(emt_manifest: Manifest, tmp_path: Path) -> None:
    pretrain(dataclasses.replace(config(emt_manifest, tmp_path / "run"), fit=replace(FIT, steps=1)))
    assert json.loads((tmp_path / "run" / "run.json").read_text())["fit"]["guard"]["then"] == "rollback"
