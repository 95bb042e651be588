"""Uncertainties: the share of a step's CPU time that they take, measured inside the steps.

The potential is SevenNet-0 with a last layer whose numbers are random: they do not change the time. Distances that the
compiled library computes are a part of its own time and not counted.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from ase.build import bulk

import foundation
from foundation.last_layer import LastLayer
from tests.benchmarks.rows import Row, write
from tests.foundation.evaluation.test_calibration import FACTS

COMMAND = "make bench BENCH=uncertainty"
BAR = 0.05
"""Largest share of a step."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes of the benchmark."""

    cells: tuple[int, ...] = (2, 4)
    """Cubic cells of rock salt in each direction."""
    rounds: int = 24
    """Measured steps; one more warms up."""


class Timed(LastLayer):
    """A last layer that adds up the CPU time spent in it."""

    spent = 0.0

    def forward(self, *given: Any) -> Any:
        """Return the uncertainties."""
        return self._timed(super().forward, *given)

    def distances(self, *given: Any) -> Any:
        """Return the distances."""
        return self._timed(super().distances, *given)

    def _timed(self, task: Callable[..., Any], *given: Any) -> Any:
        began = time.process_time()
        found = task(*given)
        self.spent += time.process_time() - began
        return found


def run(config: Config) -> None:
    """Measure and write runs/bench/uncertainty.json."""
    torch.set_num_threads(1)
    potential = foundation.load("sevennet-0")
    random = torch.randn(1, 128, 128, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    potential.last_layer = Timed(FACTS, random, torch.ones(len(potential.elements), len(potential.elements)))
    rows = []
    for engine in ("torch", "compiled"):
        calculator = foundation.Calculator(potential, mode="md", engine=engine)
        rows += [row(engine, calculator, cells, config.rounds) for cells in config.cells]
    write("uncertainty", rows)


def row(engine: str, calculator: foundation.Calculator, cells: int, rounds: int) -> Row:
    """Return the median share of a step."""
    atoms = bulk("NaCl", "rocksalt", a=5.64, cubic=True).repeat(cells)
    atoms.rattle(0.05, seed=0)
    atoms.calc, layer = calculator, calculator.potential.last_layer
    assert isinstance(layer, Timed)
    shares, steps = [], []
    for _ in range(rounds + 1):
        calculator.reset()
        layer.spent, began = 0.0, time.process_time()
        atoms.get_forces()
        steps.append(time.process_time() - began)
        shares.append(layer.spent / steps[-1])
    share = statistics.median(shares[1:])
    return Row(
        measure=f"uncertainties of {len(atoms)} atoms, {engine}",
        value=share,
        unit=f"of a step of {1e3 * statistics.median(steps[1:]):.0f} ms",
        bar=BAR,
        holds=share <= BAR,
        command=COMMAND,
    )
