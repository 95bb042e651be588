"""Rehearsal and penalties in training: every mode against the loop written out by hand, resumed, and refused."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from data_pipeline.graphs.batch import GraphBatch
from data_pipeline.loading.datasets import Dataset
from data_pipeline.loading.stream import Stream
from data_pipeline.loading.subset import Subset
from data_pipeline.store.manifest import Manifest
from foundation.finetuning.penalties import L2Penalty
from foundation.models import EquivariantConfig
from foundation.potential import Potential, new_potential
from foundation.training.additions import Additions, Mode, Rehearsal
from foundation.training.fault_tolerance.checkpoints import checkpoint_to_resume
from foundation.training.fit import fit
from foundation.training.fit_config import FitConfig
from foundation.training.loss import LossConfig, Penalty, label_counts, loss
from foundation.training.machine import MachineConfig
from foundation.training.monitoring.metrics_file import read_rows
from foundation.training.optim import OptimConfig
from tests.machine import CPU

MODEL = EquivariantConfig(irreps="4x0e+2x1e", num_blocks=1, max_degree=1, radial_sizes=(8,), readout_channels=4)
FIT = FitConfig(
    steps=6,
    lanes=1,
    edge_budget=1500,
    validate_every=3,
    checkpoint_every=3,
    log_every=1,
)
OPTIM = OptimConfig(
    learning_rate=3e-3, schedule="constant", warmup_steps=0, weight_decay=0.0, clip_norm=1e9, ema_decay=0.0
)
LOSS = LossConfig()


@pytest.fixture
def potential(emt_manifest: Manifest) -> Potential:
    torch.manual_seed(0)
    return new_potential(MODEL, {"EMT": emt_manifest.split("train").statistics}).cast(torch.float64).train()


def rehearsal(manifest: Manifest, mode: Mode, ratio: float = 0.5) -> Rehearsal:
    return Rehearsal(datasets=(Dataset(manifest=manifest, split="test"),), ratio=ratio, weight=2.0, mode=mode)


def train(
    potential: Potential,
    manifest: Manifest,
    out: Path,
    old: Rehearsal | None,
    penalty: Penalty | None = None,
    config: FitConfig = FIT,
    machine: MachineConfig = CPU,
) -> Tensor:
    # every parameter at the same rate, as in a plain optimizer
    factors = {"network.embedding.weight": len(potential.elements) ** -0.5}
    fit(
        potential,
        [Dataset(manifest=manifest)],
        config=config,
        machine=machine,
        loss=LOSS,
        optim=OPTIM,
        out=out,
        record={},
        checkpoint=checkpoint_to_resume(out, config.resume),
        additions=Additions(rehearsal=old, penalty=penalty, rate_factors=factors),
    )
    return weights(potential)


def weights(potential: Potential) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in potential.parameters()])


def batches(manifest: Manifest, split: str, ratio: float) -> Iterator[GraphBatch]:
    stream = Stream(
        [Dataset(manifest=manifest, split=split)],
        cutoff=MODEL.cutoff,
        lanes=1,
        edge_budget=round(ratio * FIT.edge_budget),
        seed=FIT.seed,
    )
    return (step[0].to(dtype=torch.float64) for step in stream)


def task(potential: Potential, batch: GraphBatch) -> Tensor:
    return loss(LOSS, potential(batch), batch, label_counts(batch))


def by_hand(
    potential: Potential, manifest: Manifest, mode: Mode, penalty: Penalty, bad_rehearsal: int | None = None
) -> Tensor:
    """Train as the loops are published, with torch's own Adam; one step on the rehearsal may not be taken."""
    optimizer = torch.optim.Adam(potential.parameters(), lr=OPTIM.learning_rate, betas=OPTIM.betas)
    new, old = batches(manifest, "train", 1.0), batches(manifest, "test", 0.5)
    for number in range(FIT.steps if mode == "joint" else FIT.steps // 2):
        optimizer.zero_grad()
        if mode == "joint":
            (task(potential, next(new)) + 2.0 * task(potential, next(old)) + penalty(potential)).backward()
            optimizer.step()
            continue
        (task(potential, next(new)) + penalty(potential)).backward()
        optimizer.step()
        if mode == "alternate":
            optimizer.zero_grad()
        rehearsed = next(old)
        if number == bad_rehearsal:
            continue
        (2.0 * task(potential, rehearsed) + penalty(potential)).backward()
        optimizer.step()
    return weights(potential)


@pytest.mark.parametrize("mode", ["joint", "alternate", "reference"])
def test_every_mode_follows_the_loop_written_out_by_hand(
    mode: Mode, potential: Potential, emt_manifest: Manifest, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    twin = new_potential(MODEL, {"EMT": emt_manifest.split("train").statistics}).cast(torch.float64).train()
    twin.load_state_dict(potential.state_dict())
    before = weights(potential)
    expected = by_hand(twin, emt_manifest, mode, L2Penalty(twin, weight=0.5))
    found = train(potential, emt_manifest, tmp_path, rehearsal(emt_manifest, mode), L2Penalty(potential, weight=0.5))
    assert (expected - before).abs().max() > 1e-3
    assert (found - expected).abs().max() < 1e-12


def test_the_gradient_kept_for_a_step_that_is_not_taken_goes_into_no_later_one(
    potential: Potential, emt_manifest: Manifest, tmp_path: Path
) -> None:
    twin = new_potential(MODEL, {"EMT": emt_manifest.split("train").statistics}).cast(torch.float64).train()
    twin.load_state_dict(potential.state_dict())
    expected = by_hand(twin, emt_manifest, "reference", L2Penalty(twin, weight=0.5), bad_rehearsal=1)
    calls, penalty = [0], L2Penalty(potential, weight=0.5)

    def not_finite_once(trained: Potential) -> Tensor:
        calls[0] += 1
        return penalty(trained) * (float("nan") if calls[0] == 4 else 1.0)

    found = train(potential, emt_manifest, tmp_path, rehearsal(emt_manifest, "reference"), not_finite_once)
    assert (found - expected).abs().max() < 1e-12


def test_the_loss_of_the_rehearsal_is_divided_by_the_labels_that_it_is_given(
    potential: Potential, emt_manifest: Manifest, tmp_path: Path
) -> None:
    def relabelled(batch: GraphBatch) -> GraphBatch:
        first = torch.arange(batch.num_graphs, device=batch.energy.device) == 0
        return dataclasses.replace(batch, has_forces=first, has_stress=first)

    batch = relabelled(next(batches(emt_manifest, "test", 0.5)))
    assert batch.num_graphs > 1
    expected = 2.0 * float(task(potential, batch).detach())
    old = dataclasses.replace(rehearsal(emt_manifest, "joint"), relabel=relabelled)
    train(potential, emt_manifest, tmp_path, old)
    first = next(row for row in read_rows(tmp_path / "logs") if row["kind"] == "train")
    assert first["train/loss_rehearsal"] == pytest.approx(expected, rel=1e-9)


def test_the_rehearsal_may_have_a_loss_of_its_own(potential: Potential, emt_manifest: Manifest, tmp_path: Path) -> None:
    state, old = (
        {name: value.clone() for name, value in potential.state_dict().items()},
        rehearsal(emt_manifest, "joint"),
    )
    same = train(potential, emt_manifest, tmp_path / "same", dataclasses.replace(old, loss=LOSS))
    potential.load_state_dict(state)
    absent = train(potential, emt_manifest, tmp_path / "absent", old)
    potential.load_state_dict(state)
    doubled = {
        name: dataclasses.replace(term, weight=2.0 * term.weight)
        for name, term in (("energy", LOSS.energy), ("forces", LOSS.forces), ("stress", LOSS.stress))
    }
    # twice the loss at half the weight is the same again
    twice = dataclasses.replace(old, loss=LossConfig(**doubled), weight=1.0)
    found = train(potential, emt_manifest, tmp_path / "twice", twice)
    assert torch.equal(same, absent)
    assert (found - same).abs().max() < 1e-12


def test_the_modes_differ(potential: Potential, emt_manifest: Manifest, tmp_path: Path) -> None:
    state, found = {name: value.clone() for name, value in potential.state_dict().items()}, {}
    modes: tuple[Mode, ...] = ("joint", "alternate", "reference")
    for mode in modes:
        potential.load_state_dict(state)
        found[mode] = train(potential, emt_manifest, tmp_path / mode, rehearsal(emt_manifest, mode))
    assert (found["joint"] - found["alternate"]).abs().max() > 1e-4
    assert (found["alternate"] - found["reference"]).abs().max() > 1e-4


class Crash(RuntimeError):
    """Stands for whatever kills a run."""


@pytest.mark.parametrize("mode", ["joint", "alternate", "reference"])
@pytest.mark.parametrize("crash_at", [3, 4])
def test_a_run_that_rehearses_resumes_to_the_same_bits(
    mode: Mode, crash_at: int, potential: Potential, emt_manifest: Manifest, tmp_path: Path
) -> None:
    state = {name: value.clone() for name, value in potential.state_dict().items()}
    old = rehearsal(emt_manifest, mode)
    expected = train(potential, emt_manifest, tmp_path / "whole", old, L2Penalty(potential, weight=0.5))
    potential.load_state_dict(state)
    calls, penalty = [0], L2Penalty(potential, weight=0.5)

    def penalty_that_crashes(trained: Potential) -> Tensor:
        calls[0] += 1
        if calls[0] == crash_at + 1:
            raise Crash
        return penalty(trained)

    with pytest.raises(Crash):
        train(potential, emt_manifest, tmp_path / "run", old, penalty_that_crashes)
    potential.load_state_dict(state)
    again = dataclasses.replace(FIT, resume=True)
    found = train(potential, emt_manifest, tmp_path / "run", old, penalty, again)
    assert torch.equal(found, expected)


def test_other_data_another_ratio_weight_or_mode_are_not_resumed(
    potential: Potential, emt_manifest: Manifest, tmp_path: Path
) -> None:
    old = rehearsal(emt_manifest, "joint")
    train(potential, emt_manifest, tmp_path, old)
    again = dataclasses.replace(FIT, resume=True, steps=8)
    for changes, what in (
        ({"ratio": 1.0}, "edge_budget"),
        ({"weight": 1.0}, "weight"),
        ({"mode": "alternate"}, "mode"),
        ({"datasets": (Dataset(manifest=emt_manifest, split="val"),)}, "split of data set 1"),
    ):
        with pytest.raises(ValueError, match=f"rehearsal, {what}"):
            train(potential, emt_manifest, tmp_path, dataclasses.replace(old, **changes), config=again)


def test_the_log_tells_the_parts_of_the_loss_apart(
    potential: Potential, emt_manifest: Manifest, tmp_path: Path
) -> None:
    train(potential, emt_manifest, tmp_path, rehearsal(emt_manifest, "joint"), L2Penalty(potential, weight=0.5))
    rows = [row for row in read_rows(tmp_path / "logs") if row["kind"] == "train"]
    assert rows[0]["train/penalty"] == 0.0
    last = rows[-1]
    assert last["train/penalty"] > 0
    task_loss = last["train/loss"] + last["train/loss_rehearsal"]
    assert last["train/penalty_ratio"] == pytest.approx(last["train/penalty"] / task_loss, rel=1e-6)
    assert last["speed/budget_fill"] < 1.1


def test_in_turn_the_log_has_the_last_loss_of_each_part(
    potential: Potential, emt_manifest: Manifest, tmp_path: Path
) -> None:
    config = dataclasses.replace(FIT, log_every=2)
    train(potential, emt_manifest, tmp_path, rehearsal(emt_manifest, "alternate"), config=config)
    rows = [row for row in read_rows(tmp_path / "logs") if row["kind"] == "train"]
    assert [row["step"] for row in rows] == [2, 4, 6]
    assert min(min(row["train/loss"], row["train/loss_rehearsal"]) for row in rows) > 0


def test_reference_mode_is_refused_for_several_processes(
    potential: Potential, emt_manifest: Manifest, tmp_path: Path
) -> None:
    two, machine = dataclasses.replace(FIT, lanes=2), dataclasses.replace(CPU, devices=2)
    with pytest.raises(ValueError, match=r"rehearsal\.mode reference .* single process"):
        train(potential, emt_manifest, tmp_path, rehearsal(emt_manifest, "reference"), config=two, machine=machine)


def test_too_little_to_rehearse_is_refused_as_such(
    potential: Potential, emt_manifest: Manifest, tmp_path: Path
) -> None:
    one = (Dataset(manifest=emt_manifest, split="test", subset=Subset([0])),)
    old = dataclasses.replace(rehearsal(emt_manifest, "joint"), datasets=one)
    with pytest.raises(ValueError, match=r"rehearsal, with 0\.5 times the budgets: 1 frames .* use fewer lanes"):
        train(potential, emt_manifest, tmp_path, old, config=dataclasses.replace(FIT, lanes=4))
