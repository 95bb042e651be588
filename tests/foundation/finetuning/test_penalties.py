"""Penalties: their value and gradient by hand, what is left out, and what is refused."""

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from data_pipeline.loading.datasets import Dataset
from data_pipeline.store.manifest import Manifest
from foundation.finetuning.fisher import diagonal_fisher
from foundation.finetuning.freezing import freeze
from foundation.finetuning.penalties import (
    EwcPenalty,
    L2Penalty,
    PenaltyConfig,
    carried_importance,
    scaled_importance,
)
from foundation.models import EquivariantConfig
from foundation.potential import Potential, new_potential
from foundation.surgery.elements import add_elements
from foundation.surgery.theories import add_theory
from foundation.training.loss import LossConfig
from tests.small_networks import SMALL_NETWORKS

CONFIG = EquivariantConfig(irreps="4x0e+2x1e", num_blocks=1, max_degree=1, radial_sizes=(8,), readout_channels=4)
Named = dict[str, Tensor]
FISHER = Path("fisher.safetensors")


@pytest.fixture
def potential(emt_manifest: Manifest) -> Potential:
    torch.manual_seed(0)
    return new_potential(CONFIG, {"EMT": emt_manifest.split("train").statistics}).cast(torch.float64).train()


@pytest.fixture
def theta_star(potential: Potential) -> Named:
    return {name: parameter.detach().clone() for name, parameter in potential.named_parameters()}


@pytest.fixture
def importance(theta_star: Named) -> Named:
    torch.manual_seed(1)
    return {name: torch.rand_like(value) for name, value in theta_star.items()}


def move(potential: Potential) -> None:
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in potential.parameters():
            parameter.add_(torch.randn_like(parameter))


def test_value_and_gradient_are_the_formulas(potential: Potential, theta_star: Named, importance: Named) -> None:
    penalty = EwcPenalty(potential, importance, theta_star, weight=3.0)
    move(potential)
    value = penalty(potential)
    value.backward()
    by_hand = 0.0
    for name, parameter in potential.named_parameters():
        difference = parameter.detach() - theta_star[name]
        by_hand += 1.5 * float((importance[name] * difference**2).sum())
        torch.testing.assert_close(parameter.grad, 3.0 * importance[name] * difference, rtol=1e-13, atol=1e-15)
    assert value.dtype == torch.float64
    assert value.shape == ()
    assert float(value.detach()) == pytest.approx(by_hand, rel=1e-13)


def test_where_training_begins_there_is_no_penalty_and_no_force(
    potential: Potential, theta_star: Named, importance: Named
) -> None:
    value = EwcPenalty(potential, importance, theta_star, weight=1e9)(potential)
    value.backward()
    assert float(value.detach()) == 0.0
    assert all(bool((p.grad == 0).all()) for p in potential.parameters() if p.grad is not None)


def test_a_float32_potential_has_its_penalty_summed_in_float64(potential: Potential, importance: Named) -> None:
    potential.cast(torch.float32)
    rounded = {name: parameter.detach().clone() for name, parameter in potential.named_parameters()}
    penalty = EwcPenalty(potential, importance, rounded, weight=2.0)
    move(potential)
    expected = sum(
        float((importance[name] * (p.detach().double() - rounded[name].double()) ** 2).sum())
        for name, p in potential.named_parameters()
    )
    assert float(penalty(potential).detach()) == pytest.approx(expected, rel=1e-13)


def test_frozen_parameters_are_left_out(potential: Potential, theta_star: Named, importance: Named) -> None:
    frozen = freeze(potential, ["all-but-readout"])
    penalty = EwcPenalty(potential, importance, theta_star, weight=2.0)
    move(potential)
    value = penalty(potential)
    value.backward()
    moved = {name: parameter.detach() for name, parameter in potential.named_parameters() if name not in frozen}
    expected = sum(float((importance[name] * (p - theta_star[name]) ** 2).sum()) for name, p in moved.items())
    assert float(value.detach()) == pytest.approx(expected, rel=1e-13)
    assert all(potential.get_parameter(name).grad is None for name in frozen)


def test_normalised_by_the_mean_one_lambda_fits_importances_of_any_scale(
    potential: Potential, theta_star: Named, importance: Named
) -> None:
    scaled = {name: 1e-7 * value for name, value in importance.items()}
    config = PenaltyConfig(weight=2.0, fisher=FISHER, normalization="mean")
    penalties = [
        EwcPenalty(potential, scaled_importance(each, config), theta_star, weight=2.0) for each in (importance, scaled)
    ]
    plain = EwcPenalty(potential, importance, theta_star, weight=2.0)
    move(potential)
    mean = float(torch.cat([value.flatten() for value in importance.values()]).mean())
    first, second = (float(penalty(potential).detach()) for penalty in penalties)
    assert first == pytest.approx(float(plain(potential).detach()) / mean, rel=1e-12)
    assert second == pytest.approx(first, rel=1e-12)


def test_the_mean_counts_frozen_weights_so_that_lambda_means_the_same_with_and_without_freezing(
    potential: Potential, theta_star: Named, importance: Named
) -> None:
    relative = scaled_importance(importance, PenaltyConfig(weight=2.0, fisher=FISHER, normalization="mean"))
    everything = EwcPenalty(potential, relative, theta_star, weight=2.0)
    freeze(potential, ["all-but-readout"])
    readout = EwcPenalty(potential, relative, theta_star, weight=2.0)
    with torch.no_grad():
        for parameter in potential.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    assert float(readout(potential).detach()) == pytest.approx(float(everything(potential).detach()), rel=1e-12)


def test_power_tensor_means_and_damping_are_what_they_say(importance: Named) -> None:
    config = PenaltyConfig(weight=1.0, fisher=FISHER, power=0.5, normalization="tensor", damping=0.25)
    roots = {name: value.sqrt() for name, value in importance.items()}
    for name, value in scaled_importance(importance, config).items():
        torch.testing.assert_close(value, roots[name] / roots[name].mean() + 0.25, rtol=1e-12, atol=0.0)
    plain = scaled_importance(importance, PenaltyConfig(weight=1.0, fisher=FISHER, damping=0.5))
    mean = torch.cat([value.flatten() for value in importance.values()]).mean()
    for name, value in plain.items():
        torch.testing.assert_close(value, importance[name] + 0.5 * mean, rtol=1e-12, atol=0.0)


def test_a_tensor_that_the_fisher_does_not_see_stays_unprotected_unless_damped(importance: Named) -> None:
    name = next(iter(importance))
    unseen = importance | {name: torch.zeros_like(importance[name])}
    config = PenaltyConfig(weight=1.0, fisher=FISHER, normalization="tensor")
    assert bool((scaled_importance(unseen, config)[name] == 0).all())
    assert bool((scaled_importance(unseen, replace(config, damping=0.1))[name] > 0).all())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": -1.0}, "lambda"),
        ({"weight": math.nan}, "lambda"),
        ({"weight": 1.0, "fisher": FISHER, "damping": -0.1}, "damping"),
        ({"weight": 1.0, "fisher": FISHER, "power": 0.0}, "power"),
        ({"weight": 1.0, "power": 0.5}, "fisher"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PenaltyConfig(**settings)


def test_l2_is_the_importance_of_one(potential: Potential, theta_star: Named) -> None:
    ones = {name: torch.ones_like(value) for name, value in theta_star.items()}
    ewc, l2 = EwcPenalty(potential, ones, theta_star, weight=0.7), L2Penalty(potential, weight=0.7)
    move(potential)
    distance = sum(float((p.detach() - theta_star[name]).square().sum()) for name, p in potential.named_parameters())
    assert float(l2(potential).detach()) == pytest.approx(0.35 * distance, rel=1e-13)
    assert float(l2(potential).detach()) == pytest.approx(float(ewc(potential).detach()), rel=1e-13)


def test_names_and_shapes_that_do_not_match_are_listed(
    potential: Potential, theta_star: Named, importance: Named
) -> None:
    first, second, *_ = theta_star
    renamed = {f"module.{name}": value for name, value in importance.items()}
    with pytest.raises(ValueError, match=rf"has module\.{first}, the .*{first} is trained but not in"):
        EwcPenalty(potential, renamed, theta_star, weight=1.0)
    reshaped = importance | {second: torch.ones(1, 2, 3)}
    with pytest.raises(ValueError, match=rf"{second} has shape \(1, 2, 3\) in the importance and"):
        EwcPenalty(potential, reshaped, theta_star, weight=1.0)
    lacking = {name: value for name, value in theta_star.items() if name != second}
    with pytest.raises(ValueError, match=f"{second} is trained but not in"):
        EwcPenalty(potential, importance, lacking, weight=1.0)


def test_a_penalty_that_protects_nothing_is_refused(potential: Potential, theta_star: Named, importance: Named) -> None:
    with pytest.raises(ValueError, match="does not belong to this potential"):
        EwcPenalty(potential, {}, {}, weight=1.0)
    zeros = {name: torch.zeros_like(value) for name, value in importance.items()}
    with pytest.raises(ValueError, match="protects nothing"):
        scaled_importance(zeros, PenaltyConfig(weight=1.0, fisher=FISHER))
    with pytest.raises(ValueError, match="protects nothing"):
        EwcPenalty(potential, zeros, theta_star, weight=1.0)
    potential.requires_grad_(False)
    with pytest.raises(ValueError, match="every parameter is frozen"):
        EwcPenalty(potential, importance, theta_star, weight=1.0)
    with pytest.raises(ValueError, match="every parameter is frozen"):
        L2Penalty(potential, weight=1.0)


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf])
def test_a_weight_that_is_no_number_from_zero_is_refused(
    potential: Potential, theta_star: Named, importance: Named, weight: float
) -> None:
    with pytest.raises(ValueError, match="must be zero or more"):
        EwcPenalty(potential, importance, theta_star, weight=weight)


@pytest.mark.parametrize("bad", [-1.0, math.nan, math.inf])
def test_an_importance_that_is_no_fisher_is_refused(importance: Named, bad: float) -> None:
    next(iter(importance.values())).view(-1)[0] = bad
    with pytest.raises(ValueError, match="negative or non-finite"):
        scaled_importance(importance, PenaltyConfig(weight=1.0, fisher=FISHER))


GROWTHS: dict[str, Callable[[Potential], Potential]] = {
    "nothing": lambda potential: potential,
    "element": lambda potential: add_elements(potential, (45, 47), like={45: 28, 47: 29}),
    "theory": lambda potential: add_theory(potential, "other"),
    "both": lambda potential: add_theory(add_elements(potential, (45,)), "other"),
}


@pytest.mark.parametrize("theories", [1, 2])
@pytest.mark.parametrize("growth", GROWTHS)
@pytest.mark.parametrize("network", SMALL_NETWORKS)
def test_the_penalty_of_a_grown_potential_is_that_of_the_start(network: str, growth: str, theories: int) -> None:
    grow, names = GROWTHS[growth], ("one", "two")[:theories]
    torch.manual_seed(0)
    elements = (13, 28, 29)
    start = Potential(SMALL_NETWORKS[network].network(elements, theories), elements, names).cast(torch.float64)
    importance = {name: torch.rand_like(each) for name, each in start.named_parameters()}
    moved = copy.deepcopy(start)
    move(moved)
    before = {name: each.detach().clone() for name, each in start.named_parameters()}
    expected = EwcPenalty(start, importance, before, weight=2.0)(moved)
    grown = grow(start)
    present = {name: each.detach().clone() for name, each in grown.named_parameters()}
    carried = carried_importance(importance, start, grow)
    penalty = EwcPenalty(grown, carried, present, weight=2.0)
    torch.testing.assert_close(penalty(grow(moved)), expected, rtol=1e-9, atol=0.0)
    if growth == "nothing":
        assert all(torch.equal(value, carried[name]) for name, value in importance.items())
    new = sum(each.numel() for each in grown.parameters()) - sum(each.numel() for each in start.parameters())
    assert sum(int((value == 0).sum()) for value in carried.values()) == new


@pytest.mark.parametrize("growth", ["element", "both"])
def test_the_carried_fisher_is_the_fisher_of_the_grown_potential(emt_manifest: Manifest, growth: str) -> None:
    torch.manual_seed(0)
    statistics = emt_manifest.split("train").statistics
    config = replace(CONFIG, theory_biases=True)
    start = new_potential(config, {"EMT": statistics}).cast(torch.float64)

    def grow(potential: Potential) -> Potential:
        potential = add_elements(potential, (45,))
        return add_theory(potential, "other") if growth == "both" else potential

    dataset = [Dataset(manifest=emt_manifest, split="val")]
    carried = carried_importance(diagonal_fisher(start, dataset, LossConfig()).values, start, grow)
    for name, expected in diagonal_fisher(grow(start), dataset, LossConfig()).values.items():
        torch.testing.assert_close(carried[name], expected, rtol=1e-6, atol=1e-12 * float(expected.max()))
