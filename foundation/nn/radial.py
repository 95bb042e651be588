"""Radial functions of an edge's length: basis, cutoff and the network that makes the convolution's weights."""

import itertools
import math
from collections.abc import Callable
from typing import Literal

import torch
from e3nn.math import normalize2mom
from jaxtyping import Float
from torch import Tensor

CutoffFunction = Literal["polynomial", "xplor"]


class BesselBasis(torch.nn.Module):
    """b_n(r) = (2 / r_c) sin(k_n r) / r with learned wave numbers k_n, n π / r_c at the start.

    Gasteiger et al., ICLR 2020 (arXiv:2003.03123), equation 7, with SevenNet's prefactor 2 / r_c.
    """

    def __init__(self, num_basis: int, cutoff: float) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.wave_numbers = torch.nn.Parameter(math.pi / cutoff * torch.arange(1, num_basis + 1).float())
        """Wave numbers [1/Å]."""

    def forward(self, distances: Float[Tensor, " edges"]) -> Float[Tensor, "edges basis"]:
        """Return the basis functions of lengths [Å]."""
        distances = distances.unsqueeze(1)
        return 2.0 / self.cutoff * torch.sin(distances * self.wave_numbers) / distances


def polynomial_cutoff(distances: Float[Tensor, " edges"], cutoff: float, power: int) -> Float[Tensor, " edges"]:
    """Return the polynomial cutoff function of lengths [Å]: one at zero, zero with two derivatives at the cutoff.

    Gasteiger et al., ICLR 2020 (arXiv:2003.03123), equation 8.
    """
    x = distances / cutoff
    p = power
    value = (
        1 - (p + 1) * (p + 2) / 2 * x**p + p * (p + 2) * x ** (p + 1) - p * (p + 1) / 2 * x ** (p + 2)
    )  # fmt: skip
    return torch.where(x < 1, value, torch.zeros_like(value))


def xplor_cutoff(distances: Float[Tensor, " edges"], cutoff: float, onset: float) -> Float[Tensor, " edges"]:
    """Return the XPLOR switching function of lengths [Å]: one up to the onset, zero from the cutoff on.

    (r_c² - r²)² (r_c² + 2 r² - 3 r_on²) / (r_c² - r_on²)³ between the two, as in SevenNet-0 and HOOMD-blue.
    """
    squared, end, begin = distances**2, cutoff**2, onset**2
    value = (end - squared) ** 2 * (end + 2 * squared - 3 * begin) / (end - begin) ** 3
    value = torch.where(distances < onset, torch.ones_like(value), value)
    return torch.where(distances < cutoff, value, torch.zeros_like(value))


class RadialNetwork(torch.nn.Module):
    """Maps the radial basis of an edge to the convolution's weights; no biases.

    Each layer is σ(x W / sqrt(fan in)) with σ scaled to unit second moment, the last one has no σ
    (e3nn.nn.FullyConnectedNet, whose parameter names and shapes it shares).
    """

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        self._activation_scale = activation_scale(torch.nn.functional.silu)
        self._num_layers = len(sizes) - 1
        for number, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
            layer = torch.nn.Module()
            layer.weight = torch.nn.Parameter(torch.randn(fan_in, fan_out))
            self.add_module(f"layer{number}", layer)

    @property
    def weights(self) -> list[torch.nn.Parameter]:
        """The weight matrices of the layers."""
        return [self.get_parameter(f"layer{number}.weight") for number in range(self._num_layers)]

    def forward(
        self, basis: Float[Tensor, "pairs basis"], divisor: Float[Tensor, " one"] | None = None
    ) -> Float[Tensor, "pairs weights"]:
        """Return the weights of every pair, divided by a number.

        All factors go into the weight matrices, which are small beside the rows of pairs.
        """
        values, scale = basis, 1.0
        for number, weight in enumerate(self.weights):
            matrix = weight * (scale * weight.shape[0] ** -0.5)
            if number == self._num_layers - 1:
                return values @ (matrix if divisor is None else matrix / divisor)
            values, scale = torch.nn.functional.silu(values @ matrix), self._activation_scale
        return values


_SCALES: dict[str, float] = {}


def activation_scale(function: Callable[[Tensor], Tensor]) -> float:
    """Return the factor that gives a function of a normal variable unit second moment.

    e3nn's own Monte-Carlo constants (normalize2mom: 10⁶ samples, fixed seed) are used, not the analytic values, because
    the published models were trained with them.
    """
    name = getattr(function, "__name__", repr(function))
    if name not in _SCALES:
        _SCALES[name] = float(normalize2mom(function).cst)  # pyright: ignore[reportArgumentType]
    return _SCALES[name]
