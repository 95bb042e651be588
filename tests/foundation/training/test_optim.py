"""Optimizer groups, learning-rate schedules, and that every optimizer goes on exactly where it was."""

import dataclasses
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from data_pipeline.graphs.batch import collate
from data_pipeline.loading.datasets import Frames
from data_pipeline.store.manifest import Manifest
from foundation.checkpoint import load
from foundation.models import EquivariantConfig, EquivariantNetwork
from foundation.nn.computation import Computation
from foundation.nn.matmul import Matmul
from foundation.potential import Potential, new_potential
from foundation.pretrain import PretrainConfig, pretrain
from foundation.training.fault_tolerance.reading import newest_checkpoint
from foundation.training.fit_config import FitConfig
from foundation.training.loss import LossConfig, label_counts, loss
from foundation.training.module import TrainingModule
from foundation.training.optim import OptimConfig, make_optimizer, make_schedule
from foundation.training.schedule_free import ScheduleFree
from tests.machine import CPU

ELEMENTS = tuple(range(1, 17))
MODEL = EquivariantConfig(irreps="4x0e+2x1e", num_blocks=2, max_degree=1, radial_sizes=(8,), readout_channels=4)
OPTIMIZERS = {
    "adamw": OptimConfig(warmup_steps=2, ema_decay=0.9),
    "muon": OptimConfig(optimizer="muon", schedule="wsd", warmup_steps=2, ema_decay=0.9),
    "schedule_free": OptimConfig(optimizer="schedule_free", schedule="constant", warmup_steps=2, ema_decay=0.0),
}
FIT = FitConfig(
    steps=8,
    lanes=2,
    edge_budget=1500,
    validate_every=3,
    checkpoint_every=2,
    log_every=2,
)


@pytest.fixture
def potential() -> Potential:
    torch.manual_seed(0)
    return Potential(EquivariantNetwork(MODEL, ELEMENTS, mean_neighbors=4.0), ELEMENTS, ("EMT",))


def groups_by_name(config: OptimConfig, potential: Potential) -> dict[str, dict]:
    groups = make_optimizer(config, potential, len(ELEMENTS)).param_groups
    return {group["name"].removeprefix("network."): group for group in groups}


def test_every_parameter_is_optimized_once(potential: Potential) -> None:
    groups = make_optimizer(OptimConfig(), potential, len(ELEMENTS)).param_groups
    optimized = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(optimized) == sorted(id(parameter) for parameter in potential.parameters())


def test_frozen_parameters_are_left_out(potential: Potential) -> None:
    potential.network.embedding.requires_grad_(False)
    groups = groups_by_name(OptimConfig(), potential)
    assert "embedding.weight" not in groups
    assert "readout.0.weight" in groups


def test_only_weight_matrices_decay(potential: Potential) -> None:
    groups = groups_by_name(OptimConfig(weight_decay=0.1), potential)
    assert [name for name, group in groups.items() if group["weight_decay"] == 0] == ["radial_basis.wave_numbers"]


def test_the_embedding_learns_faster_by_the_root_of_the_elements(potential: Potential) -> None:
    groups = groups_by_name(OptimConfig(learning_rate=1e-3), potential)
    rates = {name: group["lr"] for name, group in groups.items()}
    assert rates.pop("embedding.weight") == pytest.approx(4e-3)
    assert set(rates.values()) == {1e-3}
    plain = groups_by_name(OptimConfig(learning_rate=1e-3, embedding_rate="plain"), potential)
    assert {group["lr"] for group in plain.values()} == {1e-3}


def test_a_step_without_gradient_shrinks_all_matrices_alike_and_wave_numbers_not(
    potential: Potential,
) -> None:
    config = OptimConfig(learning_rate=1e-2, weight_decay=0.5)
    optimizer = make_optimizer(config, potential, len(ELEMENTS))
    before = {name: parameter.detach().clone() for name, parameter in potential.named_parameters()}
    for parameter in potential.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in potential.named_parameters():
        kept = 1.0 if name.endswith("wave_numbers") else 1 - 1e-2 * 0.5
        torch.testing.assert_close(parameter.detach(), kept * before[name], rtol=1e-6, atol=0)


def schedule_of(config: OptimConfig, num_steps: int) -> list[float]:
    """The learning rate before each step and after the last."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=config.learning_rate)
    schedule = make_schedule(config, optimizer, num_steps)
    rates = []
    for _ in range(num_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return [*rates, optimizer.param_groups[0]["lr"]]


def test_warm_up_is_linear_and_ends_at_the_highest_rate() -> None:
    rates = schedule_of(OptimConfig(learning_rate=0.5, warmup_steps=10), 110)
    assert rates[:10] == pytest.approx([0.05 * (step + 1) for step in range(10)])
    assert rates[10] == 0.5
    assert max(rates) == 0.5


def test_cosine_goes_from_the_highest_rate_to_the_final_fraction() -> None:
    rates = schedule_of(OptimConfig(learning_rate=1.0, warmup_steps=10, final_fraction=0.02), 110)
    assert rates[60] == pytest.approx(0.51)
    assert rates[35] == pytest.approx(0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert rates[110] == pytest.approx(0.02)
    assert all(later < earlier for earlier, later in pairwise(rates[10:]))


def test_wsd_is_constant_until_its_decay() -> None:
    rates = schedule_of(OptimConfig(schedule="wsd", learning_rate=1.0, warmup_steps=10, decay_fraction=0.4), 100)
    assert rates[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert rates[10:61] == [1.0] * 51
    assert rates[70] == pytest.approx(0.01 + 0.99 * (1 - math.sqrt(0.25)))
    assert rates[100] == pytest.approx(0.01)
    assert all(later < earlier for earlier, later in pairwise(rates[60:]))


def test_wsd_without_a_stable_part_is_linear_from_the_highest_rate_to_the_last() -> None:
    config = OptimConfig(
        schedule="wsd",
        learning_rate=1.0,
        warmup_steps=0,
        decay_fraction=1.0,
        decay_shape="linear",
        final_fraction=0.1,
    )
    assert schedule_of(config, 9) == pytest.approx([1 - 0.1 * step for step in range(10)])


def test_a_constant_rate_stays_after_the_warm_up() -> None:
    rates = schedule_of(OptimConfig(schedule="constant", learning_rate=2.0, warmup_steps=4), 50)
    assert rates == [0.5, 1.0, 1.5, *[2.0] * 48]


def test_without_warm_up_the_first_step_has_the_highest_rate() -> None:
    assert schedule_of(OptimConfig(learning_rate=1.0, warmup_steps=0), 10)[0] == 1.0


def test_the_schedule_keeps_the_ratio_of_the_groups(potential: Potential) -> None:
    config = OptimConfig(warmup_steps=2)
    optimizer = make_optimizer(config, potential, len(ELEMENTS))
    schedule = make_schedule(config, optimizer, 20)
    for _ in range(20):
        rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
        ratio = rates["network.embedding.weight"] / rates["network.readout.0.weight"]
        assert ratio == pytest.approx(4.0)
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"learning_rate": 0.0}, "must be positive"),
        ({"clip_norm": -1.0}, "must be positive"),
        ({"warmup_steps": -1}, "not negative"),
        ({"weight_decay": -1e-3}, "not negative"),
        ({"ema_decay": 1.0}, r"ema_decay must be in \[0, 1\)"),
        ({"momentum": 1.0}, r"momentum must be in \[0, 1\)"),
        ({"decay_fraction": 0.0}, r"decay_fraction must be in \(0, 1\]"),
        ({"final_fraction": 2.0}, r"final_fraction in \[0, 1\]"),
        ({"optimizer": "schedule_free"}, "set schedule to constant and ema_decay to 0, not cosine and None"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_impossible_settings_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OptimConfig(**wrong)


class Training:
    """Potential, optimizer and schedule on two frames, in float32."""

    def __init__(self, config: OptimConfig, manifest: Manifest) -> None:
        torch.manual_seed(0)
        self.potential = new_potential(MODEL, {"EMT": manifest.split("train").statistics})
        self.optimizer = make_optimizer(config, self.potential, len(self.potential.elements))
        self.schedule = make_schedule(config, self.optimizer, 10)
        self.batch = collate([Frames(manifest, "train")[number] for number in (0, 1)], 5.0)
        self.losses: list[float] = []

    def take(self, steps: int) -> None:
        for _ in range(steps):
            self.optimizer.zero_grad()
            value = loss(LossConfig(), self.potential(self.batch), self.batch, label_counts(self.batch))
            value.backward()
            self.optimizer.step()
            self.schedule.step()
            self.losses.append(float(value.detach()))

    @property
    def parts(self) -> dict:
        return {"potential": self.potential, "optimizer": self.optimizer, "schedule": self.schedule}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_saved_optimizer_goes_on_to_the_same_bits(name: str, emt_manifest: Manifest, tmp_path: Path) -> None:
    straight, first, second = (Training(OPTIMIZERS[name], emt_manifest) for _ in range(3))
    straight.take(10)
    first.take(5)
    torch.save({part: value.state_dict() for part, value in first.parts.items()}, tmp_path / "state")
    state = torch.load(tmp_path / "state", weights_only=True)
    for part, value in second.parts.items():
        value.load_state_dict(state[part])
    second.take(5)
    assert first.losses + second.losses == straight.losses
    assert straight.losses[-1] < straight.losses[0]
    for (key, expected), parameter in zip(
        straight.potential.named_parameters(), second.potential.parameters(), strict=True
    ):
        assert torch.equal(parameter, expected), key
    for expected, found in zip(straight.optimizer.state.values(), second.optimizer.state.values(), strict=True):
        assert all(torch.equal(value, found[key]) for key, value in expected.items())


class Crash(RuntimeError):
    """Stands for whatever kills a run."""


@pytest.mark.parametrize("name", ["muon", "schedule_free"])
def test_a_run_of_each_optimizer_resumes_to_the_same_bits_and_releases_its_average(
    name: str, emt_manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(folder: str, **changes: object) -> Path:
        fit = dataclasses.replace(FIT, **changes)
        config = PretrainConfig(
            data=emt_manifest.root, out=tmp_path / folder, model=MODEL, optim=OPTIMIZERS[name], fit=fit, machine=CPU
        )
        pretrain(config)
        return config.out

    step_as_written = TrainingModule.training_step

    def step_that_crashes(module: TrainingModule, batches: list, step: int) -> None:
        if step == 5:
            raise Crash
        step_as_written(module, batches, step)

    undisturbed = run("undisturbed")
    monkeypatch.setattr(TrainingModule, "training_step", step_that_crashes)
    with pytest.raises(Crash):
        run("crashed")
    monkeypatch.setattr(TrainingModule, "training_step", step_as_written)
    resumed = run("crashed", resume=True)
    expected, found = (
        torch.load(newest_checkpoint(out).path, weights_only=True, map_location="cpu") for out in (undisturbed, resumed)
    )
    for key in ("state_dict", "current_model_state"):
        assert all(torch.equal(tensor, found[key][part]) for part, tensor in expected[key].items()), key
    released, optimizer_state = load(resumed), found["optimizer_states"][0]["state"]
    if name == "schedule_free":
        for parameter, state in zip(released.parameters(), optimizer_state.values(), strict=True):
            assert torch.equal(parameter, state["average"])
            assert not torch.equal(parameter, state["iterate"])


def test_what_is_validated_is_schedule_frees_average(
    emt_manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validated: list[bool] = []
    as_written = TrainingModule.validation_step

    def look(module: TrainingModule, batch: object, number: int) -> None:
        optimizer = module.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, ScheduleFree)
        validated.extend(torch.equal(p, optimizer.state[p]["average"]) for p in module.potential.parameters())
        as_written(module, batch, number)

    monkeypatch.setattr(TrainingModule, "validation_step", look)
    optim = OPTIMIZERS["schedule_free"]
    pretrain(
        PretrainConfig(data=emt_manifest.root, out=tmp_path / "run", model=MODEL, optim=optim, fit=FIT, machine=CPU)
    )
    assert validated
    assert all(validated)


@pytest.mark.parametrize("name", ["muon", "schedule_free"])
def test_parameters_in_parts_are_for_adamw_only(name: str, emt_manifest: Manifest, tmp_path: Path) -> None:
    machine = dataclasses.replace(CPU, strategy="zero-1")
    with pytest.raises(ValueError, match=f"optimizer {name} needs whole parameters"):
        pretrain(
            PretrainConfig(
                data=emt_manifest.root,
                out=tmp_path / "run",
                optim=OPTIMIZERS[name],
                fit=FIT,
                machine=machine,
                model=MODEL,
            )
        )


def test_a_run_in_bf16_with_recomputed_blocks_learns_and_gives_back_a_plain_potential(
    emt_manifest: Manifest, tmp_path: Path
) -> None:
    def run(name: str, **changes: Any) -> Potential:
        fit = dataclasses.replace(FIT, **changes)
        optim = OPTIMIZERS["adamw"]
        return pretrain(
            PretrainConfig(data=emt_manifest.root, out=tmp_path / name, model=MODEL, optim=optim, fit=fit, machine=CPU)
        )

    plain, rough = run("plain"), run("rough", precision="bf16", recompute=True)
    assert rough.network.computation == Computation()
    assert not any(module.rounded for module in rough.modules() if isinstance(module, Matmul))
    weights = [torch.cat([p.detach().flatten() for p in potential.parameters()]) for potential in (plain, rough)]
    change = float((weights[1] - weights[0]).norm() / weights[0].norm())
    assert 0 < change < 1e-2
