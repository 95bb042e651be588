"""Report of a data set: inspection.json, figures and one HTML page."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from data_pipeline.inspection import (
    FORCE_FACTOR,
    MIN_PAIRS,
    STRESS_FACTOR,
    Inspection,
    inspect_manifest,
    ordered_splits,
)
from data_pipeline.statistics.histograms import BINS, Bins
from data_pipeline.store import durable
from data_pipeline.store.manifest import Manifest
from foundation.reports.escape import figure_text
from foundation.reports.page import render_page, write_figure
from foundation.reports.periodic_table import draw_periodic_table

COLORS = {"train": "#1f5fa8", "val": "#e0862a", "test": "#2a9d74"}
"""Colours of the splits."""
MAX_BARS = 48
"""Largest number of bars in a figure of a distribution; more bins are merged."""
MIN_BARS = 16
"""Smallest number of bins that a figure shows, empty or not."""
_AROUND = {name: np.searchsorted(BINS[name].edges, (-10.0, 10.0)).tolist() for name in ("stress_ratio", "force_ratio")}
"""Bins that a figure always shows."""


def write_data_report(manifest: Manifest, folder: Path) -> Inspection:
    """Write page, figures and inspection.json, and return the contents of the last."""
    folder.mkdir(parents=True, exist_ok=True)
    found = inspect_manifest(manifest)
    durable.write_whole(folder / "inspection.json", json.dumps(asdict(found), indent=1) + "\n")
    draw_elements(found.frames_of_element, folder / "elements.png")
    drawn = [name for name in found.distributions if name not in _AROUND]
    checks = {"stress_ratio": found.stress_check, "force_ratio": found.force_check}
    drawn += [name for name, check in checks.items() if check.num_pairs >= MIN_PAIRS]
    for name in drawn:
        draw_distribution(manifest, name, folder / f"{name}.png")
    page = render_page(
        "data_report.html",
        figures={name: folder / f"{name}.png" for name in ("elements", *drawn)},
        **asdict(found),
        share=_share,
        numeral=_numeral,
        factor=STRESS_FACTOR,
        force_factor=FORCE_FACTOR,
        ratios=tuple(_AROUND),
        min_pairs=MIN_PAIRS,
    )
    durable.write_whole(folder / "index.html", page)
    return found


def _share(part: int, whole: int) -> str:
    """Return a percentage that is 0 or 100 only if exact."""
    if part in (0, whole):
        return ("0 %" if part == 0 else "100 %") if whole else "–"
    return f"{min(max(100 * part / whole, 0.1), 99.9):.1f} %"


def _numeral(value: float) -> str:
    return f"{value:g}".replace("-", "−")


def draw_elements(frames: dict[str, int], path: Path) -> None:
    """Draw the periodic table, coloured by the number of frames with each element."""
    norm = LogNorm(1, max(10, *frames.values()))
    draw_periodic_table(frames, path, norm=norm, colors="Blues", written=lambda number: _short(int(number)))


def _short(number: int) -> str:
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**4, "k")):
        if number >= size:
            return f"{number / (1000 if letter == 'k' else size):.3g}{letter}"
    return f"{number:,}"


def draw_distribution(manifest: Manifest, name: str, path: Path) -> None:
    """Draw one histogram, each split normalised by its own values, on the axis of the bins."""
    bins = BINS[name]
    shown = {split: part.statistics.histogram(name) for split, part in ordered_splits(manifest).items()}
    shown = {split: counts for split, counts in shown.items() if counts.any()}
    total = np.sum(list(shown.values()), axis=0)
    filled = np.flatnonzero(total)
    around = [*filled, *_AROUND.get(name, ())]
    low, high = int(min(around)), int(max(around))
    spare = max(1, (MIN_BARS - (high - low)) // 2)
    # the outer bins have no width: they are drawn as wide as the others, if not empty
    first, last = max(low - spare, 0 if total[0] else 1), min(high + spare, bins.size - (1 if total[-1] else 2))
    starts = np.arange(first, last + 1, -(-(last + 1 - first) // MAX_BARS))
    borders = np.append(starts, last + 1) - 0.5
    figure = Figure(figsize=(5.2, 3.1), layout="constrained")
    axes = figure.add_subplot()
    for split, counts in shown.items():
        share, color = np.add.reduceat(counts[: last + 1], starts) / counts.sum(), COLORS.get(split, "0.4")
        if split == "train":
            axes.stairs(share, borders, color=color, fill=True, alpha=0.22, linewidth=0)
        axes.stairs(share, borders, color=color, linewidth=1.3, label=figure_text(f"{split} ({counts.sum():,})"))
    ticks = [(place, label) for place, label in _ticks(bins, first, last) if first - 0.5 <= place <= last + 0.5]
    axes.set_xticks([place for place, _ in ticks], [label for _, label in ticks])
    axes.set_xlim(first - 0.5, last + 0.5)
    axes.set_ylim(0)
    axes.set_xlabel(f"{bins.quantity} [{bins.unit}]" if bins.unit else bins.quantity)
    axes.set_ylabel("share")
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    write_figure(figure, path, 170)


def _ticks(bins: Bins, first: int, last: int) -> list[tuple[float, str]]:
    """Return the positions of round numbers on an axis of bins: edge k lies between bins k and k + 1."""
    numbers = np.arange(len(bins.edges))
    if bins.scale == "linear":
        low, high = bins.edges[max(first - 1, 0)], bins.edges[min(last, len(bins.edges) - 1)]
        step = next((step for step in (0.2, 0.5, 1, 2, 5, 10) if (high - low) / step <= 9), 1e3)
        values = step * np.arange(np.ceil(low / step), high / step + 1)
        return [(np.interp(value, bins.edges, numbers) + 0.5, _numeral(value)) for value in values]
    if bins.scale != "signed log":
        near = bins.edges[max(first - 1, 0) : last + 1]
        digits = (1, 2, 5) if near[-1] < 300 * near[0] else (1,)
        values = np.outer(10.0 ** np.arange(-9, 10), digits).reshape(-1)
        # zero lies below the first edge, whose label would overlap
        lowest = np.ceil(bins.edges[0]) if bins.scale == "count" else bins.edges[0] * (5 if first == 0 else 1)
        values = values[(values >= lowest) & (values <= bins.edges[-1])]
        places = np.interp(np.log(values), np.log(bins.edges), numbers) + 0.5
        return [(0.0, "0"), *((place, _numeral(value)) for place, value in zip(places, values, strict=True))]
    decades = np.arange(-9, 10)
    middle = len(bins.edges) // 2
    exponents = np.log10(bins.edges[middle:])
    # the decades next to zero would crowd it
    shown = decades[(decades > exponents[0] + 1.5) & (decades < exponents[-1])]
    if last - first > 0.9 * len(exponents):
        # every other one; a ratio, which has no unit, must show 1
        shown = shown[shown % 2 == (1 if bins.unit else 0)]
    offsets = np.interp(shown, exponents, numbers[:middle]) + 0.5
    positive = [(middle + offset, _numeral(10.0**k)) for offset, k in zip(offsets, shown, strict=True)]
    negative = [(middle - offset, _numeral(-(10.0**k))) for offset, k in zip(offsets, shown, strict=True)]
    return [*negative, (float(middle), "0"), *positive]
