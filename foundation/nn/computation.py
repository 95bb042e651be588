"""Computation: how a network computes, which its weights say nothing of; one record, given to a network in one call."""

from dataclasses import dataclass
from typing import Literal

import torch

from foundation.kernels.convolution import Backend, Convolution
from foundation.nn.matmul import Matmul, Precision
from foundation.nn.radial_table import check_num_knots

Option = Literal["backend", "precision", "radial_table", "recompute"]


@dataclass(frozen=True, kw_only=True)
class Computation:
    """Way in which a network computes; the defaults are those of a potential that is loaded from a folder."""

    backend: Backend = "auto"
    """Implementation of the convolution."""
    precision: Precision = "float32"
    """Of the matrix products in training. TF32 is a setting of the whole process, and every other choice ends it."""
    radial_table: int = 0
    """Number of distances at which radial networks are tabulated; 0 evaluates them at every pair of atoms."""
    recompute: bool = False
    """Keep only what goes in and out of each block, and compute its inside again for derivatives."""

    def __post_init__(self) -> None:
        check_num_knots(self.radial_table)


def set_layers(network: torch.nn.Module, computation: Computation) -> None:
    """Set the backend of every convolution and the precision of every matrix product inside a network."""
    torch.set_float32_matmul_precision("high" if computation.precision == "tf32" else "highest")
    for module in network.modules():
        if isinstance(module, Convolution):
            module.backend = computation.backend
        elif isinstance(module, Matmul):
            module.rounded = computation.precision == "bf16"


def refuse_options(computation: Computation, refused: dict[Option, str]) -> None:
    """Refuse what a network cannot do.

    Args:
        computation: What is asked for.
        refused: Options that have to stay at their default, and the reason.

    Raises:
        ValueError: another value is asked for; the message names the option and the reason.
    """
    for name, reason in refused.items():
        value, default = getattr(computation, name), getattr(Computation(), name)
        if value != default:
            raise ValueError(f"{name} {value} is not possible: {reason}; leave it at {default}")
