"""Questions to an engine and its answers, in the project's units."""

from typing import NamedTuple

import ase
import numpy as np
from ase.calculators.calculator import Calculator
from ase.md.verlet import VelocityVerlet
from ase.units import fs
from jaxtyping import Float64

from foundation.potential import Potential


class Asked(NamedTuple):
    """A potential at one of its levels of theory, and how it computes."""

    potential: Potential
    """The potential, in float64."""
    theory: str
    """Level of theory."""
    mode: str
    """Mode of `foundation.Calculator`."""


class Answer(NamedTuple):
    """Energy, forces and stress of a structure, by an engine."""

    energy: float
    """Total energy [eV]."""
    forces: Float64[np.ndarray, "_ 3"]
    """Forces [eV/Å]."""
    stress: Float64[np.ndarray, "3 3"] | None = None
    """Stress [eV/Å³], positive in tension; None: the engine gives none."""


class Motion(NamedTuple):
    """Dynamics without a thermostat, from the velocities of a structure."""

    steps: int
    """Number of steps."""
    every: int
    """Number of steps between two energies."""
    femtoseconds: float
    """Time step [fs]."""


def total_energies(calculator: Calculator, atoms: ase.Atoms, motion: Motion) -> list[float]:
    """Return total energies along ASE's dynamics [eV], the first one included."""
    moved, energies = atoms.copy(), []
    moved.calc = calculator
    integrator = VelocityVerlet(moved, motion.femtoseconds * fs)
    integrator.attach(lambda: energies.append(moved.get_total_energy()), interval=motion.every)
    integrator.run(motion.steps)
    return energies
