"""A model, not a measurement, of a training step on 8 to 1,024 GPUs: where its time would go, and what is left of each.

Step = the slowest rank's micro-batches + optimizer + all-reduce. What is measured: edges of every micro-batch, from
the real plan over 10⁶ frames with the counts of mptrj-1k at 5 Å; the size of the gradient; on this machine's CPU, the
cost of a micro-batch, which is a line in its edges. What is assumed is a field of Config and says so: the speed of a
GPU (published for another model of the family), the fixed cost of a micro-batch on it, bandwidth and latency of its
links. The all-reduce is a ring over all GPUs, the gradient 2 (n - 1) / n times over the slowest link, and 2 (n - 1)
hops: the worst of what NCCL chooses among, and nothing of it overlaps with the backward pass. Not in the model: waiting
for data, validation, checkpoints, noise of the machines, and other traffic on their links.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from data_pipeline.graphs.batch import to_graph
from data_pipeline.loading.plan import Plan
from data_pipeline.sources import AseFiles
from launch.estimate import Line
from tests.benchmarks import bench_plan, bench_scaling
from tests.benchmarks.oxides import SEVENNET_0, oxides, potential_for
from tests.benchmarks.rows import Row, write

COMMAND = "make bench BENCH=scaling_model"
BAR = 0.9
"""Efficiency that the model has to keep up to 1,024 GPUs where each has a micro-batch of its own."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes, and what is assumed of the GPUs and their links."""

    frames: str = "${FOUNDATION_DATA}/mptrj-1k/mptrj-random-1k.xyz"
    """Frames whose numbers of atoms and edges are drawn from."""
    num_frames: int = 1_000_000
    """Frames of the corpus."""
    gpus: tuple[int, ...] = (8, 16, 32, 64, 128, 256, 512, 1024)
    """Numbers of GPUs; each divides the last."""
    structures: int = 64
    """Mean structures of a micro-batch where every GPU has one (the batch grows with the GPUs)."""
    small: int = 8
    """The same where one run of as many lanes as the most GPUs is shared by fewer (the batch stays)."""
    steps: int = 32
    """Steps of the plan that are looked at."""
    gpu_edges_per_second: float = 0.8e6
    """Assumed. Speed of a GPU in training [edges/s]: Nequix (0.7 M parameters, 62 edges an atom) on an A100 with
    OpenEquivariance, derived from its published run of MPtrj: 13,000 atoms/s (arXiv:2508.16067 and its README)."""
    gpu_fixed: float = 5e-3
    """Assumed. Time of a micro-batch without edges [s]: some thousand kernels are started for it."""
    gpu_optimizer: float = 1e-3
    """Assumed. Time of an optimizer step [s]."""
    node: int = 8
    """GPUs of a node."""
    bandwidth_in: float = 200e9
    """Assumed. Bandwidth of a GPU's link within a node [B/s]."""
    bandwidth_out: float = 20e9
    """Assumed. Bandwidth between nodes that a GPU has for itself: four fifths of a 200 Gb/s port [B/s]."""
    latency_in: float = 2e-6
    """Assumed. Time of a hop within a node [s]."""
    latency_out: float = 8e-6
    """Assumed. Time of a hop between nodes [s]."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """The parts of a mean step on some GPUs [s]."""

    work: float
    """Micro-batches of the mean rank."""
    waiting: float
    """How much longer those of the slowest rank take."""
    optimizer: float
    """The optimizer."""
    reduce: float
    """The all-reduce."""

    @property
    def total(self) -> float:
        """Time of the step."""
        return self.work + self.waiting + self.optimizer + self.reduce

    @property
    def efficiency(self) -> float:
        """Share of the step that one GPU alone would need for its part of it."""
        return (self.work + self.optimizer) / self.total


def run(config: Config) -> None:
    """Compute and write runs/bench/scaling_model.json and scaling_model.png."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    size = sum(p.numel() * p.element_size() for p in potential_for(SEVENNET_0, oxides(1))[0].parameters())
    curve = bench_scaling.edge_curve(bench_scaling.Config(batch_sizes=(1, 2, 4, 8), rounds=3), oxides(8))
    cpu = Line.through(list(curve), list(curve.values()))
    gpu = Line(fixed=config.gpu_fixed, slope=1 / config.gpu_edges_per_second, at=())
    atoms, edges = corpus(config)
    most = config.gpus[-1]
    shared = loads(atoms, edges, most, config.small, config.steps)
    own = {count: loads(atoms, edges, count, config.structures, config.steps) for count in config.gpus}
    curves = {
        "one lane each": {n: step(config, own[n], n, gpu, size) for n in config.gpus},
        f"{most} lanes shared": {n: step(config, shared, n, gpu, size) for n in config.gpus},
    }
    on_cpu = {n: step(config, own[n], n, cpu, size) for n in config.gpus}
    rows = [
        _row("gradient of SevenNet-0, float32 (measured)", size / 1e6, "MB"),
        _row("micro-batch on one CPU core, each edge (measured)", 1e6 * cpu.slope, "µs"),
        _row("micro-batch on one CPU core, besides (measured)", 1e3 * cpu.fixed, "ms"),
        _row("micro-batch on a GPU, each edge (assumed)", 1e6 * gpu.slope, "µs"),
        _row("micro-batch on a GPU, besides (assumed)", 1e3 * gpu.fixed, "ms"),
    ]
    for name, found in curves.items():
        rows += [row for count, one in found.items() for row in _rows(f"{name}, {count} GPUs", one, name)]
    rows += [
        _row(f"one lane each, {n} CPU cores in place of GPUs: efficiency", s.efficiency, "share")
        for n, s in on_cpu.items()
    ]
    plot(config, curves, write("scaling_model", rows).with_suffix(".png"))


def corpus(config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Return atoms and edges of the frames: drawn from real ones, and varied a little."""
    structures = list(AseFiles(files=(config.frames,)))
    atoms = np.array([structure.num_atoms for structure in structures], dtype=np.int32)
    edges = np.array([to_graph(structure, 5.0).num_edges for structure in structures], dtype=np.int32)
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(structures), config.num_frames)
    return atoms[drawn], (edges[drawn] * rng.uniform(0.97, 1.03, len(drawn))).astype(np.int32)


def loads(atoms: np.ndarray, edges: np.ndarray, lanes: int, structures: int, steps: int) -> np.ndarray:
    """Return the edges of the micro-batches of the first steps of a plan, by step and lane."""
    budget = int(structures * edges.mean())
    plan = Plan(bench_plan.one_set(atoms, edges), lanes=lanes, edge_budget=budget, oversize="alone")
    count = min(steps, plan.steps_of_pass(0))
    return np.array([[edges[plan.micro_batch(step, lane)].sum() for lane in range(lanes)] for step in range(count)])


def step(config: Config, edges: np.ndarray, count: int, cost: Line, num_bytes: int) -> Step:
    """Return the mean step of so many devices that share the lanes."""
    seconds = (cost.fixed + cost.slope * edges).reshape(len(edges), count, -1).sum(axis=2)
    work = float(seconds.mean())
    return Step(
        work=work,
        waiting=float(seconds.max(axis=1).mean()) - work,
        optimizer=config.gpu_optimizer,
        reduce=ring(config, count, num_bytes),
    )


def ring(config: Config, count: int, num_bytes: int) -> float:
    """Return the time of an all-reduce in a ring over all GPUs [s]."""
    nodes = -(-count // config.node)
    bandwidth = config.bandwidth_in if nodes == 1 else config.bandwidth_out
    outward = 0 if nodes == 1 else nodes
    hops = (count - 1 - outward) * config.latency_in + outward * config.latency_out
    return 2 * (count - 1) / count * num_bytes / bandwidth + 2 * hops


def _rows(name: str, found: Step, kind: str) -> list[Row]:
    bar = BAR if kind == "one lane each" else None
    return [
        _row(f"{name}: step", 1e3 * found.total, "ms"),
        _row(f"{name}: waiting for the slowest rank", found.waiting / found.total, "share"),
        _row(f"{name}: all-reduce", found.reduce / found.total, "share"),
        _row(f"{name}: efficiency (model)", found.efficiency, "share", bar),
    ]


def plot(config: Config, curves: dict[str, dict[int, Step]], path: Path) -> None:
    """Draw efficiency, and where the rest of a step goes."""
    figure = Figure(figsize=(8.4, 3.7), layout="constrained")
    left, right = figure.subplots(1, 2)
    batches = (
        f"{config.structures} structures on every GPU",
        f"one run of {config.gpus[-1]:,} x {config.small} structures",
    )
    for (_, found), label, color in zip(curves.items(), batches, ("#1f5fa8", "#c8642b"), strict=True):
        left.semilogx(config.gpus, [100 * s.efficiency for s in found.values()], "o-", color=color, label=label)
        for part, style in (("waiting", "--"), ("reduce", ":")):
            shares = [100 * getattr(s, part) / s.total for s in found.values()]
            right.semilogx(config.gpus, shares, style, color=color)
    for style, label in (("--", "waiting for the slowest rank"), (":", "all-reduce")):
        right.plot([], [], style, color="0.3", label=label)
    left.set_ylim(0, 102)
    left.set_ylabel("efficiency [%]")
    right.set_ylabel("share of a step [%]")
    right.set_ylim(bottom=0)
    _dress(left, config.gpus, "lower left")
    _dress(right, config.gpus, "upper left")
    figure.suptitle(
        "A model, not a measurement: SevenNet-0's gradient, the plan's own imbalance, assumed A100s", fontsize=10
    )
    figure.savefig(path, dpi=130, metadata={"Software": None})


def _dress(axes: Axes, gpus: tuple[int, ...], place: Literal["lower left", "upper left"]) -> None:
    axes.set_xticks(gpus, [f"{count:,}" for count in gpus])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("GPUs")
    axes.grid(which="major", color="0.9")
    axes.legend(frameon=False, fontsize=9, loc=place)


def _row(measure: str, value: float, unit: str, bar: float | None = None) -> Row:
    holds = None if bar is None else value >= bar
    return Row(measure=measure, value=value, unit=unit, bar=bar, holds=holds, command=COMMAND)
