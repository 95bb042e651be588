"""Trade-off plane of fine-tuning methods: forgetting on the horizontal axis, remaining errors on the vertical one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, FuncFormatter, PercentFormatter

from foundation.evaluation.quantities import QUANTITIES
from foundation.reports.escape import figure_text
from foundation.reports.forgetting_figures import around, clean, signed_percent
from foundation.reports.page import write_figure
from foundation.reports.tradeoff_record import Method, Tradeoff

COLORS = (
    "#1f5fa8", "#e0862a", "#2a9d74", "#c0392b", "#7d4fa3", "#8c6239", "#d1579b", "#5f6b7a", "#a0a52b", "#2fa9c2",
)  # fmt: skip
MARKERS = "osD^vPXh"
"""Markers of methods; the next one is used when all colours are taken."""
STRAIGHT = 10.0
"""Change above which an axis with far outliers is logarithmic instead of linear [%]."""
TICKS, SMALL_TICKS = (-100.0, -10.0, -5.0, 0.0, 5.0, 10.0, 100.0, 1000.0), (-50, -20, 20, 50, 200, 500)
"""Ticks of such an axis with and without a number [%]."""


PHYSICS = "physics"
"""Name of the figure with physics on the vertical axes."""
COLUMNS = 3
"""Panels of that figure side by side."""


def label_of(method: str, alpha: float) -> str:
    """Return the label of a method, or of an interpolation between the start and its result."""
    return method if alpha == 1 else f"{method}, α = {alpha:g}"


def draw_planes(tradeoff: Tradeoff, folder: Path) -> dict[str, Path]:
    """Draw a plane for each pair of a retained set and another one, and physics; return the files by name."""
    drawn = {}
    for name, retained, learned in planes(tradeoff):
        drawn[name] = folder / f"{name}.png"
        write_figure(plane(tradeoff, retained, learned), drawn[name], 150)
    if tradeoff.physics:
        drawn[PHYSICS] = folder / f"{PHYSICS}.png"
        write_figure(physics_plane(tradeoff), drawn[PHYSICS], 150)
    return drawn


def planes(tradeoff: Tradeoff) -> list[tuple[str, str, str]]:
    """Return name, retained set and other set of each plane."""
    roles = {name: row.role for name, row in tradeoff.sets.items()}
    pairs = [
        (retained, name)
        for retained in roles
        if roles[retained] == "retained"
        for role in ("target", "transfer")
        for name in roles
        if roles[name] == role
    ]
    return [(f"plane-{number}", *pair) for number, pair in enumerate(pairs, start=1)]


def plane(tradeoff: Tradeoff, retained: str, learned: str) -> Figure:
    """Draw the error of a set over the forgetting of another, forces on the left and energies on the right."""
    start, methods = tradeoff.start.errors, tradeoff.methods
    upward = tradeoff.metric if tradeoff.metric in start[learned] else "energy_mae"
    shown = [(key, QUANTITIES[key].median) for key in ("force_mae", "energy_mae") if key in start[retained]]
    begun = start[learned][upward].value
    assert begun is not None
    height = QUANTITIES[upward].unit.factor * begun
    figure = Figure(figsize=(5.4 * len(shown) + 1.8, 5.6), layout="constrained")
    for place, (mean, median) in enumerate(shown):
        axes = figure.add_subplot(1, len(shown), place + 1)
        axes.plot(0.0, height, "*", color="black", markersize=13, zorder=6)
        axes.annotate("start", (0.0, height), xytext=(8, 4), textcoords="offset points", fontsize=9)
        axes.axvline(0.0, color="0.6", linewidth=1, zorder=0)
        for number, method in enumerate(methods):
            _method(axes, number, method, (retained, mean, median), (learned, upward), height)
        axes.set_xlabel(figure_text(f"{QUANTITIES[mean].name} of {retained}, change"))
        if axes.get_xlim()[1] > 4 * STRAIGHT:
            # one method that forgets everything would compress the useful ones into a line
            axes.set_xscale("symlog", linthresh=STRAIGHT, linscale=2)
            axes.autoscale(axis="x")
            axes.xaxis.set_major_locator(FixedLocator(TICKS))
            axes.xaxis.set_minor_locator(FixedLocator(SMALL_TICKS))
        axes.xaxis.set_major_formatter(FuncFormatter(signed_percent))
        if place == 0:
            axes.set_ylabel(figure_text(f"{learned}, {QUANTITIES[upward].title}"))
        axes.tick_params(labelsize=9)
        clean(axes, "both")
    figure.legend(handles=_legend(methods), loc="outside right upper", frameon=False, fontsize=9)
    return figure


def physics_plane(tradeoff: Tradeoff) -> Figure:
    """Draw how far every quantity of a suite is from its references over the forgetting of the first retained set."""
    retained = next(name for name, row in tradeoff.sets.items() if row.role == "retained")
    across = "force_mae" if "force_mae" in tradeoff.start.errors[retained] else "energy_mae"
    num_columns = min(COLUMNS, len(tradeoff.physics))
    num_rows = -(-len(tradeoff.physics) // num_columns)
    figure = Figure(figsize=(3.9 * num_columns + 1.8, 3.4 * num_rows + 0.3), layout="constrained")
    for place, axis in enumerate(tradeoff.physics):
        axes = figure.add_subplot(num_rows, num_columns, place + 1)
        axes.axvline(0.0, color="0.6", linewidth=1, zorder=0)
        if axis.start is not None:
            axes.plot(0.0, 100 * axis.start, "*", color="black", markersize=13, zorder=6)
            axes.axhline(100 * axis.start, color="0.8", linewidth=1, linestyle="--", zorder=0)
        for number, method in enumerate(tradeoff.methods):
            x, y = method.result.sets[retained].change[across], axis.methods[method.name]
            if x.value is None or y.value is None:
                continue
            (color, marker), where = _look(number), (100 * x.value, 100 * y.value)
            axes.plot(*where, marker, color=color, markersize=7.5, zorder=4)
            axes.plot([where[0]] * 2, np.multiply(100, around(y)), color=color, linewidth=1.4, zorder=3)
            text = axes.annotate(
                f"{number + 1}", where, xytext=(6, 6), textcoords="offset points", fontsize=9, color=color
            )
            text.set(zorder=7, path_effects=[withStroke(linewidth=2.5, foreground="white")])
        axes.set_title(figure_text(axis.title), fontsize=9)
        axes.margins(y=0.15)
        axes.set_ylim(bottom=0.0)
        axes.xaxis.set_major_formatter(FuncFormatter(signed_percent))
        axes.yaxis.set_major_formatter(PercentFormatter(decimals=0))
        axes.tick_params(labelsize=8)
        clean(axes, "both")
    figure.supxlabel(figure_text(f"{QUANTITIES[across].name} of {retained}, change"), fontsize=9)
    figure.supylabel("mean deviation from the references", fontsize=9)
    figure.legend(handles=_methods(tradeoff.methods), loc="outside right upper", frameon=False, fontsize=9)
    return figure


def _look(number: int) -> tuple[str, str]:
    return COLORS[number % len(COLORS)], MARKERS[number // len(COLORS) % len(MARKERS)]


def _method(
    axes: Axes, number: int, method: Method, across: tuple[str, str, str], up: tuple[str, str], start: float
) -> None:
    """Draw the point of a method with its intervals, its median, and the line of its interpolations."""
    (retained, mean, median), (learned, upward) = across, up
    color, marker = _look(number)
    factor = QUANTITIES[upward].unit.factor
    line, result = [(0.0, start)], None
    for point in method.points:
        x, y = point.sets[retained].change[mean], point.sets[learned].errors[upward]
        if x.value is None or y.value is None:
            continue
        where = 100 * x.value, factor * y.value
        line.append(where)
        if not point.dominated_by:
            axes.plot(*where, "o", markersize=15 if point.alpha == 1 else 9, markerfacecolor="none",
                      markeredgecolor="black", markeredgewidth=1.1, zorder=5)  # fmt: skip
        if point.alpha == 1:
            result = point, where
            axes.plot(np.multiply(100, around(x)), [where[1]] * 2, color=color, linewidth=1.4, zorder=3)
            # the interval of the change, because the error itself varies with the frames alike for all methods
            low, high = around(point.sets[learned].change[upward])
            axes.plot([where[0]] * 2, np.multiply(start, (1 + low, 1 + high)), color=color, linewidth=1.4, zorder=3)
    if len(line) > 2:
        axes.plot(*np.array(line).T, ".-", color=color, linewidth=1.1, markersize=5, alpha=0.75, zorder=2)
    if result is None:
        return
    point, (x, y) = result
    axes.plot(x, y, marker, color=color, markersize=7.5, zorder=4)
    middle = point.sets[retained].change[median].value
    if middle is not None:
        axes.plot([x, 100 * middle], [y, y], color=color, linewidth=0.8, linestyle=":", zorder=1)
        axes.plot(100 * middle, y, marker, color=color, markerfacecolor="white", markersize=5, zorder=3)
    text = axes.annotate(f"{number + 1}", (x, y), xytext=(7, 7), textcoords="offset points", fontsize=9.5, color=color)
    text.set(zorder=7, path_effects=[withStroke(linewidth=2.5, foreground="white")])


def _methods(methods: Sequence[Method]) -> list[Line2D]:
    """Return a handle for the legend for each method."""
    handles = []
    for number, method in enumerate(methods):
        color, marker = _look(number)
        handles.append(
            Line2D([], [], color=color, marker=marker, linestyle="", label=figure_text(f"{number + 1}  {method.name}"))
        )
    return handles


def _legend(methods: Sequence[Method]) -> list[Line2D]:
    handles = _methods(methods)
    grey: dict[str, Any] = {"color": "0.35", "linestyle": ""}
    handles.append(Line2D([], [], marker="o", markersize=11, markerfacecolor="none", label="non-dominated", **grey))
    handles.append(Line2D([], [], marker="o", markersize=5, markerfacecolor="white", label="of the median", **grey))
    if any(len(method.points) > 1 for method in methods):
        handles.append(Line2D([], [], color="0.35", marker=".", linewidth=1.1, label="interpolations"))
    return handles
