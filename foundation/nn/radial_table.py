"""Table of the convolution's weights over distance: radial networks are evaluated at knots and interpolated for pairs.

The weights of a pair depend on its length alone. So a radial network can be evaluated, with two derivatives, at some
hundred knots instead of at every pair, with a quintic Hermite interpolant between them (error O(h⁶), in its slope
O(h⁵)); gradients flow back through the network once, at the knots. The table is not part of the architecture: the same
weights work with and without it. Cubic interpolation needed eight times as many knots for SevenNet-0's forces to be as
good (1,024 for 2e-5 of the largest). tests/benchmarks/bench_table.py measures errors and speed.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from foundation.kernels.radial_interpolation import Places, interpolated
from foundation.nn.radial import BesselBasis, RadialNetwork, hidden_with_derivatives, product

MIN_KNOTS, MAX_KNOTS = 16, 2**16
FIRST = 1e-4
"""First knot [Å]. At zero the Bessel functions are 0/0; the first polynomial extends to it."""
BEND = 1.0
"""Knots are evenly spaced well below this length [Å] and geometrically well above: weights vary fastest between close
atoms."""
SHARE_BEYOND = 0.1
"""Share of the knots between the kink and the cutoff."""


def check_num_knots(num_knots: int) -> None:
    """Refuse a number of knots for which a table could not represent the network.

    Raises:
        ValueError: it is neither 0 (no table) nor from MIN_KNOTS to MAX_KNOTS.
    """
    if num_knots != 0 and not MIN_KNOTS <= num_knots <= MAX_KNOTS:
        raise ValueError(
            f"a radial table has from {MIN_KNOTS} to {MAX_KNOTS:,} knots (256 recommended), or 0; not {num_knots}"
        )


class Knots(NamedTuple):
    """Lengths at which radial networks are tabulated, and the cutoff function there."""

    lengths: Float64[Tensor, " knots"]
    """Lengths from about zero to just below the cutoff [Å]; float32 numbers."""
    cutoff: Float64[Tensor, "3 knots 1"]
    """The cutoff function and its two derivatives [1/Å, 1/Å²]."""

    @staticmethod
    def of(num_knots: int, cutoff_function: Callable[[Tensor], Tensor], kink: float, cutoff: float) -> "Knots":
        """Return num_knots knots, two of them on both sides of the jump in the second derivative (the kink [Å])."""
        beyond = round(SHARE_BEYOND * num_knots) if kink < cutoff else 0
        start, stop = math.asinh(FIRST / BEND), math.asinh(kink / BEND)
        inner = BEND * torch.linspace(start, stop, num_knots - beyond, dtype=torch.float64).sinh()
        outer = torch.linspace(kink, cutoff, beyond, dtype=torch.float64)
        inner[-1] = kink
        lengths = torch.cat([inner, outer]).float()
        ends = [len(inner) - 1, -1]
        lengths[ends] = lengths[ends].nextafter(torch.zeros(()))
        with torch.enable_grad():
            at = lengths.double().requires_grad_()
            value = cutoff_function(at)
            (slope,) = torch.autograd.grad(value.sum(), at, create_graph=True)
            (curvature,) = torch.autograd.grad(slope.sum(), at)
        return Knots(at.detach(), torch.stack([value, slope, curvature]).detach().unsqueeze(2))


class Tabulated(NamedTuple):
    """Weights of pairs in the form of a table and coefficients."""

    table: Float[Tensor, "rows weights"]
    """Table of a radial network, one of radial_tables()."""
    coefficients: Float[Tensor, "pairs 6"]
    """Coefficients of each pair's rows of the table."""
    places: Places
    """The knots around every pair."""


def radial_tables(
    networks: Sequence[RadialNetwork],
    radial: BesselBasis,
    knots: Knots,
    divisors: Sequence[Float[Tensor, " one"]],
) -> list[Float[Tensor, "rows weights"]]:
    """Return the tables of radial networks of equal hidden sizes, each divided by its number.

    A table has four rows for each knot: the value, two derivatives, and E of hermite(). The last layer is linear, so
    differences are taken before it, in float64; the one large product is in the network's own float type.
    """
    basis = product(radial.with_derivatives(knots.lengths), knots.cutoff)
    hidden, h = hidden_with_derivatives(networks, basis), knots.lengths.diff().unsqueeze(1)
    values, slopes, curvatures = hidden
    missing = values.diff(dim=1) - h / 2 * (slopes[:, 1:] + slopes[:, :-1]) + h * h / 12 * curvatures.diff(dim=1)
    rows = torch.stack([*hidden, torch.nn.functional.pad(missing, (0, 0, 0, 1))], dim=2).flatten(1, 2)
    found = rows.to(divisors[0].dtype).unbind()
    return [network.weights_of(own, divisor) for network, own, divisor in zip(networks, found, divisors, strict=True)]


def hermite(
    knots: Float[Tensor, " knots"], distances: Float[Tensor, " pairs"]
) -> tuple[Places, Float[Tensor, "pairs 6"]]:
    """Return the places of lengths [Å] among knots and the polynomials there; lengths beyond the last knot count as it.

    With values T, slopes D and curvatures C at the ends 0 and 1 of an interval of length h, the interpolant is

        T₀ + h (D₀ a + D₁ b) + h² (C₀ p + C₁ q) + E s,    E = T₁ - T₀ - h (D₀ + D₁) / 2 - h² (C₀ - C₁) / 12,

    the integral of the cubic Hermite interpolant of the slopes, and a bubble for the remaining difference at the other
    end. No two large numbers are subtracted, which would spoil the slopes in float32.
    """
    lengths = torch.minimum(distances, knots[-1])
    below = (torch.searchsorted(knots, lengths.detach(), right=True) - 1).clamp(0, len(knots) - 2)
    h = knots.diff()[below]
    t = (lengths - knots[below]) / h
    t2 = t * t
    t3, t4 = t2 * t, t2 * t2
    polynomials = [
        torch.ones_like(t),
        h * (t - t3 + t4 / 2),
        h * h * (t2 / 2 - 2 * t3 / 3 + t4 / 4),
        t3 * (10 - 15 * t + 6 * t2),
        h * (t3 - t4 / 2),
        h * h * (t4 / 4 - t3 / 3),
    ]
    return Places.of(below, len(knots)), torch.stack(polynomials, dim=1)


def radial_weights(
    network: RadialNetwork, basis: Float[Tensor, "pairs basis"] | Tabulated, divisor: Float[Tensor, " one"]
) -> Float[Tensor, "pairs weights"]:
    """Return the weights of every pair, divided by a number: by the network itself or from its table."""
    return interpolated(*basis) if isinstance(basis, Tabulated) else network(basis, divisor)
