"""Energy models: a batch of graphs in, an energy per atom out."""

from typing import get_args

from data_pipeline.quoting import abbreviated
from foundation.models.energy_model import Architecture, DataFacts, EnergyModel
from foundation.models.equivariant import EquivariantConfig, EquivariantNetwork

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "DataFacts",
    "EnergyModel",
    "EquivariantConfig",
    "EquivariantNetwork",
    "ModelConfig",
    "architecture_named",
]

ModelConfig = EquivariantConfig
"""The architectures that a YAML can name; told apart by their first field."""
ARCHITECTURES: dict[str, type[Architecture]] = {
    config.architecture: config for config in get_args(ModelConfig) or (ModelConfig,)
}
"""The same by the name that config.json gives them."""


def architecture_named(name: str) -> type[Architecture]:
    """Return the config class of an architecture.

    Raises:
        ValueError: the name is unknown; the message has those that are known.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"the architecture {abbreviated(name)} is unknown; known are {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]
