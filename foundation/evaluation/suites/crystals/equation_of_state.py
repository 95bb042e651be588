"""Equations of state of cubic crystals: equilibrium volume, bulk modulus and its pressure derivative.

The energies of a crystal over its volume are fitted by the third-order equation of Birch and Murnaghan (F. Birch,
Phys. Rev. 71, 809 (1947)), which is a cubic polynomial in V^(-2/3), so the fit is linear least squares.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from jaxtyping import Float64

from data_pipeline.quoting import abbreviated
from data_pipeline.structure import Structure, atomic_number
from foundation.configuration import MAY_CHANGE
from foundation.evaluation.quantities import GPA
from foundation.evaluation.suites.suite import Finding, Findings, Subject, Suite

FACES = np.array([[0.0, 0.0, 0.0], [0.0, 0.5, 0.5], [0.5, 0.0, 0.5], [0.5, 0.5, 0.0]])
CENTRE, QUARTER = np.full((1, 3), 0.5), np.full((1, 3), 0.25)
PROTOTYPES: dict[str, tuple[Float64[np.ndarray, "sites 3"], ...]] = {
    "bcc": (np.concatenate([0 * CENTRE, CENTRE]),),
    "fcc": (FACES,),
    "diamond": (np.concatenate([FACES, FACES + QUARTER]),),
    "rocksalt": (FACES, FACES + CENTRE),
    "caesium chloride": (0 * CENTRE, CENTRE),
    "zincblende": (FACES, FACES + QUARTER),
}
"""Sites of each sublattice of a conventional cubic cell, in units of the lattice constant."""


@dataclass(frozen=True, kw_only=True)
class Crystal:
    """A cubic crystal."""

    elements: tuple[str, ...] = field(metadata=MAY_CHANGE)
    """Symbols, one per sublattice: one for bcc, fcc and diamond, two for the others."""
    prototype: Literal["bcc", "fcc", "diamond", "rocksalt", "caesium chloride", "zincblende"] = field(
        metadata=MAY_CHANGE
    )
    """Structure type."""
    lattice_constant: float = field(metadata=MAY_CHANGE)
    """Lattice constant near equilibrium [Å], the middle of the scan."""
    volume: float | None = field(default=None, metadata=MAY_CHANGE)
    """Reference equilibrium volume [Å³/atom]."""
    bulk_modulus: float | None = field(default=None, metadata=MAY_CHANGE)
    """Reference bulk modulus [GPa]."""

    def __post_init__(self) -> None:
        sublattices = PROTOTYPES[self.prototype]
        if len(self.elements) != len(sublattices):
            raise ValueError(f"{self.prototype} has {len(sublattices)} elements, not {len(self.elements)}")
        for symbol in self.elements:
            atomic_number(symbol)
        if not 1.0 <= self.lattice_constant <= 30.0:
            raise ValueError(f"lattice_constant must be between 1 and 30 Å, not {self.lattice_constant:g}")

    @property
    def label(self) -> str:
        """Formula and structure type."""
        return f"{''.join(self.elements)} {self.prototype}"

    def scaled(self, factor: float) -> Structure:
        """Return the conventional cell with its volume times a factor."""
        return self.with_side(self.lattice_constant * factor ** (1 / 3))

    def with_side(self, side: float) -> Structure:
        """Return the conventional cell with a lattice constant [Å]."""
        pairs = zip(self.elements, PROTOTYPES[self.prototype], strict=True)
        sites = [(atomic_number(symbol), site) for symbol, sublattice in pairs for site in sublattice]
        return Structure.checked(
            numbers=[number for number, _ in sites],
            positions=side * np.array([site for _, site in sites]),
            cell=side * np.eye(3),
            pbc=[True] * 3,
            energy=0.0,
        )


def check_labels(crystals: Sequence[Crystal], named: Iterable[str] = ()) -> None:
    """Refuse a crystal that occurs twice, and references of crystals that do not occur.

    Raises:
        ValueError: naming them.
    """
    labels = [crystal.label for crystal in crystals]
    if repeated := sorted({label for label in labels if labels.count(label) > 1}):
        raise ValueError(f"crystals: {', '.join(repeated)} occurs twice; leave one out")
    if unknown := [name for name in named if name not in labels]:
        raise ValueError(f"references: {abbreviated(unknown[0])} is not one of {', '.join(labels)}")


def elements_of(crystals: Iterable[Crystal]) -> set[int]:
    """Return the atomic numbers that occur in crystals."""
    return {atomic_number(symbol) for crystal in crystals for symbol in crystal.elements}


def repeated(cell: Structure, times: int) -> Structure:
    """Return a supercell, `times` cells along each lattice vector, without labels."""
    corners = np.stack(np.meshgrid(*[np.arange(times)] * 3, indexing="ij"), axis=-1).reshape(-1, 1, 3)
    return Structure.checked(
        numbers=np.tile(cell.numbers, times**3),
        positions=(cell.positions + corners @ cell.cell).reshape(-1, 3),
        cell=times * cell.cell,
        pbc=[True] * 3,
        energy=0.0,
    )


class Equilibrium(NamedTuple):
    """Parameters of an equation of state."""

    volume: float
    """Equilibrium volume [Å³]."""
    bulk_modulus: float
    """Bulk modulus [eV/Å³]."""
    derivative: float
    """Derivative of the bulk modulus by pressure."""


@dataclass(frozen=True, kw_only=True)
class EquationOfState(Suite):
    """Equilibrium volume, bulk modulus and its pressure derivative of cubic crystals."""

    name: ClassVar[str] = "equation of state"

    crystals: tuple[Crystal, ...] = field(metadata=MAY_CHANGE)
    """Crystals to compress and expand."""
    span: float = field(default=0.12, metadata=MAY_CHANGE)
    """Largest relative change of the volume, in both directions."""
    num_volumes: int = field(default=11, metadata=MAY_CHANGE)
    """Number of volumes."""

    def __post_init__(self) -> None:
        if not 0.01 <= self.span <= 0.5:
            raise ValueError(f"span must be between 0.01 and 0.5, not {self.span:g}")
        if not 5 <= self.num_volumes <= 1000:
            raise ValueError(f"num_volumes must be between 5 and 1,000, not {self.num_volumes}")
        check_labels(self.crystals)

    def elements(self) -> set[int]:
        """Return the atomic numbers of the crystals."""
        return elements_of(self.crystals)

    def run(self, subject: Subject) -> Findings:
        """Return three findings for each crystal, without values if no minimum lies within the scan."""
        factors = np.linspace(1 - self.span, 1 + self.span, self.num_volumes)
        found: dict[str, Finding] = {}
        for crystal in self.crystals:
            fitted = equilibrium(crystal, subject, factors)
            values = (None, None, None) if fitted is None else fitted
            modulus = None if fitted is None else GPA.factor * fitted.bulk_modulus
            found |= {
                f"{crystal.label}: volume": Finding(value=values[0], unit="Å³/atom", reference=crystal.volume),
                f"{crystal.label}: bulk modulus": Finding(value=modulus, unit=GPA.name, reference=crystal.bulk_modulus),
                f"{crystal.label}: pressure derivative": Finding(value=values[2]),
            }
        return Findings(quantities=found)


def equilibrium(crystal: Crystal, subject: Subject, factors: Float64[np.ndarray, " volumes"]) -> Equilibrium | None:
    """Return the equation of state of a crystal, per atom; None without a minimum inside.

    Args:
        crystal: The crystal.
        subject: The subject that predicts its energies.
        factors: Volumes in units of that of the crystal's lattice constant.
    """
    structures = [crystal.scaled(factor) for factor in factors]
    count = structures[0].num_atoms
    volumes = np.array([abs(np.linalg.det(each.cell)) / count for each in structures])
    energies = np.array([each.energy / count for each in subject.predict(structures)])
    return birch_murnaghan(volumes, energies)


def relaxed(crystal: Crystal, subject: Subject) -> Structure | None:
    """Return the conventional cell at the subject's equilibrium volume; None if it is further away than 12 %.

    The minimum is found over ± 12 % and again over ± 3 % about it, since no equation holds exactly so far away: the
    first fit alone leaves some 0.3 GPa in MgO.
    """
    for span, count in ((0.12, 11), (0.03, 7)):
        fitted = equilibrium(crystal, subject, np.linspace(1 - span, 1 + span, count))
        if fitted is None:
            return None
        side = (fitted.volume * crystal.scaled(1.0).num_atoms) ** (1 / 3)
        crystal = dataclasses.replace(crystal, lattice_constant=side)
    return crystal.scaled(1.0)


def birch_murnaghan(
    volumes: Float64[np.ndarray, " volumes"], energies: Float64[np.ndarray, " volumes"]
) -> Equilibrium | None:
    """Return the parameters of the third-order equation, fitted by least squares; None without a minimum inside.

    Args:
        volumes: Volumes [Å³].
        energies: Energies [eV].
    """
    if not np.isfinite(energies).all():
        return None
    # a cubic in x = V^(-2/3), centred so that the fit is well conditioned
    x = volumes ** (-2 / 3)
    polynomial = np.polynomial.Polynomial.fit(x, energies, 3)
    second, third = polynomial.deriv(2), polynomial.deriv(3)
    roots = [root.real for root in polynomial.deriv().roots() if abs(root.imag) < 1e-12 and second(root.real) > 0]
    inside = [root for root in roots if x.min() <= root <= x.max()]
    if not inside:
        return None
    volume = inside[0] ** (-3 / 2)
    first_of_x, second_of_x = -2 / 3 * volume ** (-5 / 3), 10 / 9 * volume ** (-8 / 3)
    curvature = second(inside[0]) * first_of_x**2
    third_of_volume = third(inside[0]) * first_of_x**3 + 3 * second(inside[0]) * first_of_x * second_of_x
    return Equilibrium(
        volume=float(volume),
        bulk_modulus=float(volume * curvature),
        derivative=float(-1 - volume * third_of_volume / curvature),
    )
