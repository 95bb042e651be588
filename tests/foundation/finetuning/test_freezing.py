"""Frozen parameters keep every bit, presets name what they say, and wrong patterns are refused."""

from typing import Literal

import pytest
import torch

from data_pipeline.graphs.batch import collate
from data_pipeline.loading.datasets import Frames
from data_pipeline.store.manifest import Manifest
from foundation.finetuning.freezing import freeze, rate_factors
from foundation.models import EquivariantConfig
from foundation.nn.computation import Computation
from foundation.potential import Potential, new_potential
from foundation.training.loss import LossConfig, label_counts, loss
from foundation.training.optim import OptimConfig, make_optimizer

CONFIG = EquivariantConfig(irreps="4x0e+2x1e", num_blocks=2, max_degree=1, radial_sizes=(8,), readout_channels=4)


@pytest.fixture
def potential(emt_manifest: Manifest) -> Potential:
    torch.manual_seed(0)
    return new_potential(CONFIG, {"EMT": emt_manifest.split("train").statistics}).train()


@pytest.mark.parametrize(
    ("preset", "prefixes"),
    [
        ("embedding", ("network.embedding.",)),
        ("blocks:0", ("network.embedding.", "network.radial_basis.")),
        ("blocks:1", ("network.embedding.", "network.radial_basis.", "network.blocks.0.")),
        ("all-but-readout", ("network.embedding.", "network.radial_basis.", "network.blocks.")),
        ("block 1", ("network.blocks.1.",)),
        ("readout", ("network.readout.",)),
        ("*.radial.*", ("network.blocks.0.radial.", "network.blocks.1.radial.")),
    ],
)
def test_a_preset_freezes_what_it_names(potential: Potential, preset: str, prefixes: tuple[str, ...]) -> None:
    frozen = freeze(potential, [preset])
    assert frozen == [name for name, _ in potential.named_parameters() if name.startswith(prefixes)]
    assert frozen == [name for name, parameter in potential.named_parameters() if not parameter.requires_grad]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_frozen_parameters_and_buffers_keep_every_bit_in_training(
    potential: Potential, emt_manifest: Manifest, optimizer: Literal["adamw", "muon"]
) -> None:
    frames = Frames(emt_manifest, "train")
    batch = collate([frames[number] for number in range(3)], 5.0)
    frozen = freeze(potential, ["blocks:1"])
    before = {name: value.clone() for name, value in potential.state_dict().items()}
    steps = make_optimizer(OptimConfig(optimizer=optimizer, weight_decay=0.1), potential, len(potential.elements))
    for _ in range(20):
        steps.zero_grad()
        loss(LossConfig(), potential(batch), batch, label_counts(batch)).backward()
        steps.step()
    parameters = {name for name, _ in potential.named_parameters()}
    unchanged = {name for name, value in potential.state_dict().items() if torch.equal(value, before[name])}
    assert unchanged == set(frozen) | (before.keys() - parameters)


def test_a_pattern_that_matches_nothing_is_told_near_names(potential: Potential) -> None:
    with pytest.raises(ValueError, match=r"'network.embeding.weight' matches none.*network\.embedding\.weight"):
        freeze(potential, ["embedding", "network.embeding.weight"])
    assert all(parameter.requires_grad for parameter in potential.parameters())


@pytest.mark.parametrize("preset", ["blocks:3", "blocks:two", "blocks:-1"])
def test_blocks_that_are_not_there_are_refused(potential: Potential, preset: str) -> None:
    with pytest.raises(ValueError, match="K from 0 to 2"):
        freeze(potential, [preset])


def test_freezing_everything_is_refused_and_freezes_nothing(potential: Potential) -> None:
    with pytest.raises(ValueError, match="leaves no parameter to train"):
        freeze(potential, ["all-but-readout", "*.readout.*"])
    assert all(parameter.requires_grad for parameter in potential.parameters())


def test_the_last_pattern_that_matches_gives_the_rate(potential: Potential) -> None:
    freeze(potential, ["embedding"])
    factors = rate_factors(potential, {"network.blocks.*": 0.1, "network.blocks.1.*": 0.5})
    assert factors.keys() == {n for n, p in potential.named_parameters() if p.requires_grad}
    assert factors["network.blocks.0.radial.layer0.weight"] == 0.1
    assert factors["network.blocks.1.radial.layer0.weight"] == 0.5
    assert factors["network.readout.0.weight"] == 1.0


@pytest.mark.parametrize("factor", [0.0, -1.0, float("inf"), float("nan")])
def test_a_rate_factor_that_is_no_positive_number_is_refused(potential: Potential, factor: float) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        rate_factors(potential, {"*": factor})


def test_what_is_frozen_stays_so_whatever_its_rate(potential: Potential) -> None:
    frozen = freeze(potential, ["embedding"])
    factors = rate_factors(potential, {"embedding": 2.0})
    assert not set(frozen) & factors.keys()
    assert set(factors.values()) == {1.0}


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("num_knots", [0, 64])
def test_what_is_trained_has_the_gradient_it_has_without_freezing(
    potential: Potential, emt_manifest: Manifest, num_knots: int, recompute: bool
) -> None:
    frames = Frames(emt_manifest, "train")
    batch = collate([frames[number] for number in range(3)], 5.0, torch.float64)
    potential.cast(torch.float64).compute_as(Computation(radial_table=num_knots, recompute=recompute))
    gradients = []
    for patterns in ([], ["blocks:1", "*.blocks.1.radial.*"]):
        freeze(potential, patterns)
        potential.zero_grad()
        loss(LossConfig(), potential(batch), batch, label_counts(batch)).backward()
        gradients.append({name: p.grad.clone() for name, p in potential.named_parameters() if p.grad is not None})
    whole, part = gradients
    assert part.keys() == {name for name, p in potential.named_parameters() if p.requires_grad} < whole.keys()
    for name, gradient in part.items():
        torch.testing.assert_close(gradient, whole[name], rtol=1e-10, atol=1e-12 * float(whole[name].abs().max()))
