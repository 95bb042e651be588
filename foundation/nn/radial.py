"""Radial functions of an edge's length: basis, cutoff and the network of the convolution's weights."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from e3nn.math import normalize2mom
from jaxtyping import Float
from torch import Tensor

from foundation.kernels.cpu.dense import Nonlinearity
from foundation.kernels.dense import gate, name_of_gate, perceptron
from foundation.nn.matmul import Matmul
from foundation.nn.matrices import Matrices

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

    def with_derivatives(self, distances: Float[Tensor, " knots"]) -> Float[Tensor, "3 knots basis"]:
        """Return the basis functions of lengths [Å] and their first two derivatives [1/Å, 1/Å²]."""
        distances, wave_numbers = distances.unsqueeze(1), self.wave_numbers.to(distances.dtype)
        phases, prefactor = distances * wave_numbers, 2.0 / self.cutoff
        values = prefactor * torch.sin(phases) / distances
        slopes = (prefactor * wave_numbers * torch.cos(phases) - values) / distances
        # r b has the second derivative -k² r b
        curvatures = -(wave_numbers**2) * values - 2 * slopes / distances
        return torch.stack([values, slopes, curvatures])


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


class RadialLayer(Matrices):
    """Weight of a layer of a radial network."""

    def __init__(self, fan_in: int, fan_out: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(fan_in, fan_out))

    @property
    def matrix_shapes(self) -> list[tuple[int, int]]:
        """Input and output channels of its one matrix."""
        return [(self.weight.shape[0], self.weight.shape[1])]


class RadialNetwork(torch.nn.Module):
    """Network from the radial basis of an edge to the convolution's weights, without biases.

    Each layer is σ(x W / sqrt(fan in)) with σ scaled to unit second moment, the last one has no σ
    (e3nn.nn.FullyConnectedNet, whose parameter names and shapes it shares).
    """

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        self._activation_scale = activation_scale(torch.nn.functional.silu)
        self._num_layers = len(sizes) - 1
        # numbers of their own: in a traced graph a size is a tensor, and a power of it has the digits of float32
        self._norms = [fan_in**-0.5 for fan_in in sizes[:-1]]
        self.matmul = Matmul()
        for number, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
            self.add_module(f"layer{number}", RadialLayer(fan_in, fan_out))

    @property
    def weights(self) -> list[torch.nn.Parameter]:
        """The weight matrices of the layers."""
        return [self.get_parameter(f"layer{number}.weight") for number in range(self._num_layers)]

    def _adapted(self, number: int) -> Float[Tensor, "fan_in fan_out"]:
        """Return the weight of a layer, with its adapter's addition."""
        layer = self.get_submodule(f"layer{number}")
        assert isinstance(layer, RadialLayer)
        return layer.adapted()

    def forward(
        self, basis: Float[Tensor, "pairs basis"], divisor: Float[Tensor, " one"] | None = None
    ) -> Float[Tensor, "pairs weights"]:
        """Return the weights of every pair, divided by a number.

        All factors are applied to the weight matrices, which are small compared with the rows of pairs.
        """
        if self.matmul.in_c(basis):
            return perceptron(basis, *self._operands(divisor))[0]
        return self.matmul(self.hidden(basis), self.last(divisor))

    def hidden_in_c(
        self, basis: Float[Tensor, "pairs basis"], divisor: Float[Tensor, " one"]
    ) -> tuple[Float[Tensor, "pairs hidden"], Float[Tensor, "hidden weights"]]:
        """Return the input of the last layer and its matrix with all factors in it, whose product are the weights."""
        matrices, scales = self._operands(divisor)
        if len(matrices) == 1:
            return basis, scales[0] * matrices[0]
        values = perceptron(basis, matrices[:-1], scales[:-1])[0]
        silu = name_of_gate(Nonlinearity(0, values.shape[1], (), 1.0, 1.0))
        return gate(values, silu), scales[-1] * matrices[-1]

    def _operands(self, divisor: Float[Tensor, " one"] | None) -> tuple[list[Tensor], list[float]]:
        """Return the matrices of the layers and their factors, for the operator in C."""
        # as views: see needed() of kernels/differentiable.py
        weights = [self._adapted(number) for number in range(self._num_layers)]
        matrices = [weight.view(weight.shape) for weight in weights]
        scales = [self._norms[0], *(self._activation_scale * norm for norm in self._norms[1:])]
        if divisor is not None:
            matrices[-1] = weights[-1] / divisor
        return matrices, scales

    def matrices(self, divisor: Float[Tensor, " one"]) -> list[Float[Tensor, "_ _"]]:
        """Return the matrices of all layers with all factors in them, the last one divided by a number."""
        return [matrix.detach() for matrix in (*self.hidden_matrices(), self.last(divisor))]

    def hidden(self, basis: Float[Tensor, "pairs basis"]) -> Float[Tensor, "pairs hidden"]:
        """Return the input of the last layer, up to the factor of the activation."""
        values = basis
        for matrix in self.hidden_matrices():
            values = torch.nn.functional.silu(self.matmul(values, matrix))
        return values

    def weights_of(
        self, hidden: Float[Tensor, "rows hidden"], divisor: Float[Tensor, " one"]
    ) -> Float[Tensor, "rows weights"]:
        """Return the weights of rows of `hidden`, divided by a number."""
        if not self.matmul.in_c(hidden):
            return hidden @ self.last(divisor)
        matrices, scales = self._operands(divisor)
        return perceptron(hidden, matrices[-1:], scales[-1:])[0]

    def hidden_matrices(self) -> list[Float[Tensor, "fan_in fan_out"]]:
        """Return the matrices of all layers but the last, with all factors in them."""
        scales = [1.0] + [self._activation_scale] * (self._num_layers - 2)
        hidden = [self._adapted(number) for number in range(self._num_layers - 1)]
        return [weight * (scale * norm) for weight, scale, norm in zip(hidden, scales, self._norms, strict=False)]

    def last(self, divisor: Float[Tensor, " one"] | None = None) -> Float[Tensor, "hidden weights"]:
        """Return the matrix of the last layer with all factors in it, divided by a number."""
        scale = self._activation_scale if self._num_layers > 1 else 1.0
        matrix = self._adapted(self._num_layers - 1) * (scale * self._norms[-1])
        return matrix if divisor is None else matrix / divisor


def hidden_with_derivatives(
    networks: Sequence[RadialNetwork], basis: Float[Tensor, "3 knots basis"]
) -> Float[Tensor, "3 networks knots hidden"]:
    """Return `hidden` of networks of equal sizes with its first and second derivatives, in the basis' float type."""
    stacked = basis.unsqueeze(1)
    for matrices in zip(*(network.hidden_matrices() for network in networks), strict=True):
        values, slopes, curvatures = stacked @ torch.stack(matrices).to(basis.dtype)
        sigmoid = torch.sigmoid(values)
        silu = values * sigmoid
        first = sigmoid + silu * (1 - sigmoid)
        second = (1 - sigmoid) * (sigmoid + first - silu * sigmoid)
        stacked = torch.stack([silu, first * slopes, first * curvatures + second * slopes**2])
    return stacked.expand(-1, len(networks), -1, -1)


def product(left: Float[Tensor, "3 knots _"], right: Float[Tensor, "3 knots _"]) -> Float[Tensor, "3 knots _"]:
    """Return the product of two functions given with their first and second derivatives."""
    (a, a1, a2), (b, b1, b2) = left, right
    return torch.stack([a * b, a1 * b + a * b1, a2 * b + 2 * a1 * b1 + a * b2])


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
