"""A small network of every architecture and main choice: the laws and the contract are tested on them."""

from typing import Any

from foundation.models import EquivariantConfig, GrainsConfig, ModelConfig, SymmetryFunctionsConfig

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
    "symmetry-functions": SymmetryFunctionsConfig(
        radial_functions=((0.1, 0.0), (1.0, 2.0), (1.0, 3.0)),
        angular_functions=((0.02, 1.0, 1.0), (0.05, 2.0, -1.0), (0.02, 4.0, 1.0)),
        cutoff=CUTOFF,
        hidden_sizes=(8, 6),
    ),
    "radial-symmetry-functions-polynomial": SymmetryFunctionsConfig(
        radial_functions=((0.2, 0.0), (1.0, 2.5)), cutoff=CUTOFF, cutoff_function="polynomial", hidden_sizes=(8,)
    ),
}
"""They all have the same cutoff, and know any atoms."""
OF_MOLECULES: dict[str, ModelConfig] = {
    "grains": GrainsConfig(
        grains=("Al", "CuO2"), grain_irreps="8x0e+4x1o+2x2e", radial_sizes=(8,), hidden_sizes=(8, 6), contact_channels=4
    ),
    "grains-without-contacts": GrainsConfig(
        grains=("AlO",), grain_irreps="4x0e+4x1o", num_blocks=1, contact_cutoff=0.0, hidden_sizes=(8,)
    ),
}
"""Those that know only certain molecules."""
