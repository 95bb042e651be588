"""Energy models: a batch of graphs in, an energy per atom out."""

from typing import get_args

from data_pipeline.quoting import abbreviated
from foundation.models.energy_model import AlongEdges, Architecture, DataFacts, EnergyModel
from foundation.models.equivariant import EquivariantConfig, EquivariantNetwork
from foundation.models.grains import GrainsConfig, GrainsNetwork
from foundation.models.symmetry_functions import SymmetryFunctionsConfig, SymmetryFunctionsNetwork

__all__ = [
    "ARCHITECTURES",
    "AlongEdges",
    "Architecture",
    "DataFacts",
    "EnergyModel",
    "EquivariantConfig",
    "EquivariantNetwork",
    "GrainsConfig",
    "GrainsNetwork",
    "ModelConfig",
    "SymmetryFunctionsConfig",
    "SymmetryFunctionsNetwork",
    "architecture_named",
]

ModelConfig = EquivariantConfig | SymmetryFunctionsConfig | GrainsConfig
"""The architectures of a YAML file, distinguished by their first field."""
ARCHITECTURES: dict[str, type[Architecture]] = {config.architecture: config for config in get_args(ModelConfig)}
"""Architectures by their name in config.json."""


def architecture_named(name: str) -> type[Architecture]:
    """Return the config class of an architecture.

    Raises:
        ValueError: the name is unknown; the message lists the known ones.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"the architecture {abbreviated(name)} is unknown; known are {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]
