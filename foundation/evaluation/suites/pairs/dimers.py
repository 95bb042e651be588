"""Dimers: bond length, well depth and smoothness of the energy of two atoms, down to distances never trained on.

Molecular dynamics at high temperature and radiation damage go to short distances; atoms collapse in a potential that
attracts there.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from jaxtyping import Float64

from data_pipeline.structure import Structure, atomic_number
from foundation.configuration import MAY_CHANGE
from foundation.evaluation.suites.suite import Finding, Findings, Subject, Suite

MIN_FORCE = 1e-6
"""Smallest force that has a sign [eV/Å]."""


@dataclass(frozen=True, kw_only=True)
class Dimers(Suite):
    """Bond length, well depth, energy at a short distance and smoothness of isolated pairs of atoms."""

    name: ClassVar[str] = "dimers"

    pairs: tuple[tuple[str, str], ...] = field(metadata=MAY_CHANGE)
    """Symbols of the two atoms of each dimer."""
    shortest: float = field(default=0.6, metadata=MAY_CHANGE)
    """Shortest distance [Å]."""
    longest: float = field(default=6.0, metadata=MAY_CHANGE)
    """Longest distance [Å]; its energy is the zero."""
    step: float = field(default=0.02, metadata=MAY_CHANGE)
    """Step of the distance [Å]."""

    def __post_init__(self) -> None:
        for pair in self.pairs:
            for symbol in pair:
                atomic_number(symbol)
        if not 0.2 <= self.shortest < self.longest <= 100.0:
            raise ValueError(f"0.2 ≤ shortest < longest ≤ 100 Å is needed, not {self.shortest:g} and {self.longest:g}")
        if not 0.001 <= self.step <= (self.longest - self.shortest) / 4:
            raise ValueError(f"step must be at least 0.001 Å and leave five distances, not {self.step:g}")

    def elements(self) -> set[int]:
        """Return the atomic numbers of the dimers."""
        return {atomic_number(symbol) for pair in self.pairs for symbol in pair}

    def run(self, subject: Subject) -> Findings:
        """Return four findings for each dimer."""
        distances = np.arange(self.shortest, self.longest + self.step / 2, self.step)
        found: dict[str, Finding] = {}
        for pair, energies, forces in zip(self.pairs, *scan(subject, self.pairs, distances), strict=True):
            lowest = int(energies.argmin())
            bound = 0 < lowest < len(distances) - 1
            signs = np.sign(forces[np.abs(forces) > MIN_FORCE])
            label = "–".join(pair)
            found |= {
                f"{label}: bond length": Finding(value=float(distances[lowest]) if bound else None, unit="Å"),
                f"{label}: well depth": Finding(
                    value=float(energies[-1] - energies[lowest]) if bound else None, unit="eV"
                ),
                f"{label}: energy at {self.shortest:g} Å": Finding(value=float(energies[0] - energies[-1]), unit="eV"),
                f"{label}: changes of the force's sign": Finding(value=float(np.count_nonzero(np.diff(signs)))),
            }
        return Findings(quantities=found)


def scan(
    subject: Subject, pairs: Sequence[tuple[str, str]], distances: Float64[np.ndarray, " distances"]
) -> tuple[Float64[np.ndarray, "pairs distances"], Float64[np.ndarray, "pairs distances"]]:
    """Return the energies [eV] and forces along the bond [eV/Å], positive in repulsion, of pairs of atoms."""
    predicted = subject.predict([_dimer(pair, distance) for pair in pairs for distance in distances])
    shape = len(pairs), len(distances)
    energies = np.array([each.energy for each in predicted])
    return energies.reshape(shape), np.array([each.forces[1, 0] for each in predicted]).reshape(shape)


def _dimer(pair: tuple[str, str], distance: float) -> Structure:
    return Structure.checked(
        numbers=[atomic_number(symbol) for symbol in pair],
        positions=[[0.0, 0.0, 0.0], [distance, 0.0, 0.0]],
        cell=np.zeros((3, 3)),
        pbc=[False] * 3,
        energy=0.0,
    )
