"""Vacancies of elemental crystals: formation energies with and without relaxation.

E_f = E(N - 1) - (N - 1)/N E(N), with N atoms in a supercell of the subject's equilibrium volume, which is kept: the
removed atom joins the bulk. Atoms are nudged before they relax, because forces keep the symmetry. So is the perfect
crystal: one that finds a lower energy is unstable, and its vacancy has no formation energy.
"""

import dataclasses
import math
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import numpy as np

from data_pipeline.structure import Structure
from foundation.configuration import MAY_CHANGE
from foundation.evaluation.quantities import MILLI_EV_PER_ATOM
from foundation.evaluation.suites.crystals.equation_of_state import (
    Crystal,
    check_labels,
    elements_of,
    relaxed,
    repeated,
)
from foundation.evaluation.suites.crystals.relaxation import Convergence, check_elemental
from foundation.evaluation.suites.suite import Finding, Findings, Subject, Suite

NUDGE = 0.05
"""Standard deviation of random displacements before a relaxation [Å]."""
GAIN = 0.01
"""Energy that a supercell must gain to count as unstable [eV]."""


class Energies(NamedTuple):
    """Energies of a vacancy and of its crystal."""

    unrelaxed: float
    """Formation energy with all other atoms on their sites [eV]."""
    relaxed: float | None
    """Formation energy with atoms relaxed in the same cell [eV]; None: not converged, or the crystal is unstable."""
    nudged: float | None
    """Energy of the nudged and relaxed perfect crystal over that of the perfect one [eV/atom]; None: not converged."""


@dataclass(frozen=True, kw_only=True)
class Vacancies(Suite):
    """Formation energies of vacancies in elemental crystals."""

    name: ClassVar[str] = "vacancies"

    emptied: tuple[Crystal, ...] = field(metadata=MAY_CHANGE)
    """Crystals of one element each, from which one atom is removed."""
    references: dict[str, float] = field(default_factory=dict, metadata=MAY_CHANGE)
    """Reference formation energy [eV] of the relaxed vacancy by crystal, such as `Cu fcc: 1.07`."""
    least_side: float = field(default=10.0, metadata=MAY_CHANGE)
    """Least distance of a vacancy from its periodic image [Å]."""
    convergence: Convergence = field(default=Convergence(), metadata=MAY_CHANGE)
    """Criterion of the relaxation of the atoms."""

    def __post_init__(self) -> None:
        check_labels(self.emptied, self.references)
        check_elemental(self.emptied)
        if not 1.0 <= self.least_side <= 50.0:
            raise ValueError(f"least_side must be between 1 and 50 Å, not {self.least_side:g}")

    def elements(self) -> set[int]:
        """Return the atomic numbers of the crystals."""
        return elements_of(self.emptied)

    def run(self, subject: Subject) -> Findings:
        """Return formation energies and stability of each crystal; no values without a minimum or relaxation."""
        found: dict[str, Finding] = {}
        for crystal in self.emptied:
            unrelaxed, at_rest, nudged = self._energies(crystal, subject) or (None, None, None)
            found |= {
                f"{crystal.label}: formation energy, unrelaxed": Finding(value=unrelaxed, unit="eV"),
                f"{crystal.label}: formation energy": Finding(
                    value=at_rest, unit="eV", reference=self.references.get(crystal.label)
                ),
                f"{crystal.label}: energy of the nudged crystal": Finding(
                    value=None if nudged is None else MILLI_EV_PER_ATOM.factor * nudged,
                    unit=MILLI_EV_PER_ATOM.name,
                    reference=0.0,
                ),
            }
        return Findings(quantities=found)

    def _energies(self, crystal: Crystal, subject: Subject) -> Energies | None:
        """Return the formation energies; None if the crystal has no minimum."""
        cell = relaxed(crystal, subject)
        if cell is None:
            return None
        whole = repeated(cell, math.ceil(self.least_side / cell.cell[0, 0]))
        count = whole.num_atoms
        vacant = Structure.checked(
            numbers=whole.numbers[1:], positions=whole.positions[1:], cell=whole.cell, pbc=whole.pbc, energy=0.0
        )
        at_rest, nudged = (self._at_rest(each, subject) for each in (vacant, whole))
        perfect, unrelaxed = (each.energy for each in subject.predict([whole, vacant]))
        bulk, gained = (count - 1) / count * perfect, None if nudged is None else nudged - perfect
        unstable = gained is not None and gained < -GAIN
        return Energies(
            unrelaxed=unrelaxed - bulk,
            relaxed=None if at_rest is None or unstable else at_rest - bulk,
            nudged=None if gained is None else gained / count,
        )

    def _at_rest(self, structure: Structure, subject: Subject) -> float | None:
        """Return the energy of nudged and relaxed atoms [eV]; None if they do not relax."""
        moves = NUDGE * np.random.default_rng(0).standard_normal(structure.positions.shape)
        moved = dataclasses.replace(structure, positions=structure.positions + moves)
        at_rest = self.convergence.relaxed(moved, subject)
        return None if at_rest is None else subject.predict([at_rest])[0].energy
