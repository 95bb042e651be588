"""Report of a discovery benchmark: discovery.json, discovery.png and one HTML page."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float64
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from data_pipeline.store import durable
from data_pipeline.store.untrusted import CorruptFile, OpenRecord, read_json, refusing, typed
from foundation.evaluation.discovery import Confusion, confusion, regression
from foundation.evaluation.quantities import MILLI_EV_PER_ATOM
from foundation.reports.page import render_page, write_figure

JSON_NAME, FIGURE = "discovery.json", "discovery.png"
ALL, UNIQUE = "all materials", "unique prototypes"
"""Sets of materials; the second is the benchmark's headline."""
MOST_STABLE = 10_000
"""Number of materials predicted most stable, the first to be tried in an experiment."""
WINDOW = 0.04
"""Width of the window in which the error is averaged [eV/atom], that of the benchmark's figure."""
SHOWN = (-0.2, 0.3)
"""Range of energies above the hull in the figure [eV/atom]."""
MAX_POINTS, MAX_FAILURES = 20_000, 50
"""Largest numbers of points in the figure and of failures on the page."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Energies above the hull of a material with a reference."""

    true: float
    """The reference's [eV/atom]."""
    predicted: float
    """Predicted [eV/atom]; NaN after a failure."""
    unique: bool | None
    """True for one material of each prototype that the Materials Project lacks; None: unknown."""


@dataclass(frozen=True, kw_only=True)
class Stability(OpenRecord):
    """Metrics of stability over a set of materials; None where they are not defined."""

    num_materials: int
    """Number of materials with a reference."""
    num_missing: int
    """Number without a prediction: they count as unstable, and are not in the errors."""
    counts: Confusion
    """Counts by true and predicted stability."""
    precision: float | None
    """Share of stable ones among those predicted stable."""
    recall: float | None
    """Share of those predicted stable among the stable ones."""
    f1: float | None
    """Harmonic mean of both."""
    accuracy: float | None
    """Share of right predictions."""
    acceleration: float | None
    """Precision over that of a random choice (DAF)."""
    mae: float | None
    """Mean absolute error of the energy above the hull [eV/atom]."""
    rmse: float | None
    """Root mean square error [eV/atom]."""
    r2: float | None
    """Coefficient of determination."""


@dataclass(frozen=True, kw_only=True)
class DiscoveryRecord(OpenRecord):
    """Content of discovery.json."""

    subject: str
    """Name of the potential or calculator."""
    theory: str | None = None
    """Level of theory; None: a calculator of another program."""
    weights_sha256: str | None = None
    """Checksum of the potential's weights; None: a calculator of another program."""
    max_force: float
    """Largest force at which a relaxation ended [eV/Å]."""
    max_steps: int
    """Largest number of steps."""
    date: str
    """Day of the first relaxation."""
    num_materials: int
    """Number of structures, failures included."""
    num_converged: int
    """Number whose largest force fell below the limit."""
    num_steps: int
    """Steps of all relaxations."""
    failures: dict[str, str] = field(default_factory=dict)
    """Reasons of failures by name of the structure."""
    without_reference: tuple[str, ...] = ()
    """Names of structures that the references lack."""
    stability: dict[str, Stability] = field(default_factory=dict)
    """Metrics by set of materials."""
    deviation: float | None = None
    """Mean deviation of relaxed structures in units of (V/N)^(1/3) (RMSD); a failure counts 1."""
    num_unmatched: int = 0
    """Number of structures that failed or do not match their reference."""
    conductivity: float | None = None
    """Mean error of thermal conductivities (κ_SRME)."""
    num_conductivities: int = 0
    """Number of crystals whose conductivity was computed, failures included."""
    num_without_conductivity: int = 0
    """Number of these that have none: they failed, have imaginary modes, or changed their symmetry."""
    score: float | None = None
    """Combined performance score (CPS); None: a part is missing."""
    seconds: float = 0.0
    """CPU time of the relaxations of the command that finished [s]."""
    notes: tuple[str, ...] = ()
    """Remarks on what is missing, and why."""

    @staticmethod
    def from_json(file: Path) -> "DiscoveryRecord":
        """Return the content of a file.

        Raises:
            CorruptFile: it is not such a report.
        """
        with refusing(file, CorruptFile, "not the report of a discovery benchmark ({}); run it again"):
            return typed(DiscoveryRecord, read_json(file), "")


def stability_of(predictions: Sequence[Prediction]) -> dict[str, Stability]:
    """Return the metrics over all materials, unique prototypes, and those of them predicted most stable.

    The prevalence of stable materials is that of the set; of the most stable ones, that of all to choose from.
    """
    if not predictions:
        return {}
    true = np.array([each.true for each in predictions])
    predicted = np.array([each.predicted for each in predictions])
    found = {ALL: _stability(true, predicted)}
    unique = np.array([each.unique is True for each in predictions])
    if all(each.unique is not None for each in predictions) and unique.any():
        true, predicted = true[unique], predicted[unique]
        found[UNIQUE] = _stability(true, predicted)
    if len(true) > MOST_STABLE:
        first = np.argsort(predicted, kind="stable")[:MOST_STABLE]  # NaN is last
        prevalence = confusion(true, predicted).prevalence
        found[f"{MOST_STABLE:,} predicted most stable"] = _stability(true[first], predicted[first], prevalence)
    return found


def _stability(
    true: Float64[np.ndarray, " crystals"],
    predicted: Float64[np.ndarray, " crystals"],
    prevalence: float | None = None,
) -> Stability:
    counts, missing = confusion(true, predicted), int(np.isnan(predicted).sum())
    errors = regression(true, predicted) if missing < len(true) else None
    stable = counts.true_positives + counts.false_negatives
    return Stability(
        num_materials=counts.total,
        num_missing=missing,
        counts=counts,
        precision=_number(counts.precision),
        recall=_number(counts.recall),
        f1=_number(counts.f1),
        accuracy=_number(counts.accuracy),
        acceleration=_number(counts.acceleration(prevalence)) if stable else None,
        mae=_number(errors and errors.mae),
        rmse=_number(errors and errors.rmse),
        r2=_number(errors and errors.r2),
    )


def discovery_rows(record: DiscoveryRecord) -> list[tuple[str, ...]]:
    """Return the metrics as text: a row for each with its title, and one column for each set of materials."""
    sets = record.stability.values()
    energy, factor = f"[{MILLI_EV_PER_ATOM.name}]", MILLI_EV_PER_ATOM.factor
    rows: list[tuple[str, ...]] = [
        ("materials", *(f"{each.num_materials:,}" for each in sets)),
        ("without prediction", *(f"{each.num_missing:,}" for each in sets)),
        ("F1", *(_text(each.f1) for each in sets)),
        ("acceleration (DAF)", *(_text(each.acceleration) for each in sets)),
        ("precision", *(_text(each.precision) for each in sets)),
        ("recall", *(_text(each.recall) for each in sets)),
        ("accuracy", *(_text(each.accuracy) for each in sets)),
        (f"mean absolute error {energy}", *(_text(each.mae, factor) for each in sets)),
        (f"root mean square error {energy}", *(_text(each.rmse, factor) for each in sets)),
        ("R²", *(_text(each.r2) for each in sets)),
    ]
    return rows if sets else []


def summary_rows(record: DiscoveryRecord) -> list[tuple[str, str]]:
    """Return counts and metrics of the whole as text: title and value."""
    conducted = record.num_conductivities - record.num_without_conductivity
    return [
        ("structures", f"{record.num_materials:,}"),
        ("converged", f"{record.num_converged:,}"),
        ("failed", f"{len(record.failures):,}"),
        ("steps in the mean", f"{record.num_steps / max(1, record.num_materials):.1f}"),
        ("RMSD [(V/N)^(1/3)]", _text(record.deviation)),
        ("failed or not matched", "–" if record.deviation is None else f"{record.num_unmatched:,}"),
        ("crystals with thermal conductivity", f"{conducted} of {record.num_conductivities}"),
        ("κ SRME", _text(record.conductivity)),
        ("CPS", _text(record.score)),
    ]


def write_discovery(record: DiscoveryRecord, predictions: Sequence[Prediction], folder: Path) -> None:
    """Write page, figure and discovery.json, which comes last: where it is, the others are."""
    figures = {}
    if predictions:
        figures = {"discovery": folder / FIGURE}
        write_figure(_figure(predictions), folder / FIGURE, 150)
    page = render_page(
        "discovery_report.html",
        figures=figures,
        record=record,
        rows=discovery_rows(record),
        summary=summary_rows(record),
        failures=list(record.failures.items())[:MAX_FAILURES],
    )
    durable.write_whole(folder / "index.html", page, shared=True)
    durable.write_whole(folder / JSON_NAME, json.dumps(asdict(record), indent=1) + "\n", shared=True)


def _figure(predictions: Sequence[Prediction]) -> Figure:
    """Draw predicted over reference energies above the hull, and the error near the hull."""
    both = np.array([(each.true, each.predicted) for each in predictions])
    true, predicted = both[~np.isnan(both[:, 1])].T
    figure = Figure(figsize=(9.6, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    stride = -(-len(true) // MAX_POINTS) or 1
    right_side = (true <= 0) == (predicted <= 0)
    for chosen, color, label in ((right_side, "#1f5fa8", "right"), (~right_side, "#c0392b", "wrong")):
        x, y = true[chosen][::stride], predicted[chosen][::stride]
        left.scatter(x, np.clip(y, *SHOWN), s=6, alpha=0.5, color=color, linewidths=0, label=label)
    left.plot(SHOWN, SHOWN, color="0.6", linewidth=1, zorder=1)
    for line in (left.axhline, left.axvline):
        line(0.0, color="0.75", linewidth=0.8, zorder=1)
    left.set(xlim=SHOWN, ylim=SHOWN, xlabel="energy above the hull, reference [eV/atom]", ylabel="predicted [eV/atom]")
    left.set_aspect("equal")
    left.legend(frameon=False, fontsize=8, title="stable or not", title_fontsize=8, loc="upper left")
    _draw_errors(right, true, np.abs(predicted - true))
    return figure


def _draw_errors(axes: Axes, true: np.ndarray, errors: np.ndarray) -> None:
    """Draw the mean error in a moving window; in the triangle it is larger than the distance to the hull."""
    places = np.linspace(*SHOWN, 101)
    inside = [np.abs(true - place) <= WINDOW / 2 for place in places]
    means = [float(errors[each].mean()) if each.any() else np.nan for each in inside]
    axes.fill_between(places, np.abs(places), 1e3, color="#e0862a", alpha=0.12, linewidth=0)
    axes.plot(places, means, color="#1f5fa8", linewidth=1.5)
    known = [each for each in means if not np.isnan(each)]
    axes.set(xlim=SHOWN, ylim=(0.0, 1.15 * max([0.1, *known])), xlabel="energy above the hull, reference [eV/atom]")
    axes.set_ylabel("mean absolute error [eV/atom]")
    axes.set_title("shaded: the error exceeds the distance to the hull", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)


def _number(value: float | None) -> float | None:
    return None if value is None or not np.isfinite(value) else float(value)


def _text(value: float | None, factor: float = 1.0) -> str:
    return "–" if value is None else f"{factor * value:.4g}"
