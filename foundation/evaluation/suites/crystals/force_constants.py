"""Force constants against distance: how far the displacement of an atom is felt in a crystal, and by what law.

Φ_ij = -∂F_j/∂r_i. Ions feel each other's dipoles: with charges Z (Born's) and a dielectric constant ε,
|Φ_ij| = √6 k |Z_i Z_j| / (ε r³) far away, which the effective |Z_i Z_j|/ε measures. Electrons of a metal screen
charges, so that force constants fall faster.
"""

import math
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from ase.units import Bohr, Hartree
from jaxtyping import Float64

from data_pipeline.structure import Structure, atomic_number
from foundation.configuration import MAY_CHANGE
from foundation.evaluation.intervals import interval_over
from foundation.evaluation.suites.crystals.elastic import DISPLACEMENT, moved
from foundation.evaluation.suites.crystals.equation_of_state import Crystal, check_labels, elements_of, repeated
from foundation.evaluation.suites.suite import Chart, Curve, Finding, Findings, Subject, Suite

MIN_SHELLS = 4
"""Number of shells of neighbours below which no exponent is given."""
SMALLEST = 1e-9
"""Force constant [eV/Å²] below which it is noise, or the reach of the potential has ended."""


@dataclass(frozen=True, kw_only=True)
class ForceConstants(Suite):
    """Size of the force constants of a displaced atom in cubic crystals, as a power of the distance.

    A shell is all atoms at one distance; its size is the root mean square of the Frobenius norms |Φ_ij|. The exponent
    is the slope of their logarithm over that of the distance; its interval is a bootstrap over shells.
    """

    name: ClassVar[str] = "force constants"

    displaced: tuple[Crystal, ...] = field(metadata=MAY_CHANGE)
    """Crystals in which one atom of each element is displaced, at their lattice constant."""
    shortest: float = field(default=5.5, metadata=MAY_CHANGE)
    """Shortest distance of the fit [Å]."""
    longest: float = field(default=15.0, metadata=MAY_CHANGE)
    """Longest distance of the fit [Å]; the cell is twice as long at least."""

    def __post_init__(self) -> None:
        if not 1.0 <= self.shortest < self.longest <= 25.0:
            raise ValueError(f"need 1 <= shortest < longest <= 25 Å, not {self.shortest:g} and {self.longest:g}")
        check_labels(self.displaced)

    def elements(self) -> set[int]:
        """Return the atomic numbers of the crystals."""
        return elements_of(self.displaced)

    def run(self, subject: Subject) -> Findings:
        """Return exponent, size at the longest distance and effective charges for each crystal and element."""
        found: dict[str, Finding] = {}
        curves: dict[str, Curve] = {}
        for crystal in self.displaced:
            cell = repeated(crystal.scaled(1.0), math.ceil(2 * self.longest / crystal.lattice_constant))
            for symbol in crystal.elements:
                label = f"{crystal.label}, {symbol} displaced"
                shells = self._shells(subject, cell, atomic_number(symbol))
                found |= self._law(label, shells)
                curves[label] = Curve(x=tuple(shells[:, 0].tolist()), y=tuple(shells[:, 1].tolist()), points=True)
        chart = Chart(x="distance [Å]", y="|Φ| [eV/Å²]", curves=curves, log_x=True, log_y=True)
        return Findings(quantities=found, charts={"Force constants against distance": chart})

    def _shells(self, subject: Subject, cell: Structure, number: int) -> Float64[np.ndarray, "shells 2"]:
        """Return distance and size of the force constants of every shell within the fit's distances."""
        atom = int(np.flatnonzero(cell.numbers == number)[0])
        more, less = subject.predict(moved(cell, DISPLACEMENT, [atom])[:2])  # along one axis: the others are like it
        constants = -(more.forces - less.forces) / (2 * DISPLACEMENT)
        side = cell.cell[0, 0]
        vectors = cell.positions - cell.positions[atom]
        distances = np.round(np.linalg.norm(vectors - side * np.rint(vectors / side), axis=1), 3)
        # the site is cubic: of the three displacements of a shell each has a third of the sum of squares
        sizes = np.sqrt(3 * (constants**2).sum(axis=1))
        within = [each for each in np.unique(distances) if self.shortest <= each <= self.longest and each < side / 2]
        rows = [(each, float(np.sqrt((sizes[distances == each] ** 2).mean()))) for each in within]
        return np.array([row for row in rows if row[1] > SMALLEST]).reshape(-1, 2)

    def _law(self, label: str, shells: Float64[np.ndarray, "shells 2"]) -> dict[str, Finding]:
        known = len(shells) >= MIN_SHELLS
        distances, sizes = np.log(shells).T
        line = np.polyfit(distances, sizes, 1) if known else None
        dipoles = shells[:, 1] * shells[:, 0] ** 3 / (math.sqrt(6) * Hartree * Bohr)
        exponent = Finding(
            value=None if line is None else float(line[0]), interval=interval_over(_slope, shells) if known else None
        )
        far = None if line is None else math.exp(np.polyval(line, math.log(self.longest)))
        return {
            f"{label}: exponent": exponent,
            f"{label}: |Φ| at {self.longest:g} Å": Finding(value=far, unit="eV/Å²"),
            f"{label}: effective |Z Z|/ε": Finding(value=float(np.median(dipoles)) if known else None, unit="e²"),
        }


def _slope(shells: Float64[np.ndarray, "shells 2"]) -> float:
    """Return the slope of the logarithms, not a number if all distances are the same."""
    x, y = np.log(shells).T
    spread = ((x - x.mean()) ** 2).sum()
    return float(((x - x.mean()) * (y - y.mean())).sum() / spread) if spread > 0 else math.nan
