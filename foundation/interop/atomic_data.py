"""Atomic masses, covalent radii and constants, as ASE has them, in the units of molecular dynamics (eV, Å, dalton)."""

import ase.data
import ase.units
import numpy as np

MASSES = np.asarray(ase.data.atomic_masses, dtype=np.float64)
"""Atomic masses by atomic number [dalton]."""
FEMTOSECOND = float(ase.units.fs)
"""A femtosecond in Å √(dalton/eV)."""
BOLTZMANN = float(ase.units.kB)
"""Boltzmann's constant [eV/K]."""
GIGAPASCAL = float(ase.units.GPa)
"""A gigapascal in eV/Å³."""
