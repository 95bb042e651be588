"""Likeness of dynamics: a student's own molecular dynamics beside its teacher's.

Errors on the teacher's frames do not tell if a student finds its own way into structures that it does not know. Here it
moves by itself for long, and where its atoms are is compared with where the teacher's are.
"""

import itertools
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, NamedTuple

import ase
import numpy as np
from ase.calculators.calculator import Calculator
from jaxtyping import Bool, Float64

from data_pipeline.sources.exploration import read_cells, repeated
from data_pipeline.sources.molecular_dynamics import dynamics, is_lost
from data_pipeline.sources.source import resolve
from data_pipeline.structure import atomic_number
from foundation.checkpoint import weights_sha256
from foundation.configuration import MAY_CHANGE
from foundation.evaluation.displacements import (
    WINDOW,
    bin_centres,
    block_diffusivities,
    diffusivity,
    height,
    mean_squared_displacement,
    overlap,
    pair_distribution,
    without_drift,
)
from foundation.evaluation.intervals import interval_around
from foundation.evaluation.suites.kept import Arrays, kept
from foundation.evaluation.suites.suite import Chart, Curve, Finding, Findings, Subject, Suite

log = logging.getLogger(__name__)

MAX_PAIR_DISTANCE = 8.0
"""Largest distance of pairs [Å]."""
MAX_FRAMES = 200
"""Largest number of frames whose pair distances are counted."""
SHARE = "share of the trajectory"
"""Name of the quantity of how much of a trajectory was run before it was lost."""
SPEED = "steps in a CPU second over the other's"
"""Name of the quantity of the speed."""
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
    """Stability, distances and displacements in a subject's dynamics beside another's, at a constant volume.

    The speeds of both are measured in turns. They depend on the machine; everything else depends on the seed alone.
    """

    name: ClassVar[str] = "likeness"

    alike: str = field(metadata=MAY_CHANGE)
    """The other potential, such as the teacher: its name, its folder, or module:Class of an ASE calculator."""
    starts: tuple[Path, ...] = field(metadata=MAY_CHANGE)
    """Files with the cells to start from; the first frame of each. ${NAME} stands for an environment variable."""
    least_length: float = field(default=9.0, metadata=MAY_CHANGE)
    """Least distance between opposite faces of a cell [Å]: cells are repeated."""
    timed_length: float | None = field(default=None, metadata=MAY_CHANGE)
    """Least distance between opposite faces of the cell in which speeds are measured [Å]; None: least_length. In small
    cells much of a step is the same for both."""
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
    displacements: tuple[str, ...] = field(default=(), metadata=MAY_CHANGE)
    """Elements whose displacements are compared, such as Li."""
    distances: tuple[str, ...] = field(default=(), metadata=MAY_CHANGE)
    """Pairs of elements whose distances are compared, such as Li-O."""
    seed: int = field(default=0, metadata=MAY_CHANGE)
    """Random seed."""

    def __post_init__(self) -> None:
        if not self.starts or not self.temperatures or min(self.temperatures) <= 0:
            raise ValueError("starts must name one file or more, and temperatures be positive [K]")
        if min(self.time_step, self.compared) <= 0 or self.equilibration < 0 or self.length < self.compared:
            raise ValueError("time_step and compared must be positive, equilibration not negative, length >= compared")
        if self._steps(self.compared) < 20:
            raise ValueError(f"compared must be at least 20 steps, {0.02 * self.time_step:g} ps")
        for pair in self.distances:
            if len(pair.split("-")) != 2:
                raise ValueError(f"distances: a pair of elements is written like Li-O, not {pair!r}")
        for symbol in self._named():
            atomic_number(symbol)

    def _named(self) -> set[str]:
        """Return the elements of the options."""
        return {*self.displacements, *(symbol for pair in self.distances for symbol in pair.split("-"))}

    def elements(self) -> set[int]:
        """Return the atomic numbers of the cells.

        Raises:
            FileNotFoundError: there is no such file.
            InvalidStructure: it cannot be read.
        """
        return {number for _, atoms in self._cells(0.0) for number in atoms.numbers.tolist()}

    def run(self, subject: Subject) -> Findings:
        """Return the share of every trajectory that was run, its likeness to the other's, and the speed.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: the other potential cannot be found, or a cell does not repeat in all directions, or lacks an
                element.
        """
        other = subject.another(self.alike)
        found: dict[str, Finding] = {}
        charts: dict[str, Chart] = {}
        timed = dict(self._cells(self.timed_length or self.least_length))
        cells = self._cells(self.least_length)
        self._check(cells)
        for atoms, calculator in itertools.product(timed.values(), (subject.calculator(), other.calculator())):
            calculator.get_forces(atoms)  # what would be refused after the dynamics is refused before
        for label, atoms in cells:
            for temperature in self.temperatures:
                compared = self._compared(f"{label}, {temperature:g} K", atoms, temperature, subject, other)
                found |= compared.quantities
                charts |= compared.charts
            ended = all(found[f"{label}, {each:g} K: {SHARE}"].value == 1 for each in self.temperatures)
            speed = self._speed(timed[label], subject.calculator(), other.calculator()) if ended else None
            found[f"{label}: {SPEED}"] = Finding(value=speed)
        return Findings(quantities=found, charts=charts)

    def _check(self, cells: list[tuple[str, ase.Atoms]]) -> None:
        """Refuse a cell that does not repeat in all directions, or lacks an element."""
        for label, atoms in cells:
            if not atoms.pbc.all():
                raise ValueError(f"starts: {label} does not repeat in all directions")
            if missing := self._named() - {*atoms.symbols}:
                raise ValueError(f"starts: there is no {sorted(missing)[0]} in {label}")

    def _compared(self, label: str, atoms: ase.Atoms, temperature: float, subject: Subject, other: Subject) -> Findings:
        """Return the findings of one cell at one temperature."""
        # new ones for each pair, so that a trajectory does not depend on those that were run before it
        own, reference = subject.calculator(), other.calculator()
        mine = _kept(
            subject.kept, f"{label}: own", lambda: self._track(atoms, temperature, own, self.length, self.seed)
        )
        theirs = _kept(
            subject.kept,
            f"{label}: {_identity(other)}",
            lambda: self._track(atoms, temperature, reference, self.compared, self.seed + 1),
        )
        found = {f"{label}: {SHARE}": Finding(value=mine.share, reference=1.0)}
        charts: dict[str, Chart] = {}
        if mine.share < 1 or theirs.share < 1:
            return Findings(quantities=found)
        distances = {"pair": None} | {each: _kinds(atoms, each) for each in self.distances}
        for name, kinds in distances.items():
            found[f"{label}: likeness of {name} distances"], chart = self._distances(atoms, mine, theirs, kinds)
            charts[f"Radial distribution of {'all pairs' if kinds is None else name}: {label}"] = chart
        for symbol in self.displacements:
            moved, chart = self._displacements(atoms, mine, theirs, symbol)
            found |= {f"{label}: {name}": each for name, each in moved.items()}
            charts[f"Mean squared displacement of {symbol}: {label}"] = chart
        return Findings(quantities=found, charts=charts)

    def _distances(
        self,
        atoms: ase.Atoms,
        mine: Track,
        theirs: Track,
        kinds: tuple[Bool[np.ndarray, " atoms"], Bool[np.ndarray, " atoms"]] | None,
    ) -> tuple[Finding, Chart]:
        """Return the likeness of the distances of pairs, over that of two halves of the other's, and a chart."""
        cell = np.asarray(atoms.cell)
        largest = min(MAX_PAIR_DISTANCE, height(cell) / 2)
        halves = np.array_split(theirs.positions, 2)
        end, whole, first, second = (
            pair_distribution(_thinned(each), cell, largest, kinds)
            for each in (mine.positions[-len(theirs.positions) :], theirs.positions, *halves)
        )
        x = tuple(bin_centres(largest).tolist())
        curves = {
            "": Curve(x=x, y=tuple(end.tolist())),
            Path(self.alike).name: Curve(x=x, y=tuple(whole.tolist()), reference=True),
        }
        chart = Chart(x="distance [Å]", y="radial distribution", curves=curves)
        return Finding(value=overlap(end, whole), reference=overlap(first, second)), chart

    def _displacements(
        self, atoms: ase.Atoms, mine: Track, theirs: Track, symbol: str
    ) -> tuple[dict[str, Finding], Chart]:
        """Return the diffusivity of an element over lags that both have, and a chart.

        The interval is a bootstrap over parts as long as the other's trajectory, which itself is one such part.
        """
        interval, chosen = 1e-3 * self.time_step * self._every, atoms.numbers == atomic_number(symbol)
        own, other = (without_drift(each.positions, atoms.get_masses())[:, chosen] for each in (mine, theirs))
        longest = interval * (len(other) - 1)
        both = [mean_squared_displacement(each, interval).to(longest) for each in (own, other)]
        parts, value = block_diffusivities(own, interval, len(own) // len(other)), diffusivity(both[0])
        found = {
            f"diffusivity of {symbol}": Finding(
                value=value, unit="cm²/s", reference=diffusivity(both[1]), interval=interval_around(value, parts)
            )
        }
        drawn = [each.to(WINDOW[1] * longest) for each in both]
        own_curve, other_curve = (Curve(x=tuple(each.lags.tolist()), y=tuple(each.values.tolist())) for each in drawn)
        curves = {"": own_curve, Path(self.alike).name: replace(other_curve, reference=True)}
        return found, Chart(x="lag [ps]", y=f"mean squared displacement of {symbol} [Å²]", curves=curves)

    def _track(self, atoms: ase.Atoms, temperature: float, calculator: Calculator, length: float, seed: int) -> Track:
        """Return a trajectory to its end, or to where it was lost."""
        count, positions = self._steps(length) // self._every, []
        moving = self._moving(atoms, temperature, calculator, seed, self._every, self.equilibration)
        for _ in range(count):
            try:
                moved = next(moving)
            except ValueError:  # energies or forces that are not finite
                break
            if is_lost(moved, temperature):
                break
            positions.append(moved.positions.copy())
        return Track(np.array(positions).reshape(-1, len(atoms), 3), len(positions) / count)

    def _speed(self, atoms: ase.Atoms, own: Calculator, other: Calculator) -> float | None:
        """Return steps of the subject in a CPU second over the other's, timed in turns; None if atoms flew apart."""
        # dynamics() begins with velocities of twice its temperature, which in a large cell may tear a molecule
        temperature = self.temperatures[0] / 2
        both = [self._moving(atoms, temperature, each, self.seed, TIMED_STEPS, 0.0) for each in (own, other)]
        try:
            for moving in both:
                next(moving)  # memory and caches
            spent = np.array([[_seconds(moving) for moving in both] for _ in range(TIMED_ROUNDS)])
        except ValueError as error:  # energies or forces that are not finite, or a molecule that flew apart
            log.warning("no speed, because the dynamics in which it is measured was lost: %s", error)
            return None
        return float(np.median(spent[:, 1] / spent[:, 0]))

    def _moving(
        self, atoms: ase.Atoms, temperature: float, calculator: Calculator, seed: int, interval: int, before: float
    ) -> Iterator[ase.Atoms]:
        return dynamics(
            atoms.copy(),
            temperature=temperature,
            seed=(seed, round(temperature)),
            calculator=calculator,
            warm_up=self._steps(before),
            interval=interval,
            time_step=self.time_step,
        )

    @property
    def _every(self) -> int:
        """Number of steps from frame to frame."""
        return max(1, self._steps(self.compared) // MAX_FRAMES)

    def _steps(self, length: float) -> int:
        return round(1e3 * length / self.time_step)

    def _cells(self, least_length: float) -> list[tuple[str, ase.Atoms]]:
        """Return the cells with their names, of a least length [Å]."""
        found = []
        for path in self.starts:
            atoms = read_cells(resolve(str(path), field="starts", section="suites"))[0]
            found.append((path.stem, repeated(atoms, least_length)))
        return found


def _kept(folder: Path | None, name: str, run: Callable[[], Track]) -> Track:
    """Return a trajectory of this command, or of an interrupted one before it."""

    def make() -> Arrays:
        track = run()
        return track.positions, np.array(track.share)

    positions, share = kept(folder, name, make)
    return Track(positions, float(share))


def _identity(subject: Subject) -> str:
    """Return the name of a subject and, of a potential, the checksum of its weights."""
    return f"{subject.name} {weights_sha256(subject.potential) if subject.potential else ''}"


def _kinds(atoms: ase.Atoms, pair: str) -> tuple[Bool[np.ndarray, " atoms"], Bool[np.ndarray, " atoms"]]:
    """Return where the atoms of both elements of a pair are."""
    one, other = (atoms.numbers == atomic_number(symbol) for symbol in pair.split("-"))
    return one, other


def _seconds(moving: Iterator[ase.Atoms]) -> float:
    began = time.process_time()
    next(moving)
    return max(time.process_time() - began, math.ulp(1.0))


def _thinned(positions: Float64[np.ndarray, "frames atoms 3"]) -> Float64[np.ndarray, "some atoms 3"]:
    return positions[:: max(1, len(positions) // MAX_FRAMES)]
