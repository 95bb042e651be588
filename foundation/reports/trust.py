"""Trust signal of a potential on its card: coverage, calibration, and uncertainties drawn beside errors."""

import re
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from foundation.evaluation.calibration import LEVEL, HeldOut, uncertainties
from foundation.evaluation.quantities import GPA
from foundation.last_layer import FACTS, FIGURE, TENSORS, Judged, LastLayer, TrustFacts
from foundation.reports.curves import COLORS
from foundation.reports.escape import figure_text, markdown
from foundation.reports.log_ticks import set_log_ticks
from foundation.reports.page import write_figure

TITLE = "## Uncertainty and coverage"
"""Title of the section of the card."""
POINTS = 400
"""Largest number of points of a data set in the figure."""
BINS = 8
"""Largest number of bins of a data set in the figure."""
LEAST_RANGE = 10.0
"""Least ratio of the ends of the axis of uncertainties."""


def draw(last_layer: LastLayer, parts: Mapping[str, HeldOut], file: Path) -> None:
    """Draw the uncertainties of energies and forces beside the errors of held-out frames, by name of their data."""
    figure = Figure(figsize=(9.0, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for color, (name, found) in zip(COLORS * len(parts), parts.items(), strict=False):
        energies, forces = uncertainties(last_layer, found)
        _panel(left, energies, found.energy_errors, figure_text(name), color)
        _panel(right, forces, found.force_errors, figure_text(name), color)
    for axes, what in ((left, "energy [eV/atom]"), (right, "force on an atom [eV/Å]")):
        low, high = axes.get_xlim()
        middle = (low * high) ** 0.5
        low, high = min(low, LEAST_RANGE**-0.5 * middle), max(high, LEAST_RANGE**0.5 * middle)
        most = max(high, axes.dataLim.y1)
        axes.plot([low, most], [low, most], color="#444444", linewidth=1)
        axes.set(xlim=(low, high), ylim=(low / 30, most), xlabel=f"uncertainty of the {what}", ylabel="error")
        for axis in (axes.xaxis, axes.yaxis):
            set_log_ticks(axis)
    left.legend(
        frameon=False, fontsize=8, title=f"large points: {100 * LEVEL:g} % of errors are below", title_fontsize=8
    )
    write_figure(figure, file, 130)


def _panel(
    axes: Axes, sizes: Float64[np.ndarray, " n"], errors: Float64[np.ndarray, " n"], name: str, color: str
) -> None:
    order = np.argsort(sizes, kind="stable")
    some = order[np.linspace(0, len(order) - 1, min(POINTS, len(order))).round().astype(int)]
    positive = some[errors[some] > 0]
    axes.loglog(sizes[positive], errors[positive], ".", color=color, alpha=0.25, markersize=3)
    bins = np.array_split(order, max(1, min(BINS, len(order) // BINS)))
    middles = [float(np.median(sizes[each])) for each in bins]
    axes.loglog(middles, [float(np.quantile(errors[each], LEVEL)) for each in bins], "o-", color=color, label=name)


def copy_into(folder: Path, source: Path, last_layer: LastLayer | None) -> str:
    """Copy the trust signal of a potential from its folder, and return its section of the card; "" without one."""
    if last_layer is None:
        return ""
    for name in (FACTS, TENSORS, FIGURE):
        shutil.copyfile(source / name, folder / name)
    return card_section(last_layer.facts)


def with_section(card: str, section: str, before: str) -> str:
    """Return a card with its section on the trust signal replaced, or added before the title of another one."""
    without = re.sub(rf"\n{re.escape(TITLE)}\n.*?(?=\n## |\Z)", "", card, flags=re.DOTALL)
    begin, title, end = without.partition(f"\n{before}\n")
    return begin + section + title + end


def card_section(facts: TrustFacts) -> str:
    """Return the section of the card, which follows others."""
    rows = "".join(_row(name, each) for name, each in facts.judged.items())
    areas = f"{_number(facts.force_area)} for forces, {_number(facts.energy_area)} for energies"
    force = "" if facts.largest_force is None else f", forces to {facts.largest_force:.3g} eV/Å"
    pressures = (facts.lowest_pressure, facts.highest_pressure)
    low, high = (None if each is None else f"{GPA.factor * each:.3g}" for each in pressures)
    pressure = "" if low is None else f", pressures from {low} to {high} {GPA.name}"
    untold = f" Not told, for lack of data: {'; '.join(facts.unjudged)}." if facts.unjudged else ""
    return (
        f"\n{TITLE}\n\n`{FACTS}` and `{TENSORS}` hold the covariance of the last features over "
        f"{facts.num_frames:,} frames ({facts.num_atoms:,} atoms) of {markdown(facts.data)}, and its calibration: "
        f"{100 * LEVEL:g} % of errors are at most the uncertainty. Covered are {len(facts.elements)} elements"
        f"{force}{pressure}. `Calculator`, `predict`, `relax` and `md` give uncertainties and say when a structure "
        f"leaves the coverage.{untold} Command, with the folders of these data sets: `foundation uncertainty --model "
        f"FOLDER --data {shlex.quote(facts.data)} --calibration '[{', '.join(facts.judged)}]' --calibration_split "
        f"{facts.calibration_split or 'val'}`.\n\n"
        "Measured on held-out frames without a part in the calibration:\n\n"
        "| data | frames | rank correlation with the error, forces / energies | errors below, forces / energies | "
        f"frames that leave the coverage |\n|---|---|---|---|---|\n{rows}\n"
        f"Chance that a frame with an error above three times the median has a larger uncertainty (AUROC): {areas}.\n\n"
        f"![Uncertainties beside errors]({FIGURE})\n"
    )


def _row(name: str, judged: Judged) -> str:
    correlations = f"{_number(judged.force_correlation)} / {_number(judged.energy_correlation)}"
    within = f"{100 * judged.force_within:.0f} / {100 * judged.energy_within:.0f} %"
    return f"| {markdown(name)} | {judged.num_frames} | {correlations} | {within} | {100 * judged.outside:.0f} % |\n"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
