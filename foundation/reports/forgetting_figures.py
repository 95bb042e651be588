"""Figures of a fine-tuning's report, drawn from the numbers of forgetting.json."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from foundation.evaluation.comparison import Estimate
from foundation.evaluation.quantities import QUANTITIES
from foundation.reports.curves import COLORS
from foundation.reports.escape import figure_text
from foundation.reports.forgetting_record import Forgetting, SetChange
from foundation.reports.log_ticks import set_log_ticks
from foundation.reports.page import write_figure
from foundation.reports.periodic_table import draw_periodic_table

ROLE_COLORS = {"target": "#1f5fa8", "retained": "#c8641b", "transfer": "#2a9d74"}
"""Colours of the roles of sets."""
FEW_ELEMENTS = 12
"""Largest number of elements whose changes are drawn as points; more are drawn as a periodic table."""


def draw_figures(forgetting: Forgetting, folder: Path) -> dict[str, Path]:
    """Draw all figures with data, and return their files by name."""
    figures = {"errors": _errors(forgetting.sets)} if forgetting.sets else {}
    few = {name: row for name, row in forgetting.sets.items() if 0 < len(row.by_element) <= FEW_ELEMENTS}
    if few:
        figures["elements"] = _elements(few)
    if forgetting.curve and forgetting.sets:
        figures["curve"] = _curve(forgetting)
    for name, figure in figures.items():
        write_figure(figure, folder / f"{name}.png", 150)
    drawn = {name: folder / f"{name}.png" for name in figures}
    for place, row in enumerate(forgetting.sets.values()):
        changes = {z: each.change.value for z, each in row.by_element.items()}
        changes = {z: change for z, change in changes.items() if change is not None}
        if len(row.by_element) > FEW_ELEMENTS and changes:
            path = folder / f"elements-{place + 1}.png"
            # a few elements with a handful of atoms would make all others look alike
            limit = max(0.02, float(np.quantile(np.abs(list(changes.values())), 0.95)))
            norm = Normalize(-limit, limit, clip=True)
            percent = "{:+.0%}".format
            draw_periodic_table(changes, path, norm=norm, colors="RdBu_r", written=percent, depths=(0.08, 0.92))
            drawn[path.stem] = path
    return drawn


def _errors(sets: dict[str, SetChange]) -> Figure:
    """Draw the errors of every set before (hollow) and after (filled), with intervals."""
    shown = [metric for metric in QUANTITIES if any(metric in row.before for row in sets.values())]
    columns = min(3, len(shown))
    lines = -(-len(shown) // columns)
    figure = Figure(figsize=(3.1 * columns + 1.2, lines * (1.1 + 0.42 * len(sets))), layout="constrained")
    for place, metric in enumerate(shown):
        axes = figure.add_subplot(lines, columns, place + 1)
        for height, row in enumerate(sets.values()):
            if metric in row.before:
                _before_and_after(axes, height, row, metric)
        if not QUANTITIES[metric].is_error:
            axes.axvline(QUANTITIES[metric].ideal, color="0.6", linewidth=1, linestyle=":", zorder=0)
        axes.set_title(QUANTITIES[metric].title, fontsize=9.5, loc="left")
        names = (
            [f"{figure_text(name)}\n{row.role}" for name, row in sets.items()]
            if place % columns == 0
            else [""] * len(sets)
        )
        axes.set_yticks(range(len(sets)), names, fontsize=8.5)
        axes.set_ylim(len(sets) - 0.5, -0.5)
        _finish_values(axes, logarithmic=QUANTITIES[metric].is_error)
    markers = [
        Line2D([], [], color="0.35", marker="o", linestyle="", markersize=6, markerfacecolor="white", label="before"),
        Line2D([], [], color="0.35", marker="o", linestyle="", markersize=6, label="after"),
    ]
    figure.legend(handles=markers, loc="outside lower right", ncols=2, frameon=False, fontsize=8.5)
    return figure


def _before_and_after(axes: Axes, height: int, row: SetChange, metric: str) -> None:
    factor, color = QUANTITIES[metric].unit.factor, ROLE_COLORS[row.role]
    old, new = row.before[metric], row.after[metric]
    if old.value is None or new.value is None:
        return
    axes.plot([factor * old.value, factor * new.value], [height] * 2, color=color, alpha=0.35, linewidth=2)
    for value, middle, shift, face in ((old, old.value, -0.13, "white"), (new, new.value, 0.13, color)):
        low, high = around(value)
        axes.plot([factor * low, factor * high], [height + shift] * 2, color=color, linewidth=1.3, zorder=2)
        axes.plot(factor * middle, height + shift, "o", color=color, markerfacecolor=face, markersize=6, zorder=3)


def around(value: Estimate) -> tuple[float, float]:
    """Return the interval of a number, of zero width if unknown."""
    middle = value.value
    low, high = value.low, value.high
    assert middle is not None
    return (middle if low is None else low), (middle if high is None else high)


def _finish_values(axes: Axes, *, logarithmic: bool) -> None:
    if logarithmic and axes.dataLim.x0 > 0:
        axes.set_xscale("log")
        set_log_ticks(axes.xaxis)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.tick_params(axis="x", labelsize=8.5)
    clean(axes, "x")


def clean(axes: Axes, grid: Literal["both", "x", "y"]) -> None:
    """Draw light lines across an axis and no frame."""
    axes.grid(axis=grid, color="0.92", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _elements(sets: dict[str, SetChange]) -> Figure:
    """Draw the change of every element's force error, for sets of few elements."""
    most = max(len(row.by_element) for row in sets.values())
    columns = min(3, len(sets))
    lines = -(-len(sets) // columns)
    figure = Figure(figsize=(9.2, lines * (1.1 + 0.3 * most)), layout="constrained")
    for place, (name, row) in enumerate(sets.items()):
        axes = figure.add_subplot(lines, columns, place + 1)
        color = ROLE_COLORS[row.role]
        for height, element in enumerate(row.by_element.values()):
            value = element.change
            if value.value is not None:
                axes.plot(np.multiply(100, around(value)), [height] * 2, color=color, linewidth=1.5)
                axes.plot(100 * value.value, height, "o", color=color, markersize=6)
        axes.axvline(0.0, color="0.5", linewidth=1, zorder=0)
        axes.set_yticks(range(len(row.by_element)), list(row.by_element))
        axes.set_ylim(most - 0.5, -0.5)
        axes.set_title(figure_text(f"{name} ({row.role})"), fontsize=9.5, loc="left")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(FuncFormatter(signed_percent))
        clean(axes, "x")
    return figure


def signed_percent(value: float, _: object = None) -> str:
    """Return a signed percentage as an axis label."""
    return f"{value:+.4g} %".replace("-", "−") if value else "0"


def main_metric(sets: Sequence[SetChange]) -> str:
    """Return the error by which sets are compared: of forces, or of energies if one of them has no forces."""
    return "force_mae" if all("force_mae" in row.before for row in sets) else "energy_mae"


def _curve(forgetting: Forgetting) -> Figure:
    """Draw the path from start to result: adaptation against forgetting, and the changes of all sets."""
    sets = forgetting.sets
    alphas = [0.0, *(point.alpha for point in forgetting.curve), 1.0]
    zero = Estimate(value=0.0, low=0.0, high=0.0)
    changes = {
        name: {
            metric: [zero, *(point.sets[name].change[metric] for point in forgetting.curve), row.change[metric]]
            for metric in ("force_mae", "energy_mae")
            if metric in row.change
        }
        for name, row in sets.items()
    }
    figure = Figure(figsize=(9.2, 4.4), layout="constrained")
    pairs = [(t, r) for t in sets for r in sets if (sets[t].role, sets[r].role) == ("target", "retained")]
    panels = 2 if pairs else 1
    if pairs:
        _plane(figure.add_subplot(1, panels, 1), pairs, sets, changes, alphas)
    axes = figure.add_subplot(1, panels, panels)
    for number, (name, row) in enumerate(changes.items()):
        for metric, style in (("force_mae", "o-"), ("energy_mae", "o--")):
            if metric in row:
                heights = [np.nan if v.value is None else 100 * v.value for v in row[metric]]
                label = figure_text(f"{name}, {QUANTITIES[metric].short}")
                color = COLORS[number % len(COLORS)]
                axes.plot(alphas, heights, style, color=color, markersize=3.5, linewidth=1.4, label=label)
    axes.axhline(0.0, color="0.5", linewidth=1, zorder=0)
    axes.set_xlabel("α (0: start, 1: result)")
    axes.set_title("change of the error", fontsize=9.5, loc="left")
    axes.yaxis.set_major_formatter(FuncFormatter(signed_percent))
    figure.legend(loc="outside lower center", ncols=min(4, len(changes)), frameon=False, fontsize=8)
    clean(axes, "both")
    return figure


def _plane(
    axes: Axes,
    pairs: Sequence[tuple[str, str]],
    sets: dict[str, SetChange],
    changes: dict[str, dict[str, list[Estimate]]],
    alphas: Sequence[float],
) -> None:
    for number, (target, retained) in enumerate(pairs):
        metric = main_metric([sets[target], sets[retained]])
        x, y = ([v.value for v in changes[name][metric]] for name in (retained, target))
        points = [
            (100 * a, -100 * b, alpha)
            for a, b, alpha in zip(x, y, alphas, strict=True)
            if a is not None and b is not None
        ]
        color = COLORS[number % len(COLORS)]
        axes.plot([p[0] for p in points], [p[1] for p in points], "o-", color=color, markersize=4.5)
        if len(pairs) > 1 and points:
            axes.annotate(
                f"{target} against {retained}",
                points[-1][:2],
                xytext=(-5, 6),
                ha="right",
                fontsize=8,
                textcoords="offset points",
                color=color,
            )
        for a, b, alpha in points:
            axes.annotate(f"{alpha:g}", (a, b), xytext=(5, -10), textcoords="offset points", fontsize=8, color=color)
    axes.axvline(0.0, color="0.5", linewidth=1, zorder=0)
    target, retained = pairs[0]
    quantity = QUANTITIES[main_metric([sets[target], sets[retained]])].short
    axes.set_xlabel(figure_text(f"forgetting: {quantity} error{'' if len(pairs) > 1 else ' of ' + retained}"))
    axes.set_ylabel(figure_text(f"adaptation: less {quantity} error{'' if len(pairs) > 1 else ' of ' + target}"))
    axes.set_title("adaptation against forgetting, α at the points", fontsize=9.5, loc="left")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(signed_percent))
    axes.yaxis.set_major_formatter(FuncFormatter(signed_percent))
    clean(axes, "both")
