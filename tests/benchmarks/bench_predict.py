"""Many small structures: potential.predict() beside a loop over ASE's calculator and torch-sim's static, on one core.

Structures are those of MPtrj with 5 to 60 atoms, in a random order, SevenNet-0, energies, forces and stresses,
neighbour lists included. All take turns and have the same potential; torch-sim makes its batches itself, by atoms. That
all give the same forces is checked first.
"""

from collections.abc import Callable
from dataclasses import dataclass

import ase
import numpy as np
import torch
import torch_sim

import foundation
from data_pipeline.sources import AseFiles
from data_pipeline.sources.atoms import to_atoms
from data_pipeline.structure import Structure
from foundation.interop.calculator import KNOTS
from foundation.interop.torch_sim_model import TorchSimModel
from foundation.kernels.memory import keep_freed_memory
from foundation.nn.computation import Computation
from tests.benchmarks.oxides import FILE
from tests.benchmarks.rows import Row, interleaved, write

COMMAND = "make bench BENCH=predict"
LOOP, STATIC = "loop over the calculator", "torch-sim's static"
BARS = {LOOP: 1.5, STATIC: 1.0}
"""Least ratio to each peer."""
TOLERANCE = {"float32": 5e-4, "float64": 1e-9}
"""Largest difference of a force from the loop's [eV/Å]: float32 rounds by some 1e-6 of the largest force."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes of the benchmark."""

    count: int = 96
    """Structures of a round."""
    budgets: tuple[int, ...] = (5_000, 20_000, 80_000)
    """Numbers of edges of a batch."""
    atoms_of_torch_sim: int = 500
    """Largest number of atoms of torch-sim's batches."""
    rounds: int = 3
    """Measured rounds, all taking turns in each; one more warms up."""


def run(config: Config) -> None:
    """Check, measure and write runs/bench/predict.json."""
    torch.set_num_threads(1)
    keep_freed_memory()
    frames = [each for each in AseFiles(files=(FILE,)) if 5 <= each.num_atoms <= 60]
    order = np.random.default_rng(0).permutation(len(frames))[: config.count]
    structures = [frames[place] for place in order.tolist()]
    rows = []
    for dtype, knots in (("float64", 0), ("float32", 0), ("float32", KNOTS)):
        rows += compared(structures, dtype, knots, config)
    write("predict", rows)


def compared(structures: list[Structure], dtype: str, knots: int, config: Config) -> list[Row]:
    """Return the rates of both ways with one float type and table.

    Raises:
        ValueError: they give different forces.
    """
    potential = foundation.load("sevennet-0").cast(getattr(torch, dtype))
    potential.compute_as(Computation(radial_table=knots))
    atoms = [to_atoms(each) for each in structures]
    peers = {
        LOOP: loop(atoms, foundation.Calculator(potential, dtype=dtype)),
        STATIC: static(atoms, TorchSimModel(potential, dtype=dtype), config.atoms_of_torch_sim),
    }
    ours = [each.forces.numpy() for each in potential.predict(structures)]
    for peer, task in peers.items():
        worst = max(np.abs(mine - other).max() for mine, other in zip(ours, task(), strict=True))
        if worst > TOLERANCE[dtype]:
            raise ValueError(f"forces of {peer} differ by {worst:.2g} eV/Å")
    tasks: dict[str, Callable[[], object]] = {**peers}
    for budget in config.budgets:
        tasks[str(budget)] = lambda budget=budget: potential.predict(structures, edge_budget=budget)
    seconds = interleaved(tasks, config.rounds)
    rate = {name: len(structures) / each for name, each in seconds.items()}
    what = f"{dtype}{', table' if knots else ''}"
    mean = np.mean([each.num_atoms for each in structures])
    return [
        Row(
            measure=f"predict, {len(structures)} structures of {mean:.0f} atoms, {what}, batches of {budget:,} edges",
            value=rate[str(budget)],
            unit="structures/s, one core",
            peer=peer,
            peer_value=rate[peer],
            ratio=rate[str(budget)] / rate[peer],
            bar=BARS[peer],
            holds=rate[str(budget)] >= BARS[peer] * rate[peer],
            command=COMMAND,
        )
        for budget in config.budgets
        for peer in peers
    ]


def static(atoms: list[ase.Atoms], model: TorchSimModel, most: int) -> Callable[[], list[np.ndarray]]:
    """Return a function that predicts structures by torch-sim and returns their forces."""

    def task() -> list[np.ndarray]:
        batcher = torch_sim.BinningAutoBatcher(model, memory_scales_with="n_atoms", max_memory_scaler=most)
        found = torch_sim.static(atoms, model, autobatcher=batcher)
        return [each["forces"].numpy() for each in found]

    return task


def loop(atoms: list[ase.Atoms], calculator: foundation.Calculator) -> Callable[[], list[np.ndarray]]:
    """Return a function that predicts structures one by one and returns their forces."""

    def task() -> list[np.ndarray]:
        found = []
        for each in atoms:
            calculator.calculate(each, ["energy", "forces"])
            found.append(calculator.results["forces"])
        return found

    return task
