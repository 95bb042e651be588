"""The interaction block of the NequIP and SevenNet family."""

# e3nn 0.6 types Irreps as a bare tuple
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false

import itertools
from collections.abc import Callable, Sequence
from functools import cache

import torch
from e3nn import o3
from jaxtyping import Float, Int
from torch import Tensor

from foundation.kernels.convolution import Convolution
from foundation.kernels.couplings import TensorProductPaths
from foundation.kernels.dense import gate, mix, name_of_maps
from foundation.kernels.edges import EdgeIndex
from foundation.nn.gate import Gate
from foundation.nn.linear import Linear
from foundation.nn.radial import RadialNetwork
from foundation.nn.radial_table import Tabulated, radial_weights

INITIAL_GAIN = 0.5
"""Initial size of the radial networks' inputs; with 1, the messages of five blocks add up to large forces."""


class InteractionBlock(torch.nn.Module):
    """Linear, convolution over edges, linear, plus a linear self-connection, then a gate.

    Batzner et al., Nat. Commun. 13, 2453 (2022), figure 1; the self-connection is linear as in SevenNet
    (Park et al., J. Chem. Theory Comput. 20, 4857 (2024)).
    """

    def __init__(
        self,
        irreps_in: o3.Irreps,
        irreps_harmonics: o3.Irreps,
        irreps_hidden: o3.Irreps,
        radial_sizes: list[int],
        denominator: float,
        num_theories: int = 0,
    ) -> None:
        """Prepare a block.

        Args:
            irreps_in: Irreps of the input features.
            irreps_harmonics: Irreps of the spherical harmonics.
            irreps_hidden: Desired output irreps; those that cannot be reached from irreps_in are left out.
            radial_sizes: Sizes of the radial network without its last layer.
            denominator: Divisor of the sum over neighbours.
            num_theories: Number of levels of theory with a bias in the two self-interactions.
        """
        super().__init__()
        paths = TensorProductPaths(irreps_in, irreps_harmonics, irreps_hidden)
        reachable = o3.Irreps([item for item in irreps_hidden if item.ir in paths.irreps_out])
        self.gate = Gate(reachable)
        self.irreps_out = self.gate.irreps_out
        self.self_connection = Linear(irreps_in, self.gate.irreps_in)
        self.self_interaction_1 = Linear(irreps_in, irreps_in, num_theories)
        self.radial = RadialNetwork([*radial_sizes, paths.num_weights])
        self.convolution = Convolution(paths)
        self.register_buffer("denominator", torch.tensor([denominator]))
        self.self_interaction_2 = Linear(paths.irreps_out, self.gate.irreps_in, num_theories)
        maps = [each.maps(self.gate.irreps_in) for each in (self.self_interaction_2, self.self_connection)]
        self._maps = name_of_maps((*maps[0], *maps[1]))
        self._pad = _missing(self.gate.irreps_in, self.self_connection.irreps_out)

    @staticmethod
    @cache
    def size(
        irreps_in: str, irreps_harmonics: str, irreps_hidden: str, radial_sizes: tuple[int, ...], num_theories: int
    ) -> tuple[o3.Irreps, int]:
        """Return the output irreps of a block and its number of parameters, without building it."""
        inputs, hidden = o3.Irreps(irreps_in), o3.Irreps(irreps_hidden)
        paths = TensorProductPaths(inputs, o3.Irreps(irreps_harmonics), hidden)
        reachable = o3.Irreps([item for item in hidden if item.ir in paths.irreps_out]).simplify()
        gates = Gate.inputs(reachable)
        linear = [
            Linear.size(inputs, gates),
            Linear.size(inputs, inputs, num_theories),
            Linear.size(paths.irreps_out, gates, num_theories),
        ]
        radial = [a * b for a, b in itertools.pairwise([*radial_sizes, paths.num_weights])]
        return reachable, sum(linear) + sum(radial)

    def forward(
        self,
        features: Float[Tensor, "atoms inputs"],
        harmonics: Float[Tensor, "pairs harmonics"],
        basis: Float[Tensor, "pairs basis"] | Tabulated,
        edges: EdgeIndex,
        theory: Int[Tensor, " atoms"] | None = None,
    ) -> Float[Tensor, "atoms outputs"]:
        """Return the features after one message-passing step."""
        # the convolution is linear in its weights: dividing the few numbers that make them divides the sum
        divisor, mixed = self.get_buffer("denominator"), self.self_interaction_1(features, theory)
        if not self.training and not isinstance(basis, Tabulated) and self._makes_weights(features):
            hidden, matrix = self.radial.hidden_in_c(basis, divisor)
            summed = self.convolution.of_hidden(mixed, harmonics, hidden, matrix, edges)
        else:
            summed = self.convolution(mixed, harmonics, radial_weights(self.radial, basis, divisor), edges)
        if not self.self_interaction_2.matmul.in_c(features):
            return self.gate(self.self_interaction_2(summed, theory) + self._connect(features))
        inputs, weights = self.self_interaction_2.operands(summed, theory)
        connected, connection = self.self_connection.operands(features, None)
        return gate(mix([*inputs, *connected], [*weights, *connection], self._maps), self.gate.name)

    def _makes_weights(self, like: Tensor) -> bool:
        """Return whether the convolution can make its weights itself."""
        backend = self.convolution.chosen(like.device.type, like.dtype)
        return backend == "c" and self.radial.matmul.in_c(like) and bool(self.convolution.paths.paths)

    def _connect(self, features: Float[Tensor, "atoms inputs"]) -> Float[Tensor, "atoms gates"]:
        """Return the self-connection, zero for the irreps that the input lacks."""
        parts = iter(self.self_connection(features).split([i.dim for i in self.self_connection.irreps_out], dim=1))
        blocks = [features.new_zeros(features.shape[0], pad) if pad else next(parts) for pad in self._pad]
        return torch.cat(blocks, dim=1)


def _missing(irreps: o3.Irreps, present: o3.Irreps) -> list[int]:
    """Return for each irrep the width of the zeros that replace it; 0 if it is present."""
    return [0 if item.ir in present else item.dim for item in irreps]


def scale_messages(
    blocks: Sequence[torch.nn.Module],
    basis: Callable[[Float[Tensor, " lengths"]], Float[Tensor, "lengths basis"]],
    cutoff: float,
) -> None:
    """Scale the initial inputs of the radial networks of blocks to unit size.

    The basis is of order 0.05 at bond lengths. Unscaled, forces start forty times smaller than energies, and training
    learns energies from composition long before any forces.

    Args:
        blocks: Interaction blocks.
        basis: Function from lengths [Å] to the input of the radial networks.
        cutoff: Length at which it ends [Å].
    """
    distances = torch.linspace(0.4, 1.0, 61)[:-1] * cutoff
    with torch.no_grad():
        values = basis(distances)
        density = distances**2 / (distances**2).sum()
        rms = (density.unsqueeze(1) * values.square()).sum(dim=0).mean().sqrt()
        for block in blocks:
            assert isinstance(block, InteractionBlock)
            block.radial.weights[0].mul_(INITIAL_GAIN / rms)
