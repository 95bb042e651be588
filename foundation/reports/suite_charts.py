"""Charts of suites: the curves of one subject or of several, beside the reference."""

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from foundation.evaluation.suites import Chart, Curve, Findings, HeatMap
from foundation.reports.curves import COLORS
from foundation.reports.escape import figure_text
from foundation.reports.page import write_figure

STYLES = ("-", "-.", ":")
"""Styles of lines, the next one when all colours are taken; references are dashed."""
MAX_LABELS = 14
"""Largest number of labels in a legend."""


def draw_charts(found: Mapping[str, Mapping[str, Findings]], folder: Path) -> dict[str, Path]:
    """Draw a figure for every chart of suites and return their files by title.

    Args:
        found: Findings by name of the suite, by name of the subject.
        folder: Folder of the figures.
    """
    titles = dict.fromkeys(
        (suite, title) for suites in found.values() for suite, findings in suites.items() for title in findings.charts
    )
    files: dict[str, Path] = {}
    for suite, title in titles:
        charts = {
            name: suites[suite].charts[title]
            for name, suites in found.items()
            if suite in suites and title in suites[suite].charts
        }
        file = folder / f"{re.sub(r'[^a-z0-9]+', '-', f'{suite} {title}'.lower()).strip('-')}.png"
        write_figure(_figure(f"{suite}: {title}", charts), file, 150)
        files[f"{suite}: {title}"] = file
    return files | _draw_maps(found, folder)


def _draw_maps(found: Mapping[str, Mapping[str, Findings]], folder: Path) -> dict[str, Path]:
    """Draw a figure for every heat map of every subject."""
    files: dict[str, Path] = {}
    for name, suites in found.items():
        for suite, findings in suites.items():
            for title, heat in findings.maps.items():
                whole = f"{suite}: {title}{f', {name}' if len(found) > 1 else ''}"
                file = folder / f"{re.sub(r'[^a-z0-9]+', '-', whole.lower()).strip('-')}.png"
                write_figure(_heat_map(whole, heat), file, 150)
                files[whole] = file
    return files


def _heat_map(title: str, heat: HeatMap) -> Figure:
    """Draw a square of colours with lines between groups."""
    count = len(heat.labels)
    side = max(4.0, 1.6 + 0.1 * count)
    figure = Figure(figsize=(side + 0.7, side), layout="constrained")
    axes = figure.add_subplot()
    low, high = heat.limits
    image = axes.imshow(np.array(heat.values), cmap="RdBu_r", vmin=low, vmax=high, interpolation="nearest")
    size = min(8.0, 60 * side / max(count, 1))
    labels = [figure_text(each) for each in heat.labels]
    axes.set_xticks(range(count), labels, rotation=90, fontsize=size)
    axes.set_yticks(range(count), labels, fontsize=size)
    axes.tick_params(length=0, pad=1.5)
    axes.spines[:].set_visible(False)
    begins = [place for place in range(count) if place == 0 or heat.groups[place] != heat.groups[place - 1]]
    for start, end in itertools.pairwise([*begins, count]):
        for line in (axes.axhline, axes.axvline):
            line(end - 0.5, color="0.35", linewidth=0.4)
        axes.text((start + end - 1) / 2, -1.0, figure_text(heat.groups[start]), ha="center", va="bottom", fontsize=size)
    figure.colorbar(image, ax=axes, shrink=0.6, label=figure_text(heat.quantity))
    axes.set_title(figure_text(title), fontsize=10, pad=16)
    return figure


def _figure(title: str, charts: Mapping[str, Chart]) -> Figure:
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.add_subplot()
    first = next(iter(charts.values()))
    references = {label: curve for label, curve in first.curves.items() if curve.reference}
    for label, curve in references.items():
        _draw(axes, curve, "0.45", label, "--", positive=first.log_y)
    own = [
        (name, label, curve)
        for name, chart in charts.items()
        for label, curve in chart.curves.items()
        if not curve.reference
    ]
    labels = _labels([(name, label) for name, label, _ in own], several=len(charts) > 1)
    looks = itertools.cycle(itertools.product(STYLES, COLORS))
    for (_, _, curve), label, (style, color) in zip(own, labels, looks, strict=False):
        _draw(axes, curve, color, label, style, positive=first.log_y)
    axes.set_xlabel(figure_text(first.x))
    axes.set_ylabel(figure_text(first.y))
    axes.set_title(figure_text(title), fontsize=10)
    if first.log_x:
        axes.set_xscale("log")
        for axis_format in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
            axis_format("{x:g}")  # 6, not 6 × 10⁰
    if first.log_y:
        axes.set_yscale("log", nonpositive="mask")
    axes.grid(color="0.92")
    axes.spines[["top", "right"]].set_visible(False)
    if 0 < len(references) + len(own) <= MAX_LABELS and any([*labels, *references]):
        axes.legend(frameon=False, fontsize=8)
    return figure


def _labels(names: Sequence[tuple[str, str]], *, several: bool) -> list[str]:
    """Return the labels of curves: the subject's name where there are several, and the curve's own."""
    return [figure_text(", ".join(filter(None, (name if several else "", label)))) for name, label in names]


def _draw(axes: Axes, curve: Curve, color: str, label: str, style: str, *, positive: bool) -> None:
    x, y, low, high = (np.array(values, dtype=np.float64) for values in (curve.x, curve.y, curve.low, curve.high))
    if curve.points:
        axes.plot(x, y, ".", color=color, label=label, markersize=4)
        for text, place in zip(curve.texts, zip(x, y, strict=True), strict=False):
            axes.annotate(
                figure_text(text), place, (2, 2), textcoords="offset points", fontsize=7, color=color, clip_on=True
            )
    else:
        axes.plot(x, y, color=color, label=label, linewidth=1.5, linestyle=style)
    if len(low) == len(x) == len(high):
        shown = low > 0 if positive else None  # a masked corner would make a wedge across the figure
        axes.fill_between(x, low, high, where=shown, color=color, alpha=0.18, linewidth=0)
