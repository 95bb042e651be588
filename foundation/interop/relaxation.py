"""Relaxation with ASE's optimizers; separate from the calculator because they are slow to import."""

from dataclasses import dataclass

import ase
import numpy as np
from ase.calculators.calculator import Calculator as AseCalculator
from ase.filters import FrechetCellFilter
from ase.optimize import FIRE

from data_pipeline.sources.atoms import to_atoms
from data_pipeline.structure import Structure
from foundation.interop.calculator import Calculator
from foundation.potential import Potential


@dataclass(frozen=True, kw_only=True, eq=False)
class Relaxation:
    """Result of a relaxation."""

    atoms: ase.Atoms
    """The relaxed structure."""
    energy_before: float
    """Total energy at the start [eV]."""
    energy_after: float
    """Total energy at the end [eV]."""
    num_steps: int
    """Steps taken."""
    max_force: float
    """Largest force at the end, including strain as in ASE's filter [eV/Å]."""
    converged: bool
    """True if the largest force is below the limit."""


def relax(structure: Structure, potential: Potential, *, max_force: float = 0.02, max_steps: int = 300) -> Relaxation:
    """Relax positions, and the cell if all directions repeat, with ASE's FIRE until forces are small [eV/Å]."""
    return relax_with(structure, Calculator(potential), max_force=max_force, max_steps=max_steps)


def relax_with(structure: Structure, calculator: AseCalculator, *, max_force: float, max_steps: int) -> Relaxation:
    """Relax as relax() does, with any calculator.

    Args:
        structure: The structure.
        calculator: Calculator of energy, forces and stress.
        max_force: Largest force at which to end [eV/Å].
        max_steps: Largest number of steps.
    """
    atoms = to_atoms(structure)
    atoms.calc = calculator
    before = float(atoms.get_potential_energy())
    target = FrechetCellFilter(atoms) if structure.pbc.all() else atoms
    with FIRE(target, logfile=None) as optimizer:  # pyright: ignore[reportArgumentType] (ASE's hints are too narrow)
        converged = bool(optimizer.run(fmax=max_force, steps=max_steps))
        steps = optimizer.nsteps
    largest = float(np.linalg.norm(target.get_forces(), axis=1).max())
    return Relaxation(
        atoms=atoms,
        energy_before=before,
        energy_after=float(atoms.get_potential_energy()),
        num_steps=steps,
        max_force=largest,
        converged=converged,
    )
