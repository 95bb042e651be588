"""Between the project's layout of features and e3nn's."""

import torch
from e3nn import o3
from torch import Tensor


def swap_layout(values: Tensor, irreps: o3.Irreps, *, to_e3nn: bool) -> Tensor:
    """Between component-major blocks (2l+1, channels) and e3nn's (channels, 2l+1)."""
    blocks = []
    for item, block in zip(irreps, values.split([item.dim for item in irreps], dim=1), strict=True):
        shape = (item.ir.dim, item.mul) if to_e3nn else (item.mul, item.ir.dim)
        blocks.append(block.reshape(-1, *shape).transpose(1, 2).flatten(1))
    return torch.cat(blocks, dim=1)
