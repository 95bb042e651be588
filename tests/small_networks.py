"""A small network of every architecture and main choice: the laws and the contract are tested on them."""

from typing import Any

import ase
import numpy as np
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from scipy.spatial.transform import Rotation

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
SPACING = 4.5
"""Distance of neighbouring molecules [Å]."""


def box_of_molecules(seed: int) -> ase.Atoms:
    """Aluminium and CuO2 on a grid, with their molecules and EMT's labels."""
    rng = np.random.default_rng(seed)
    atoms, labels = ase.Atoms(cell=[2 * SPACING] * 3, pbc=True), []
    for number, place in enumerate(np.ndindex(2, 2, 2)):
        points = np.array([[0, 0, 0], [0, 0, 1.8], [0, 0, -1.8]]) @ Rotation.random(rng=rng).as_matrix().T
        part = ase.Atoms("Al", points[:1]) if number % 2 else ase.Atoms("CuO2", points)
        part.translate(SPACING * np.array(place) + rng.normal(0.0, 0.1, 3))
        atoms += part
        labels += [number] * len(part)
    atoms.new_array("molecule", np.array(labels))
    atoms.calc = EMT()
    energy, forces, stress = atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces, stress=stress)
    return atoms
