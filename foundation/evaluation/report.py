"""The report of an evaluation: evaluation.json, parity.png and one HTML page that a person can read."""

import json
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from data_pipeline.structure import SYMBOLS
from foundation.evaluation.errors import Errors
from foundation.evaluation.escape import figure_text
from foundation.evaluation.page import render_page

MAX_POINTS = 20000
"""Points drawn in a parity plot; more are thinned evenly."""


def write_report(errors: Errors, folder: Path, facts: dict) -> dict:
    """Write the three files and return the contents of evaluation.json.

    Args:
        errors: What was measured.
        folder: Where the files go.
        facts: What was evaluated on what, as JSON: model, data set, split, checksums.
    """
    folder.mkdir(parents=True, exist_ok=True)
    values = {
        **facts,
        "errors": errors.summary(),
        "by_element": {SYMBOLS[z]: row for z, row in errors.by_element().items()},
        "worst_frames": errors.worst(),
    }
    (folder / "evaluation.json").write_text(json.dumps(values, indent=1) + "\n")
    draw_parity(errors, folder / "parity.png", f"{facts['dataset']}, {facts['split']} split")
    (folder / "index.html").write_text(render_page("report.html", figures={"parity": folder / "parity.png"}, **values))
    return values


def draw_parity(errors: Errors, path: Path, title: str) -> None:
    """Draw predictions over labels for energy, forces and stress, as far as there are labels."""
    panels = [("energy − composition", "eV/atom", *_relative_energies(errors), "energy_mae")]
    if len(errors.forces):
        panels.append(("force component", "eV/Å", *_thin(errors.forces), "force_mae"))
    if len(errors.stress):
        panels.append(("stress component", "eV/Å³", *_thin(errors.stress), "stress_mae"))
    summary = errors.summary()
    figure = Figure(figsize=(4.2 * len(panels), 4.3), layout="constrained")
    for number, (name, unit, label, predicted, key) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), number + 1)
        _draw_panel(axes, label, predicted)
        axes.set_xlabel(f"{name}, label [{unit}]")
        axes.set_ylabel(f"{name}, predicted [{unit}]")
        axes.set_title(f"MAE {summary[key]:.4g} {unit}", fontsize=10)
    figure.suptitle(figure_text(title), fontsize=11)
    figure.savefig(path, dpi=130, bbox_inches="tight", metadata={"Software": None})


def _draw_panel(axes: Axes, label: np.ndarray, predicted: np.ndarray) -> None:
    """Draw one cloud of points; the range is the labels', and the few predictions outside it are marked at the edge."""
    low, high = float(label.min()), float(label.max())
    margin = 0.05 * max(high - low, 1e-9)
    low, high = low - margin, high + margin
    axes.plot([low, high], [low, high], color="0.6", linewidth=1, zorder=1)
    inside = (predicted >= low) & (predicted <= high)
    axes.scatter(label[inside], predicted[inside], s=8, alpha=0.5, color="#1f5fa8", linewidths=0, zorder=2)
    clipped = np.clip(predicted[~inside], low, high)
    axes.scatter(label[~inside], clipped, s=14, marker="x", color="#c0392b", linewidths=0.8, zorder=3)
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.set_aspect("equal")


def _relative_energies(errors: Errors) -> tuple[np.ndarray, np.ndarray]:
    """Return energies less the composition's: what is left for a potential to learn."""
    return errors.energy[:, 0] - errors.energy[:, 2], errors.energy[:, 1] - errors.energy[:, 2]


def _thin(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    label, predicted = pairs[:, 0].reshape(-1), pairs[:, 1].reshape(-1)
    stride = -(-len(label) // MAX_POINTS)
    return label[::stride], predicted[::stride]
