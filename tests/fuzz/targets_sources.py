"""extxyz files as the build reads them."""

from pathlib import Path

import ase.io
import numpy as np
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator

from data_pipeline.sources import AseFiles
from data_pipeline.structure import InvalidStructure
from tests.fuzz.harness import Target
from tests.fuzz.mutations import damaged_bytes, damaged_files, damaged_text


def make(folder: Path) -> None:
    """Write three frames of four atoms."""
    frames = []
    for number in range(3):
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(0.05, seed=number)
        forces = np.random.default_rng(number).normal(size=(4, 3)).round(6)
        stress = 0.01 * np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
        atoms.calc = SinglePointCalculator(atoms, energy=-10.0 - number, forces=forces, stress=stress)
        frames.append(atoms)
    ase.io.write(folder / "frames.extxyz", frames)


def read(folder: Path) -> list[tuple]:
    """Return what the frames hold."""
    frames = AseFiles(files=(str(folder / "frames.extxyz"),))
    return [(s.numbers.tolist(), s.positions.tolist(), s.energy, s.forces.tolist(), s.stress.tolist()) for s in frames]


TARGETS = (
    Target(
        name="extxyz",
        make=make,
        read=read,
        mutations={
            **damaged_bytes("*.extxyz"),
            **damaged_text("*.extxyz"),
            **damaged_files("*.extxyz", expects="refused"),
        },
        refusals=(InvalidStructure, OSError),
    ),
)
