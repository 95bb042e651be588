"""The paths of an equivariant convolution: products of an input irrep and a harmonic, and their output irreps.

    out[i, c, u] = Σ_{e: receiver(e)=i} Σ_{a,b} CG_p[a, b, c] x[sender(e), a, u] Y[e, b] W[e, p, u]

for every path p = (input irrep, harmonic, output irrep), with the channels u of the paths that share an output irrep
side by side (the tensor product 'uvu' of e3nn and SevenNet, followed by a sum over neighbours). Layout is
component-major: the features of an irrep of degree l with m channels are a block (2l+1, m), flattened.
"""

# e3nn 0.6 types Irreps as a bare tuple
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false

from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import torch
from e3nn import o3
from jaxtyping import Float, Float64
from torch import Tensor


@dataclass(frozen=True)
class TensorProductPath:
    """One product of an input irrep with a spherical harmonic."""

    input: int
    """Index of the input irrep."""
    harmonic: int
    """Index of the irrep of the spherical harmonics."""
    output: o3.Irrep
    """Irrep of the result."""
    channels: int
    """Number of channels of the input irrep, and so of the result."""


@dataclass(frozen=True)
class TensorProductPaths:
    """All paths from features and spherical harmonics to a set of irreps, in the order of the weights.

    Weights are ordered by output irrep, then by input irrep and harmonic, as in sevenn >= 0.11.
    """

    irreps_in: o3.Irreps
    """Irreps of the features."""
    irreps_harmonics: o3.Irreps
    """Irreps of the spherical harmonics, one channel each."""
    irreps_allowed: o3.Irreps
    """Irreps to keep in the result."""

    @staticmethod
    @cache
    def named(name: str) -> "TensorProductPaths":
        """Return the paths from their name."""
        return TensorProductPaths(*(o3.Irreps(part) for part in name.split(" | ")))

    @cached_property
    def name(self) -> str:
        """String of the three irreps, from which `named` makes the same paths."""
        return f"{self.irreps_in} | {self.irreps_harmonics} | {self.irreps_allowed}"

    @cached_property
    def paths(self) -> tuple[TensorProductPath, ...]:
        """The paths, in the order of their weights."""
        allowed = {item.ir for item in self.irreps_allowed}
        found = [
            TensorProductPath(i, j, output, item.mul)
            for i, item in enumerate(self.irreps_in)
            for j, harmonic in enumerate(self.irreps_harmonics)
            for output in item.ir * harmonic.ir
            if output in allowed
        ]
        return tuple(sorted(found, key=lambda path: path.output))

    @cached_property
    def irreps_out(self) -> o3.Irreps:
        """Irreps of the result, sorted; the channels of paths to the same irrep are concatenated."""
        return o3.Irreps([(path.channels, path.output) for path in self.paths]).simplify()

    @cached_property
    def num_weights(self) -> int:
        """Number of weights per edge."""
        return sum(path.channels for path in self.paths)

    @cached_property
    def odd_harmonics(self) -> tuple[bool, ...]:
        """Components of the harmonics that change sign with the direction: those of odd degree, for any label."""
        return tuple(item.ir.l % 2 == 1 for item in self.irreps_harmonics for _ in range(item.ir.dim))

    def of_input(self, number: int) -> list[int]:
        """Return the indices of the paths of an input irrep."""
        return [p for p, path in enumerate(self.paths) if path.input == number]

    @cached_property
    def wigner(self) -> tuple[Float64[np.ndarray, "inputs harmonics outputs"], ...]:
        """The coupling of every path: sqrt(2l+1) times e3nn's Wigner 3j symbol, with l the degree of the output.

        That is the 'component' normalisation of e3nn.o3.TensorProduct: unit variance in, unit variance out. Arrays, not
        tensors, because kernels may be generated while torch traces operations on tensors.
        """
        found = []
        for path in self.paths:
            degrees = (self.irreps_in[path.input].ir.l, self.irreps_harmonics[path.harmonic].ir.l, path.output.l)
            found.append(path.output.dim**0.5 * o3.wigner_3j(*degrees, dtype=torch.float64).numpy())
        return tuple(found)

    @cached_property
    def couplings(self) -> dict[int, Float[Tensor, "harmonics outputs_inputs"]]:
        """Couplings of every input irrep with a path; equal ones of several blocks are stored once."""
        return {n: self.coupling(n) for n in range(len(self.irreps_in)) if self.of_input(n)}

    def coupling(self, number: int) -> Float[Tensor, "harmonics outputs_inputs"]:
        """Return the couplings of an input irrep, float64: row b, columns (components of its paths' outputs, a)."""
        slices = self.irreps_harmonics.slices()
        blocks = []
        for p in self.of_input(number):
            wigner = torch.from_numpy(self.wigner[p])
            block = torch.zeros(self.irreps_harmonics.dim, wigner.shape[2], wigner.shape[0], dtype=torch.float64)
            block[slices[self.paths[p].harmonic]] = wigner.permute(1, 2, 0)
            blocks.append(block)
        return torch.cat(blocks, dim=1).flatten(1)
