"""One large cell through ASE: SevenNet-0 in this project's calculator beside sevenn's own, neighbour lists included.

Both are in float32 on one core and give energy, forces and stress after every move of the atoms, as in dynamics.
That they give the same numbers is checked before anything is timed.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import ase
import numpy as np
import torch
from ase.build import bulk

import foundation
from tests.benchmarks.rows import Row, interleaved, write

COMMAND = "make bench BENCH=ase"
TOLERANCE = 1e-5
"""Largest difference of energy, forces and stress between the two, over their largest value."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes of the benchmark."""

    repeat: int = 5
    """Conventional cells of MgO (8 atoms) along each axis; 5 are 1,000 atoms."""
    rounds: int = 3
    """Measured rounds, both taking turns in each; one more warms up."""


def run(config: Config) -> None:
    """Check, measure and write runs/bench/ase.json."""
    torch.set_num_threads(1)
    atoms = bulk("MgO", "rocksalt", a=4.21, cubic=True).repeat(config.repeat)
    atoms.rattle(0.05, seed=0)
    ours, sevenn = atoms.copy(), atoms.copy()
    ours.calc = foundation.Calculator(foundation.load("sevennet-0"), dtype=torch.float32)
    with warnings.catch_warnings():
        # sevenn 0.13 and what it imports warn of torch's scripting and of missing accelerators
        warnings.simplefilter("ignore")
        from sevenn.calculator import SevenNetCalculator

        sevenn.calc = SevenNetCalculator("7net-0", device="cpu")
    rows = agreement(ours, sevenn)
    seconds = interleaved({"ours": step(ours), "sevenn": step(sevenn)}, config.rounds)
    rate, peer = len(atoms) / seconds["ours"], len(atoms) / seconds["sevenn"]
    rows.append(
        Row(
            measure=f"energy, forces and stress through ASE, SevenNet-0, MgO of {len(atoms)} atoms",
            value=rate,
            unit="atoms/s, one core",
            peer="sevenn 0.13, its calculator",
            peer_value=peer,
            ratio=rate / peer,
            command=COMMAND,
        )
    )
    write("ase", rows)


def agreement(ours: ase.Atoms, sevenn: ase.Atoms) -> list[Row]:
    """Return by how much energy, forces and stress differ.

    Raises:
        ValueError: they are not the same to rounding.
    """
    rows = []
    for quantity, first, second in zip(("energy", "forces", "stress"), values(ours), values(sevenn), strict=True):
        difference = float(np.abs(first - second).max() / np.abs(second).max())
        if difference > TOLERANCE:
            raise ValueError(f"{quantity}: the two calculators differ by {difference:.1e}, more than {TOLERANCE:.0e}")
        rows.append(
            Row(
                measure=f"{quantity} of {len(ours)} atoms, largest difference from sevenn's calculator, float32",
                value=difference,
                unit="relative",
                bar=TOLERANCE,
                holds=True,
                command=COMMAND,
            )
        )
    return rows


def values(atoms: ase.Atoms) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return energy [eV], forces [eV/Å] and stress [eV/Å³]."""
    return np.array(atoms.get_potential_energy()), atoms.get_forces(), atoms.get_stress()


def step(atoms: ase.Atoms) -> Callable[[], object]:
    """Return a function that moves the atoms a little, so that nothing is remembered, and predicts."""
    random = np.random.default_rng(0)

    def task() -> object:
        atoms.positions += random.normal(scale=1e-3, size=atoms.positions.shape)
        return values(atoms)

    return task
