"""A small network of every architecture and main choice: the laws and the contract are tested on them."""

from typing import Any

from foundation.models import EquivariantConfig, ModelConfig

CUTOFF = 4.0
EQUIVARIANT: dict[str, Any] = {
    "cutoff": CUTOFF, "cutoff_onset": 3.4, "num_basis": 4, "radial_sizes": (8,), "readout_channels": 4
}  # fmt: skip
SMALL_NETWORKS: dict[str, ModelConfig] = {
    "even-2-blocks": EquivariantConfig(irreps="4x0e+3x1e+2x2e", num_blocks=2, **EQUIVARIANT),
    "even-3-blocks-degree-3": EquivariantConfig(
        irreps="8x0e+4x1e+2x2e+1x3e", num_blocks=3, max_degree=3, cutoff_function="polynomial", **EQUIVARIANT
    ),
    "parity-sqrt": EquivariantConfig(
        irreps="2x0o+4x0e+3x1o+2x1e+2x2e", num_blocks=3, normalization="sqrt", **EQUIVARIANT
    ),
    "scalars-sqrt-polynomial": EquivariantConfig(
        irreps="8x0e", num_blocks=2, max_degree=1, cutoff_function="polynomial", normalization="sqrt", **EQUIVARIANT
    ),
}
"""They all have the same cutoff."""
