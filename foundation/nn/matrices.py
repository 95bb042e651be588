"""Layers whose weight is a sequence of matrices, for adapters and for Muon."""

from abc import abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor


class Matrices(torch.nn.Module):
    """A layer with a parameter `weight`, whose values are row-major matrices (channels in, channels out)."""

    weight: torch.nn.Parameter
    adapter: torch.nn.Module | None
    """Adapter in fine-tuning: a module that maps the weight to the one used; None without an adapter."""

    def __init__(self) -> None:
        super().__init__()
        self.register_module("adapter", None)

    @property
    @abstractmethod
    def matrix_shapes(self) -> list[tuple[int, int]]:
        """Input and output channels of the matrices, in their order in the weight."""

    def adapted(self) -> Float[Tensor, "*shape"]:
        """Return the weight with the adapter's addition."""
        return self.weight if self.adapter is None else self.adapter(self.weight)
