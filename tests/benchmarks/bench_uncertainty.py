"""Uncertainties: steps of one potential with them and without, in turn in one process, by least CPU times.

The potential is SevenNet-0 with a last layer whose numbers are random: they do not change the time.
"""

import copy
import time
from dataclasses import dataclass

import numpy as np
import torch
from ase.build import bulk

import foundation
from foundation.last_layer import FORMAT, UNSCALED, LastLayer, TrustFacts
from tests.benchmarks.rows import Row, write

COMMAND = "make bench BENCH=uncertainty"
BAR = 1.05
"""Largest ratio of a step with uncertainties to one without."""
FACTS = TrustFacts(
    format=FORMAT,
    weights_sha256="0" * 64,
    data="none",
    manifest_fingerprint="",
    theories=(),
    num_frames=1,
    num_atoms=1,
    elements={},
    largest_force=None,
    lowest_pressure=None,
    highest_pressure=None,
    limit=1e9,
    energy=UNSCALED,
    forces=UNSCALED,
)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes of the benchmark."""

    cells: tuple[int, ...] = (2, 4)
    """Cubic cells of rock salt in each direction."""
    rounds: int = 24
    """Measured rounds; one more warms up."""


def run(config: Config) -> None:
    """Measure and write runs/bench/uncertainty.json."""
    torch.set_num_threads(1)
    plain = foundation.load("sevennet-0")
    trusted, size, count = copy.deepcopy(plain), 128, len(plain.elements)
    random = torch.randn(1, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    trusted.last_layer = LastLayer(FACTS, random, torch.ones(count, count))
    rows = []
    for engine in ("torch", "compiled"):
        calculators = [foundation.Calculator(each, mode="md", engine=engine) for each in (plain, trusted)]
        rows += [row(engine, calculators, cells, config.rounds) for cells in config.cells]
    write("uncertainty", rows)


def row(engine: str, calculators: list[foundation.Calculator], cells: int, rounds: int) -> Row:
    """Return the ratio of the least times of a step, in every round in the other order."""
    atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True).repeat(cells)
    atoms.rattle(0.05, seed=0)
    seconds: list[list[float]] = [[], []]
    for number in range(rounds + 1):
        for which in (0, 1) if number % 2 else (1, 0):
            calculators[which].reset()
            atoms.calc = calculators[which]
            began = time.process_time()
            atoms.get_forces()
            seconds[which].append(time.process_time() - began)
    without, with_it = (float(np.min(each[1:])) for each in seconds)
    return Row(
        measure=f"a step of {len(atoms)} atoms with uncertainties, {engine}, {1e3 * with_it:.1f} ms",
        value=with_it / without,
        unit=f"times that without, {1e3 * without:.1f} ms",
        bar=BAR,
        holds=with_it <= BAR * without,
        command=COMMAND,
    )
