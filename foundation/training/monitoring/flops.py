"""Floating-point operations of a training step, counted, and the machine's rate, measured.

Counted are the necessary products of a step: convolutions as their kernels are written, radial networks per pair of
edges, linear maps per atom. Each matrix product is done six times: forward; the gradient by positions; and the
derivatives of both by weights and inputs. Element-wise work and recomputation are left out, so that the quotient is the
model FLOP utilisation of Chowdhery et al. (arXiv:2204.02311), appendix B.
"""

import time
from dataclasses import dataclass
from functools import cache

import torch

from foundation.kernels.convolution import Convolution
from foundation.kernels.cpu.codegen import operations
from foundation.nn.linear import Linear
from foundation.nn.radial import RadialNetwork
from foundation.potential import Potential

PASSES = 6
"""Number of times that a matrix product of the energy is done in a training step."""
SIZES = {"cpu": 512, "cuda": 8192}
"""Number of rows of the square matrices whose product measures a device's rate."""
SECONDS = 0.2
"""Duration of the measurement [s]."""


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """Floating-point operations of a training step."""

    per_edge: float
    """Operations per directed edge."""
    per_atom: float
    """Operations per atom."""


def training_cost(potential: Potential, *, tabulated: bool) -> StepCost | None:
    """Return the operations of a training step; None for a network without convolutions, whose cost is unknown.

    Args:
        potential: Potential to train.
        tabulated: Whether radial networks are interpolated: run at a few hundred distances, they are left out.
    """
    per_edge = per_atom = 0.0
    modules = list(potential.network.modules())
    if not any(isinstance(module, Convolution) for module in modules):
        return None
    for module in modules:
        if isinstance(module, Convolution):
            count = operations(module.paths)
            per_edge += count.forward + 2 * count.backward + count.double_backward
        elif isinstance(module, RadialNetwork) and not tabulated:
            per_edge += PASSES * sum(weight.numel() for weight in module.weights)  # two operations, for two edges
        elif isinstance(module, Linear):
            same = [(i, o) for i in module.irreps_in for o in module.irreps_out if i.ir == o.ir]
            per_atom += PASSES * 2 * sum(i.ir.dim * i.mul * o.mul for i, o in same)
    return StepCost(per_edge=per_edge, per_atom=per_atom)


@cache
def peak_rate(device: torch.device, dtype: torch.dtype) -> float | None:
    """Return the operations per second of a large matrix product; None on a device that cannot be timed here."""
    if device.type not in SIZES:
        return None
    size = SIZES[device.type]
    matrix = torch.ones(size, size, dtype=dtype, device=device)  # no random numbers, which would change training's
    best, end = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        started = time.perf_counter()
        torch.matmul(matrix, matrix)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - started)
    return 2.0 * size**3 / best
