"""Start and end of molecular dynamics in suites."""

import ase
import numpy as np
from ase import units
from jaxtyping import Float64

RUNAWAY = 10.0
"""Kinetic temperature over the wanted one from which on a trajectory is lost."""


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


def is_lost(atoms: ase.Atoms, temperature: float) -> bool:
    """Return True if atoms have flown apart: their kinetic temperature is RUNAWAY times the wanted one [K], or NaN."""
    return not atoms.get_temperature() < RUNAWAY * temperature
