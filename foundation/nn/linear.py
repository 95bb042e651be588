"""The equivariant linear map, with e3nn's parameter layout and component-major features."""

# e3nn 0.6 types Irreps as a bare tuple
# pyright: reportAttributeAccessIssue=false, reportArgumentType=false

import torch
from e3nn import o3
from jaxtyping import Float
from torch import Tensor


class Linear(torch.nn.Module):
    """Mixes the channels of each irrep; irreps that the output has and the input lacks are left out of irreps_out.

    The weight has e3nn's layout (o3.Linear): for each input irrep, each equal output irrep, a row-major matrix
    (channels in, channels out); outputs are divided by the square root of all channels in ('element' normalisation).
    """

    def __init__(self, irreps_in: o3.Irreps, irreps_out: o3.Irreps) -> None:
        super().__init__()
        self.irreps_in = irreps_in.simplify()
        self.irreps_out = o3.Irreps([item for item in irreps_out.simplify() if item.ir in self.irreps_in])
        for irreps in (self.irreps_in, self.irreps_out):
            if len({item.ir for item in irreps}) < len(irreps):
                raise ValueError(f"{irreps}: an irrep occurs twice; sort the irreps")
        self._inputs = [item.dim for item in self.irreps_in]
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

    def forward(self, features: Float[Tensor, "atoms inputs"]) -> Float[Tensor, "atoms outputs"]:
        """Return the mixed features."""
        inputs = features.split(self._inputs, dim=1)
        weights = self.weight.split([a * b for _, _, a, b in self._blocks])
        outputs = []
        for (i, components, fan_in, fan_out), weight in zip(self._blocks, weights, strict=True):
            matrix = weight.view(fan_in, fan_out) * fan_in**-0.5
            outputs.append((inputs[i].reshape(-1, fan_in) @ matrix).view(-1, components * fan_out))
        return torch.cat([outputs[place] for place in self._order], dim=1)
