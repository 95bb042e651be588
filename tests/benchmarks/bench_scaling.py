"""What a training step costs against the number of edges, the highest degree, the channels and the blocks.

The edges are those of the same sixteen oxides, taken one, two, ... at a time: every batch size then sees the same
atoms and neighbours, and the time per edge differs by the size alone. The other three change one number of
SevenNet-0's architecture each, on one batch. All take turns in every round. As in training, the C library keeps what is
freed: handing the memory of a large batch back and forth costs its pages anew in every step.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from data_pipeline.graphs.batch import collate
from data_pipeline.structure import Structure
from foundation.kernels.memory import keep_freed_memory
from foundation.models import EquivariantConfig
from tests.benchmarks.oxides import CUTOFF, SEVENNET_0, oxides, potential_for, training_step
from tests.benchmarks.rows import Row, interleaved, write

COMMAND = "make bench BENCH=scaling"
BAR = 0.1
"""The time per edge may differ by this much between the smallest batch that counts and any larger one."""
MULTIPLICITIES = (128, 64, 32, 32)
"""Channels of degree 0 to 3: SevenNet-0's, and at degree 3 SevenNet-l3i5's."""


def architecture(max_degree: int = 2, factor: float = 1.0, num_blocks: int = 5) -> EquivariantConfig:
    """Return SevenNet-0's architecture with another highest degree, more or fewer channels or blocks."""
    channels = [int(factor * multiplicity) for multiplicity in MULTIPLICITIES[: max_degree + 1]]
    irreps = "+".join(f"{number}x{degree}e" for degree, number in enumerate(channels))
    return EquivariantConfig(irreps=irreps, max_degree=max_degree, num_blocks=num_blocks)


MODELS = {
    "highest degree": {degree: architecture(max_degree=degree) for degree in (1, 2, 3)},
    "scalar channels": {int(128 * factor): architecture(factor=factor) for factor in (0.25, 0.5, 1, 2)},
    "blocks": {number: architecture(num_blocks=number) for number in (1, 2, 3, 4, 5)},
}
"""What is changed, and the architecture at each of its values; the channels of other degrees go with the scalars."""
Curve = dict[int, float]
"""Seconds of a training step by the number that was changed."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes of the benchmark."""

    batch_sizes: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Oxides in a batch; each divides the last."""
    smallest: int = 2
    """The batch from which on the time per edge has to stay the same; in one oxide, what every step costs shows."""
    num_frames: int = 4
    """Oxides in the batch of the other architectures."""
    rounds: int = 5
    """Measured rounds; one more warms up."""


def run(config: Config) -> None:
    """Measure and write runs/bench/scaling.json and scaling.png."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    keep_freed_memory()
    structures = oxides(config.batch_sizes[-1])
    curves = {"edges": edge_curve(config, structures), **model_curves(config, structures[: config.num_frames])}
    rows = []
    for axis, curve in curves.items():
        batch = "SevenNet-0 size" if axis == "edges" else f"{config.num_frames} oxides"
        rows += [_row(f"training step, {batch}, {place} {axis}", 1e3 * curve[place], "ms") for place in curve]
        rows.append(_row(f"power of the {axis} that it grows with", exponent(curve), "fitted"))
    rows.append(linearity(config, curves["edges"]))
    plot(curves, write("scaling", rows).with_suffix(".png"))


def edge_curve(config: Config, structures: list[Structure]) -> Curve:
    """Return the seconds of a step by the mean number of edges, over batches that hold all structures together."""
    potential, _ = potential_for(SEVENNET_0, structures)
    tasks, edges = {}, {}
    for size in config.batch_sizes:
        batches = [collate(structures[i : i + size], CUTOFF) for i in range(0, len(structures), size)]
        tasks[str(size)] = in_turn(training_step(potential, batch) for batch in batches)
        edges[str(size)] = sum(batch.num_edges for batch in batches) / len(batches)
    seconds = interleaved(tasks, config.rounds)
    return {round(edges[size]): seconds[size] * int(size) / len(structures) for size in tasks}


def in_turn(steps: Iterable[Callable[[], None]]) -> Callable[[], None]:
    """Return a function that takes all steps."""
    steps = list(steps)

    def task() -> None:
        for step in steps:
            step()

    return task


def model_curves(config: Config, structures: list[Structure]) -> dict[str, Curve]:
    """Return the seconds of a step by what is changed in the architecture."""
    models = {model for curve in MODELS.values() for model in curve.values()}
    tasks: dict[str, Callable[[], object]] = {
        repr(model): training_step(*potential_for(model, structures)) for model in models
    }
    seconds = interleaved(tasks, config.rounds)
    return {axis: {place: seconds[repr(model)] for place, model in curve.items()} for axis, curve in MODELS.items()}


def exponent(curve: Curve) -> float:
    """Return the slope of a least-squares line through the logarithms."""
    return float(np.polyfit(np.log(list(curve)), np.log(list(curve.values())), 1)[0])


def linearity(config: Config, curve: Curve) -> Row:
    """Return by how much the time per edge differs, at most, between the smallest batch that counts and the larger."""
    counted = list(curve.items())[config.batch_sizes.index(config.smallest) :]
    per_edge = np.array([seconds / edges for edges, seconds in counted])
    worst = float(np.abs(per_edge / per_edge[0] - 1).max())
    return _row(f"time per edge, {counted[0][0]} to {counted[-1][0]} edges: largest change", worst, "relative", BAR)


def plot(curves: dict[str, Curve], path: Path) -> None:
    """Draw the curves on logarithmic axes of one scale, with what would be proportional through the last point."""
    figure = Figure(figsize=(3.4 * len(curves), 3.6), layout="constrained")
    panels = figure.subplots(1, len(curves), sharey=True)
    for axes, (axis, curve) in zip(panels, curves.items(), strict=True):
        _draw(axes, axis, curve)
    panels[0].set_ylabel("training step, one core [ms]")
    figure.suptitle("Cost of a training step, SevenNet-0 but for what the axis says", fontsize=11)
    figure.savefig(path, dpi=130, metadata={"Software": None})


def _draw(axes: Axes, axis: str, curve: Curve) -> None:
    places, milliseconds = np.array(list(curve)), 1e3 * np.array(list(curve.values()))
    proportional = milliseconds[-1] * places / places[-1]
    axes.loglog(places, proportional, color="0.6", linewidth=1, linestyle="--", label="proportional")
    axes.loglog(places, milliseconds, "o-", color="#1f5fa8", label=f"power {exponent(curve):.2f}")
    axes.set_xticks(places, [f"{place:,}" for place in places])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel(axis)
    axes.grid(which="major", color="0.9")
    axes.legend(frameon=False, fontsize=9, loc="upper left")


def _row(measure: str, value: float, unit: str, bar: float | None = None) -> Row:
    holds = None if bar is None else value <= bar
    return Row(measure=measure, value=value, unit=unit, bar=bar, holds=holds, command=COMMAND)
