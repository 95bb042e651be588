"""Molecular dynamics of crystals, driven and labelled by a calculator: snapshots, and frozen spheres in a hot crystal.

The calculator is an oracle whose law is known, such as rigid ions, or a potential that stands in for density functional
theory. Near the centre of a frozen sphere everything is as in a crystal, while all beyond it moves: a potential trained
on crystals predicts the force there only if it has learned how the far atoms act.
"""

import functools
import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Literal

import ase
import ase.units
import numpy as np
from ase.build import bulk
from ase.calculators.calculator import Calculator
from ase.constraints import FixAtoms
from ase.md.langevin import Langevin
from jaxtyping import Int64

from data_pipeline.sources.bonds import Bonds
from data_pipeline.sources.source import Part, Source, made_of
from data_pipeline.structure import Structure

TIME_STEP = 1.5
"""Time step of molecular dynamics [fs]."""
FRICTION = 0.01
"""Friction of the Langevin thermostat [1/fs]."""
RUNAWAY = 10.0
"""Kinetic temperature over the wanted one from which on a trajectory is lost."""
MAX_RADIUS = 20.0
"""Largest radius of a frozen sphere [Å]: in magnesium oxide, a cell of 8,000 ions."""


@dataclass(frozen=True, kw_only=True)
class Material:
    """A cubic crystal, and the calculator that moves and labels it."""

    formula: str = "MgO"
    """Formula."""
    prototype: Literal["rocksalt", "fcc", "bcc", "diamond", "zincblende", "perovskite"] = "rocksalt"
    """Structure type; the formula of a cubic perovskite names its large cation first, as in SrTiO3."""
    lattice_constant: float = 4.21
    """Lattice constant [Å]."""
    calculator: str = "data_pipeline.sources.rigid_ions:RigidIons"
    """Module and name of an ASE calculator's class, or of a function that returns one. The module is imported and so
    run."""
    arguments: tuple[str, ...] = ()
    """Its arguments, such as the name of a potential."""

    def __post_init__(self) -> None:
        if not 1.0 <= self.lattice_constant <= 30.0:
            raise ValueError(f"lattice_constant must be between 1 and 30 Å, not {self.lattice_constant:g}")
        self.crystal(1)

    @property
    def label(self) -> str:
        """Formula and structure type."""
        return f"{self.formula} {self.prototype}"

    def crystal(self, repeats: int) -> ase.Atoms:
        """Return the perfect crystal, `repeats` conventional cells along each side.

        Raises:
            ValueError: the formula does not fit the structure type.
        """
        try:
            if self.prototype == "perovskite":
                return _perovskite(self.formula, self.lattice_constant).repeat(repeats)
            return bulk(self.formula, self.prototype, self.lattice_constant, cubic=True).repeat(repeats)
        except (KeyError, ValueError, RuntimeError) as error:
            raise ValueError(f"formula {self.formula} is no {self.prototype} crystal: {error}") from None

    def oracle(self) -> Calculator:
        """Return the calculator.

        Raises:
            ValueError: there is none, or it cannot be made of the arguments.
        """
        return calculator_of(self.calculator, *self.arguments)


def _perovskite(formula: str, lattice_constant: float) -> ase.Atoms:
    """Return a cell of a cubic perovskite.

    Raises:
        ValueError: the formula is not of the form ABX3.
    """
    symbols = ase.Atoms(formula).get_chemical_symbols()
    if len(symbols) != 5 or len(set(symbols)) != 3 or len(set(symbols[2:])) != 1:
        raise ValueError("a perovskite has a formula such as SrTiO3")
    places = [(0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0), (0.5, 0, 0.5), (0, 0.5, 0.5)]
    return ase.Atoms(symbols, cell=[lattice_constant] * 3, scaled_positions=places, pbc=True)


def calculator_of(word: str, *arguments: str) -> Calculator:
    """Return the ASE calculator of a word, `module:name`, whose module is imported.

    Raises:
        ValueError: there is none, or it cannot be made of the arguments.
    """
    made = made_of("calculator", word, arguments, "ase.calculators.emt:EMT")
    if not isinstance(made, Calculator):
        raise ValueError(f"calculator {word} makes a {type(made).__name__}, which is not an ASE calculator")
    return made


def dynamics(
    atoms: ase.Atoms,
    *,
    temperature: float,
    seed: Sequence[int],
    calculator: Calculator,
    warm_up: int,
    interval: int,
    frozen: Sequence[int] = (),
    time_step: float = TIME_STEP,
) -> Iterator[ase.Atoms]:
    """Yield a trajectory's frames without end: the same atoms, changed in place, with calculated energy and forces.

    Args:
        atoms: Start, changed in place.
        temperature: Temperature [K]; velocities begin at twice as much, half of which becomes potential energy.
        seed: Numbers that decide the trajectory.
        calculator: Calculator that drives it.
        warm_up: Number of steps before the first frame.
        interval: Number of steps from frame to frame.
        frozen: Indices of atoms that do not move.
        time_step: Time step [fs].
    """
    rng = np.random.default_rng([*seed])
    atoms.calc = calculator
    atoms.set_constraint(FixAtoms(indices=list(frozen)))
    widths = np.sqrt(atoms.get_masses() * 2 * temperature * ase.units.kB)
    atoms.set_momenta(rng.standard_normal((len(atoms), 3)) * widths[:, None])
    step, friction = time_step * ase.units.fs, FRICTION / ase.units.fs
    moving = Langevin(atoms, step, temperature_K=temperature, friction=friction, fixcm=False, rng=rng)
    moving.run(warm_up)
    while True:
        yield atoms
        moving.run(interval)


def is_lost(atoms: ase.Atoms, temperature: float) -> bool:
    """Return True if atoms have flown apart: their kinetic temperature is RUNAWAY times the wanted one [K], or NaN."""
    return not atoms.get_temperature() < RUNAWAY * temperature


def sphere(atoms: ase.Atoms, radius: float) -> tuple[int, Int64[np.ndarray, " frozen"]]:
    """Return the atom nearest to the middle of a cell, and all atoms within a radius [Å] of it, itself included."""
    middle = atoms.positions.mean(axis=0)
    centre = int(np.linalg.norm(atoms.positions - middle, axis=1).argmin())
    distances = atoms.get_distances(centre, np.arange(len(atoms)), mic=True)
    return centre, np.flatnonzero(distances <= radius)


@dataclass(frozen=True, kw_only=True)
class CrystalDynamics(Source):
    """Snapshots of molecular dynamics of a crystal, with the calculator's energy, forces and stress.

    The volume is fixed. The group is the trajectory.
    """

    temperatures: tuple[float, ...]
    """Temperatures [K]."""
    material: Material = Material()
    """Crystal and calculator; rigid-ion magnesium oxide if nothing else is named."""
    repeats: int = 3
    """Number of conventional cells along each side: 2, 3, 4 are 64, 216, 512 ions of rocksalt."""
    trajectories: int = 4
    """Number of trajectories at each temperature."""
    frames: int = 30
    """Number of frames of each trajectory."""
    interval: int = 10
    """Number of steps of 1.5 fs from frame to frame."""
    warm_up: int = 200
    """Number of steps before the first frame."""
    seed: int = 0
    """Random seed; a trajectory depends only on this, its temperature, its number and the crystal."""

    def __post_init__(self) -> None:
        if not self.temperatures or min(self.temperatures) <= 0:
            raise ValueError(f"temperatures must be positive [K], not {self.temperatures}")
        if min(self.repeats, self.trajectories, self.frames, self.interval) < 1 or min(self.warm_up, self.seed) < 0:
            raise ValueError(
                "repeats, trajectories, frames and interval must be at least 1, warm_up and seed at least 0"
            )

    def parts(self) -> Sequence[Part]:
        """Return the trajectories."""
        return [
            Part(name=_name(temperature, number), size=self.frames, read=partial(self._run, temperature, number))
            for temperature in self.temperatures
            for number in range(self.trajectories)
        ]

    def _run(self, temperature: float, number: int) -> Iterator[Structure]:
        name = _name(temperature, number)
        frames = dynamics(
            self.material.crystal(self.repeats),
            temperature=temperature,
            seed=(self.seed, round(temperature), number),
            calculator=self.material.oracle(),
            warm_up=self.warm_up,
            interval=self.interval,
        )
        for frame, atoms in enumerate(itertools.islice(frames, self.frames)):
            yield labelled(atoms, id=f"{self.material.label}-{self.seed}, {name}, frame {frame}", group=name)


@dataclass(frozen=True, kw_only=True)
class FrozenSpheres(Source):
    """Molecular dynamics around a frozen crystalline sphere, with the calculator's energy, forces and stress.

    The volume is fixed. The group is the trajectory. Names of frames change with the options, so that a data set of
    others is not mistaken for this one.
    """

    frozen_radii: tuple[float, ...]
    """Radii of the frozen sphere [Å]; the cell is the smallest that holds it, at least `repeats` long."""
    material: Material = Material()
    """Crystal and calculator; rigid-ion magnesium oxide if nothing else is named."""
    temperature: float = 4000.0
    """Temperature of the free atoms [K]."""
    repeats: int = 3
    """Least number of conventional cells along each side."""
    trajectories: int = 4
    """Number of trajectories for each radius."""
    frames: int = 8
    """Number of frames of each trajectory."""
    interval: int = 30
    """Number of steps of 1.5 fs from frame to frame."""
    warm_up: int = 100
    """Number of steps before the first frame."""
    melting: float | None = None
    """Temperature [K] of as many steps as warm_up before it, to destroy the crystal outside the sphere: a fraction of a
    picosecond at 4000 K leaves a hot crystal. None: there are none."""

    def __post_init__(self) -> None:
        if not self.frozen_radii or not all(0.0 <= radius <= MAX_RADIUS for radius in self.frozen_radii):
            raise ValueError(f"frozen_radii must be lengths of 0 to {MAX_RADIUS:g} Å, not {self.frozen_radii}")
        if self.trajectories < 2 or min(self.frames, self.interval) < 1 or self.warm_up < 0:
            raise ValueError("trajectories must be at least 2, frames and interval at least 1, warm_up at least 0")
        temperatures = [each for each in (self.temperature, self.melting) if each is not None]
        if not 1 <= self.repeats <= 10 or not all(1.0 <= each <= 100_000.0 for each in temperatures):
            raise ValueError("repeats must be 1 to 10, temperature and melting 1 to 100,000 K")

    @property
    def label(self) -> str:
        """Material and temperature."""
        return f"{self.material.label}, {self.temperature:g} K"

    def parts(self) -> Sequence[Part]:
        """Return the trajectories."""
        return [
            Part(name=f"R {radius:g} Å, {number}", size=self.frames, read=partial(self._run, radius, number))
            for radius in self.frozen_radii
            for number in range(self.trajectories)
        ]

    def names(self, radius: float) -> list[str]:
        """Return the names of the frames of a radius, one trajectory after the other."""
        every = itertools.product(range(self.trajectories), range(self.frames))
        return [self._name(radius, number, frame) for number, frame in every]

    def perfect(self, radius: float) -> tuple[ase.Atoms, int, Int64[np.ndarray, " frozen"]]:
        """Return the crystal around a sphere of a radius, the index of its centre and those of the frozen atoms."""
        crystal = self.material.crystal(self._repeats(radius))
        return crystal, *sphere(crystal, radius)

    def _repeats(self, radius: float) -> int:
        return max(self.repeats, math.ceil(2 * radius / self.material.lattice_constant))

    def _name(self, radius: float, number: int, frame: int) -> str:
        return f"{self.label}, R {radius:g} Å, trajectory {number}, frame {frame}, options {self._digest}"

    @functools.cached_property
    def _digest(self) -> str:
        """Hash of the options that decide a trajectory."""
        deciding = {name: value for name, value in asdict(self).items() if name != "frozen_radii"}
        return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:12]

    def _run(self, radius: float, number: int) -> Iterator[Structure]:
        atoms, _, frozen = self.perfect(radius)
        seed = (round(100 * radius), self._repeats(radius), round(self.temperature), number)
        run = partial(
            dynamics,
            atoms,
            calculator=self.material.oracle(),
            warm_up=self.warm_up,
            interval=self.interval,
            frozen=frozen.tolist(),
        )
        if self.melting is not None:
            next(run(temperature=self.melting, seed=(*seed, round(self.melting))))
        frames = itertools.islice(run(temperature=self.temperature, seed=seed), self.frames)
        group = f"R {radius:g} Å, trajectory {number}"
        for frame, moved in enumerate(frames):
            yield labelled(moved, id=self._name(radius, number, frame), group=group)


def labelled(atoms: ase.Atoms, *, id: str, group: str) -> Structure:
    """Return a frame with the labels of its calculator; the forces on frozen atoms are among them.

    Stress is labelled if the cell has a volume.
    """
    return Structure.checked(
        numbers=atoms.numbers,
        positions=atoms.positions.copy(),
        cell=np.asarray(atoms.cell),
        pbc=atoms.pbc,
        energy=atoms.get_potential_energy(),
        forces=atoms.get_forces(apply_constraint=False),
        stress=atoms.get_stress(voigt=False) if atoms.cell.rank == 3 else None,
        molecules=Bonds().labels(atoms),
        id=id,
        group=group,
    )


def _name(temperature: float, number: int) -> str:
    return f"{temperature:g} K, trajectory {number}"
