"""Example files for a first training or fine-tuning, generated here, so that nobody has to have data to begin.

Both are stand-ins: their labels are those of another potential, not of density functional theory.
"""

import itertools
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import ase
import ase.io
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator
from ase.stress import full_3x3_to_voigt_6_stress

from data_pipeline.sources import EmtAlloys
from data_pipeline.sources.atoms import to_atoms
from data_pipeline.store import durable
from foundation.configuration import check_numbers
from foundation.interop.calculator import Calculator

log = logging.getLogger(__name__)

MAX_FRAMES = 100_000
"""Largest number of frames."""
LABELS = "sevennet-l3i5"
"""Potential that labels Li6PS5Cl: near SevenNet-0, but not the same, so that there is something to learn."""
CONSTANT, SULPHUR, LITHIUM = 10.28, 0.1156, 0.2264
"""Lattice constant of Li6PS5Cl [Å], and in units of it half the edge of the cube around phosphorus that has sulphur on
four corners, and the distance of lithium from the other sulphur, all at the minimum of SevenNet-0's energy."""
MAX_STRAIN, MAX_RATTLE = 0.03, 0.12
"""Largest component of the strain, and largest standard deviation of the displacements [Å], of Li6PS5Cl."""
Frames = Iterator[tuple[ase.Atoms, float, np.ndarray, np.ndarray]]
"""Structures, energies [eV], forces [eV/Å] and stresses [eV/Å³]."""


@dataclass(frozen=True, kw_only=True)
class ExampleDataConfig:
    """Example to write; also without the first option: `foundation example-data NAME`."""

    name: Literal["emt-alloys", "lpsc"]
    """Kind of frames: emt-alloys (alloys of seven metals, labelled with effective medium theory) or lpsc (strained and
    rattled Li6PS5Cl, labelled by SevenNet-l3i5)."""
    out: Path
    """File to write, in the extended XYZ format with energy, forces and stress in ASE's units."""
    frames: int = 60
    """Number of frames."""
    seed: int = 0
    """Random seed; a frame depends only on this and on its number."""
    overwrite: bool = False
    """Replace an existing file."""

    def __post_init__(self) -> None:
        check_numbers(self, {"frames": (1, MAX_FRAMES), "seed": (0, 2**63 - 1)})
        if self.out.suffix not in (".xyz", ".extxyz"):
            raise ValueError(f"out must be a file with suffix .extxyz or .xyz, not {self.out}")


def example_data(config: ExampleDataConfig) -> Path:
    """Write an example file and return its path.

    Raises:
        FileExistsError: the file exists, and overwrite is not set.
    """
    if config.out.exists() and not config.overwrite:
        raise FileExistsError(f"{config.out} already exists: choose another --out, or set --overwrite true")
    frames = _emt_alloys(config) if config.name == "emt-alloys" else _lpsc(config)
    labelled = []
    for number, (atoms, energy, forces, stress) in enumerate(frames):
        voigt = full_3x3_to_voigt_6_stress(stress)
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces, stress=voigt)
        labelled.append(atoms)
        if (number + 1) % 20 == 0 or number + 1 == config.frames:
            log.info("%d of %d frames", number + 1, config.frames)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    with durable.whole_file(config.out) as partial:
        ase.io.write(partial, labelled, format="extxyz")
    return config.out


def _emt_alloys(config: ExampleDataConfig) -> Frames:
    for structure in itertools.islice(EmtAlloys(num_frames=config.frames, seed=config.seed), config.frames):
        atoms = to_atoms(structure)
        atoms.info["group"] = structure.group
        yield atoms, structure.energy, structure.forces, structure.stress


def _lpsc(config: ExampleDataConfig) -> Frames:
    calculator = Calculator(LABELS)
    for number in range(config.frames):
        rng = np.random.default_rng([config.seed, number])
        atoms = argyrodite()
        strain = rng.uniform(-MAX_STRAIN, MAX_STRAIN, (3, 3))
        atoms.set_cell(np.asarray(atoms.cell) @ (np.eye(3) + (strain + strain.T) / 2), scale_atoms=True)
        atoms.positions += rng.normal(0.0, rng.uniform(0.01, MAX_RATTLE), (len(atoms), 3))
        labelled = atoms.copy()
        labelled.calc = calculator
        yield atoms, labelled.get_potential_energy(), labelled.get_forces(), labelled.get_stress(voigt=False)


def argyrodite() -> ase.Atoms:
    """Return Li6PS5Cl with the ordered argyrodite structure, F-43m: a cubic cell of 52 atoms."""
    cube = SULPHUR * np.array([(1, 1, 1), (-1, -1, 1), (-1, 1, -1), (1, -1, -1)])
    octahedron = LITHIUM * np.concatenate([np.eye(3), -np.eye(3)])
    sites = {
        "Cl": np.zeros((1, 3)),
        "P": np.full((1, 3), 0.5),
        "S": np.concatenate([np.full((1, 3), 0.25), 0.5 + cube]),
        "Li": 0.25 + octahedron,
    }
    centring = np.array([(0, 0, 0), (0, 0.5, 0.5), (0.5, 0, 0.5), (0.5, 0.5, 0)])
    symbols = [symbol for symbol, places in sites.items() for _ in range(len(centring) * len(places))]
    places = np.concatenate([(each[:, None] + centring).reshape(-1, 3) for each in sites.values()]) % 1
    return ase.Atoms(symbols, cell=3 * [CONSTANT], pbc=True, scaled_positions=places)
