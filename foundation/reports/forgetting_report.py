"""Report of a fine-tuning: learning and forgetting in JSON, figures, a page and a table."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_pipeline.store import durable
from foundation.evaluation.comparison import Estimate, check_pair
from foundation.evaluation.held_out import AFTER, BEFORE, Measurement, save
from foundation.evaluation.quantities import QUANTITIES, notes
from foundation.reports.escape import Markdown, markdown
from foundation.reports.forgetting_figures import draw_figures
from foundation.reports.forgetting_record import Forgetting, SetChange, SuiteEnds, compare
from foundation.reports.page import render_page
from foundation.reports.suite_charts import draw_charts
from foundation.reports.suite_table import suite_rows

LABEL_ERRORS = ("energy_mae", "force_mae", "stress_mae")
"""Errors of the labels, none of which should grow on a target."""
NOTEWORTHY = 0.1
"""Growth of a retained error above which the page gives a remark."""
DIFFERENCE_DECIMALS = 2
"""Number of decimals of a difference of errors, in their shown unit."""
JSON_NAME, CURVE, ALPHA = "forgetting.json", "curve", "alpha-"
"""File of the numbers; folder of the measurements between start and result, and prefix of their names."""


def write_forgetting(
    folder: Path,
    before: Measurement,
    after: Measurement,
    curve: Mapping[float, Measurement],
    facts: dict[str, Any],
    suites: SuiteEnds | None = None,
) -> Forgetting:
    """Write the measurements, forgetting.json, the figures and index.html; return the content of the second.

    Args:
        folder: Folder to write.
        before: Measurement of the start.
        after: Measurement of the result.
        curve: Measurements of the interpolations between them, by alpha.
        facts: Facts of the fine-tuning, as JSON; `run` is the title of the page, which shows the numbers and texts
            among the others.
        suites: Findings of suites for start and result; None: no suites were run.

    Raises:
        ValueError: the measurements have different sets or frames.
    """
    check_pair(before, after, "the result")
    for alpha, measurement in curve.items():
        check_pair(before, measurement, f"the interpolation at {alpha:g}")
    folder.mkdir(parents=True, exist_ok=True)
    save(before, folder / BEFORE)
    save(after, folder / AFTER)
    shutil.rmtree(folder / CURVE, ignore_errors=True)
    for alpha, measurement in curve.items():
        save(measurement, curve_file(folder, alpha))
    found = compare(before, after, curve, facts, suites)
    durable.write_whole(folder / JSON_NAME, json.dumps(asdict(found), indent=1, allow_nan=False) + "\n")
    charts = draw_charts({"before": found.suites.before, "after": found.suites.after}, folder)
    figures = draw_figures(found, folder) | charts
    shown = {"values": found, "remarks": remarks(found), "charts": list(charts)}
    page = render_page("forgetting.html", figures=figures, **shown, **shown_by_page())
    durable.write_whole(folder / "index.html", page)
    return found


def curve_file(folder: Path, alpha: float) -> Path:
    """Return the file of the measurement at alpha in a report's folder."""
    return folder / CURVE / f"{ALPHA}{alpha:g}.safetensors"


def curve_files(folder: Path) -> dict[float, Path]:
    """Return the files of the measurements between start and result in a report's folder, sorted by alpha."""
    files = (folder / CURVE).glob(f"{ALPHA}*.safetensors")
    return dict(sorted((float(path.stem.removeprefix(ALPHA)), path) for path in files))


def remarks(forgetting: Forgetting) -> list[str]:
    """Return remarks on a fine-tuning that deserve attention."""
    found = []
    roles = {row.role for row in forgetting.sets.values()}
    if "target" not in roles:
        found.append("no held-out frames of the target were measured, so learning is unknown")
    if "retained" not in roles:
        found.append("no retained set was measured, so forgetting is unknown")
    for name, row in forgetting.sets.items():
        changes = {metric: value for metric, value in row.change.items() if is_error(metric)}
        if row.role == "retained":
            grown = {metric: value for metric, value in changes.items() if (value.low or 0.0) > NOTEWORTHY}
            shown = [f"{QUANTITIES[metric].name} {percent(value)}" for metric, value in grown.items()]
            found += [f"{name} (retained) became worse: {', '.join(shown)}"] if shown else []
        elif row.role == "target":
            shown = [f"{QUANTITIES[metric].name} {percent(value)}" for metric, value in worse_labels(row).items()]
            found += [f"{name} (target) is worse than before: {', '.join(shown)}"] if shown else []
            kept = [metric for metric, value in changes.items() if value.high is not None and value.high >= 0]
            shown = [QUANTITIES[metric].name for metric in kept]
            found += [f"{name} (target) is not significantly better than before: {', '.join(shown)}"] if shown else []
        if row.num_skipped:
            found.append(f"{name}: {row.num_skipped:,} frames left out, with elements unknown to the potential")
    return found


def worse_labels(row: SetChange) -> dict[str, Estimate]:
    """Return the changes of the mean absolute errors of labels that have grown in a set, by name.

    Their interval is above zero; in a set too small for an interval, the change itself.
    """
    changes = {metric: row.change[metric] for metric in LABEL_ERRORS if metric in row.change}
    return {metric: each for metric, each in changes.items() if is_worse(each)}


def is_worse(change: Estimate) -> bool:
    """Return whether an error has grown: its interval, or without one the change itself, is above zero."""
    least = change.value if change.low is None else change.low
    return least is not None and least > 0


def warnings(forgetting: Forgetting) -> list[str]:
    """Return a sentence on each target of which a label became worse than the start predicts it."""
    found = []
    for name, row in forgetting.sets.items():
        grown = worse_labels(row) if row.role == "target" else {}
        if grown:
            shown = ", ".join(f"{QUANTITIES[metric].name} {percent(value)}" for metric, value in grown.items())
            found.append(
                f"warning: on {name} the result is worse than the start: {shown}. Raise the weight of this label in "
                "the loss, lower --optim.learning_rate, or train for longer"
            )
    return found


def summary(forgetting: Forgetting) -> list[str]:
    """Return a line for each held-out set: main errors before and after, with the intervals of their changes."""
    lines = []
    for name, row in forgetting.sets.items():
        changes = [
            f"{each.name} {each.text(row.before[metric].value)} → {each.text(row.after[metric].value)} "
            f"{each.unit.name} ({percent(row.change[metric])})"
            for metric, each in QUANTITIES.items()
            if each.short and metric in row.before
        ]
        lines.append(f"{name} ({row.role}, {row.num_frames:,} frames): {', '.join(changes)}")
    return lines


def is_error(metric: str) -> bool:
    """Return whether a name in a file is a known error."""
    return metric in QUANTITIES and QUANTITIES[metric].is_error


def percent(change: Estimate) -> str:
    """Return a relative change in percent with its interval."""
    if change.value is None:
        return "–"
    low, high = change.low, change.high
    interval = "" if low is None or high is None else f" [{_signed(100 * low)}, {_signed(100 * high)}]"
    return f"{_signed(100 * change.value)} %{interval}"


def _signed(value: float) -> str:
    digits = 0 if abs(value) >= 9.95 else 1
    return _plus(value, digits)


def _plus(value: float, digits: int) -> str:
    # no minus sign for a number shown as zero
    return f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", "−")


def change_text(change: Estimate, metric: str) -> str:
    """Return the change of a quantity with its interval: in percent for an error, else the difference."""
    return percent(change) if is_error(metric) else difference_text(change, metric)


def difference_text(difference: Estimate, metric: str) -> str:
    """Return a difference of a quantity with its interval, in the quantity's unit."""
    factor, decimals = QUANTITIES[metric].unit.factor, QUANTITIES[metric].decimals
    digits = DIFFERENCE_DECIMALS if decimals is None else decimals
    parts = (difference.value, difference.low, difference.high)
    shown = [_plus(factor * part, digits) for part in parts if part is not None]
    return "–" if not shown else shown[0] if len(shown) < 3 else f"{shown[0]} [{shown[1]}, {shown[2]}]"


def shown_by_page() -> dict[str, Any]:
    """Return the functions with which a page formats numbers."""
    return {
        "quantities": QUANTITIES,
        "notes": notes,
        "percent": percent,
        "change_text": change_text,
        "difference_text": difference_text,
        "is_error": is_error,
        "is_worse": is_worse,
        "suite_rows": suite_rows,
    }


def table(forgetting: Forgetting) -> Markdown:
    """Return the table for a model card, in Markdown: errors before and after, and their changes with intervals."""
    headlines = [metric for metric, each in QUANTITIES.items() if each.headline]
    present = [metric for metric in headlines if any(metric in row.before for row in forgetting.sets.values())]
    lines = [
        "| held-out set | frames | " + " | ".join(QUANTITIES[metric].title for metric in present) + " |",
        "|" + "---|" * (2 + len(present)),
    ]
    for name, row in forgetting.sets.items():
        cells = []
        for metric in present:
            if metric not in row.before:
                cells.append("–")
                continue
            old, new = (QUANTITIES[metric].text(each[metric].value) for each in (row.before, row.after))
            ending = f" ({percent(row.change[metric])})" if is_error(metric) else ""
            cells.append(f"{old} → {new}{ending}")
        title = markdown(f"{name}, {row.role}")
        lines.append(f"| {title} | {row.num_frames:,} | " + " | ".join(cells) + " |")
    level = f"{forgetting.bootstrap.level:.0%}".replace("%", " %")
    lines += [
        "",
        f"Before → after the fine-tuning; in brackets the relative change and its {level} interval by a paired "
        f"bootstrap over frames ({forgetting.bootstrap.resamples:,} resamples).",
    ]
    return Markdown("\n".join(lines) + "\n")
