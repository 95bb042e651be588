"""Structures around given cells, labelled by a calculator: what a student of a potential has to know of a material.

Three kinds: cells that are strained, compressed and rattled, some with a vacancy; molecular dynamics at several
temperatures and pressures; and pairs of atoms at all distances, for the repulsive wall. The calculator is the teacher.
Dynamics may be driven by its student instead: of a trajectory, the frames are then kept about which both disagree most
(active learning with the student's own dynamics, as in Podryabinkin and Shapeev, Comput. Mater. Sci. 140, 171 (2017),
with the disagreement itself in place of an estimate, since the teacher can be asked).
"""

import itertools
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import ase
import ase.units
import numpy as np
from ase.calculators.calculator import Calculator
from ase.data import covalent_radii
from ase.filters import FrechetCellFilter
from ase.io import read
from ase.optimize import FIRE
from jaxtyping import Float64

from data_pipeline.graphs.molecules import MOLECULE_ARRAYS, molecule_labels, molecules_of
from data_pipeline.sources.atoms import to_atoms
from data_pipeline.sources.molecular_dynamics import calculator_of, dynamics, is_lost, labelled
from data_pipeline.sources.source import Frame, Part, Source, errors_named, resolve
from data_pipeline.structure import InvalidStructure, Structure

LARGEST_FORCE = 40.0
"""Largest force on an atom of a frame [eV/Å]: harder collisions are no knowledge of a material."""
RELAXATION = 60
"""Largest number of steps in which a cell is relaxed at a pressure."""
SPREAD = 0.02
"""Largest relative change of a trajectory's lattice vectors after the relaxation, so that cells differ."""
NEAREST, FARTHEST = 0.5, 6.0
"""Shortest distance of a pair over the sum of covalent radii, and longest [Å]."""


@dataclass(frozen=True, kw_only=True)
class Exploration(Source):
    """Structures around given cells, with the calculator's energy, forces and stress.

    The group is the trajectory, or the cell for structures without dynamics.
    """

    explored: tuple[str, ...]
    """Files with the cells, in any format that ASE reads; all frames of each."""
    calculator: str = "foundation.interop.subject:fast_calculator"
    """Module and name of an ASE calculator's class, or of a function that returns one. The module is imported and so
    run."""
    arguments: tuple[str, ...] = ("sevennet-0",)
    """Its arguments, such as the name of a potential."""
    driver: str | None = None
    """Argument of the calculator that drives the dynamics, such as a student's folder; None: the one that labels. With
    a driver there is only dynamics, of whose frames those with the largest disagreement about forces are kept."""
    keep: int = 10
    """Number of frames of a trajectory that are kept if there is a driver."""
    least_length: float = 9.0
    """Least distance between opposite faces of a cell that repeats [Å]: cells are repeated."""
    trajectory_temperatures: tuple[float, ...] = (300.0, 1000.0)
    """Temperatures of the dynamics [K]."""
    pressures: tuple[float, ...] = (0.0,)
    """Pressures at which a cell is relaxed before its dynamics at a fixed volume [GPa]. A cell without dynamics is
    relaxed at the first."""
    trajectories: int = 1
    """Number of trajectories of each cell, temperature and pressure; 0: no dynamics."""
    frames: int = 20
    """Number of frames of each trajectory."""
    interval: int = 20
    """Number of steps from frame to frame."""
    warm_up: int = 100
    """Number of steps before the first frame."""
    time_step: float = 1.5
    """Time step [fs]."""
    strained: int = 20
    """Number of strained and rattled structures of each cell."""
    largest_strain: float = 0.06
    """Largest component of a random strain."""
    volumes: tuple[float, float] = (0.6, 1.25)
    """Smallest and largest volume of a strained cell, over its own."""
    largest_rattle: float = 0.3
    """Largest standard deviation of the displacements [Å]; each structure draws its own."""
    vacancies: float = 0.2
    """Share of the strained structures that lack an atom."""
    pair_distances: int = 12
    """Number of distances of each pair of elements."""
    seed: int = 0
    """Random seed."""

    def __post_init__(self) -> None:
        if not self.explored:
            raise ValueError("explored must name one file or more")
        if not self.trajectory_temperatures or min(self.trajectory_temperatures) <= 0 or not self.pressures:
            raise ValueError("trajectory_temperatures must be positive [K], and pressures one or more")
        if min(self.keep, self.frames, self.interval) < 1:
            raise ValueError("keep, frames and interval must be at least 1")
        if min(self.trajectories, self.strained, self.pair_distances, self.warm_up, self.seed) < 0:
            raise ValueError("trajectories, strained, pair_distances, warm_up and seed must be at least 0")
        if not self.trajectories and (self.driver or not self.strained + self.pair_distances):
            raise ValueError("trajectories must be at least 1 if there is a driver, or nothing else")
        if not 0 < self.volumes[0] <= self.volumes[1] or not 0 <= self.vacancies <= 1:
            raise ValueError("volumes must be positive and rise, vacancies a share from 0 to 1")
        if min(self.largest_strain, self.largest_rattle, self.least_length) < 0 or self.time_step <= 0:
            raise ValueError("largest_strain, largest_rattle and least_length must not be negative, time_step positive")

    def parts(self) -> Sequence[Part]:
        """Return the trajectories, then the strained cells, then the pairs.

        Raises:
            FileNotFoundError: a file is missing.
            InvalidStructure: a file cannot be read.
        """
        cells = self.cells()
        found = [
            Part(
                name=f"cell {cell}, {temperature:g} K, {pressure:g} GPa, {number}",
                size=self.frames,
                read=partial(self._moved, cell, temperature, pressure, number),
            )
            for cell, temperature, pressure, number in itertools.product(
                range(len(cells)), self.trajectory_temperatures, self.pressures, range(self.trajectories)
            )
        ]
        if self.driver is not None:
            return found
        if self.strained:
            found += [
                Part(name=f"cell {cell}, strained", size=self.strained, read=partial(self._strained, cell))
                for cell in range(len(cells))
            ]
        if self.pair_distances:
            found.append(Part(name="pairs", size=self.pair_distances, read=self._pairs))
        return found

    def cells(self) -> list[ase.Atoms]:
        """Return the cells, repeated to the least length; errors as of parts()."""
        paths = [resolve(name, field="explored") for name in self.explored]
        return [repeated(atoms, self.least_length) for path in paths for atoms in read_cells(path)]

    def _relaxed(self, cell: int, pressure: float, calculator: Calculator) -> ase.Atoms:
        """Return a cell relaxed roughly at a pressure [GPa]; one that does not repeat in all directions as it is."""
        atoms = self.cells()[cell]
        atoms.calc = calculator
        if atoms.pbc.all():
            box = FrechetCellFilter(atoms, scalar_pressure=pressure * ase.units.GPa)
            FIRE(cast(ase.Atoms, box), logfile=os.devnull, maxstep=0.1).run(fmax=0.05, steps=RELAXATION)
        return atoms

    def _moved(self, cell: int, temperature: float, pressure: float, number: int) -> Iterator[Frame]:
        """Yield the frames of a trajectory, and a reason in place of the first after which it was lost."""
        teacher = calculator_of(self.calculator, *self.arguments)
        atoms = self._relaxed(cell, pressure, teacher)
        random = (self.seed, cell, round(temperature), round(1000 * abs(pressure)), number)
        if atoms.pbc.all():
            change = np.random.default_rng(random).uniform(-SPREAD, SPREAD, 3)
            atoms.set_cell(np.asarray(atoms.cell) * (1 + change)[:, None], scale_atoms=True)
        moving = dynamics(
            atoms,
            temperature=temperature,
            seed=random,
            calculator=teacher if self.driver is None else calculator_of(self.calculator, self.driver),
            warm_up=self.warm_up,
            interval=self.interval,
            time_step=self.time_step,
        )
        group = f"{self._family}, cell {cell}, {temperature:g} K, {pressure:g} GPa, trajectory {number}"
        frames = self._whole(moving, temperature, group)
        yield from frames if self.driver is None else self._disputed(frames, teacher)

    def _whole(self, moving: Iterator[ase.Atoms], temperature: float, group: str) -> Iterator[Frame]:
        """Yield labelled frames to the end of a trajectory, or to where it is lost."""
        for frame in range(self.frames):
            id = f"{group}, frame {frame}"
            try:
                atoms = next(moving)
                if is_lost(atoms, temperature):
                    raise ValueError("atoms have flown apart")
                yield of_sensible_force(labelled(atoms, id=id, group=group))
            except ValueError as error:
                yield InvalidStructure(f"{id}: the trajectory is lost: {error}")
                return

    def _disputed(self, frames: Iterator[Frame], teacher: Calculator) -> Iterator[Frame]:
        """Yield the driver's frames of the largest disagreement, with the teacher's labels, in order."""
        found: list[tuple[float, int, Frame]] = []
        for number, frame in enumerate(frames):
            if isinstance(frame, InvalidStructure):
                yield frame
                continue
            atoms = to_atoms(frame)
            atoms.calc = teacher
            known = of_sensible_force(labelled(atoms, id=frame.id, group=frame.group))
            if isinstance(known, Structure):
                found.append((float(np.square(known.forces - frame.forces).mean()), number, known))
        found.sort(key=lambda each: -each[0])
        yield from (frame for _, _, frame in sorted(found[: self.keep], key=lambda each: each[1]))

    def _strained(self, cell: int) -> Iterator[Frame]:
        """Yield strained, compressed and rattled structures of a cell."""
        calculator = calculator_of(self.calculator, *self.arguments)
        perfect = self._relaxed(cell, self.pressures[0], calculator)
        group = f"{self._family}, cell {cell}, strained"
        for number in range(self.strained):
            rng = np.random.default_rng((self.seed, cell, number))
            atoms = perfect.copy()
            if atoms.pbc.any():
                deformation = random_deformation(rng, self.largest_strain, self.volumes)
                atoms.set_cell(np.asarray(atoms.cell) @ deformation, scale_atoms=True)
            if len(atoms) > 1 and rng.random() < self.vacancies:
                del atoms[int(rng.integers(len(atoms)))]
            atoms.positions += rng.normal(0.0, rng.uniform(0.0, self.largest_rattle), atoms.positions.shape)
            atoms.calc = calculator
            yield of_sensible_force(labelled(atoms, id=f"{group}, {number}", group=group))

    def _pairs(self) -> Iterator[Frame]:
        """Yield two atoms of every pair of elements at all distances."""
        calculator = calculator_of(self.calculator, *self.arguments)
        numbers = sorted({number for cell in self.cells() for number in cell.numbers.tolist()})
        for first, second in itertools.combinations_with_replacement(numbers, 2):
            shortest = NEAREST * float(covalent_radii[first] + covalent_radii[second])
            group = f"{self._family}, pair {first}-{second}"
            for distance in np.geomspace(shortest, FARTHEST, self.pair_distances).tolist():
                atoms = ase.Atoms([first, second], positions=[(0, 0, 0), (0, 0, distance)], calculator=calculator)
                yield of_sensible_force(labelled(atoms, id=f"{group}, {distance:.3f} Å", group=group))

    @property
    def _family(self) -> str:
        driven = "" if self.driver is None else f", driven by {Path(self.driver).name}"
        return f"{Path(self.explored[0]).stem}-{self.seed}{driven}"


def read_cells(path: Path) -> list[ase.Atoms]:
    """Return all frames of a file that ASE reads, without anything but their atoms and the labels of molecules.

    Raises:
        InvalidStructure: it cannot be read.
    """
    with errors_named(path, "its cells"):
        images = read(path, index=":")
    every = images if isinstance(images, list) else [images]
    found = [ase.Atoms(each.numbers, each.positions, cell=each.cell, pbc=each.pbc) for each in every]
    for atoms, each in zip(found, every, strict=True):
        if (labels := molecule_labels(each.arrays)) is not None:
            atoms.new_array(MOLECULE_ARRAYS[0], labels)
    return found


def repeated(atoms: ase.Atoms, least_length: float) -> ase.Atoms:
    """Return a cell repeated until its opposite faces are a length [Å] apart, in the directions in which it repeats.

    Raises:
        InvalidStructure: a molecule is too large for the cell.
    """
    if not atoms.pbc.any():
        return atoms
    heights = 1.0 / np.linalg.norm(np.linalg.pinv(np.asarray(atoms.cell)), axis=0)
    each = zip(heights.tolist(), atoms.pbc.tolist(), strict=True)
    times = [max(1, math.ceil(least_length / height - 1e-9)) if repeats else 1 for height, repeats in each]
    labels = molecule_labels(atoms.arrays)
    if labels is not None and max(times) > 1:  # a molecule that a face cuts would be torn apart
        whole = Structure.checked(
            numbers=atoms.numbers,
            positions=atoms.positions,
            cell=np.asarray(atoms.cell),
            pbc=atoms.pbc,
            energy=0.0,
            molecules=labels,
        )
        atoms = atoms.copy()
        atoms.positions += molecules_of(whole).images @ np.asarray(atoms.cell)
    found = atoms.repeat(times)
    if labels is not None:  # an image is another molecule
        images = np.repeat(np.arange(math.prod(times)), len(atoms))
        found.arrays[MOLECULE_ARRAYS[0]] = found.arrays[MOLECULE_ARRAYS[0]] + images * (np.ptp(labels) + 1)
    return found


def of_sensible_force(frame: Structure, largest: float = LARGEST_FORCE) -> Frame:
    """Return a frame, or the reason why it is none: a force on an atom above the largest [eV/Å]."""
    found = float(np.linalg.norm(frame.forces, axis=1).max())
    if found <= largest:
        return frame
    return InvalidStructure(f"{frame.id}: a force of {found:.0f} eV/Å is above {largest:g}")


def random_deformation(
    rng: np.random.Generator, largest_strain: float, volumes: tuple[float, float]
) -> Float64[np.ndarray, "3 3"]:
    """Return a random deformation of a cell, a matrix to multiply its vectors by from the right.

    Args:
        rng: Random numbers.
        largest_strain: Largest component of the strain.
        volumes: Smallest and largest volume over the cell's.
    """
    strain = rng.uniform(-largest_strain, largest_strain, (3, 3))
    deformation = np.eye(3) + (strain + strain.T) / 2
    return (rng.uniform(*volumes) / np.linalg.det(deformation)) ** (1 / 3) * deformation
