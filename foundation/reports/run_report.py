"""Report of training: figures and one HTML page from the logs of one or several runs.

It reads metrics.jsonl and needs neither data nor weights, so it can be drawn during a run.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from matplotlib.colors import Normalize

from data_pipeline.store import durable
from data_pipeline.store.untrusted import typed
from foundation.evaluation.quantities import QUANTITIES, followed
from foundation.provenance import RunRecord
from foundation.reports.curves import draw_figures
from foundation.reports.page import render_page
from foundation.reports.periodic_table import draw_periodic_table
from foundation.run_folder import RECORD, read_record
from foundation.training.fault_tolerance.reading import CHECKPOINTS, read_best
from foundation.training.monitoring.metrics_file import START, read_rows

AVERAGED = (
    "speed/atoms_per_second",
    "speed/edges_per_second",
    "speed/data_wait",
    "speed/budget_fill",
    "speed/imbalance_edges",
    "speed/imbalance_seconds",
    "speed/flop_utilization",
)
"""Metrics whose mean over the run is reported."""


NUMBERS = (
    ("frames seen", "last", "seen/frames", 1.0, ",.0f"),
    ("atoms seen", "last", "seen/atoms", 1.0, ",.0f"),
    ("edges seen", "last", "seen/edges", 1.0, ",.0f"),
    ("device-hours", "last", "run/device_hours", 1.0, ".3g"),
    ("steps skipped", "last", "train/skipped_steps", 1.0, ".0f"),
    ("rollbacks", "last", "train/rollbacks", 1.0, ".0f"),
    ("atoms/s, mean", "means", "speed/atoms_per_second", 1.0, ",.0f"),
    ("edges/s, mean", "means", "speed/edges_per_second", 1.0, ",.0f"),
    ("waiting for data, mean [%]", "means", "speed/data_wait", 100.0, ".1f"),
    ("budget filled, mean [%]", "means", "speed/budget_fill", 100.0, ".1f"),
    ("imbalance by edges, mean", "means", "speed/imbalance_edges", 1.0, ".3f"),
    ("imbalance by time, mean", "means", "speed/imbalance_seconds", 1.0, ".3f"),
    ("model FLOP utilisation, mean [%]", "means", "speed/flop_utilization", 100.0, ".1f"),
    ("peak memory of a process [GB]", "last", "speed/peak_memory", 1.0, ".2f"),
    ("training loss, last", "last", "train/loss", 1.0, ".4g"),
)
"""Rows of the table above those of errors: title, group of facts, name, factor, format."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """Log of a run."""

    name: str
    """Name in the report."""
    folder: Path
    """The run folder."""
    num_steps: int
    """Number of optimizer steps of the whole run, as configured."""
    starts: list[dict[str, Any]]
    """A row for every start of the run."""
    train: list[dict[str, Any]]
    """Rows of training, by step."""
    validation: list[dict[str, Any]]
    """Rows of validations, by step."""


def read_run(folder: Path) -> Run:
    """Return the log of a run.

    Raises:
        FileNotFoundError: the folder is not a run folder.
        ValueError: nothing has been logged yet, or run.json cannot be read.
    """
    if not (folder / "run.json").is_file():
        raise FileNotFoundError(f"{folder} has no run.json, so it is not a run folder; give the --out of a pretrain")
    record, rows = typed(RunRecord, read_record(folder), RECORD), read_rows(folder / "logs")
    assert record.fit.steps is not None  # read_record() has looked
    kinds = {kind: [row for row in rows if row["kind"] == kind] for kind in (START, "train", "validation")}
    if not kinds["train"]:
        raise ValueError(f"{folder} has not logged a step yet; the first comes after fit.log_every steps")
    return Run(
        name=folder.resolve().name,
        folder=folder,
        num_steps=record.fit.steps,
        starts=kinds[START],
        train=kinds["train"],
        validation=kinds["validation"],
    )


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """Facts of a run: progress, frames seen, cost, speed and latest errors."""

    name: str
    """Name in the report."""
    folder: str
    """The run folder."""
    step: int
    """Number of steps taken."""
    num_steps: int
    """Number of steps of the whole run."""
    processes: int | None
    """Number of processes of the last start."""
    device: str | None
    """Device of the last start."""
    num_resumes: int
    """Number of resumes from a checkpoint."""
    means: dict[str, float]
    """Means over the run by name of the metric."""
    last: dict[str, Any]
    """Last row of training by name of the metric."""
    validation: dict[str, Any]
    """Last validation by name of the metric."""
    by_element: dict[str, dict[str, float]]
    """Errors of the last validation by symbol of the element and name."""
    best: dict[str, Any] | None
    """Best checkpoint."""


def facts_of(run: Run) -> RunFacts:
    """Return the facts of a run."""
    last, begun = run.train[-1], run.starts[-1] if run.starts else {}
    means = {}
    for name in AVERAGED:
        values = [row[name] for row in run.train if row.get(name) is not None]
        if values:
            means[name] = sum(values) / len(values)
    validation = dict(run.validation[-1]) if run.validation else {}
    return RunFacts(
        name=run.name,
        folder=str(run.folder),
        step=last["step"],
        num_steps=run.num_steps,
        processes=begun.get("processes"),
        device=begun.get("device"),
        num_resumes=max(0, len(run.starts) - 1),
        means=means,
        last={name: value for name, value in last.items() if "/" in name},
        by_element=validation.pop("val/by_element", {}),
        validation=validation,
        best=read_best(run.folder / CHECKPOINTS),
    )


def remarks(facts: RunFacts) -> list[str]:
    """Return remarks on a run that deserve attention."""
    last, means, found = facts.last, facts.means, []
    if facts.step < facts.num_steps:
        found.append(f"only {facts.step:,} of {facts.num_steps:,} steps are done so far")
    if last.get("train/skipped_steps"):
        rollbacks = last.get("train/rollbacks") or 0
        found.append(
            f"{last['train/skipped_steps']:.0f} steps were skipped because their loss or gradient was unusable, and "
            f"the run was rolled back to a checkpoint {rollbacks:.0f} times"
        )
    if last.get("seen/quarantined_frames"):
        found.append(f"{last['seen/quarantined_frames']:,.0f} frames were left out because they could not be read")
    if means.get("speed/data_wait", 0.0) > 0.05:
        found.append(f"processes waited for data {means['speed/data_wait']:.0%} of the time: raise machine.num_workers")
    if means.get("speed/budget_fill", 1.0) < 0.9:
        found.append(
            f"micro-batches were filled to {means['speed/budget_fill']:.0%}: lower fit.lanes or raise the budget"
        )
    if means.get("speed/imbalance_seconds", 1.0) > 1.1:
        found.append(
            f"steps took {means['speed/imbalance_seconds']:.2f} times as long as with evenly loaded processes "
            f"({means.get('speed/imbalance_edges', 1.0):.2f} by their edges)"
        )
    return found


def write_run_report(folders: Sequence[Path], out: Path) -> list[RunFacts]:
    """Write index.html, training.json and the figures for one or several runs; return the content of the second.

    Raises:
        FileNotFoundError: a folder is not a run folder.
        ValueError: a run has logged nothing.
    """
    runs = [read_run(folder) for folder in folders]
    out.mkdir(parents=True, exist_ok=True)
    facts = [facts_of(run) for run in runs]
    durable.write_whole(out / "training.json", json.dumps([asdict(each) for each in facts], indent=1) + "\n")
    figures = draw_figures([(run.name, run.train, run.validation, run.starts) for run in runs], out)
    for number, values in enumerate(facts):
        factor = QUANTITIES["force_mae"].unit.factor
        forces = {s: factor * e["force_mae"] for s, e in values.by_element.items() if "force_mae" in e}
        if forces:
            name = f"elements-{number + 1}" if len(facts) > 1 else "elements"
            norm = Normalize(0.0, max(forces.values()))
            draw_periodic_table(forces, out / f"{name}.png", norm=norm, colors="Oranges", written="{:.3g}".format)
            figures[name] = out / f"{name}.png"
    page = render_page(
        "run_report.html",
        figures=figures,
        runs=facts,
        remarks=[remarks(values) for values in facts],
        table=summary_table(facts),
        quantities=QUANTITIES,
    )
    durable.write_whole(out / "index.html", page)
    return facts


def summary_table(facts: Sequence[RunFacts]) -> list[tuple[str, list[str]]]:
    """Return the table of one or several runs: row names, each with a cell per run."""
    rows = [
        ("steps", [f"{values.step:,} of {values.num_steps:,}" for values in facts]),
        ("processes", [f"{values.processes} on {values.device}" for values in facts]),
        ("times resumed", [f"{values.num_resumes}" for values in facts]),
    ]
    for title, group, name, factor, form in NUMBERS:
        numbers = [getattr(values, group).get(name) for values in facts]
        rows.append((title, ["–" if number is None else f"{factor * number:{form}}" for number in numbers]))
    for word, group, kind in (("training", "last", "train"), ("validation", "validation", "val")):
        for key in followed():
            each, numbers = QUANTITIES[key], [getattr(values, group).get(f"{kind}/{key}") for values in facts]
            rows.append((f"{word} {each.title}, last", [each.text(number, 4) for number in numbers]))
    best = [values.best for values in facts]
    return [*rows, ("best validation at step", ["–" if found is None else f"{found['step']:,}" for found in best])]
