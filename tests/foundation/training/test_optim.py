"""Optimizer groups and the learning-rate schedule."""

import math
from itertools import pairwise

import pytest
import torch

from foundation.models import EquivariantConfig, EquivariantNetwork
from foundation.potential import Potential
from foundation.training.optim import OptimConfig, make_optimizer, make_schedule

ELEMENTS = tuple(range(1, 17))
MODEL = EquivariantConfig(irreps="4x0e+2x1e", num_blocks=2, max_degree=1, radial_sizes=(8,), readout_channels=4)


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
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_impossible_settings_are_refused(wrong: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OptimConfig(**wrong)
