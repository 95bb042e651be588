"""The equivariant linear map, with e3nn's parameter layout and component-major features."""

# e3nn 0.6 types Irreps as a bare tuple
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false

import torch
from e3nn import o3
from jaxtyping import Float, Float64, Int
from torch import Tensor

from foundation.kernels.cpu.dense import Block, LinearMap
from foundation.kernels.dense import mix, name_of_maps
from foundation.nn.matmul import Matmul
from foundation.nn.matrices import Matrices


class Linear(Matrices):
    """Linear mixing of the channels of each irrep; irreps that the input lacks are left out of irreps_out.

    The weight has e3nn's layout (o3.Linear): for each input irrep, each equal output irrep, a row-major matrix
    (channels in, channels out); outputs are divided by the square root of the number of input channels ('element'
    normalisation).

    With theories, even scalars of the output get a bias that depends on the level of theory: the one-hot vector of the
    theory is one more even scalar input, as in SevenNet-MF (Kim et al., J. Am. Chem. Soc. 147, 1042 (2025)).
    """

    def __init__(self, irreps_in: o3.Irreps, irreps_out: o3.Irreps, num_theories: int = 0) -> None:
        """Prepare a linear map.

        Args:
            irreps_in: Irreps of the features, each once.
            irreps_out: Desired output irreps, each once.
            num_theories: Number of levels of theory with a bias; with 0, the theory is ignored.

        Raises:
            ValueError: an irrep occurs twice, or there are theories but no even scalars to bias.
        """
        super().__init__()
        self.irreps_in = irreps_in.simplify()
        self.irreps_out = o3.Irreps([item for item in irreps_out.simplify() if item.ir in self.irreps_in])
        for irreps in (self.irreps_in, self.irreps_out):
            if len({item.ir for item in irreps}) < len(irreps):
                raise ValueError(f"{irreps}: an irrep occurs twice; sort the irreps")
        self._inputs = [item.dim for item in self.irreps_in]
        self.num_theories = num_theories
        self.matmul = Matmul()
        # (which input, components, channels in, channels out), in the order of the weights
        self._blocks = [
            (i, item.ir.dim, item.mul, output.mul)
            for i, item in enumerate(self.irreps_in)
            for output in self.irreps_out
            if output.ir == item.ir
        ]
        position = [self.irreps_in[i].ir for i, *_ in self._blocks]
        self._order = [position.index(item.ir) for item in self.irreps_out]
        self.weight = torch.nn.Parameter(torch.randn(sum(a * b for _, _, a, b in self._blocks)))
        if num_theories:
            biased = [fan_out for i, _, _, fan_out in self._blocks if self.irreps_in[i].ir == o3.Irrep("0e")]
            if not biased:
                raise ValueError(f"{irreps_in} to {irreps_out}: no even scalars that a level of theory could bias")
            self.theory_weight = torch.nn.Parameter(torch.randn(num_theories, biased[0]))
        self._maps = name_of_maps(self.maps(self.irreps_out))

    @staticmethod
    def size(irreps_in: o3.Irreps, irreps_out: o3.Irreps, num_theories: int = 0) -> int:
        """Return the number of parameters of a linear map, without building it."""
        pairs = [(a.mul, b) for a in irreps_in.simplify() for b in irreps_out.simplify() if a.ir == b.ir]
        biases = sum(num_theories * output.mul for _, output in pairs if output.ir == o3.Irrep("0e"))
        return biases + sum(fan_in * output.mul for fan_in, output in pairs)

    @property
    def matrix_shapes(self) -> list[tuple[int, int]]:
        """Input and output channels of the matrices, one for each pair of equal irreps."""
        return [(fan_in, fan_out) for _, _, fan_in, fan_out in self._blocks]

    def mixed_theories(self, mixture: Float64[Tensor, "new old"]) -> dict[str, Tensor]:
        """Return float64 weights of the same map with other levels of theory.

        Args:
            mixture: Coefficients of the old levels' biases in that of each new level; without old biases it is zero.
        """
        state = {}
        parts = list(self.weight.detach().double().split([a * b for _, _, a, b in self._blocks]))
        for place, (i, _, fan_in, fan_out) in enumerate(self._blocks):
            if self.irreps_in[i].ir == o3.Irrep("0e"):
                # the divisor of the outputs counts the levels of theory among the input channels
                growth = ((fan_in + len(mixture)) / (fan_in + self.num_theories)) ** 0.5
                none = parts[place].new_zeros(mixture.shape[1], fan_out)
                biases = self.theory_weight.detach().double() if self.num_theories else none
                parts[place] = growth * parts[place]
                state["theory_weight"] = growth * mixture.to(biases) @ biases
        return state | {"weight": torch.cat(parts)}

    def matrices(self, theory: int) -> list[tuple[o3.Irrep, int, Float[Tensor, "_ _"], Float[Tensor, " _"] | None]]:
        """Return the irrep, the first input column, the matrix with its divisor, and the bias of every block.

        Args:
            theory: Number of the level of theory of the bias.
        """
        weights = self.adapted().detach().split([a * b for _, _, a, b in self._blocks])
        starts, found = [part.start for part in self.irreps_in.slices()], []
        for (i, _, fan_in, fan_out), weight in zip(self._blocks, weights, strict=True):
            biased = self.num_theories and self.irreps_in[i].ir == o3.Irrep("0e")
            scale = (fan_in + self.num_theories if biased else fan_in) ** -0.5
            bias = scale * self.theory_weight.detach()[theory] if biased else None
            found.append((self.irreps_in[i].ir, starts[i], scale * weight.view(fan_in, fan_out), bias))
        return found

    def forward(
        self, features: Float[Tensor, "atoms inputs"], theory: Int[Tensor, " atoms"] | None = None
    ) -> Float[Tensor, "atoms outputs"]:
        """Return the mixed features of atoms, each at the level of theory given by number."""
        if self.matmul.in_c(features):
            return mix(*self.operands(features, theory), self._maps)
        inputs = features.split(self._inputs, dim=1)
        weights = self.adapted().split([a * b for _, _, a, b in self._blocks])
        outputs = []
        for (i, components, fan_in, fan_out), weight in zip(self._blocks, weights, strict=True):
            biased, scale = self._is_biased(i), self._scale(i)
            mixed = self.matmul(inputs[i].reshape(-1, fan_in), weight.view(fan_in, fan_out) * scale)
            if biased:
                assert theory is not None
                mixed = mixed + (self.theory_weight * scale)[theory]
            outputs.append(mixed.view(-1, components * fan_out))
        return torch.cat([outputs[place] for place in self._order], dim=1)

    def _is_biased(self, i: int) -> bool:
        return self.num_theories > 0 and self.irreps_in[i].ir == o3.Irrep("0e")

    def _scale(self, i: int) -> float:
        """Return the factor of the products of an input irrep."""
        fan_in = self.irreps_in[i].mul
        return (fan_in + self.num_theories if self._is_biased(i) else fan_in) ** -0.5

    def maps(self, irreps: o3.Irreps) -> tuple[LinearMap, ...]:
        """Return the maps to columns of the given irreps in the numbers of the operators in C.

        The second one, if there are theories, is that of their one-hot vector.
        """
        columns = {item.ir: part.start for item, part in zip(irreps, irreps.slices(), strict=True)}
        starts, weight = self.irreps_in.slices(), 0
        blocks, bias = [], []
        for i, components, fan_in, fan_out in self._blocks:
            column, scale = columns[self.irreps_in[i].ir], self._scale(i)
            blocks.append(Block(starts[i].start, column, weight, components, fan_in, fan_out, scale))
            weight += fan_in * fan_out
            if self._is_biased(i):
                bias.append(Block(0, column, 0, 1, self.num_theories, fan_out, scale))
        found = [LinearMap(tuple(blocks), self.irreps_in.dim, irreps.dim)]
        return (*found, LinearMap(tuple(bias), self.num_theories, irreps.dim)) if bias else tuple(found)

    def operands(
        self, features: Float[Tensor, "atoms inputs"], theory: Int[Tensor, " atoms"] | None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the inputs and the flat weights of the maps."""
        # as views: see needed() of kernels/differentiable.py
        if not self.num_theories:
            return [features], [self.adapted().view(-1)]
        assert theory is not None
        one_hot = torch.eye(self.num_theories, dtype=features.dtype, device=features.device).index_select(0, theory)
        return [features, one_hot], [self.adapted().view(-1), self.theory_weight.view(-1)]
