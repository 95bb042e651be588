"""Relaxation of atoms in a cell that stays as it is."""

import dataclasses
from dataclasses import dataclass, field

import numpy as np
from ase.optimize import BFGS

from data_pipeline.sources.atoms import to_atoms
from data_pipeline.structure import Structure
from foundation.configuration import MAY_CHANGE
from foundation.evaluation.suites.crystals.equation_of_state import Crystal
from foundation.evaluation.suites.suite import Subject


@dataclass(frozen=True, kw_only=True)
class Convergence:
    """Criterion by which a relaxation has converged or is given up."""

    max_force: float = field(default=0.01, metadata=MAY_CHANGE)
    """Largest force on an atom of a relaxed structure [eV/Å]."""
    max_steps: int = field(default=200, metadata=MAY_CHANGE)
    """Number of steps after which a structure counts as not relaxed."""

    def __post_init__(self) -> None:
        if not 1e-5 <= self.max_force <= 1.0:
            raise ValueError(f"max_force must be between 0.00001 and 1 eV/Å, not {self.max_force:g}")
        if not 1 <= self.max_steps <= 100_000:
            raise ValueError(f"max_steps must be between 1 and 100,000, not {self.max_steps}")

    def relaxed(self, structure: Structure, subject: Subject) -> Structure | None:
        """Return the structure with its atoms relaxed by ASE's BFGS; None if the steps do not suffice."""
        atoms = to_atoms(structure)
        atoms.calc = subject.exact_calculator() or subject.calculator()
        try:
            with BFGS(atoms, logfile=None) as optimizer:
                converged = optimizer.run(fmax=self.max_force, steps=self.max_steps)
        except np.linalg.LinAlgError:  # forces that are not numbers
            return None
        return dataclasses.replace(structure, positions=atoms.positions.copy()) if converged else None


def check_elemental(crystals: tuple[Crystal, ...]) -> None:
    """Refuse crystals of several elements, whose defects need chemical potentials.

    Raises:
        ValueError: naming one.
    """
    for crystal in crystals:
        if len(crystal.elements) > 1:
            raise ValueError(f"{crystal.label} has several elements; only crystals of one can be cut here")
