"""The radial table against the radial network itself: order of convergence, derivatives, ends, digits."""

from functools import partial

import pytest
import torch
from torch import Tensor

from foundation.kernels.radial_interpolation import interpolated
from foundation.nn.radial import (
    BesselBasis,
    RadialNetwork,
    hidden_with_derivatives,
    polynomial_cutoff,
    product,
    xplor_cutoff,
)
from foundation.nn.radial_table import FIRST, Knots, Tabulated, hermite, radial_tables, radial_weights

CUTOFF, ONSET = 5.0, 4.3
CUTOFFS = {
    "xplor": (partial(xplor_cutoff, cutoff=CUTOFF, onset=ONSET), ONSET),
    "polynomial": (partial(polynomial_cutoff, cutoff=CUTOFF, power=6), CUTOFF),
}
DIVISOR = torch.tensor([7.0], dtype=torch.float64)


class Radial:
    """A radial network with its basis, tabulated or not."""

    def __init__(self, kind: str = "xplor") -> None:
        torch.manual_seed(0)
        self.function, self.kink = CUTOFFS[kind]
        self.basis, self.network = BesselBasis(8, CUTOFF).double(), RadialNetwork([8, 16, 16, 5]).double()

    def inputs(self, distances: Tensor) -> Tensor:
        return self.basis(distances) * self.function(distances).unsqueeze(1)

    def exact(self, distances: Tensor) -> Tensor:
        return self.network(self.inputs(distances), DIVISOR.to(distances))

    def tabulated(self, distances: Tensor, num_knots: int) -> Tensor:
        knots, divisor = Knots.of(num_knots, self.function, self.kink, CUTOFF), DIVISOR.to(distances)
        places, coefficients = hermite(knots.lengths.to(distances.dtype), distances)
        (table,) = radial_tables([self.network], self.basis, knots, [divisor])
        return radial_weights(self.network, Tabulated(table, coefficients, places), divisor)


def with_slopes(values: Tensor, distances: Tensor) -> tuple[Tensor, Tensor]:
    slopes = [torch.autograd.grad(column.sum(), distances, retain_graph=True)[0] for column in values.unbind(1)]
    return values.detach(), torch.stack(slopes, dim=1)


def errors(radial: Radial, distances: Tensor, num_knots: int) -> list[float]:
    """Largest errors of values and slopes, over the largest of each."""
    distances = distances.clone().requires_grad_()
    ours = with_slopes(radial.tabulated(distances, num_knots), distances)
    exact = with_slopes(radial.exact(distances), distances)
    return [float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, exact, strict=True)]


def lengths(start: float, stop: float) -> Tensor:
    return start + (stop - start) * torch.rand(2000, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", CUTOFFS)
@pytest.mark.parametrize(("start", "stop"), [(FIRST, 1.0), (1.0, ONSET), (ONSET, CUTOFF)])
def test_values_converge_with_the_sixth_power_of_the_spacing_and_slopes_with_the_fifth(
    kind: str, start: float, stop: float
) -> None:
    radial, distances = Radial(kind), lengths(start, stop)
    coarse, fine = (errors(radial, distances, number) for number in (61, 121))
    assert coarse[0] / fine[0] > 0.6 * 2**6
    assert coarse[1] / fine[1] > 0.6 * 2**5
    assert fine[1] < 1e-4


@pytest.mark.parametrize("kind", CUTOFFS)
def test_many_knots_are_as_good_as_the_network(kind: str) -> None:
    value, slope = errors(Radial(kind), lengths(0.01, CUTOFF), 1000)
    assert value < 1e-10
    assert slope < 1e-8


def test_tables_made_together_are_those_made_alone() -> None:
    radial, other = Radial(), RadialNetwork([8, 16, 16, 7]).double()
    knots = Knots.of(30, radial.function, ONSET, CUTOFF)
    networks, divisors = [radial.network, other], [DIVISOR, 2 * DIVISOR]
    together = radial_tables(networks, radial.basis, knots, divisors)
    for table, network, divisor in zip(together, networks, divisors, strict=True):
        (alone,) = radial_tables([network], radial.basis, knots, [divisor])
        torch.testing.assert_close(table, alone, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(alone[::4], network(radial.inputs(knots.lengths), divisor), rtol=1e-12, atol=1e-12)


def test_a_network_without_hidden_layers_has_a_table() -> None:
    radial, network = Radial(), RadialNetwork([8, 5]).double()
    knots = Knots.of(30, radial.function, ONSET, CUTOFF)
    for table in radial_tables([network, network], radial.basis, knots, [DIVISOR, DIVISOR]):
        torch.testing.assert_close(table[::4], network(radial.inputs(knots.lengths), DIVISOR), rtol=1e-12, atol=1e-12)


def test_a_polynomial_of_degree_five_is_met_exactly() -> None:
    knots = torch.tensor([0.3, 0.5, 1.4, 1.7], dtype=torch.float64)
    powers = torch.arange(6, dtype=torch.float64)
    at, h = knots.unsqueeze(1), knots.diff().unsqueeze(1)
    value, slope = at**powers, powers * at ** (powers - 1).clamp(min=0)
    curvature = powers * (powers - 1) * at ** (powers - 2).clamp(min=0)
    missing = value.diff(dim=0) - h / 2 * (slope[1:] + slope[:-1]) + h**2 / 12 * curvature.diff(dim=0)
    rows = torch.stack([value, slope, curvature, torch.cat([missing, torch.zeros(1, 6)])], dim=1).flatten(0, 1)
    distances = torch.linspace(0.25, 1.7, 50, dtype=torch.float64)
    places, coefficients = hermite(knots, distances)
    torch.testing.assert_close(
        interpolated(rows, coefficients, places), distances.unsqueeze(1) ** powers, rtol=1e-12, atol=1e-12
    )


def test_numerical_first_and_second_derivatives_agree() -> None:
    radial, distances = Radial(), torch.tensor([0.2, 1.1, 2.7, 4.6], dtype=torch.float64, requires_grad=True)
    parameters = [radial.basis.wave_numbers, *radial.network.weights]

    def function(distances: Tensor, *_: Tensor) -> Tensor:
        return radial.tabulated(distances, 20)

    assert torch.autograd.gradcheck(function, (distances, *parameters))
    assert torch.autograd.gradgradcheck(function, (distances, *parameters), atol=1e-4)


def test_gradients_of_the_parameters_are_those_of_the_network() -> None:
    radial, distances = Radial(), lengths(0.5, CUTOFF).requires_grad_()
    parameters = [radial.basis.wave_numbers, *radial.network.weights]
    found = []
    for values in (radial.exact(distances), radial.tabulated(distances, 500)):
        (slope,) = torch.autograd.grad(values.sin().sum(), distances, create_graph=True)
        found.append(torch.autograd.grad(slope.square().sum() + values.square().sum(), parameters))
    for expected, ours in zip(*found, strict=True):
        assert (ours - expected).abs().max() < 1e-7 * expected.abs().max()


@pytest.mark.parametrize("distance", [1e-3, 0.01, 0.05, 0.1])
def test_atoms_closer_than_any_in_a_crystal_have_the_networks_weights(distance: float) -> None:
    assert max(errors(Radial(), torch.tensor([distance], dtype=torch.float64), 256)) < 1e-5


def test_below_the_first_knot_the_weights_go_on_to_their_limit() -> None:
    radial, distances = Radial(), torch.tensor([0.0, FIRST / 2, FIRST], dtype=torch.float64)
    values = radial.tabulated(distances, 256)
    limit = radial.exact(torch.tensor([1e-4], dtype=torch.float64))
    assert (values - limit).abs().max() < 1e-6 * limit.abs().max()


@pytest.mark.parametrize("kind", CUTOFFS)
def test_at_the_cutoff_and_beyond_nothing_is_left(kind: str) -> None:
    distances = torch.tensor([4.9999999, 5.0, 5.0000005, 9.0], dtype=torch.float64, requires_grad=True)
    values, slopes = with_slopes(Radial(kind).tabulated(distances, 64), distances)
    assert values.abs().max() < 1e-11
    assert slopes[:2].abs().max() < 1e-5
    assert not slopes[2:].any()


def test_values_and_slopes_are_continuous_at_the_knots() -> None:
    radial = Radial()
    knots = Knots.of(40, radial.function, ONSET, CUTOFF).lengths[1:-1]
    sides = []
    for side in (-1e-9, 1e-9):
        distances = (knots + side).requires_grad_()
        sides.append(with_slopes(radial.tabulated(distances, 40), distances))
    for left, right in zip(*sides, strict=True):
        assert (left - right).abs().max() < 1e-6 * left.abs().max()


def test_float32_loses_no_more_digits_than_the_network_does() -> None:
    radial, exact = Radial(), Radial()
    distances = lengths(0.5, CUTOFF).float().requires_grad_()
    double = distances.detach().double().requires_grad_()
    expected = with_slopes(exact.exact(double), double)
    radial.basis.float()
    radial.network.float()
    table, network = (
        [float((a - b).abs().max() / b.abs().max()) for a, b in zip(with_slopes(v, distances), expected, strict=True)]
        for v in (radial.tabulated(distances, 1000), radial.exact(distances))
    )
    assert table[0] < 2 * network[0] < 1e-5
    assert table[1] < 2 * network[1] < 1e-5


@pytest.mark.parametrize("kind", CUTOFFS)
def test_derivatives_at_the_knots_are_autograds(kind: str) -> None:
    radial = Radial(kind)
    knots = Knots.of(30, radial.function, radial.kink, CUTOFF)
    at = knots.lengths[1:].clone().requires_grad_()
    inputs = radial.basis(at) * radial.function(at).unsqueeze(1)
    ours = product(radial.basis.with_derivatives(knots.lengths), knots.cutoff)
    for expected, found in (
        (inputs, ours),
        (radial.network.hidden(inputs), hidden_with_derivatives([radial.network], ours)[:, 0]),
    ):
        for column in range(expected.shape[1]):
            (slope,) = torch.autograd.grad(expected[:, column].sum(), at, create_graph=True)
            (curvature,) = torch.autograd.grad(slope.sum(), at, retain_graph=True)
            for a, b in zip((expected[:, column], slope, curvature), found[:, 1:, column], strict=True):
                torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_knots_lie_on_both_sides_of_the_kink_and_are_numbers_of_float32() -> None:
    radial = Radial()
    lengths = Knots.of(50, radial.function, ONSET, CUTOFF).lengths
    assert len(lengths) == 50
    assert (lengths.diff() > 0).all()
    assert torch.equal(lengths, lengths.float().double())
    assert lengths[0] == pytest.approx(FIRST)
    assert ((lengths - ONSET).abs() < 1e-6).sum() == 2
    assert CUTOFF - 1e-6 < lengths[-1] < CUTOFF
