"""Molecular dynamics of a lithium electrolyte, driven and labelled by a calculator.

A box is packed at a low density, compressed step by step with relaxation in between, and then moved at a constant
volume and temperature. A frame is refused, and so counted, if a bond of a molecule was lost or a new one was made: the
molecules are then no longer those of the labels.
"""

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import ase
import numpy as np
from ase.calculators.calculator import Calculator
from ase.optimize import FIRE
from jaxtyping import Int64

from data_pipeline.sources.bonds import Bonds
from data_pipeline.sources.molecular_dynamics import calculator_of, dynamics, labelled
from data_pipeline.sources.molecules import packed, scaled
from data_pipeline.sources.source import Frame, Part, Source
from data_pipeline.structure import InvalidStructure

TIME_STEP = 1.0
"""Time step of molecular dynamics [fs]."""
LOOSE = 0.45
"""Density at which a box is packed [g/cm³]; denser, random places are not found."""
SHRINKAGE = 0.97
"""Factor by which the side of a box shrinks in a step of compression."""
RELAXATION = 15
"""Number of steps of relaxation after each step of compression."""


@dataclass(frozen=True, kw_only=True)
class Electrolyte(Source):
    """Snapshots of molecular dynamics of molecules and ions, with the calculator's energy, forces and stress.

    The volume is fixed. Every atom is labelled with its molecule. The group is the trajectory.
    """

    molecules: Mapping[str, int]
    """Number of molecules or ions of each name: EC, EMC, PF6 and Li."""
    trajectory_temperatures: tuple[float, ...] = (300.0, 400.0, 500.0, 600.0)
    """Temperatures [K]."""
    density: float = 1.2
    """Density [g/cm³]."""
    calculator: str = "foundation.interop.subject:fast_calculator"
    """Module and name of an ASE calculator's class, or of a function that returns one. The module is imported and so
    run."""
    arguments: tuple[str, ...] = ("sevennet-0",)
    """Its arguments, such as the name of a potential."""
    trajectories: int = 1
    """Number of trajectories at each temperature, each of its own box."""
    frames: int = 100
    """Number of frames of each trajectory."""
    interval: int = 10
    """Number of steps of 1 fs from frame to frame."""
    warm_up: int = 200
    """Number of steps before the first frame."""
    seed: int = 0
    """Random seed; a trajectory depends only on this, its temperature, its number and the options above."""
    bonds: Bonds = field(default_factory=Bonds)
    """Definition of bonds, by which broken molecules are found."""

    def __post_init__(self) -> None:
        if not self.trajectory_temperatures or min(self.trajectory_temperatures) <= 0:
            raise ValueError(f"trajectory_temperatures must be positive [K], not {self.trajectory_temperatures}")
        if min(self.trajectories, self.frames, self.interval) < 1 or min(self.warm_up, self.seed) < 0:
            raise ValueError("trajectories, frames and interval must be at least 1, warm_up and seed at least 0")
        if not LOOSE <= self.density <= 5.0:
            raise ValueError(f"density must be between {LOOSE:g} and 5 g/cm³, not {self.density:g}")
        if min(self.molecules.values(), default=0) < 1:
            raise ValueError("molecules must name at least one, and one or more of each")

    def parts(self) -> Sequence[Part]:
        """Return the trajectories."""
        return [
            Part(name=_name(temperature, number), size=self.frames, read=partial(self._run, temperature, number))
            for temperature in self.trajectory_temperatures
            for number in range(self.trajectories)
        ]

    def box(
        self, temperature: float, number: int, calculator: Calculator
    ) -> tuple[ase.Atoms, Int64[np.ndarray, "bonds 2"]]:
        """Return the box in which a trajectory begins, packed, compressed and relaxed, and its bonds when packed."""
        rng = np.random.default_rng([self.seed, round(temperature), number])
        box = packed(self.molecules, LOOSE, rng)
        bonds, box.calc = self.bonds.within(box), calculator
        factor = (LOOSE / self.density) ** (1 / 3)
        steps = max(1, int(np.ceil(np.log(factor) / np.log(SHRINKAGE))))
        for _ in range(steps):
            _relax(box)
            scaled(box, factor ** (1 / steps))
        _relax(box)
        return box, bonds

    def _run(self, temperature: float, number: int) -> Iterator[Frame]:
        name = _name(temperature, number)
        calculator = calculator_of(self.calculator, *self.arguments)
        box, bonds = self.box(temperature, number, calculator)
        moving = dynamics(
            box,
            temperature=temperature,
            seed=(self.seed, round(temperature), number),
            calculator=calculator,
            warm_up=self.warm_up,
            interval=self.interval,
            time_step=TIME_STEP,
        )
        for frame, atoms in enumerate(itertools.islice(moving, self.frames)):
            id = f"electrolyte-{self.seed}, {name}, frame {frame}"
            if change := self.bonds.change(atoms, bonds):
                yield InvalidStructure(f"{id}: {change}")
            else:
                yield labelled(atoms, id=id, group=f"seed {self.seed}, {name}")


def _relax(box: ase.Atoms) -> None:
    FIRE(box, logfile=os.devnull, maxstep=0.1).run(fmax=0.1, steps=RELAXATION)


def _name(temperature: float, number: int) -> str:
    return f"{temperature:g} K, trajectory {number}"
