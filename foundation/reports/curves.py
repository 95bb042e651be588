"""Figures of training, with the curves of one run or of several overlaid."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from foundation.evaluation.quantities import QUANTITIES, followed
from foundation.reports.escape import figure_text
from foundation.reports.log_ticks import set_log_ticks
from foundation.reports.page import write_figure

COLORS = ("#1f5fa8", "#e0862a", "#2a9d74", "#c0392b", "#7d4fa3", "#6b7280")
"""Colours of runs; for a single one, of training, validation and the terms of the loss."""
TERM, REHEARSAL = "train/loss_", "train/loss_rehearsal"
"""Prefixes of the names of loss terms; the second is for rehearsal data."""
SMOOTHED = 60
"""Number of points of a curve above which it is smoothed to about this number, with the raw curve behind."""

Rows = Sequence[dict[str, Any]]
Logged = tuple[str, Rows, Rows, Rows]
"""Name of a run, and its rows of training, of validation and of starts."""


def draw_figures(runs: Sequence[Logged], folder: Path) -> dict[str, Path]:
    """Draw all figures and return their files by name."""
    figures = {
        "loss": _loss(runs),
        "errors": _errors(runs),
        "optimizer": _panels(runs, OPTIMIZER),
        "speed": _panels(runs, SPEED),
        "balance": _panels(runs, BALANCE),
    }
    for name, figure in figures.items():
        write_figure(figure, folder / f"{name}.png", 150)
    return {name: folder / f"{name}.png" for name in figures}


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A part of a figure: metrics of training over steps."""

    title: str
    """Drawn quantity and its unit."""
    metrics: dict[str, str]
    """Names of the metrics with their labels."""
    scale: float = 1.0
    """Factor from the metric to the unit."""
    logarithmic: bool = False
    """True for a logarithmic axis."""
    low: float = 0.0
    """Lower end of a linear axis."""
    high: float = 0.0
    """Smallest upper end of a linear axis."""


OPTIMIZER = (
    Panel(title="norm of the gradient", metrics={"train/gradient_norm": ""}, logarithmic=True),
    Panel(title="learning rate", metrics={"train/learning_rate": ""}),
)
SPEED = (
    Panel(title="atoms/s", metrics={"speed/atoms_per_second": ""}),
    Panel(title="model FLOP utilisation [%]", metrics={"speed/flop_utilization": ""}, scale=100.0),
    Panel(title="peak memory of a process [GB]", metrics={"speed/peak_memory": ""}),
)
BALANCE = (
    Panel(title="waiting for data [%]", metrics={"speed/data_wait": ""}, scale=100.0, high=0.01),
    Panel(title="budget filled [%]", metrics={"speed/budget_fill": ""}, scale=100.0, high=1.0),
    Panel(
        title="largest over mean of processes",
        metrics={"speed/imbalance_edges": "by edges", "speed/imbalance_seconds": "by time"},
        low=0.99,
        high=1.1,
    ),
)


def _loss(runs: Sequence[Logged]) -> Figure:
    figure = Figure(figsize=(9.2, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for number, (name, train, _, starts) in enumerate(runs):
        _mark_resumes(axes, starts)
        if len(runs) > 1:
            _curve(axes, train, "train/loss", COLORS[number % len(COLORS)], name)
            continue
        _curve(axes, train, "train/loss", COLORS[0], "total")
        logged = dict.fromkeys(name for row in train for name in row if name.startswith(TERM) and name != REHEARSAL)
        for metric, color in zip(logged, itertools.cycle(COLORS[1:4]), strict=False):
            _curve(axes, train, metric, color, metric.removeprefix(TERM), width=1.1)
        _curve(axes, train, REHEARSAL, COLORS[4], "rehearsal", width=1.1)
        _curve(axes, train, "train/penalty", COLORS[5], "penalty", width=1.1)
    _finish(axes, Panel(title="loss", metrics={}, logarithmic=True))
    return figure


def _errors(runs: Sequence[Logged]) -> Figure:
    """Draw the errors of training faint and of validation strong, of several data sets each with a thin line."""
    logged = {name for _, train, *_ in runs for row in train for name, value in row.items() if value}
    shown = {key: QUANTITIES[key] for key in followed() if f"train/{key}" in logged}
    columns = min(3, max(1, len(shown)))
    lines = -(-len(shown) // columns)
    figure = Figure(figsize=(9.2, 3.3 * max(1, lines)), layout="constrained")
    for place, (key, quantity) in enumerate(shown.items()):
        axes = figure.add_subplot(lines, columns, place + 1)
        curve = partial(_curve, axes, scale=quantity.unit.factor)
        for number, (name, train, validation, starts) in enumerate(runs):
            several, color = len(runs) > 1, COLORS[number % len(COLORS)]
            _mark_resumes(axes, starts)
            curve(train, f"train/{key}", color, "" if several else "training", width=0.9 if several else 1.6)
            for dataset, shade in zip(_datasets(validation, key), COLORS[2:], strict=False):
                if not several:
                    curve(validation, f"val/{dataset}/{key}", shade, dataset, width=0.9, marker=".")
            strong = color if several else COLORS[1]
            curve(validation, f"val/{key}", strong, name if several else "validation", marker="o")
        low = min(0.0, axes.get_ylim()[0])
        _finish(axes, Panel(title=quantity.title, metrics={}, logarithmic=quantity.is_error, low=low))
    return figure


def _datasets(validation: Rows, key: str) -> list[str]:
    parts = [name.split("/") for name in (validation[-1] if validation else {})]
    return [
        "/".join(middle) for first, *middle, last in (p for p in parts if len(p) > 2) if (first, last) == ("val", key)
    ]


def _panels(runs: Sequence[Logged], panels: Sequence[Panel]) -> Figure:
    logged = {name for _, train, *_ in runs for row in train for name in row}
    shown = [panel for panel in panels if logged.intersection(panel.metrics)]
    figure = Figure(figsize=(9.2, 3.0), layout="constrained")
    for place, panel in enumerate(shown):
        axes = figure.add_subplot(1, len(shown), place + 1)
        for number, (run, train, _, starts) in enumerate(runs):
            _mark_resumes(axes, starts)
            for which, (name, called) in enumerate(panel.metrics.items()):
                label = figure_text(" ".join(filter(None, (run if len(runs) > 1 else "", called))))
                color = COLORS[(number if len(runs) > 1 else which) % len(COLORS)]
                _curve(axes, train, name, color, label, style="-" if which == 0 else "--")
        _finish(axes, panel)
    return figure


def _curve(
    axes: Axes,
    rows: Rows,
    name: str,
    color: str,
    label: str,
    *,
    width: float = 1.6,
    marker: str | None = None,
    style: str = "-",
    scale: float = 1.0,
) -> None:
    """Draw a metric times a factor over steps, smoothed if it has many points."""
    points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
    if not points:
        return
    steps, values = np.array(points, dtype=np.float64).T
    values = scale * values
    if len(steps) > SMOOTHED and marker is None:
        axes.plot(steps, values, color=color, linewidth=0.6, alpha=0.3)
        values = smooth(values, len(steps) // SMOOTHED + 2)
    size = 3.5 if len(steps) < 60 else 0
    axes.plot(
        steps,
        values,
        style,
        color=color,
        linewidth=width,
        marker=marker,
        markersize=size,
        label=label or None,
    )


def smooth(values: Float64[np.ndarray, " points"], width: int) -> Float64[np.ndarray, " points"]:
    """Return the mean of each value and its existing neighbours up to a distance."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    first, last = np.maximum(places - width, 0), np.minimum(places + width + 1, len(values))
    return (sums[last] - sums[first]) / (last - first)


def _mark_resumes(axes: Axes, starts: Rows) -> None:
    for row in starts[1:]:
        axes.axvline(row["step"], color="0.75", linewidth=0.8, linestyle=":", zorder=0)


def _finish(axes: Axes, panel: Panel) -> None:
    if panel.logarithmic:
        _make_logarithmic(axes)
    else:
        axes.set_ylim(panel.low, max(panel.high, 1.05 * axes.get_ylim()[1]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{panel.scale * value:,.4g}"))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step / 1000:g}k" if step >= 10000 else f"{step:g}"))
    axes.set_title(panel.title, fontsize=10, loc="left")
    axes.set_xlabel("step")
    axes.grid(axis="y", color="0.92", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, fontsize=8)


def _make_logarithmic(axes: Axes) -> None:
    """Make the axis logarithmic, with as many labels as its range needs."""
    axes.set_yscale("log")
    set_log_ticks(axes.yaxis)
