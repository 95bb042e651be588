"""Random structures and small labelled files for the tests of the data side."""

from collections.abc import Callable
from pathlib import Path

import ase
import ase.io
import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator

from data_pipeline.structure import Structure


def _random_structure(seed: int, *, num_atoms: int = 5, labelled: bool = True, group: str = "g") -> Structure:
    rng = np.random.default_rng(seed)
    stress = rng.normal(size=(3, 3))
    return Structure.checked(
        numbers=rng.choice([1, 8, 26, 79, 118], num_atoms),
        positions=rng.uniform(0.0, 20.0, (num_atoms, 3)),
        cell=20.0 * np.eye(3) + rng.uniform(-3.0, 3.0, (3, 3)),
        pbc=[True, True, True],
        energy=float(rng.normal()),
        forces=rng.normal(size=(num_atoms, 3)) if labelled else None,
        stress=stress + stress.T if labelled else None,
        id=f"frame-{seed}",
        group=group,
    )


@pytest.fixture(scope="session")
def random_structure() -> Callable[..., Structure]:
    return _random_structure


def _copper_frames(count: int = 3) -> list[ase.Atoms]:
    frames = []
    for number in range(count):
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(0.05, seed=number)
        forces = np.random.default_rng(number).normal(size=(4, 3)).round(6)
        stress = 0.01 * np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
        atoms.calc = SinglePointCalculator(atoms, energy=-10.0 - number, forces=forces, stress=stress)
        frames.append(atoms)
    return frames


@pytest.fixture
def copper_frames() -> list[ase.Atoms]:
    """Three frames of four atoms, with energies -10, -11 and -12 eV."""
    return _copper_frames()


@pytest.fixture
def copper_file(tmp_path: Path, copper_frames: list[ase.Atoms]) -> Path:
    """The same frames in an extxyz file."""
    path = tmp_path / "copper.extxyz"
    ase.io.write(path, copper_frames)
    return path
