"""Interpolated potentials: the ends bit for bit, linear between, and no mixing of what does not belong together."""

import copy
from dataclasses import replace

import pytest
import torch

from foundation.finetuning.adapters import add_adapters
from foundation.models import EquivariantConfig, EquivariantNetwork
from foundation.potential import Potential
from foundation.surgery.weight_interpolation import interpolate

CONFIG = EquivariantConfig(irreps="4x0e+2x1e", num_blocks=2, max_degree=1, radial_sizes=(8,), readout_channels=4)


def random_potential(seed: int, config: EquivariantConfig = CONFIG, elements: tuple[int, ...] = (1, 8)) -> Potential:
    torch.manual_seed(seed)
    potential = Potential(EquivariantNetwork(config, elements, mean_neighbors=5.0), elements, ("PBE",))
    potential.get_buffer("reference_energies").normal_()
    return potential


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_the_ends_are_the_potentials_themselves(dtype: torch.dtype, alpha: float) -> None:
    ends = random_potential(0).cast(dtype), random_potential(1).cast(dtype)
    before = copy.deepcopy(ends[0].state_dict())
    mixed = interpolate(*ends, alpha).state_dict()
    expected = ends[int(alpha)].state_dict()
    assert mixed.keys() == expected.keys()
    assert all(torch.equal(mixed[name], value) for name, value in expected.items())
    assert all(torch.equal(ends[0].state_dict()[name], value) for name, value in before.items())


def test_between_the_ends_everything_is_linear() -> None:
    start, tuned = random_potential(0).cast(torch.float64), random_potential(1).cast(torch.float64)
    mixed = interpolate(start, tuned, 0.3)
    for name, value in [*mixed.named_parameters(), ("reference_energies", mixed.get_buffer("reference_energies"))]:
        expected = 0.7 * start.state_dict()[name] + 0.3 * tuned.state_dict()[name]
        torch.testing.assert_close(value.detach(), expected, rtol=1e-14, atol=1e-14)


def test_what_did_not_change_keeps_every_bit() -> None:
    start = random_potential(0).cast(torch.float64)
    mixed = interpolate(start, copy.deepcopy(start), 0.3).state_dict()
    assert all(torch.equal(mixed[name], value) for name, value in start.state_dict().items())


def test_differing_architectures_are_refused_with_what_differs() -> None:
    with pytest.raises(ValueError, match=r"radial_sizes is \(8,\) in the start and \(6,\) in the tuned"):
        interpolate(random_potential(0), random_potential(1, replace(CONFIG, radial_sizes=(6,))), 0.5)
    with pytest.raises(ValueError, match=r"elements is \(1, 8\) in the start and \(1, 9\) in the tuned"):
        interpolate(random_potential(0), random_potential(1, elements=(1, 9)), 0.5)


@pytest.mark.parametrize("buffer", ["scale", "network.blocks.1.denominator"])
def test_buffers_that_differ_are_refused(buffer: str) -> None:
    tuned = random_potential(1)
    tuned.get_buffer(buffer).mul_(2.0)
    with pytest.raises(ValueError, match=f"{buffer} differs"):
        interpolate(random_potential(0), tuned, 0.5)


def test_adapters_that_are_not_merged_are_refused() -> None:
    tuned = random_potential(0)
    add_adapters(tuned, 1, 1.0, ["*.readout.0.*"])
    with pytest.raises(ValueError, match=r"only one has network\.readout\.0\.adapter\.down \(merge adapters first\)"):
        interpolate(random_potential(0), tuned, 0.5)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_alpha_beyond_the_ends_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match=r"from 0 .* to 1"):
        interpolate(random_potential(0), random_potential(1), alpha)
