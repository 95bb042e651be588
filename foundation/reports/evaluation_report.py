"""Report of an evaluation: evaluation.json, parity.png and one HTML page."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from data_pipeline.store import durable
from data_pipeline.store.untrusted import CorruptFile, OpenRecord, read_json, refusing, typed
from foundation.evaluation.frame_errors import FrameErrors
from foundation.evaluation.predictions import Predictions
from foundation.evaluation.quantities import (
    FORCE_COUNT,
    LABEL_UNITS,
    QUANTITIES,
    by_atoms,
    notes,
    of_frames,
    rows,
    summary,
)
from foundation.evaluation.suites import Findings
from foundation.reports.escape import figure_text
from foundation.reports.page import render_page, write_figure
from foundation.reports.suite_charts import draw_charts
from foundation.reports.suite_table import suite_rows

MAX_POINTS = 20000
"""Largest number of points in a parity plot; more are thinned evenly."""


@dataclass(frozen=True, kw_only=True)
class Evaluated(OpenRecord):
    """Subject of an evaluation."""

    dataset: str
    """Name of the data set."""
    split: str
    """Split of it."""
    manifest_fingerprint: str
    """Fingerprint of its manifest."""
    level_of_theory: str
    """Level of theory of its labels, as it is described."""
    theory: str | None = None
    """Level of theory that was predicted."""
    weights_sha256: str
    """Checksum of the potential's weights."""


@dataclass(frozen=True, kw_only=True)
class Evaluation(Evaluated):
    """Content of evaluation.json."""

    errors: dict[str, float]
    """Held-out errors by name, and counts."""
    by_element: dict[str, Any]
    """Errors by symbol of the element and name, NaN where there are none; for the page."""
    worst_frames: list[Any]
    """Name and errors of the frames with the largest; for the page."""
    suites: dict[str, Findings] = field(default_factory=dict)
    """Findings of suites by name of the suite."""

    @staticmethod
    def from_json(file: Path) -> "Evaluation":
        """Return the content of a file.

        Raises:
            CorruptFile: it is not a report of an evaluation.
        """
        with refusing(file, CorruptFile, "not the report of an evaluation ({}); evaluate again"):
            return typed(Evaluation, read_json(file), "")


def write_report(
    predictions: Predictions, folder: Path, evaluated: Evaluated, suites: Mapping[str, Findings] = MappingProxyType({})
) -> Evaluation:
    """Write the three files and return the contents of evaluation.json.

    Args:
        predictions: What the potential predicts, beside the labels.
        folder: Where the files go.
        evaluated: Subject of an evaluation.
        suites: Findings of suites by name of the suite.
    """
    folder.mkdir(parents=True, exist_ok=True)
    errors = predictions.errors()
    counts = {
        "num_frames": float(len(errors.ids)),
        "num_atoms": float(errors.num_atoms.sum()),
        "num_skipped": float(predictions.num_skipped),
    }
    found = Evaluation(
        **asdict(evaluated),
        errors=counts | summary(errors),
        by_element=errors_by_element(errors),
        worst_frames=worst_frames(errors),
        suites=dict(suites),
    )
    durable.write_whole(folder / "evaluation.json", json.dumps(asdict(found), indent=1) + "\n")
    draw_parity(predictions, found.errors, folder / "parity.png", f"{found.dataset}, {found.split} split")
    charts = draw_charts({found.dataset: found.suites}, folder)
    page = render_page(
        "evaluation_report.html",
        figures=charts | {"parity": folder / "parity.png"},
        charts=list(charts),
        rows=rows(found.errors),
        notes=notes(found.errors),
        suite_rows=suite_rows(found.suites),
        quantities=QUANTITIES,
        of_atoms={key: QUANTITIES[key] for key in by_atoms()},
        **asdict(found),
    )
    durable.write_whole(folder / "index.html", page)
    return found


def errors_by_element(errors: FrameErrors) -> dict[str, dict[str, float | int]]:
    """Return for each element the number of atoms with forces, and their errors and the trivial predictor's."""
    totals = {name: sums.sum(axis=0) for name, sums in errors.of_elements.items()}
    values: dict[str, dict[str, float | int]] = {}
    for place, symbol in enumerate(errors.elements):
        row = values[symbol] = {"num_atoms": round(totals[FORCE_COUNT.name][place] / 3)}
        for key, ratio in by_atoms().items():
            trivial = QUANTITIES[key].trivial
            for name, top in ((key, ratio.top), *([(trivial.key, trivial.top)] if trivial else [])):
                row[name] = float(replace(ratio, top=top).of(totals)[place])
    return values


def worst_frames(errors: FrameErrors, count: int = 10) -> list[dict[str, float | str | None]]:
    """Return the frames with the largest force errors (energy errors without forces)."""
    energy, force = (of_frames(QUANTITIES[key].formula, errors) for key in ("energy_mae", "force_mae"))
    order = np.argsort(-np.where(np.isnan(force), energy, force), kind="stable")[:count]
    return [
        {
            "id": errors.ids[i],
            "energy_error": float(energy[i]),
            "force_mae": None if np.isnan(force[i]) else float(force[i]),
        }
        for i in order
    ]


def draw_parity(predictions: Predictions, errors: Mapping[str, float], path: Path, title: str) -> None:
    """Draw predictions over labels for energy, forces and stress that have labels."""
    panels = [("energy − composition", "energy", *_relative_energies(predictions))]
    if len(predictions.forces):
        panels.append(("force component", "force", *_thin(predictions.forces)))
    if len(predictions.stress):
        panels.append(("stress component", "stress", *_thin(predictions.stress)))
    figure = Figure(figsize=(4.2 * len(panels), 4.3), layout="constrained")
    for number, (name, kind, label, predicted) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), number + 1)
        unit, quantity = LABEL_UNITS[kind], QUANTITIES[f"{kind}_mae"]
        _draw_panel(axes, unit.factor * label, unit.factor * predicted)
        axes.set_xlabel(f"{name}, label [{unit.name}]")
        axes.set_ylabel(f"{name}, predicted [{unit.name}]")
        shown = quantity.text(errors[f"{kind}_mae"], 4)
        axes.set_title(f"{quantity.name} {shown} {quantity.unit.name}", fontsize=10)
    figure.suptitle(figure_text(title), fontsize=11)
    write_figure(figure, path, 130, bbox_inches="tight")


def _draw_panel(axes: Axes, label: np.ndarray, predicted: np.ndarray) -> None:
    """Draw one cloud of points over the range of the labels; predictions outside it are marked at the edge."""
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


def _relative_energies(predictions: Predictions) -> tuple[np.ndarray, np.ndarray]:
    """Return energies minus the composition's, the part that a potential must learn."""
    label, predicted, composition = predictions.energy.T
    return label - composition, predicted - composition


def _thin(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    label, predicted = pairs[:, 0].reshape(-1), pairs[:, 1].reshape(-1)
    stride = -(-len(label) // MAX_POINTS)
    return label[::stride], predicted[::stride]
