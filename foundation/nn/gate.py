"""The gate nonlinearity for component-major features."""

# e3nn 0.6 types Irreps as a bare tuple
# pyright: reportReturnType=false

import torch
from e3nn import o3
from jaxtyping import Float
from torch import Tensor

from foundation.kernels.cpu.dense import Nonlinearity
from foundation.kernels.dense import name_of_gate
from foundation.nn.radial import activation_scale


class Gate(torch.nn.Module):
    """SiLU of even scalars, tanh of odd ones, and every other irrep multiplied by SiLU of an extra even scalar.

    Functions are scaled to unit second moment (e3nn.nn.Gate). The gates are the last even scalars of the input, in the
    order of the irreps that they multiply.
    """

    def __init__(self, irreps_out: o3.Irreps) -> None:
        """Prepare a gate.

        Args:
            irreps_out: Sorted irreps of the result (e3nn sorts odd scalars before even ones).

        Raises:
            ValueError: irreps to multiply, but no even scalars.
        """
        super().__init__()
        self.irreps_out = irreps_out.simplify()
        self._gated = [item for item in self.irreps_out if item.ir.l > 0]
        self._odd = sum(item.mul for item in self.irreps_out if item.ir == o3.Irrep("0o"))
        self._even = sum(item.mul for item in self.irreps_out if item.ir == o3.Irrep("0e"))
        if not self._even:
            raise ValueError(f"{irreps_out}: the gate needs even scalars (0e)")
        self._num_gates = sum(item.mul for item in self._gated)
        self.irreps_in = Gate.inputs(self.irreps_out)
        self._silu = activation_scale(torch.nn.functional.silu)
        self._tanh = activation_scale(torch.tanh)
        gated = tuple((item.ir.dim, item.mul) for item in self._gated)
        self.name = name_of_gate(Nonlinearity(self._odd, self._even, gated, self._tanh, self._silu))
        """Name of the same gate in C, `kernels.dense.gate`."""

    @staticmethod
    def inputs(irreps_out: o3.Irreps) -> o3.Irreps:
        """Return the input irreps of a gate: those of its result, and one more even scalar for each to multiply."""
        gates = sum(item.mul for item in irreps_out if item.ir.l > 0)
        return o3.Irreps([(item.mul + gates, item.ir) if item.ir == o3.Irrep("0e") else item for item in irreps_out])

    def forward(self, features: Float[Tensor, "atoms inputs"]) -> Float[Tensor, "atoms outputs"]:
        """Return the gated features."""
        odd, even, *gated = features.split(
            [self._odd, self._even + self._num_gates, *(item.dim for item in self._gated)], dim=1
        )
        even = self._silu * torch.nn.functional.silu(even)
        scalars, *gates = even.split([self._even, *(item.mul for item in self._gated)], dim=1)
        outputs = [self._tanh * torch.tanh(odd), scalars]
        for item, block, gate in zip(self._gated, gated, gates, strict=True):
            product = block.view(-1, item.ir.dim, item.mul) * gate.unsqueeze(1)
            outputs.append(product.flatten(1))
        return torch.cat(outputs, dim=1)
