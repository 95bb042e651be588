"""The equivariant convolution as one operator, and its plain-torch form.

    out[i, c, u] = Σ_{e: receiver(e)=i} Σ_{a,b} CG_p[a, b, c] x[sender(e), a, u] Y[e, b] W[e, p, u]

for every path p = (input irrep, harmonic, output irrep), with the channels u of the paths that share an output irrep
side by side (the tensor product 'uvu' of e3nn and SevenNet, followed by a sum over neighbours).

Layout is component-major: the features of an irrep of degree l with m channels are a block (2l+1, m), flattened. Per
edge, the Clebsch-Gordan tensor is contracted with Y first: the small matrix that results is shared by all channels, so
the rest is one batched matrix product. That makes e3nn's per-path slices and their zero-filled gradients unnecessary,
at the price of messages (edges × components × channels) in memory.
"""

# e3nn 0.6 types Irreps as a bare tuple
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false

from dataclasses import dataclass
from functools import cached_property

import torch
from e3nn import o3
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Path:
    """One product of an input irrep with a spherical harmonic."""

    input: int
    """Which irrep of the input."""
    harmonic: int
    """Which irrep of the spherical harmonics."""
    output: o3.Irrep
    """The irrep that results."""
    channels: int
    """Channels of the input irrep, and so of the result."""


@dataclass(frozen=True)
class Paths:
    """All paths from features and spherical harmonics to a set of irreps, in the order of the weights.

    Weights are ordered by output irrep, then by input irrep and harmonic, as in sevenn >= 0.11.
    """

    irreps_in: o3.Irreps
    """Irreps of the features."""
    irreps_harmonics: o3.Irreps
    """Irreps of the spherical harmonics, one channel each."""
    irreps_allowed: o3.Irreps
    """Irreps to keep in the result."""

    @cached_property
    def paths(self) -> tuple[Path, ...]:
        """The paths, in the order of their weights."""
        allowed = {item.ir for item in self.irreps_allowed}
        found = [
            Path(i, j, output, item.mul)
            for i, item in enumerate(self.irreps_in)
            for j, harmonic in enumerate(self.irreps_harmonics)
            for output in item.ir * harmonic.ir
            if output in allowed
        ]
        return tuple(sorted(found, key=lambda path: path.output))

    @cached_property
    def irreps_out(self) -> o3.Irreps:
        """Irreps of the result: sorted, channels of the paths to the same irrep side by side."""
        return o3.Irreps([(path.channels, path.output) for path in self.paths]).simplify()

    @cached_property
    def num_weights(self) -> int:
        """Weights per edge."""
        return sum(path.channels for path in self.paths)

    def of_input(self, number: int) -> list[int]:
        """Return the numbers of the paths that start at an input irrep."""
        return [p for p, path in enumerate(self.paths) if path.input == number]

    def coupling(self, number: int) -> Float[Tensor, "harmonics outputs_inputs"]:
        """Return the coupling of an input irrep, float64: row b, columns (components of its paths' outputs, a).

        A path's entry is sqrt(2l+1) times e3nn's Wigner 3j symbol, with l the degree of the output ('component'
        normalisation of e3nn.o3.TensorProduct: unit variance in, unit variance out).
        """
        degree = self.irreps_in[number].ir.l
        slices = self.irreps_harmonics.slices()
        blocks = []
        for p in self.of_input(number):
            path = self.paths[p]
            harmonic = self.irreps_harmonics[path.harmonic].ir
            wigner = o3.wigner_3j(degree, harmonic.l, path.output.l, dtype=torch.float64)
            block = torch.zeros(self.irreps_harmonics.dim, path.output.dim, 2 * degree + 1, dtype=torch.float64)
            block[slices[path.harmonic]] = path.output.dim**0.5 * wigner.permute(1, 2, 0)
            blocks.append(block)
        return torch.cat(blocks, dim=1).flatten(1)


class Convolution(torch.nn.Module):
    """The operator for a fixed set of paths, with the plain-torch backend; it has no parameters."""

    def __init__(self, paths: Paths) -> None:
        super().__init__()
        self.paths = paths
        self._used = [n for n in range(len(paths.irreps_in)) if paths.of_input(n)]
        # kept outside the buffers, which a cast to float32 and back would round
        self._exact = {number: paths.coupling(number) for number in self._used}
        self._couplings: dict[tuple[int, torch.dtype, torch.device], Tensor] = {}

    def _coupling(self, number: int, like: Tensor) -> Tensor:
        """Return an input irrep's coupling in the type and on the device of another tensor."""
        key = (number, like.dtype, like.device)
        if key not in self._couplings:
            self._couplings[key] = self._exact[number].to(like)
        return self._couplings[key]

    def forward(
        self,
        features: Float[Tensor, "atoms features"],
        harmonics: Float[Tensor, "edges harmonics"],
        weights: Float[Tensor, "edges weights"],
        senders: Int[Tensor, " edges"],
        receivers: Int[Tensor, " edges"],
    ) -> Float[Tensor, "atoms outputs"]:
        """Return the sum over each atom's edges of features times harmonics times weights."""
        paths, num_atoms, num_edges = self.paths, features.shape[0], senders.shape[0]
        inputs = features.split([item.dim for item in paths.irreps_in], dim=1)
        path_weights = weights.split([path.channels for path in paths.paths], dim=1)
        outputs: list[Tensor | None] = [None] * len(paths.paths)
        for number in self._used:
            item, numbers = paths.irreps_in[number], paths.of_input(number)
            sizes = [paths.paths[p].output.dim for p in numbers]
            coupling = (harmonics @ self._coupling(number, harmonics)).view(num_edges, sum(sizes), item.ir.dim)
            neighbors = inputs[number].index_select(0, senders).view(num_edges, item.ir.dim, item.mul)
            expanded = [path_weights[p].unsqueeze(1).expand(-1, k, -1) for p, k in zip(numbers, sizes, strict=True)]
            messages = torch.bmm(coupling, neighbors) * torch.cat(expanded, dim=1)
            zeros = messages.new_zeros(num_atoms, sum(sizes) * item.mul)
            summed = zeros.index_add(0, receivers, messages.flatten(1)).view(num_atoms, sum(sizes), item.mul)
            for p, output in zip(numbers, summed.split(sizes, dim=1), strict=True):
                outputs[p] = output
        return self._assemble(outputs)

    def _assemble(self, outputs: list[Tensor | None]) -> Float[Tensor, "atoms outputs"]:
        """Put the paths' results side by side, by output irrep."""
        blocks: dict[o3.Irrep, list[Tensor]] = {}
        for path, output in zip(self.paths.paths, outputs, strict=True):
            assert output is not None
            blocks.setdefault(path.output, []).append(output)
        return torch.cat([torch.cat(parts, dim=2).flatten(1) for parts in blocks.values()], dim=1)
