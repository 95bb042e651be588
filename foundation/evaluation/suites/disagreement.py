"""Disagreement of two potentials about the force in a frozen crystal whose surroundings melt: no reference is needed.

Two potentials trained on crystals alone agree in disorder if both have found a law, and need not if they have not. Two
that were trained on the same data may also be wrong together: disagreement is no error, but where it is large, at
least one of them is wrong.
"""

import itertools
import math
from dataclasses import dataclass, field
from typing import ClassVar

import ase
import numpy as np

from data_pipeline.sources.molecular_dynamics import dynamics, sphere
from foundation.configuration import MAY_CHANGE, check_numbers
from foundation.evaluation.intervals import interval_over
from foundation.evaluation.suites.crystals.equation_of_state import Crystal, check_labels, elements_of, repeated
from foundation.evaluation.suites.disorder import correlation, mean_ratio, unlabelled
from foundation.evaluation.suites.suite import Finding, Findings, Subject, Suite

LIMITS = {"trajectories": (2, 1000), "frames": (1, 10_000), "interval": (1, 10_000), "warm_up": (0, 100_000)}
"""Smallest and largest value of each number."""
ROOM = 6.5
"""Least distance from the centre to the nearest face of the cell [Å]."""


@dataclass(frozen=True, kw_only=True)
class Disagreement(Suite):
    """Distance of two potentials' forces on the centre of a frozen sphere, over the mean size of both.

    The subject drives the dynamics of the atoms outside. Intervals are a bootstrap over trajectories.
    """

    name: ClassVar[str] = "disagreement"

    compared_with: str = field(metadata=MAY_CHANGE)
    """The second potential: its name, its folder, or module:Class of an ASE calculator."""
    melted: tuple[Crystal, ...] = field(metadata=MAY_CHANGE)
    """Crystals whose surroundings melt, at their lattice constant."""
    radius: float = field(default=5.82, metadata=MAY_CHANGE)
    """Radius of the frozen sphere [Å]."""
    temperature: float = field(default=4000.0, metadata=MAY_CHANGE)
    """Temperature of the free atoms [K]."""
    trajectories: int = field(default=3, metadata=MAY_CHANGE)
    """Number of trajectories of each crystal."""
    frames: int = field(default=6, metadata=MAY_CHANGE)
    """Number of frames of each trajectory."""
    interval: int = field(default=10, metadata=MAY_CHANGE)
    """Number of steps of 1.5 fs from frame to frame."""
    warm_up: int = field(default=40, metadata=MAY_CHANGE)
    """Number of steps before the first frame."""

    def __post_init__(self) -> None:
        check_numbers(self, LIMITS)
        if not 0.0 <= self.radius <= 20.0 or not 1.0 <= self.temperature <= 100_000.0:
            raise ValueError("radius must be 0 to 20 Å and temperature 1 to 100,000 K")
        check_labels(self.melted)

    def elements(self) -> set[int]:
        """Return the atomic numbers of the crystals."""
        return elements_of(self.melted)

    def run(self, subject: Subject) -> Findings:
        """Return disagreement, correlation and mean size of the force for each crystal.

        Raises:
            ValueError: the second potential cannot be found, or does not know the elements.
        """
        other = subject.another(self.compared_with)
        unknown = self.elements() - set(other.elements) if other.elements is not None else set()
        if unknown:
            raise ValueError(f"compared_with: {self.compared_with} does not know the elements {sorted(unknown)}")
        found: dict[str, Finding] = {}
        for number, crystal in enumerate(self.melted):
            found |= self._compared(crystal, number, subject, other)
        return Findings(quantities=found)

    def _compared(self, crystal: Crystal, number: int, subject: Subject, other: Subject) -> dict[str, Finding]:
        """Return the findings of one crystal."""
        cell = repeated(crystal.scaled(1.0), math.ceil(2 * max(self.radius, ROOM) / crystal.lattice_constant))
        perfect = ase.Atoms(cell.numbers, positions=cell.positions, cell=cell.cell, pbc=True)
        centre, frozen = sphere(perfect, self.radius)
        structures = []
        for trajectory in range(self.trajectories):
            atoms = perfect.copy()
            moving = dynamics(
                atoms,
                temperature=self.temperature,
                seed=(number, trajectory),
                calculator=subject.calculator(),
                warm_up=self.warm_up,
                interval=self.interval,
                frozen=frozen.tolist(),
            )
            structures += [unlabelled(atoms) for _ in itertools.islice(moving, self.frames)]
        own, others = (
            np.array([each.forces[centre] for each in judge.predict(structures)]) for judge in (subject, other)
        )
        distances = np.linalg.norm(own - others, axis=1).reshape(self.trajectories, self.frames)
        sizes = (np.linalg.norm(own, axis=1) + np.linalg.norm(others, axis=1)).reshape(distances.shape) / 2
        both = np.concatenate([distances, sizes], axis=1)
        return {
            f"{crystal.label}: disagreement": Finding(value=mean_ratio(both), interval=interval_over(mean_ratio, both)),
            f"{crystal.label}: correlation": Finding(value=correlation(own, others)),
            f"{crystal.label}: mean force": Finding(value=float(sizes.mean()), unit="eV/Å"),
        }
