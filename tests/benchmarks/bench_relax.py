"""Relaxation of perturbed crystals: all in shared batches beside ASE's FIRE one by one, in one process on one core.

Crystals of MPtrj of at most 24 atoms are strained and their atoms displaced at random; SevenNet-0 in float32 with
tabulated radial functions for both, positions and cells until the largest force is small. Both end in the same minimum
if their energies agree; those that do not are counted, and so are the structures that only one of them converged.
"""

import time
from dataclasses import dataclass, replace

import numpy as np
import torch

import foundation
from data_pipeline.sources import AseFiles
from data_pipeline.structure import Structure
from foundation.evaluation.quantities import MILLI_EV_PER_ATOM
from foundation.interop.calculator import tabulate
from foundation.interop.relaxation import relax_with
from foundation.kernels.memory import keep_freed_memory
from foundation.simulation.driver import drive
from foundation.simulation.optimizers import Algorithm
from foundation.simulation.outcome import Outcome
from foundation.simulation.predictor import PotentialPredictor
from foundation.simulation.relaxation import Limits, Relaxing
from tests.benchmarks.oxides import FILE
from tests.benchmarks.rows import Row, write

COMMAND = "make bench BENCH=relax"
PEER = "ASE's FIRE, one by one"
BAR = 1.5
SAME = 1.0
"""Largest difference of energies per atom in the same minimum, in the unit of energies per atom."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes of the benchmark."""

    count: int = 150
    """Crystals; 462 of the file are small enough."""
    max_atoms: int = 24
    """Atoms of the largest."""
    strain: float = 0.02
    """Standard deviation of the strain's components."""
    rattle: float = 0.05
    """Standard deviation of the displacements [Å]."""
    max_force: float = 0.02
    """Largest force at the end [eV/Å]."""
    max_steps: int = 300
    """Largest number of steps."""
    edge_budget: int = 20_000
    """Number of edges of a batch."""
    algorithms: tuple[Algorithm, ...] = ("fire", "lbfgs")
    """Algorithms of ours."""


def run(config: Config) -> None:
    """Measure and write runs/bench/relax.json."""
    torch.set_num_threads(1)
    keep_freed_memory()
    crystals = perturbed(config)
    potential = foundation.load("sevennet-0").cast(torch.float32)
    tabulate(potential)
    predictor = PotentialPredictor(potential, edge_budget=config.edge_budget)
    calculator = foundation.Calculator(potential, mode="md")
    predictor(crystals[:8])
    calculator.calculate(foundation.interop.calculator.to_atoms(crystals[0]))
    began = time.process_time()
    theirs = [relax_with(each, calculator, max_force=config.max_force, max_steps=config.max_steps) for each in crystals]
    peer = len(crystals) / (time.process_time() - began)
    steps = sum(each.num_steps for each in theirs)
    rows = []
    for algorithm in config.algorithms:
        limits = Limits(
            max_force=config.max_force,
            max_steps=config.max_steps,
            algorithm=algorithm,
            cell=True,
            symmetry=False,
            precision=0.01,
        )
        tasks = (Relaxing(number, each, potential.cutoff, limits) for number, each in enumerate(crystals))
        began = time.process_time()
        done = [each for some in drive(tasks, predictor, edge_budget=config.edge_budget, replace=True) for each in some]
        rate = len(crystals) / (time.process_time() - began)
        ours = sorted(done, key=lambda each: each.number)
        rows.append(_rate(config, algorithm, rate, peer, f"{sum(each.steps for each in ours)} and {steps} steps"))
        rows += _agreement(crystals, ours, [(each.energy_after, each.converged) for each in theirs], algorithm)
    write("relax", rows)


def perturbed(config: Config) -> list[Structure]:
    """Return crystals in a random order, strained and displaced."""
    random = np.random.default_rng(1)
    frames = [each for each in AseFiles(files=(FILE,)) if 5 <= each.num_atoms <= config.max_atoms]
    crystals = []
    for place in random.permutation(len(frames))[: config.count].tolist():
        strain = random.normal(scale=config.strain, size=(3, 3))
        deformation = np.eye(3) + (strain + strain.T) / 2
        positions = frames[place].positions @ deformation
        positions = positions + random.normal(scale=config.rattle, size=positions.shape)
        crystals.append(replace(frames[place], positions=positions, cell=frames[place].cell @ deformation))
    return crystals


def _rate(config: Config, algorithm: str, rate: float, peer: float, steps: str) -> Row:
    return Row(
        measure=f"relax {config.count} perturbed crystals to {config.max_force} eV/Å with cells, {algorithm} ({steps})",
        value=rate,
        unit="structures/s, one core",
        peer=PEER,
        peer_value=peer,
        ratio=rate / peer,
        bar=BAR,
        holds=rate >= BAR * peer,
        command=COMMAND,
    )


def _agreement(
    crystals: list[Structure], ours: list[Outcome], theirs: list[tuple[float, bool]], algorithm: str
) -> list[Row]:
    """Return the share of the same minima, and name the others."""
    pairs = list(zip(crystals, ours, theirs, strict=True))
    both = [(each, o, t[0]) for each, o, t in pairs if o.converged and t[1] and o.energy is not None]
    apart = [MILLI_EV_PER_ATOM.factor * (o.energy - t) / each.num_atoms for each, o, t in both]
    far = [(o.id, round(d, 2)) for (_, o, _), d in zip(both, apart, strict=True) if abs(d) > SAME]
    share = 1 - len(far) / len(both)
    only = [sum(bool(o.converged) for o in ours), sum(t[1] for t in theirs)]
    return [
        Row(
            measure=f"{algorithm}: share of energies within {SAME} {MILLI_EV_PER_ATOM.name} of the peer's, of "
            f"{len(both)} converged by both ({only[0]} by ours, {only[1]} by the peer); others: {far}",
            value=share,
            unit="share",
            bar=0.99,
            holds=share >= 0.99,
            command=COMMAND,
        )
    ]
