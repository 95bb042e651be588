"""Table of a network's radial functions: polynomials of degree 7 over intervals of the distance, for the library.

Training interpolates between knots, so that gradients reach the weights; here the weights are fixed, and a polynomial
in few intervals is as exact as the float type and small enough to stay in a processor's cache.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from foundation.models.equivariant import EquivariantNetwork
from foundation.nn.interaction import InteractionBlock
from foundation.nn.radial_table import BEND

TERMS = 8
"""Coefficients of a polynomial; TERMS_OF_TABLE of radial.c."""
INNER, OUTER = 32, 8
"""Number of intervals below and above the distance from which the cutoff function falls."""
SHORTEST = 1e-4
"""Distance at which functions of zero are computed [Å]."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Table:
    """Polynomials in intervals."""

    breaks: Float64[np.ndarray, " breaks"]
    """Ends of the intervals, from zero to the cutoff [Å]."""
    coefficients: tuple[Float64[Tensor, "intervals terms _"], ...]
    """Coefficients of every layer's functions over the place in an interval, from -1 to 1."""


def radial_polynomials(network: EquivariantNetwork) -> Table:
    """Return the table of a network in float64.

    Intervals are evenly spaced well below BEND and geometrically above, as weights vary fastest between close atoms.
    The nodes of the interpolation include both ends, so functions have no jumps.
    """
    config = network.config
    kink = config.cutoff_onset if config.cutoff_function == "xplor" else config.cutoff
    inner = BEND * np.sinh(np.linspace(0, math.asinh(kink / BEND), INNER + 1))
    inner[-1] = kink
    breaks = np.concatenate([inner, np.linspace(kink, config.cutoff, OUTER + 1)[1:]]) if kink < config.cutoff else inner
    nodes = -np.cos(np.pi * np.arange(TERMS) / (TERMS - 1))
    middle, half = (breaks[1:] + breaks[:-1]) / 2, (breaks[1:] - breaks[:-1]) / 2
    distances = torch.from_numpy(middle[:, None] + half[:, None] * nodes).clamp(min=SHORTEST)
    inverse = torch.from_numpy(np.linalg.inv(np.vander(nodes, increasing=True)))
    coefficients = []
    with torch.no_grad():
        basis = network.basis(distances.flatten())
        for block in network.blocks:
            assert isinstance(block, InteractionBlock)
            weights = block.radial(basis, block.get_buffer("denominator")).view(len(middle), TERMS, -1)
            coefficients.append(torch.einsum("tn,inw->itw", inverse, weights))
    return Table(breaks=breaks, coefficients=tuple(coefficients))
