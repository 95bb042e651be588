"""Likeness of dynamics: a student's own molecular dynamics beside its teacher's.

Errors on the teacher's frames do not tell if a student finds its own way into structures that it does not know. Here it
moves by itself for long, and where its atoms are is compared with where the teacher's are.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, NamedTuple

import ase
import numpy as np
from ase.calculators.calculator import Calculator
from jaxtyping import Float64

from data_pipeline.sources.exploration import read_cells, repeated
from data_pipeline.sources.molecular_dynamics import dynamics, is_lost
from data_pipeline.sources.source import resolve
from foundation.configuration import MAY_CHANGE
from foundation.evaluation.displacements import height, overlap, pair_distribution
from foundation.evaluation.suites.suite import Finding, Findings, Subject, Suite

MAX_PAIR_DISTANCE = 8.0
"""Largest distance of pairs [Å]."""
MAX_FRAMES = 200
"""Largest number of frames whose pair distances are counted."""
SHARE = "share of the trajectory"
"""Name of the quantity of how much of a trajectory was run before it was lost."""
TIMED_ROUNDS, TIMED_STEPS = 5, 20
"""Number of turns in which both are timed, and steps of each turn."""


class Track(NamedTuple):
    """A trajectory."""

    positions: Float64[np.ndarray, "frames atoms 3"]
    """Positions [Å]."""
    share: float
    """Share of its length that it reached."""


@dataclass(frozen=True, kw_only=True)
class Likeness(Suite):
    """Stability and pair distances of a subject's dynamics beside another's, at a constant volume and temperature.

    The speeds of both are measured in turns. They depend on the machine; everything else depends on the seed alone.
    """

    name: ClassVar[str] = "likeness"

    alike: str = field(metadata=MAY_CHANGE)
    """The other potential, such as the teacher: its name, its folder, or module:Class of an ASE calculator."""
    starts: tuple[Path, ...] = field(metadata=MAY_CHANGE)
    """Files with the cells to start from; the first frame of each. ${NAME} stands for an environment variable."""
    least_length: float = field(default=9.0, metadata=MAY_CHANGE)
    """Least distance between opposite faces of a cell [Å]: cells are repeated."""
    temperatures: tuple[float, ...] = field(default=(300.0,), metadata=MAY_CHANGE)
    """Temperatures [K]."""
    length: float = field(default=200.0, metadata=MAY_CHANGE)
    """Length of the subject's trajectory [ps]."""
    compared: float = field(default=10.0, metadata=MAY_CHANGE)
    """Length of the other's trajectory, and of the end of the subject's, whose pair distances are compared [ps]."""
    equilibration: float = field(default=1.0, metadata=MAY_CHANGE)
    """Time before both that is not measured [ps]."""
    time_step: float = field(default=1.0, metadata=MAY_CHANGE)
    """Time step [fs]."""
    seed: int = field(default=0, metadata=MAY_CHANGE)
    """Random seed."""

    def __post_init__(self) -> None:
        if not self.starts or not self.temperatures or min(self.temperatures) <= 0:
            raise ValueError("starts must name one file or more, and temperatures be positive [K]")
        if min(self.time_step, self.compared) <= 0 or self.equilibration < 0 or self.length < self.compared:
            raise ValueError("time_step and compared must be positive, equilibration not negative, length >= compared")
        if self._steps(self.compared) < 20:
            raise ValueError(f"compared must be at least 20 steps, {0.02 * self.time_step:g} ps")

    def elements(self) -> set[int]:
        """Return the atomic numbers of the cells.

        Raises:
            FileNotFoundError: there is no such file.
            InvalidStructure: it cannot be read.
        """
        return {number for _, atoms in self._cells() for number in atoms.numbers.tolist()}

    def run(self, subject: Subject) -> Findings:
        """Return the share of every trajectory that was run, the likeness of its pair distances, and the speed.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: the other potential cannot be found, or a cell does not repeat in all directions.
        """
        other = subject.another(self.alike).calculator()
        found: dict[str, Finding] = {}
        for label, atoms in self._cells():
            if not atoms.pbc.all():
                raise ValueError(f"starts: {label} does not repeat in all directions")
            for temperature in self.temperatures:
                found |= self._compared(f"{label}, {temperature:g} K", atoms, temperature, subject.calculator(), other)
            ended = all(found[f"{label}, {each:g} K: {SHARE}"].value == 1 for each in self.temperatures)
            found[f"{label}: steps in a CPU second over the other's"] = Finding(
                value=self._speed(atoms, subject.calculator(), other) if ended else None
            )
        return Findings(quantities=found)

    def _compared(
        self, label: str, atoms: ase.Atoms, temperature: float, own: Calculator, other: Calculator
    ) -> dict[str, Finding]:
        """Return the findings of one cell at one temperature."""
        mine = self._track(atoms, temperature, own, self.length, self.seed)
        theirs = self._track(atoms, temperature, other, self.compared, self.seed + 1)
        found = {f"{label}: {SHARE}": Finding(value=mine.share, reference=1.0)}
        if mine.share < 1 or theirs.share < 1:
            return found
        largest = min(MAX_PAIR_DISTANCE, height(np.asarray(atoms.cell)) / 2)
        halves = np.array_split(theirs.positions, 2)
        end, whole, first, second = (
            pair_distribution(_thinned(each), np.asarray(atoms.cell), largest)
            for each in (mine.positions[-len(theirs.positions) :], theirs.positions, *halves)
        )
        found[f"{label}: likeness of pair distances"] = Finding(
            value=overlap(end, whole), reference=overlap(first, second)
        )
        return found

    def _track(self, atoms: ase.Atoms, temperature: float, calculator: Calculator, length: float, seed: int) -> Track:
        """Return a trajectory to its end, or to where it was lost."""
        every = max(1, self._steps(self.compared) // MAX_FRAMES)
        count, positions = self._steps(length) // every, []
        moving = self._moving(atoms, temperature, calculator, seed, every)
        for _ in range(count):
            try:
                moved = next(moving)
            except ValueError:  # energies or forces that are not finite
                break
            if is_lost(moved, temperature):
                break
            positions.append(moved.positions.copy())
        return Track(np.array(positions).reshape(-1, len(atoms), 3), len(positions) / count)

    def _speed(self, atoms: ase.Atoms, own: Calculator, other: Calculator) -> float:
        """Return steps of the subject in a CPU second over the other's, timed in turns."""
        both = [self._moving(atoms, self.temperatures[0], each, self.seed, TIMED_STEPS) for each in (own, other)]
        for moving in both:
            next(moving)  # memory and caches
        spent = np.array([[_seconds(moving) for moving in both] for _ in range(TIMED_ROUNDS)])
        return float(np.median(spent[:, 1] / spent[:, 0]))

    def _moving(
        self, atoms: ase.Atoms, temperature: float, calculator: Calculator, seed: int, interval: int
    ) -> Iterator[ase.Atoms]:
        return dynamics(
            atoms.copy(),
            temperature=temperature,
            seed=(seed, round(temperature)),
            calculator=calculator,
            warm_up=self._steps(self.equilibration),
            interval=interval,
            time_step=self.time_step,
        )

    def _steps(self, length: float) -> int:
        return round(1e3 * length / self.time_step)

    def _cells(self) -> list[tuple[str, ase.Atoms]]:
        """Return the cells with their names."""
        found = []
        for path in self.starts:
            atoms = read_cells(resolve(str(path), field="starts", section="suites"))[0]
            found.append((path.stem, repeated(atoms, self.least_length)))
        return found


def _seconds(moving: Iterator[ase.Atoms]) -> float:
    began = time.process_time()
    next(moving)
    return max(time.process_time() - began, math.ulp(1.0))


def _thinned(positions: Float64[np.ndarray, "frames atoms 3"]) -> Float64[np.ndarray, "some atoms 3"]:
    return positions[:: max(1, len(positions) // MAX_FRAMES)]
