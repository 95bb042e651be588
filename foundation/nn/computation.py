"""Computation: options of computing that are independent of the weights, set on a network in one call."""

from dataclasses import dataclass
from typing import Literal

import torch

from foundation.kernels.backend import Backend, Implemented
from foundation.nn.matmul import Matmul, Precision
from foundation.nn.radial_table import check_num_knots

Option = Literal["backend", "precision", "radial_table", "recompute"]


@dataclass(frozen=True, kw_only=True)
class Computation:
    """Options of how a network computes; the defaults are those of a potential loaded from a folder."""

    backend: Backend = "auto"
    """Implementation of the convolution."""
    precision: Precision = "float32"
    """Precision of matrix products in training. TF32 is a setting of the whole process; every other choice turns it
    off."""
    radial_table: int = 0
    """Number of distances at which radial networks are tabulated; 0 evaluates them at every pair of atoms, as training
    does for batches with fewer than four pairs for each distance, for which it is quicker."""
    recompute: bool = False
    """Keep only inputs and outputs of each block, and recompute its inside for derivatives."""

    def __post_init__(self) -> None:
        check_num_knots(self.radial_table)


def set_layers(network: torch.nn.Module, computation: Computation) -> None:
    """Set the backend of every layer that has several and the precision of every matrix product inside a network."""
    torch.set_float32_matmul_precision("high" if computation.precision == "tf32" else "highest")
    for module in network.modules():
        if isinstance(module, Implemented):
            module.backend = computation.backend
        elif isinstance(module, Matmul):
            module.rounded, module.backend = computation.precision == "bf16", computation.backend


def refuse_options(computation: Computation, refused: dict[Option, str]) -> None:
    """Refuse options that a network does not support.

    Args:
        computation: The requested options.
        refused: Options that must stay at their default, with the reason.

    Raises:
        ValueError: another value is requested; the message names the option and the reason.
    """
    for name, reason in refused.items():
        value, default = getattr(computation, name), getattr(Computation(), name)
        if value != default:
            raise ValueError(f"{name} {value} is not possible: {reason}; leave it at {default}")
