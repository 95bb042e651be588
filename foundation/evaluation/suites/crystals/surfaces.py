"""Surfaces of elemental cubic crystals: energies of relaxed slabs.

γ = (E - N e) / 2A, with N atoms in a slab of two surfaces of area A and e the energy of an atom in the bulk, in the
subject's equilibrium volume. A slab repeats the smallest area of its face, so no surface reconstructs.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import ase
import ase.build
import numpy as np

from data_pipeline.quoting import abbreviated
from data_pipeline.structure import Structure
from foundation.configuration import MAY_CHANGE
from foundation.evaluation.quantities import JOULE_PER_SQUARE_METRE
from foundation.evaluation.suites.crystals.equation_of_state import Crystal, check_labels, elements_of, relaxed
from foundation.evaluation.suites.crystals.relaxation import Convergence, check_elemental
from foundation.evaluation.suites.suite import Chart, Curve, Finding, Findings, Subject, Suite

PERIOD = 6
"""Number of layers after which the sequence of layers of every face repeats."""


def _diamond111(symbol: str, size: tuple[int, int, int], a: float, vacuum: float, periodic: bool) -> ase.Atoms:
    """Return a slab that is cut between double layers, through one bond of each atom: ASE cuts through three."""
    atoms = ase.build.diamond111(symbol, (size[0], size[1], size[2] + 2), a=a, periodic=periodic)
    heights = atoms.positions[:, 2].round(6)
    atoms = atoms[(heights > heights.min()) & (heights < heights.max())]
    atoms.center(vacuum, axis=2)
    return atoms


FACES: dict[str, dict[str, Callable[..., ase.Atoms]]] = {
    "fcc": {"111": ase.build.fcc111, "100": ase.build.fcc100, "110": ase.build.fcc110},
    "bcc": {"110": ase.build.bcc110, "100": ase.build.bcc100},
    "diamond": {"111": _diamond111, "100": ase.build.diamond100},
}
"""Builders of slabs by structure type and Miller indices."""


@dataclass(frozen=True, kw_only=True)
class Surfaces(Suite):
    """Energies of the low-index surfaces of elemental crystals, relaxed and not reconstructed."""

    name: ClassVar[str] = "surfaces"

    cleaved: tuple[Crystal, ...] = field(metadata=MAY_CHANGE)
    """Crystals of one element each: fcc (faces 111, 100 and 110), bcc (110 and 100) or diamond (111 and 100)."""
    references: dict[str, float] = field(default_factory=dict, metadata=MAY_CHANGE)
    """Reference surface energies [J/m²] by crystal and face, such as `Cu fcc 111: 1.31`."""
    thicknesses: tuple[float, ...] = field(default=(15.0,), metadata=MAY_CHANGE)
    """Least thicknesses of the slab [Å]: the last one counts, and from several a chart shows the convergence."""
    vacuum: float = field(default=12.0, metadata=MAY_CHANGE)
    """Distance between slabs [Å], to be larger than the range of the interactions."""
    convergence: Convergence = field(default=Convergence(), metadata=MAY_CHANGE)
    """Criterion of the relaxation of the atoms."""

    def __post_init__(self) -> None:
        check_labels(self.cleaved)
        check_elemental(self.cleaved)
        known = [f"{crystal.label} {face}" for crystal in self.cleaved for face in FACES[crystal.prototype]]
        if unknown := [name for name in self.references if name not in known]:
            raise ValueError(f"references: {abbreviated(unknown[0])} is not one of {', '.join(known)}")
        if not self.thicknesses or list(self.thicknesses) != sorted(set(self.thicknesses)):
            raise ValueError(f"thicknesses must be one or more numbers that rise, not {self.thicknesses}")
        if not 1.0 <= self.thicknesses[0] <= self.thicknesses[-1] <= 200.0:
            raise ValueError(f"thicknesses must be between 1 and 200 Å, not {self.thicknesses}")
        if not 1.0 <= self.vacuum <= 200.0:
            raise ValueError(f"vacuum must be between 1 and 200 Å, not {self.vacuum:g}")

    def elements(self) -> set[int]:
        """Return the atomic numbers of the crystals."""
        return elements_of(self.cleaved)

    def run(self, subject: Subject) -> Findings:
        """Return the energy of every face, without a value if its crystal has no minimum or the slab does not relax."""
        unit = JOULE_PER_SQUARE_METRE
        found: dict[str, Finding] = {}
        charts: dict[str, Chart] = {}
        for crystal in self.cleaved:
            cell = relaxed(crystal, subject)
            curves: dict[str, Curve] = {}
            for face in FACES[crystal.prototype]:
                energies = [
                    None if cell is None else self._energy(crystal, face, cell, least, subject)
                    for least in self.thicknesses
                ]
                shown = [None if energy is None else unit.factor * energy for energy in energies]
                name = f"{crystal.label} {face}"
                found[name] = Finding(value=shown[-1], unit=unit.name, reference=self.references.get(name))
                curves[face] = Curve(x=self.thicknesses, y=tuple(shown))
            if len(self.thicknesses) > 1:
                charts[f"Surface energies of {crystal.label}"] = Chart(
                    x="least thickness of the slab [Å]", y=f"surface energy [{unit.name}]", curves=curves
                )
        return Findings(quantities=found, charts=charts)

    def _energy(self, crystal: Crystal, face: str, cell: Structure, thickness: float, subject: Subject) -> float | None:
        """Return the surface energy [eV/Å²] of a slab with at least a thickness [Å]; None if it does not relax."""
        at_rest = self.convergence.relaxed(slab(crystal, face, cell.cell[0, 0], thickness, self.vacuum), subject)
        if at_rest is None:
            return None
        bulk, cut = subject.predict([cell, at_rest])
        area = float(np.linalg.norm(np.cross(*at_rest.cell[:2])))
        return (cut.energy - at_rest.num_atoms * bulk.energy / cell.num_atoms) / (2 * area)


def slab(crystal: Crystal, face: str, side: float, thickness: float, vacuum: float) -> Structure:
    """Return a slab in the smallest cell of a face, with a surface above and below.

    Args:
        crystal: Crystal of one element.
        face: Miller indices, such as 111.
        side: Lattice constant [Å].
        thickness: Least distance from the lowest to the highest atom [Å].
        vacuum: Distance between slabs [Å].
    """
    build = FACES[crystal.prototype][face]

    def layers(count: int) -> ase.Atoms:
        return build(crystal.elements[0], (1, 1, count), a=side, vacuum=vacuum / 2, periodic=True)

    # even, so that a slab of diamond ends alike above and below
    height = float(np.ptp(layers(2 * PERIOD).positions[:, 2]) - np.ptp(layers(PERIOD).positions[:, 2]))
    count = 2 * math.ceil(PERIOD * thickness / height / 2) + 2
    atoms = layers(count)
    return Structure.checked(
        numbers=atoms.numbers, positions=atoms.positions, cell=np.asarray(atoms.cell), pbc=[True] * 3, energy=0.0
    )
