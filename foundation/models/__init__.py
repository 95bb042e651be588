"""Energy models: a batch of graphs in, an energy per atom out. One file with a config and a class is a new model."""

from typing import Protocol

from jaxtyping import Float, Int
from torch import Tensor

from data_pipeline.graph import GraphBatch
from foundation.models.equivariant import EquivariantConfig, EquivariantNetwork

__all__ = ["EnergyModel", "EquivariantConfig", "EquivariantNetwork", "ModelConfig"]


class EnergyModel(Protocol):
    """What Potential needs of a network."""

    cutoff: float
    """Atoms closer than this are neighbours [Å]."""

    def forward(self, batch: GraphBatch, elements: Int[Tensor, " atoms"]) -> Float[Tensor, " atoms"]:
        """Return the energy of each atom, in units of the potential's scale.

        Args:
            batch: The structures.
            elements: Position of each atom's element among the elements that the network knows.
        """
        ...


ModelConfig = EquivariantConfig
"""The models that a YAML can name."""
