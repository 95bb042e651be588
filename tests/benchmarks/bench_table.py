"""The radial table beside the network that it is made of: errors by number of knots, and speed.

Errors are SevenNet-0's on frames of MPtrj, in float64 so that rounding does not hide them, worst frame: of the forces
over the frame's largest, and of the gradient of the loss for the parameters, as norms. Frames of at most so many
atoms; those whose largest force is below a thousandth of an eV/Å have no forces to compare. What float32 does to the
same quantities without a table stands beside them. A batch holds as many copies of a frame as it takes for training to
use the largest table.
"""

import copy
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import foundation
from data_pipeline.graphs.batch import GraphBatch, collate
from data_pipeline.sources import AseFiles
from data_pipeline.structure import Structure
from foundation.kernels.memory import keep_freed_memory
from foundation.models.equivariant import PAIRS_PER_KNOT
from foundation.nn.computation import Computation
from foundation.potential import Potential
from foundation.training.loss import LossConfig, label_counts, loss
from tests.benchmarks.oxides import FILE, SEVENNET_0, oxides, potential_for, training_step
from tests.benchmarks.peer import sevenn_step
from tests.benchmarks.rows import Row, interleaved, write

COMMAND = "make bench BENCH=table"
BARS = {"forces": 1e-5, "parameter gradient": 1e-4}
"""Largest errors at the recommended number of knots."""
RECOMMENDED = 256
SMALLEST_FORCE = 1e-3
PEER = "sevenn 0.13, SevenNet-0"
Errors = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes of the benchmark."""

    knots: tuple[int, ...] = (64, 128, 192, 256, 384)
    """Knots of the table."""
    stride: int = 10
    """Every so manieth of the thousand frames is compared."""
    max_atoms: int = 40
    """Atoms of the largest frame that is compared."""
    num_oxides: tuple[int, ...] = (4, 12)
    """Oxides in the batches that are timed."""
    rounds: int = 5
    """Measured rounds, all taking turns in each; one more warms up."""


def run(config: Config) -> None:
    """Measure and write runs/bench/table.json."""
    torch.set_num_threads(1)
    keep_freed_memory()
    rows = accuracy(config)
    for count in config.num_oxides:
        rows += speed(config, count)
    write("table", rows)


def accuracy(config: Config) -> list[Row]:
    """Return the worst errors by number of knots, and what rounding to float32 does alone."""
    potential = foundation.load("sevennet-0")
    frames = [f for f in list(AseFiles(files=(FILE,)))[:: config.stride] if f.num_atoms <= config.max_atoms]
    cutoff = potential.cutoff
    batches = [collate([frame] * copies(frame, cutoff, config), cutoff, torch.float64) for frame in frames]
    exact = [outcome(potential, batch, torch.float64, 0) for batch in batches]
    rows = []
    for knots in config.knots:
        worst = worst_errors(exact, [outcome(potential, batch, torch.float64, knots) for batch in batches])
        for name, error in worst.items():
            bar = BARS[name] if knots == RECOMMENDED else None
            holds = None if bar is None else error <= bar
            measure = f"worst error of the {name}, {knots} knots, {len(frames)} frames"
            rows.append(Row(measure=measure, value=error, unit="relative", bar=bar, holds=holds, command=COMMAND))
    for knots in (0, RECOMMENDED):
        worst = worst_errors(exact, [outcome(potential, batch, torch.float32, knots) for batch in batches])
        rows += [
            Row(
                measure=f"worst error of the {name}, float32, {f'{knots} knots' if knots else 'no table'}",
                value=error,
                unit="relative",
                command=COMMAND,
            )
            for name, error in worst.items()
        ]
    return rows


def copies(frame: Structure, cutoff: float, config: Config) -> int:
    """Return how many copies of a frame have enough pairs for the largest table."""
    return math.ceil(PAIRS_PER_KNOT * max(config.knots) * 2 / collate([frame], cutoff).num_edges)


def outcome(potential: Potential, batch: GraphBatch, dtype: torch.dtype, knots: int) -> dict[str, Tensor]:
    """Return the forces and the gradient of the loss."""
    potential.cast(dtype).train().compute_as(Computation(radial_table=knots))
    potential.zero_grad()
    prediction = potential(batch)
    loss(LossConfig(), prediction, batch, label_counts(batch)).backward()
    gradient = torch.cat([p.grad.double().flatten() for p in potential.parameters() if p.grad is not None])
    return {"forces": prediction.forces.detach().double(), "parameter gradient": gradient}


def worst_errors(exact: list[dict[str, Tensor]], found: list[dict[str, Tensor]]) -> Errors:
    """Return the largest errors over all frames."""
    worst = dict.fromkeys(BARS, 0.0)
    for expected, ours in zip(exact, found, strict=True):
        forces, gradient = expected.values()
        if forces.abs().max() > SMALLEST_FORCE:
            error = (ours["forces"] - forces).abs().max() / forces.abs().max()
            worst["forces"] = max(worst["forces"], float(error))
        error = (ours["parameter gradient"] - gradient).norm() / gradient.norm()
        worst["parameter gradient"] = max(worst["parameter gradient"], float(error))
    return worst


def speed(config: Config, count: int) -> list[Row]:
    """Return atoms per second of a training step and of inference with and without a table."""
    potential, batch = potential_for(SEVENNET_0, oxides(count))
    tasks: dict[str, Callable[[], object]] = {}
    for knots in (0, RECOMMENDED):
        # two of them: training changes the weights, for which inference would have to make its table anew
        trained, used = copy.deepcopy(potential), copy.deepcopy(potential).eval()
        trained.compute_as(Computation(radial_table=knots))
        used.compute_as(Computation(radial_table=knots))
        tasks[f"training step {knots}"] = training_step(trained, batch)
        tasks[f"inference {knots}"] = functools.partial(used, batch)
    # sevenn needs a gigabyte for every oxide
    peer = sevenn_step(batch) if count == min(config.num_oxides) else None
    if peer is not None:
        tasks |= {"training step sevenn": lambda: peer(True), "inference sevenn": lambda: peer(False)}
    seconds = interleaved(tasks, config.rounds)
    rate = {name: len(batch.numbers) / value for name, value in seconds.items()}
    rows = []
    for kind in ("training step", "inference"):
        ours, measure = rate[f"{kind} {RECOMMENDED}"], f"{kind}, {RECOMMENDED} knots, {batch.num_edges} edges"
        others = {"no table": rate[f"{kind} 0"], PEER: rate.get(f"{kind} sevenn")}
        if others[PEER] is None:
            del others[PEER]
        bars = {PEER: 20.0 if kind == "training step" else None}
        for name, theirs in others.items():
            bar, ratio = bars.get(name), ours / theirs if theirs else None
            rows.append(
                Row(
                    measure=measure,
                    value=ours,
                    unit="atoms/s, one core",
                    peer=name,
                    peer_value=theirs,
                    ratio=ratio,
                    bar=bar,
                    holds=None if ratio is None or bar is None else ratio >= bar,
                    command=COMMAND,
                )
            )
    return rows
