"""Start of molecular dynamics in suites."""

import ase
import numpy as np
from ase import units
from jaxtyping import Float64


def thermal_momenta(
    atoms: ase.Atoms, temperature: float, random: np.random.Generator
) -> Float64[np.ndarray, "atoms 3"]:
    """Return momenta of the Maxwell-Boltzmann distribution in ASE's units, in sum zero.

    Args:
        atoms: The atoms.
        temperature: Temperature [K].
        random: Generator of the draws.
    """
    masses = atoms.get_masses()[:, None]
    momenta = np.sqrt(masses * units.kB * temperature) * random.standard_normal((len(atoms), 3))
    return momenta - masses * momenta.sum(axis=0) / masses.sum()
