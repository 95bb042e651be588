"""Radial basis, cutoff functions and radial network: values known by hand and those of e3nn."""

import math
from collections.abc import Callable

import pytest
import torch
from e3nn.nn import FullyConnectedNet
from torch import Tensor

from foundation.nn.radial import BesselBasis, RadialNetwork, activation_scale, polynomial_cutoff, xplor_cutoff

CUTOFF, ONSET, POWER = 5.0, 4.5, 6


def xplor(distances: Tensor) -> Tensor:
    return xplor_cutoff(distances, CUTOFF, ONSET)


def polynomial(distances: Tensor) -> Tensor:
    return polynomial_cutoff(distances, CUTOFF, POWER)


def derivatives(function: Callable[[Tensor], Tensor], distance: float) -> list[float]:
    """Value, first and second derivative at a distance."""
    point = torch.tensor([distance], dtype=torch.float64, requires_grad=True)
    value = function(point)
    (first,) = torch.autograd.grad(value.sum(), point, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), point)
    return [value.item(), first.item(), second.item()]


def test_bessel_basis_at_half_the_cutoff() -> None:
    values = BesselBasis(4, CUTOFF)(torch.tensor([CUTOFF / 2]))
    torch.testing.assert_close(values, torch.tensor([[0.16, 0.0, -0.16, 0.0]]), rtol=1e-6, atol=1e-6)


def test_bessel_basis_is_sine_over_distance_with_sevennet_prefactor() -> None:
    distances = torch.tensor([0.7, 1.9, 4.2])
    numbers = torch.arange(1, 9)
    expected = 2 / CUTOFF * torch.sin(math.pi * numbers * distances[:, None] / CUTOFF) / distances[:, None]
    torch.testing.assert_close(BesselBasis(8, CUTOFF)(distances), expected, rtol=1e-5, atol=1e-6)


def test_bessel_basis_is_zero_at_the_cutoff_and_its_wave_numbers_are_learned() -> None:
    basis = BesselBasis(8, CUTOFF)
    values = basis(torch.tensor([CUTOFF]))
    assert values.abs().max() < 1e-6
    values.sum().backward()
    assert basis.wave_numbers.grad is not None
    assert basis.wave_numbers.grad.abs().min() > 0


def test_xplor_between_onset_and_cutoff() -> None:
    value = xplor(torch.tensor([4.75], dtype=torch.float64))
    # (25 - 4.75²)² (25 + 2·4.75² - 3·4.5²) / (25 - 4.5²)³
    assert value.item() == pytest.approx(5.94140625 * 9.375 / 107.171875)


def test_xplor_is_one_up_to_the_onset_and_zero_from_the_cutoff_on() -> None:
    distances = torch.tensor([0.1, 3.0, 4.4999, 4.5, 5.0, 5.0001, 9.0], dtype=torch.float64)
    assert xplor(distances).tolist() == [1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(("edge", "side"), [(ONSET, +1), (CUTOFF, -1)])
def test_xplor_meets_its_edges_with_zero_slope(edge: float, side: int) -> None:
    _, slope, curvature = derivatives(xplor, edge + side * 1e-7)
    assert abs(curvature) > 1
    assert abs(slope) < 1.1e-7 * abs(curvature)


def test_xplor_falls_to_zero_as_the_square_of_the_distance_to_the_cutoff() -> None:
    near, far = derivatives(xplor, CUTOFF - 1e-5)[0], derivatives(xplor, CUTOFF - 1e-4)[0]
    assert near > 0
    assert far / near == pytest.approx(100, rel=1e-3)


def test_polynomial_at_half_the_cutoff() -> None:
    # 1 - 28/64 + 48/128 - 21/256
    assert polynomial(torch.tensor([2.5], dtype=torch.float64)).item() == pytest.approx(0.85546875, abs=1e-15)


def test_polynomial_is_one_at_zero_and_zero_from_the_cutoff_on() -> None:
    distances = torch.tensor([0.0, 5.0, 5.0001, 9.0], dtype=torch.float64)
    assert polynomial(distances).tolist() == [1.0, 0.0, 0.0, 0.0]


def test_polynomial_has_two_vanishing_derivatives_at_the_cutoff() -> None:
    step = 1e-4
    value, slope, curvature = derivatives(polynomial, CUTOFF - step)
    third = POWER * (POWER + 1) * (POWER + 2) / CUTOFF**3
    assert value == pytest.approx(third * step**3 / 6, rel=1e-2)
    assert slope == pytest.approx(-third * step**2 / 2, rel=1e-2)
    assert curvature == pytest.approx(third * step, rel=1e-2)


@pytest.mark.parametrize("function", [xplor, polynomial])
def test_cutoff_functions_fall_monotonically_between_one_and_zero(
    function: Callable[[Tensor], Tensor],
) -> None:
    values = function(torch.linspace(0.01, 5.5, 500, dtype=torch.float64))
    assert values.diff().max() <= 0
    assert values[0].item() == pytest.approx(1.0, abs=1e-6)
    assert values[-1] == 0


def test_activation_scales_are_those_the_published_models_were_trained_with() -> None:
    assert activation_scale(torch.nn.functional.silu) == pytest.approx(1.6791767923989418, rel=1e-12)
    assert activation_scale(torch.tanh) == pytest.approx(1.5937334472592695, rel=1e-12)


@pytest.mark.parametrize("hidden", [(64, 64), (16,), ()])
def test_radial_network_is_e3nns_fully_connected_net(hidden: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    sizes = [8, *hidden, 24]
    ours = RadialNetwork(sizes).double()
    reference = FullyConnectedNet(sizes, torch.nn.functional.silu).double()
    reference.load_state_dict(ours.state_dict())
    basis = torch.randn(11, 8, dtype=torch.float64)
    torch.testing.assert_close(ours(basis), reference(basis), rtol=1e-12, atol=1e-12)


def test_radial_network_maps_zero_to_zero() -> None:
    assert not RadialNetwork([8, 64, 5])(torch.zeros(3, 8)).any()
