"""Low-rank adapters (LoRA; Hu et al., ICLR 2022) on the layers of a network whose weights are matrices.

A linear map mixes the channels of each irrep by its own matrix, so W + (alpha / r) A B within each matrix is as
equivariant as W; radial weights are invariant anyway. The start's parameters are frozen and keep their names; the
adapters' are named ...adapter.down and ...adapter.up. Adapters are plain modules rather than torch's parametrizations,
which cannot be pickled and share a class between copies: merging a copy would break the original. A forward pass costs
one more small product per matrix; merging removes adapters and this cost.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from foundation.nn.matrices import Matrices
from foundation.potential import Potential


class LowRank(torch.nn.Module):
    """Low-rank addition (alpha / rank) A B to each of the consecutive matrices of a weight.

    A (`down`) is normal, like the weights of these layers, which are normalised in use; B (`up`) is zero, so that at
    first nothing is added. The rank of a matrix is limited by its rows and columns.
    """

    def __init__(self, shapes: Sequence[tuple[int, int]], rank: int, alpha: float) -> None:
        super().__init__()
        self._shapes = [(fan_in, min(rank, fan_in, fan_out), fan_out) for fan_in, fan_out in shapes]
        self._scale = alpha / rank
        self.down = torch.nn.Parameter(torch.randn(sum(a * r for a, r, _ in self._shapes)))
        self.up = torch.nn.Parameter(torch.zeros(sum(r * b for _, r, b in self._shapes)))

    def forward(self, weight: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return the adapted weight."""
        downs = self.down.split([a * r for a, r, _ in self._shapes])
        ups = self.up.split([r * b for _, r, b in self._shapes])
        parts = [
            (down.view(fan_in, rank) @ up.view(rank, fan_out)).flatten()
            for (fan_in, rank, fan_out), down, up in zip(self._shapes, downs, ups, strict=True)
        ]
        return weight + self._scale * torch.cat(parts).view_as(weight)


def adapt(potential: Potential, names: Sequence[str], rank: int, alpha: float) -> None:
    """Freeze a potential and add trainable adapters, in place; predictions stay the same, bit for bit.

    Args:
        potential: Potential to adapt.
        names: Names of the weights that get an adapter.
        rank: Rank of the addition to each matrix.
        alpha: The addition is scaled by alpha / rank.

    Raises:
        ValueError: rank or alpha is not positive, or adapters already exist.
        KeyError: a name is not that of a weight made of matrices.
    """
    if rank < 1 or not (alpha > 0 and math.isfinite(alpha)):
        raise ValueError(f"adapters need a rank of at least 1 and a positive alpha, not {rank} and {alpha}")
    layers = adaptable(potential)
    if any(layer.adapter is not None for layer in layers.values()):
        raise ValueError("the potential already has adapters: merge them first")
    chosen = [layers[name] for name in names]
    potential.requires_grad_(False)
    for layer in chosen:
        layer.adapter = LowRank(layer.matrix_shapes, rank, alpha).to(layer.weight).train(layer.training)


def merge_adapters(potential: Potential) -> list[str]:
    """Merge adapters into the weights in place, and return the names of the weights that had one.

    The result is a plain potential with the same predictions, and with all parameters trainable again.

    Raises:
        ValueError: the potential has no adapters.
    """
    adapted = {name: layer for name, layer in adaptable(potential).items() if layer.adapter is not None}
    if not adapted:
        raise ValueError("the potential has no adapters to merge")
    with torch.no_grad():
        for layer in adapted.values():
            layer.weight.copy_(layer.adapted())
            layer.adapter = None
    potential.requires_grad_(True)
    return list(adapted)


def adaptable(potential: Potential) -> dict[str, Matrices]:
    """Return the layers that can have an adapter, by the name of their weight."""
    modules = potential.named_modules()
    return {f"{name}.weight": module for name, module in modules if isinstance(module, Matrices)}
