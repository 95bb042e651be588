"""Elastic constants of cubic crystals from the stress of small strains.

A cubic crystal has three: C11 and C12 by a strain along an axis, C44 by a shear. Each is the slope of a stress, by
central differences at the equilibrium volume. In diamond and zincblende a shear also moves the sublattices against each
other; by linear response, with f the forces per unit strain in the clamped lattice, Φ the force constants of the cell
and V its volume, this lowers a constant by f·Φ⁻¹f / V.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float64

from data_pipeline.structure import Structure
from foundation.configuration import MAY_CHANGE
from foundation.evaluation.quantities import GPA
from foundation.evaluation.suites.crystals.equation_of_state import Crystal, check_labels, elements_of, relaxed
from foundation.evaluation.suites.suite import Finding, Findings, Predicted, Subject, Suite

DISPLACEMENT = 0.01
"""Displacement of an atom for force constants [Å]."""
AXIAL, SHEAR = np.diag([1.0, 0.0, 0.0]), np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 0.5], [0.0, 0.5, 0.0]])
"""Unit strains: along an axis, and a shear by an engineering strain of 1."""


class Constants(NamedTuple):
    """Elastic constants of a cubic crystal [eV/Å³]."""

    c11: float
    """Stress along an axis over the strain along it."""
    c12: float
    """Stress along an axis over the strain along another one."""
    c44: float
    """Shear stress over the angle of shear, atoms relaxed."""

    @property
    def bulk_modulus(self) -> float:
        """Bulk modulus [eV/Å³]."""
        return (self.c11 + 2 * self.c12) / 3


@dataclass(frozen=True, kw_only=True)
class Elastic(Suite):
    """Elastic constants C11, C12 and C44 of cubic crystals at their equilibrium volume."""

    name: ClassVar[str] = "elastic"

    strained: tuple[Crystal, ...] = field(metadata=MAY_CHANGE)
    """Crystals to strain."""
    references: dict[str, tuple[float, float, float]] = field(default_factory=dict, metadata=MAY_CHANGE)
    """Reference C11, C12 and C44 [GPa] by crystal, such as `Cu fcc: [168, 121, 75]`."""
    strain: float = field(default=0.002, metadata=MAY_CHANGE)
    """Strain, in both directions."""

    def __post_init__(self) -> None:
        check_labels(self.strained, self.references)
        if not 1e-5 <= self.strain <= 0.05:
            raise ValueError(f"strain must be between 0.00001 and 0.05, not {self.strain:g}")

    def elements(self) -> set[int]:
        """Return the atomic numbers of the crystals."""
        return elements_of(self.strained)

    def run(self, subject: Subject) -> Findings:
        """Return four findings for each crystal, without values if it has no minimum or the subject has no stress."""
        found: dict[str, Finding] = {}
        for crystal in self.strained:
            cell = relaxed(crystal, subject)
            constants = None if cell is None else elastic_constants(cell, subject, self.strain)
            reference = self.references.get(crystal.label, (None, None, None))
            values = (None, None, None) if constants is None else constants
            modulus = None if constants is None else GPA.factor * constants.bulk_modulus
            for name, value, expected in zip(("C11", "C12", "C44"), values, reference, strict=True):
                shown = None if value is None else GPA.factor * value
                found[f"{crystal.label}: {name}"] = Finding(value=shown, unit=GPA.name, reference=expected)
            found[f"{crystal.label}: bulk modulus"] = Finding(
                value=modulus, unit=GPA.name, reference=_bulk_modulus(crystal, reference)
            )
        return Findings(quantities=found)


def elastic_constants(cell: Structure, subject: Subject, strain: float) -> Constants | None:
    """Return the elastic constants of a cubic crystal at equilibrium; None if the subject predicts no stress.

    Args:
        cell: Conventional cell.
        subject: The subject that predicts its stress.
        strain: Strain, in both directions.
    """
    strains = [sign * strain * unit for unit in (AXIAL, SHEAR) for sign in (1, -1)]
    more, less, one_way, other_way = subject.predict([_strained(cell, each) for each in strains])
    axial, shear = _slope(more, less, strain), _slope(one_way, other_way, strain)
    if not axial.stress.any():
        return None
    relaxation = 0.0
    if np.abs(shear.forces).max() > 1e-6 * np.abs(axial.stress).max() * np.cbrt(cell.volume) ** 2:
        response = np.linalg.lstsq(_force_constants(cell, subject), shear.forces.ravel(), rcond=1e-6)[0]
        relaxation = float(shear.forces.ravel() @ response) / cell.volume
    return Constants(
        c11=float(axial.stress[0, 0]),
        c12=float(axial.stress[1, 1] + axial.stress[2, 2]) / 2,
        c44=float(shear.stress[1, 2]) - relaxation,
    )


def moved(cell: Structure, step: float, atoms: Sequence[int]) -> list[Structure]:
    """Return copies of a structure in which one atom is moved along one axis, forwards and backwards.

    Args:
        cell: The structure.
        step: Displacement [Å].
        atoms: Atoms to move, each along three axes.
    """
    found = []
    for place in ((atom, axis) for atom in atoms for axis in range(3)):
        for sign in (1, -1):
            positions = cell.positions.copy()
            positions[place] += sign * step
            found.append(dataclasses.replace(cell, positions=positions))
    return found


def force_constants(
    cell: Structure, subject: Subject, atoms: Sequence[int], step: float = DISPLACEMENT
) -> Float64[np.ndarray, "moved coordinates"]:
    """Return the second derivatives of the energy [eV/Å²] by coordinates of some atoms and by all coordinates."""
    predicted = subject.predict(moved(cell, step, atoms))
    pairs = zip(predicted[::2], predicted[1::2], strict=True)
    return np.array([-(more.forces - less.forces).ravel() / (2 * step) for more, less in pairs])


def _force_constants(cell: Structure, subject: Subject) -> Float64[np.ndarray, "coordinates coordinates"]:
    found = force_constants(cell, subject, range(cell.num_atoms))
    return (found + found.T) / 2


def _strained(cell: Structure, strain: Float64[np.ndarray, "3 3"]) -> Structure:
    deformation = np.eye(3) + strain
    return dataclasses.replace(cell, cell=cell.cell @ deformation, positions=cell.positions @ deformation)


def _slope(more: Predicted, less: Predicted, strain: float) -> Predicted:
    """Return the central differences of predictions by the strain."""
    return Predicted(
        energy=(more.energy - less.energy) / (2 * strain),
        forces=(more.forces - less.forces) / (2 * strain),
        stress=(more.stress - less.stress) / (2 * strain),
    )


def _bulk_modulus(crystal: Crystal, reference: tuple[float | None, float | None, float | None]) -> float | None:
    c11, c12, _ = reference
    return crystal.bulk_modulus if c11 is None or c12 is None else (c11 + 2 * c12) / 3
