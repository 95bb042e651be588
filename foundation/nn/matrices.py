"""Layers whose weight is made of matrices, one after another: what an adapter is put on, and what Muon is for."""

from abc import abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor


class Matrices(torch.nn.Module):
    """A layer with a parameter `weight`, whose values are row-major matrices (channels in, channels out)."""

    weight: torch.nn.Parameter
    adapter: torch.nn.Module | None
    """Addition of fine-tuning: a module that maps the weight to the one that is used; None if nothing is added."""

    def __init__(self) -> None:
        super().__init__()
        self.register_module("adapter", None)

    @property
    @abstractmethod
    def matrix_shapes(self) -> list[tuple[int, int]]:
        """Channels in and out of the matrices, in the order in which they lie in the weight."""

    def adapted(self) -> Float[Tensor, "*shape"]:
        """Return the weight with what an adapter adds."""
        return self.weight if self.adapter is None else self.adapter(self.weight)
