"""One large cell through ASE: SevenNet-0 in this project's calculator beside sevenn's own, neighbour lists included.

Both are in float32 on one core and give energy, forces and stress after every move of the atoms, as in dynamics.
That both give the numbers of this project's calculator in float64 is checked before anything is timed.
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
PEER = "sevenn 0.13, its calculator"
TOLERANCE = 1e-5
"""Largest difference of energy, forces and stress from float64's, over the largest value."""


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
    exact, ours, sevenn = atoms.copy(), atoms.copy(), atoms.copy()
    exact.calc = foundation.Calculator(foundation.load("sevennet-0"))
    ours.calc = foundation.Calculator(foundation.load("sevennet-0"), dtype=torch.float32)
    with warnings.catch_warnings():
        # sevenn 0.13 and what it imports warn of torch's scripting and of missing accelerators
        warnings.simplefilter("ignore")
        from sevenn.calculator import SevenNetCalculator

        sevenn.calc = SevenNetCalculator("7net-0", device="cpu")
    rows = agreement(exact, ours, sevenn)
    seconds = interleaved({"ours": step(ours), "sevenn": step(sevenn)}, config.rounds)
    rate, peer = len(atoms) / seconds["ours"], len(atoms) / seconds["sevenn"]
    rows.append(
        Row(
            measure=f"energy, forces and stress through ASE, SevenNet-0, MgO of {len(atoms)} atoms",
            value=rate,
            unit="atoms/s, one core",
            peer=PEER,
            peer_value=peer,
            ratio=rate / peer,
            command=COMMAND,
        )
    )
    write("ase", rows)


def agreement(exact: ase.Atoms, ours: ase.Atoms, sevenn: ase.Atoms) -> list[Row]:
    """Return by how much energy, forces and stress of the two differ from float64's.

    Raises:
        ValueError: one of them does not give the same numbers.
    """
    rows = []
    for quantity, *found in zip(("energy", "forces", "stress"), *map(values, (exact, ours, sevenn)), strict=True):
        expected, largest = found[0], np.abs(found[0]).max()
        mine, theirs = (float(np.abs(value - expected).max() / largest) for value in found[1:])
        if max(mine, theirs) > TOLERANCE:
            raise ValueError(f"{quantity} differ from float64's: ours by {mine:.1e}, sevenn's by {theirs:.1e}")
        rows.append(
            Row(
                measure=f"{quantity} of {len(ours)} atoms, float32 from float64, largest difference",
                value=mine,
                unit="relative",
                peer=PEER,
                peer_value=theirs,
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
