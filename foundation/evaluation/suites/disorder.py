"""From crystals to disorder: the force on an ion in a frozen crystalline sphere, while everything beyond it melts.

The oracle is rigid-ion magnesium oxide (data_pipeline/sources/rigid_ions.py), whose forces are Coulomb's beyond the
first neighbours. Near the ion everything is as in a crystal, so that a potential trained on crystals must know the law
of the far ones. Trajectories are the oracle's own and the same for every subject; a process makes them once.
"""

import functools
import itertools
import math
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import ase
import numpy as np
from jaxtyping import Float64, Int64

from data_pipeline.sources.rigid_ions import CHARGES, LATTICE_CONSTANT, TIME_STEP, RigidIons, crystal, dynamics
from data_pipeline.structure import Structure
from foundation.configuration import MAY_CHANGE, check_numbers
from foundation.evaluation.intervals import interval_over
from foundation.evaluation.suites.suite import Chart, Curve, Finding, Findings, Subject, Suite

LIMITS = {"trajectories": (2, 1000), "frames": (1, 10_000), "interval": (1, 10_000), "warm_up": (0, 100_000)}
"""Smallest and largest value of each number."""
MAX_RADIUS = 20.0
"""Largest radius [Å], in a cell of 8,000 ions."""


class Trajectories(NamedTuple):
    """Frames of a number of trajectories, in order, one trajectory after the other."""

    structures: list[Structure]
    """Frames."""
    forces: Float64[np.ndarray, "trajectories frames 3"]
    """Force on the centre [eV/Å]."""
    centre: int
    """Index of the ion in the centre."""
    displacement: float
    """Root mean square distance of the free ions from their sites in the last frames [Å]."""


@dataclass(frozen=True, kw_only=True)
class Disorder(Suite):
    """Relative error |F - F_oracle| / |F_oracle| of the force on the centre of a frozen crystalline sphere.

    Medians are over frames of all trajectories; intervals are a bootstrap over trajectories, because frames of one are
    alike. The error of a potential that predicts no force is 1.
    """

    name: ClassVar[str] = "disorder"

    frozen_radii: tuple[float, ...] = field(metadata=MAY_CHANGE)
    """Radii of the frozen sphere [Å]; the cell is the smallest that holds it, at least `repeats` long."""
    temperature: float = field(default=4000.0, metadata=MAY_CHANGE)
    """Temperature of the free ions [K]."""
    repeats: int = field(default=3, metadata=MAY_CHANGE)
    """Least number of conventional cells of 4.21 Å along each side."""
    trajectories: int = field(default=4, metadata=MAY_CHANGE)
    """Number of trajectories for each radius."""
    frames: int = field(default=8, metadata=MAY_CHANGE)
    """Number of frames of each trajectory."""
    interval: int = field(default=30, metadata=MAY_CHANGE)
    """Number of steps of 1.5 fs from frame to frame."""
    warm_up: int = field(default=100, metadata=MAY_CHANGE)
    """Number of steps before the first frame."""
    melting: float | None = field(default=None, metadata=MAY_CHANGE)
    """Temperature [K] of as many steps as warm_up before it, to destroy the crystal outside the sphere: a fraction of a
    picosecond at 4000 K leaves a hot crystal. None: there are none."""

    def __post_init__(self) -> None:
        check_numbers(self, LIMITS)
        if not self.frozen_radii or not all(0.0 <= radius <= MAX_RADIUS for radius in self.frozen_radii):
            raise ValueError(f"frozen_radii must be lengths of 0 to {MAX_RADIUS:g} Å, not {self.frozen_radii}")
        temperatures = [each for each in (self.temperature, self.melting) if each is not None]
        if not 1 <= self.repeats <= 10 or not all(1.0 <= each <= 100_000.0 for each in temperatures):
            raise ValueError("repeats must be 1 to 10, temperature and melting 1 to 100,000 K")

    def elements(self) -> set[int]:
        """Return magnesium and oxygen."""
        return set(CHARGES)

    def run(self, subject: Subject) -> Findings:
        """Return median error and correlation for each radius, and the errors against radius and time."""
        found: dict[str, Finding] = {}
        times = TIME_STEP * (self.warm_up + self.interval * np.arange(self.frames))
        over_time = {}
        for radius in self.frozen_radii:
            oracle = made(self, radius)
            predicted = np.array([each.forces[oracle.centre] for each in subject.predict(oracle.structures)])
            predicted = predicted.reshape(oracle.forces.shape)
            errors = np.linalg.norm(predicted - oracle.forces, axis=2) / np.linalg.norm(oracle.forces, axis=2)
            label = f"R {radius:g} Å"
            found |= {
                f"median error, {label}": Finding(
                    value=float(np.median(errors)), interval=interval_over(np.median, errors)
                ),
                f"correlation, {label}": Finding(value=correlation(predicted, oracle.forces)),
                f"displacement of free ions, {label}": Finding(value=oracle.displacement, unit="Å"),
            }
            over_time[label] = Curve(x=tuple(times), y=tuple(np.median(errors, axis=0).tolist()))
        return Findings(quantities=found, charts=self._charts(found, over_time))

    def _charts(self, found: dict[str, Finding], over_time: dict[str, Curve]) -> dict[str, Chart]:
        medians = [found[f"median error, R {radius:g} Å"] for radius in self.frozen_radii]
        limits = [each.interval or (None, None) for each in medians]
        own = Curve(
            x=self.frozen_radii,
            y=tuple(each.value for each in medians),
            low=tuple(low for low, _ in limits),
            high=tuple(high for _, high in limits),
        )
        nothing = "no force predicted"
        error = "|F - F(oracle)| / |F(oracle)|"
        ends = (min(self.frozen_radii), max(self.frozen_radii))
        times = next(iter(over_time.values())).x
        return {
            "Error against radius": Chart(
                x="radius of the frozen sphere [Å]",
                y=error,
                curves={"": own, nothing: Curve(x=ends, y=(1.0, 1.0), reference=True)},
            ),
            "Error against time": Chart(
                x="time [fs]",
                y=error,
                curves=over_time | {nothing: Curve(x=times, y=(1.0,) * len(times), reference=True)},
            ),
        }


@functools.lru_cache(maxsize=16)
def made(suite: Disorder, radius: float) -> Trajectories:
    """Return the oracle's trajectories of a suite for one of its radii."""
    structures, forces, squares = [], [], []
    repeats = max(suite.repeats, math.ceil(2 * radius / LATTICE_CONSTANT))
    perfect = crystal(repeats)
    centre, frozen = sphere(perfect, radius)
    free = np.setdiff1d(np.arange(len(perfect)), frozen)
    for number in range(suite.trajectories):
        atoms, seed = perfect.copy(), (round(100 * radius), repeats, round(suite.temperature), number)
        run = functools.partial(
            dynamics,
            atoms,
            calculator=RigidIons(),
            warm_up=suite.warm_up,
            interval=suite.interval,
            frozen=frozen.tolist(),
        )
        if suite.melting is not None:
            next(run(temperature=suite.melting, seed=(*seed, round(suite.melting))))
        for _ in itertools.islice(run(temperature=suite.temperature, seed=seed), suite.frames):
            structures.append(unlabelled(atoms))
            forces.append(atoms.get_forces(apply_constraint=False)[centre])
        squares.append((atoms.positions - perfect.positions)[free] ** 2)
    return Trajectories(
        structures=structures,
        forces=np.array(forces).reshape(suite.trajectories, suite.frames, 3),
        centre=centre,
        displacement=float(np.sqrt(np.sum(squares, axis=-1).mean())) if len(free) else 0.0,
    )


def sphere(atoms: ase.Atoms, radius: float) -> tuple[int, Int64[np.ndarray, " frozen"]]:
    """Return the atom nearest to the middle of a cell, and all atoms within a radius [Å] of it, itself included."""
    middle = atoms.positions.mean(axis=0)
    centre = int(np.linalg.norm(atoms.positions - middle, axis=1).argmin())
    distances = atoms.get_distances(centre, np.arange(len(atoms)), mic=True)
    return centre, np.flatnonzero(distances <= radius)


def unlabelled(atoms: ase.Atoms) -> Structure:
    """Return a copy of a frame, without labels."""
    return Structure.checked(
        numbers=atoms.numbers, positions=atoms.positions.copy(), cell=np.asarray(atoms.cell), pbc=atoms.pbc, energy=0.0
    )


def correlation(one: Float64[np.ndarray, "..."], other: Float64[np.ndarray, "..."]) -> float | None:
    """Return Pearson's correlation of all components; None if one of them does not vary."""
    first, second = one.ravel() - one.mean(), other.ravel() - other.mean()
    norm = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(first @ second) / norm if norm > 0 else None
