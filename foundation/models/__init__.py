"""Energy models: a batch of graphs in, an energy per atom out."""

from typing import get_args

from data_pipeline.quoting import abbreviated
from foundation.models.energy_model import Architecture, DataFacts, EnergyModel
from foundation.models.equivariant import EquivariantConfig, EquivariantNetwork
from foundation.models.symmetry_functions import SymmetryFunctionsConfig, SymmetryFunctionsNetwork

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "DataFacts",
    "EnergyModel",
    "EquivariantConfig",
    "EquivariantNetwork",
    "ModelConfig",
    "SymmetryFunctionsConfig",
    "SymmetryFunctionsNetwork",
    "architecture_named",
]

ModelConfig = EquivariantConfig | SymmetryFunctionsConfig
"""The architectures that a YAML can name; told apart by their first field."""
ARCHITECTURES: dict[str, type[Architecture]] = {config.architecture: config for config in get_args(ModelConfig)}
"""The same by the name that config.json gives them."""


def architecture_named(name: str) -> type[Architecture]:
    """Return the config class of an architecture.

    Raises:
        ValueError: the name is unknown; the message has those that are known.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"the architecture {abbreviated(name)} is unknown; known are {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]
