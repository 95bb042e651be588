"""What a run logs: exact counts, one reduction per logged step, the same after a crash as without."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from data_pipeline.graphs.batch import collate
from data_pipeline.loading.datasets import Dataset, Frames
from data_pipeline.loading.stream import Stream
from data_pipeline.store.manifest import Manifest
from data_pipeline.structure import SYMBOLS
from foundation.models import EquivariantConfig
from foundation.potential import new_potential
from foundation.pretrain import PretrainConfig, pretrain
from foundation.training.fit_config import FitConfig
from foundation.training.loss import LossConfig, label_counts, loss_terms
from foundation.training.module import TrainingModule
from foundation.training.monitoring.metrics_file import read_rows
from foundation.training.monitoring.monitor import Monitor, imbalance, step_counts
from foundation.training.optim import OptimConfig
from tests.machine import CPU

MODEL = EquivariantConfig(irreps="4x0e+2x1e", num_blocks=1, max_degree=1, radial_sizes=(8,), readout_channels=4)
FIT = FitConfig(
    steps=8,
    lanes=2,
    edge_budget=1500,
    validate_every=4,
    checkpoint_every=2,
    log_every=2,
)


def config(manifest: Manifest, out: Path, **changes: object) -> PretrainConfig:
    fit = dataclasses.replace(FIT, **changes)
    return PretrainConfig(
        data=manifest.root, out=out, model=MODEL, optim=OptimConfig(warmup_steps=2), fit=fit, machine=CPU
    )


def rows(run: Path, kind: str) -> dict[int, dict]:
    """Return the rows of a kind by step; every step may be there once."""
    found = [row for row in read_rows(run / "logs") if row["kind"] == kind]
    by_step = {row["step"]: row for row in found}
    assert len(by_step) == len(found)
    return by_step


@pytest.fixture(scope="module")
def undisturbed(emt_manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    pretrain(config(emt_manifest, out))
    return out


class Crash(RuntimeError):
    """Stands for whatever kills a run."""


def test_a_run_logs_what_it_has_read(undisturbed: Path, emt_manifest: Manifest) -> None:
    stream = Stream([Dataset(manifest=emt_manifest)], cutoff=5.0, lanes=2, edge_budget=1500)
    frames = atoms = edges = before = 0
    logged = rows(undisturbed, "train")
    assert list(logged) == [2, 4, 6, 8]
    for step, batches in enumerate(stream.from_step(0, 8), start=1):
        frames += sum(batch.num_graphs for batch in batches)
        atoms += sum(len(batch.numbers) for batch in batches)
        edges += sum(batch.num_edges for batch in batches)
        if step % 2 == 0:
            row = logged[step]
            assert (row["seen/frames"], row["seen/atoms"], row["seen/edges"]) == (frames, atoms, edges)
            assert row["speed/budget_fill"] == pytest.approx((edges - before) / (2 * 2 * 1500))
            before = edges


def test_a_row_has_every_metric(undisturbed: Path) -> None:
    row = rows(undisturbed, "train")[8]
    terms = [row[f"train/loss_{name}"] for name in ("energy", "forces", "stress")]
    assert min(terms) > 0
    assert row["train/loss"] == pytest.approx(sum(terms), rel=1e-12)
    for name in ("energy_mae", "force_mae", "stress_mae", "gradient_norm", "learning_rate"):
        assert row[f"train/{name}"] > 0
    assert row["speed/edges_per_second"] > row["speed/atoms_per_second"] > 0
    assert 0 < row["speed/data_wait"] < 1
    assert 0 < row["speed/flop_utilization"] < 1
    assert 0.05 < row["speed/peak_memory"] < 100
    assert row["speed/imbalance_edges"] == row["speed/imbalance_seconds"] == 1.0
    assert row["train/skipped_steps"] == row["train/rollbacks"] == row["seen/quarantined_frames"] == 0.0
    assert row["run/remaining_seconds"] == 0.0
    assert 0 < rows(undisturbed, "train")[2]["run/device_hours"] < row["run/device_hours"] < 1


def test_elements_are_in_the_validation_rows_only(undisturbed: Path, emt_manifest: Manifest) -> None:
    validation = rows(undisturbed, "validation")
    assert list(validation) == [4, 8]
    frames = Frames(emt_manifest, "val")
    present = {SYMBOLS[number] for frame in frames for number in frame.numbers}
    assert set(validation[8]["val/by_element"]) == present
    header = (undisturbed / "logs" / "metrics.csv").read_text().splitlines()[0]
    assert "val/force_mae" in header
    assert "Al" not in header


@pytest.mark.parametrize("crash_at", [3, 4, 5])
def test_a_resumed_run_logs_every_step_once_and_the_same(
    crash_at: int, undisturbed: Path, emt_manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_written = TrainingModule.training_step

    def crash(module: TrainingModule, batches: list, step: int) -> None:
        if step == crash_at:
            raise Crash
        as_written(module, batches, step)

    monkeypatch.setattr(TrainingModule, "training_step", crash)
    with pytest.raises(Crash):
        pretrain(config(emt_manifest, tmp_path / "run"))
    monkeypatch.setattr(TrainingModule, "training_step", as_written)
    pretrain(config(emt_manifest, tmp_path / "run", resume=True))
    expected, found = rows(undisturbed, "train"), rows(tmp_path / "run", "train")
    assert list(found) == list(expected)
    for step, row in expected.items():
        for name in ("train/loss", "train/gradient_norm", "seen/frames", "seen/atoms", "seen/edges"):
            assert found[step][name] == row[name], f"{name} of step {step}"
    expected, found = rows(undisturbed, "validation"), rows(tmp_path / "run", "validation")
    for step, row in expected.items():
        assert {**found[step], "time": 0} == {**row, "time": 0}
    hours = [row["run/device_hours"] for row in rows(tmp_path / "run", "train").values()]
    assert hours == sorted(hours)


def test_a_logged_step_reduces_one_vector_more_than_the_others(
    emt_manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reductions: dict[int, int] = {}
    as_written = TrainingModule._sum_over_ranks

    def counting(module: TrainingModule, tensor: Tensor) -> Tensor:
        step = module.trainer.global_step
        if not module.trainer.validating:
            reductions[step] = reductions.get(step, 0) + 1
        return as_written(module, tensor)

    monkeypatch.setattr(TrainingModule, "_sum_over_ranks", counting)
    pretrain(config(emt_manifest, tmp_path / "run", steps=6))
    # counts of labels before each step, by whose end the number of steps is one more
    assert reductions == {0: 1, 1: 1, 2: 2, 3: 1, 4: 2, 5: 1, 6: 1}


def test_the_errors_of_a_step_that_is_not_taken_are_left_out(emt_manifest: Manifest) -> None:
    potential = new_potential(MODEL, {"EMT": emt_manifest.split("train").statistics}).eval()
    monitor = Monitor(FIT, potential)
    monitor._watch = type("Watch", (), {"start": lambda self: None})()
    batch = collate([Frames(emt_manifest, "train")[0]], potential.cutoff)
    prediction = potential(batch)
    spoiled = dataclasses.replace(batch, energy=batch.energy * torch.nan)
    for labels, taken in ((batch, True), (spoiled, False)):
        parts = [[labels], []]
        monitor.start_step(parts, step_counts(parts, torch.device("cpu")))
        monitor.add(prediction, labels, loss_terms(LossConfig(), prediction, labels, label_counts(labels)))
        monitor.end_step(taken=taken)
    assert monitor._errors.compute()["frames"] == 1.0
    assert torch.isfinite(monitor._errors.sums).all()


def test_imbalance_is_that_of_steps_that_wait_for_their_slowest_process() -> None:
    # over both steps together the two processes do the same
    assert imbalance(torch.tensor([[3.0, 1.0], [1.0, 3.0]], dtype=torch.float64)) == pytest.approx(1.5)
    assert imbalance(torch.tensor([[2.0, 2.0], [2.0, 2.0]], dtype=torch.float64)) == 1.0
    assert imbalance(torch.zeros(2, 2, dtype=torch.float64)) == 1.0
