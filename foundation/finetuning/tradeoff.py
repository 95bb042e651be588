"""Trade-off of fine-tuning methods over the runs of a sweep: learning against forgetting.

It reads the measurements in the forgetting/ folders of finished runs and needs neither data nor weights. Runs that
differ only in fit.seed are one method. Every resample of the bootstrap draws frames, the same for all runs, and seeds;
three seeds give a rough idea of their spread, one gives none.
"""

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations, permutations
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import Any

from data_pipeline.store import durable
from data_pipeline.store.untrusted import typed
from foundation.configuration import changes
from foundation.evaluation.comparison import (
    RESAMPLING,
    Bootstrap,
    Statistic,
    bootstrap,
    change,
    check_pair,
    difference,
    estimates,
    mean_over_seeds,
)
from foundation.evaluation.held_out import AFTER, BEFORE, Measurement, Role, read
from foundation.evaluation.quantities import QUANTITIES
from foundation.finetuning.physics import START, contradictions, physics_axes
from foundation.provenance import RunRecord
from foundation.reports.escape import markdown
from foundation.reports.forgetting_record import Forgetting, SuiteEnds
from foundation.reports.forgetting_report import JSON_NAME as FORGETTING_JSON
from foundation.reports.forgetting_report import curve_files, percent, shown_by_page
from foundation.reports.page import render_page
from foundation.reports.tradeoff_figures import PHYSICS, draw_planes, label_of, planes
from foundation.reports.tradeoff_record import (
    ComparedSet,
    Difference,
    Method,
    MethodPoint,
    RangedPoint,
    StartErrors,
    Tradeoff,
)
from foundation.run_folder import read_record
from foundation.training.monitoring.metrics_file import read_rows

FOLDER = "forgetting"
"""Folder of the report in a run folder."""
IGNORED_WHEN_GROUPING = (("fit", "seed"), ("fit", "resume"), ("out",), ("overwrite",), ("sweep",), ("card",))
"""Settings in run.json in which runs of one method may differ."""
SEED_SUFFIX = re.compile(r"[-_/]?seed[-_]?\d+$")
JSON_NAME, TABLE_NAME = "tradeoff.json", "table.md"


@dataclass(frozen=True, kw_only=True)
class TradeoffConfig:
    """Finished fine-tunings to compare."""

    runs: tuple[Path, ...]
    """Run folders, all from the same start and measured on the same sets. Those that differ only in fit.seed are one
    method, named after its folder without -seedN. Also without the option: `foundation tradeoff FOLDER... --out
    PAGE`."""
    out: Path
    """Folder of the page."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TunedRun:
    """A finished fine-tuning."""

    folder: Path
    """The run folder."""
    settings: dict[str, Any]
    """Its configuration without settings in which runs of one method may differ."""
    seed: int
    """Its seed."""
    steps: int | None
    """Its number of optimizer steps."""
    before: Measurement
    """Measurement of the start."""
    points: dict[float, Measurement]
    """Measurements of the interpolations by alpha, and of the result at 1."""
    seconds_per_step: float | None
    """Median time of a step without validations [s]; None if none was logged."""
    suites: SuiteEnds
    """Findings of suites for the start and for the result; empty without suites."""

    @property
    def method(self) -> str:
        """Name of the folder without the seed, or of the parent of a folder named by a seed."""
        path = self.folder.resolve()
        return SEED_SUFFIX.sub("", path.name) or path.parent.name


def read_tuned_run(folder: Path) -> TunedRun:
    """Return the measurements of a finished fine-tuning.

    Raises:
        FileNotFoundError: it is not a run folder, or its measurements are missing.
        ValueError: a file cannot be read.
    """
    if not (folder / "run.json").is_file():
        raise FileNotFoundError(f"{folder} has no run.json, so it is not a run folder; give the --out of a fine-tuning")
    settings = read_record(folder)
    fit = typed(RunRecord, settings, "run.json").fit
    for *groups, name in IGNORED_WHEN_GROUPING:
        group = settings
        for each in groups:
            group = group.get(each, {})
        group.pop(name, None)
    settings.get("forgetting", {}).pop("before", None)
    measured = folder / FOLDER
    report = measured / FORGETTING_JSON
    return TunedRun(
        folder=folder,
        settings=settings,
        seed=fit.seed,
        steps=fit.steps,
        before=read(measured / BEFORE),
        points={alpha: read(path) for alpha, path in curve_files(measured).items()} | {1.0: read(measured / AFTER)},
        seconds_per_step=seconds_per_step(read_rows(folder / "logs")),
        suites=Forgetting.from_json(report).suites if report.is_file() else SuiteEnds(),
    )


def seconds_per_step(rows: Sequence[dict[str, Any]]) -> float | None:
    """Return the median time of a step in the rows of a metrics.jsonl [s]; None if none was logged.

    The time of the steps between two rows is their atoms over the logged atoms per second. The median ignores times
    when a run was suspended or shared its machine.
    """
    times: list[float] = []
    step, atoms = 0, 0.0
    for row in rows:
        if row["kind"] == "train" and row.get("speed/atoms_per_second"):
            seconds = (row["seen/atoms"] - atoms) / row["speed/atoms_per_second"]
            times.append(seconds / (row["step"] - step))
            step, atoms = row["step"], row["seen/atoms"]
    return median(times) if times else None


def group_runs(runs: Sequence[TunedRun]) -> dict[str, list[TunedRun]]:
    """Return the runs of each method by its name, in order of their seeds.

    Raises:
        ValueError: runs of one name differ in more than the seed, or two runs are identical.
    """
    groups: dict[str, list[TunedRun]] = {}
    for run in runs:
        groups.setdefault(json.dumps(run.settings, sort_keys=True), []).append(run)
    methods: dict[str, list[TunedRun]] = {}
    for group in groups.values():
        name = group[0].method
        if name in methods:
            other = methods[name][0]
            differ = ", ".join(changes(other.settings, group[0].settings))
            raise ValueError(
                f"{other.folder} and {group[0].folder} are both named {name!r} but differ in {differ}: name the "
                "folder of each method differently"
            )
        methods[name] = sorted(group, key=lambda run: run.seed)
        for first, second in combinations(methods[name], 2):
            if first.seed == second.seed:
                raise ValueError(f"{first.folder} and {second.folder} are the same run: give only one of them")
    return methods


@dataclass(frozen=True, kw_only=True, eq=False)
class Point:
    """A method, or an interpolation between the start and its result, as means over its seeds."""

    method: str
    """Name of the method."""
    alpha: float
    """Position between start and result; 1 is the result."""
    errors: dict[str, Bootstrap]
    """Errors by set."""
    changes: dict[str, Bootstrap]
    """Changes against the start by set."""
    of_seeds: dict[str, list[Bootstrap]]
    """Errors of each seed by set."""

    @property
    def label(self) -> str:
        """Name of the method, with alpha if it is not the result."""
        return label_of(self.method, self.alpha)


def _points(methods: dict[str, list[TunedRun]], start: dict[str, Bootstrap]) -> list[Point]:
    points = []
    for name, runs in methods.items():
        for alpha in (alpha for alpha in runs[0].points if all(alpha in run.points for run in runs)):
            measured = [run.points[alpha].sets for run in runs]
            of_seeds = {key: [bootstrap(sets[key].errors, elements=False) for sets in measured] for key in start}
            changes = {key: [change(start[key], found) for found in each] for key, each in of_seeds.items()}
            points.append(
                Point(
                    method=name,
                    alpha=alpha,
                    errors={key: _means(each) for key, each in of_seeds.items()},
                    changes={key: _means(each) for key, each in changes.items()},
                    of_seeds=of_seeds,
                )
            )
    return points


def _means(of_seeds: Sequence[Bootstrap]) -> Bootstrap:
    common = [name for name in of_seeds[0] if all(name in found for found in of_seeds)]
    return {name: mean_over_seeds([found[name] for found in of_seeds]) for name in common}


@dataclass(frozen=True, kw_only=True)
class Axes:
    """Axes of the comparison of methods."""

    metric: str
    """Name of the error: force_mae, or energy_mae if a set has no forces."""
    retained: tuple[str, ...]
    """Sets whose change of the error is the forgetting."""
    target: tuple[str, ...]
    """Sets whose error should be small."""

    def of(self, point: Point) -> list[Statistic]:
        """Return the numbers of a point to be minimised."""
        forgetting = [point.changes[name][self.metric] for name in self.retained]
        return forgetting + [point.errors[name][self.metric] for name in self.target]

    def better(self, points: Sequence[Point], start: dict[str, Bootstrap]) -> set[tuple[str, str]]:
        """Return pairs of results, or of a result and START, of which the first has smaller errors on all targets."""
        errors = {START: start} | {point.method: point.errors for point in points if point.alpha == 1.0}
        numbers = {name: [found[key][self.metric] for key in self.target] for name, found in errors.items()}
        return {pair for pair in permutations(numbers, 2) if dominates(*(numbers[name] for name in pair))}


def dominates(first: Sequence[Statistic], second: Sequence[Statistic]) -> bool:
    """Return whether all numbers of the first are below those of the second, with the intervals of the differences."""
    intervals = [difference(b, a).interval for a, b in zip(first, second, strict=True)]
    return all(interval is not None and interval[1] < 0 for interval in intervals)


def write_tradeoff(
    runs: Sequence[Path], out: Path, judged: Mapping[Path, SuiteEnds] = MappingProxyType({})
) -> Tradeoff:
    """Write tradeoff.json, planes, index.html and table.md for the runs of a sweep; return the content of the first.

    Args:
        runs: Run folders.
        out: Folder of the page.
        judged: Findings of suites that were not run by the fine-tunings themselves, by run folder.

    Raises:
        FileNotFoundError: a folder is not that of a finished fine-tuning.
        ValueError: runs of different starts or sets, no target or no retained set, or group_runs() refuses.
    """
    tuned = [read_tuned_run(Path(folder)) for folder in runs]
    tuned = [dataclasses.replace(run, suites=judged.get(run.folder, run.suites)) for run in tuned]
    if not tuned:
        raise ValueError("no runs to compare: give at least one finished fine-tuning")
    for run in tuned:
        _check_start(tuned[0], run)
        for alpha, measurement in run.points.items():
            check_pair(run.before, measurement, f"{run.folder} at alpha {alpha:g}")
    found = compare_methods(group_runs(tuned), tuned[0].before)
    out.mkdir(parents=True, exist_ok=True)
    durable.write_whole(out / JSON_NAME, json.dumps(asdict(found), indent=1, allow_nan=False) + "\n")
    durable.write_whole(out / TABLE_NAME, table(found))
    figures = draw_planes(found, out)
    page = render_page(
        "tradeoff.html",
        values=found,
        figures=figures,
        planes=planes(found),
        physics=PHYSICS,
        label_of=label_of,
        shown_metrics=shown_metrics,
        **shown_by_page(),
    )
    durable.write_whole(out / "index.html", page)
    return found


def shown_metrics(role: Role) -> tuple[str, ...]:
    """Return the quantities in the table of all methods for a set, by its role.

    Retained sets include the median energy error, which outliers do not affect; targets include quantities that are not
    errors.
    """
    main = ("force_mae", "energy_mae")
    others = tuple(key for key, each in QUANTITIES.items() if each.headline and not each.is_error)
    return main + {"retained": (QUANTITIES["energy_mae"].median,), "target": others, "transfer": ()}[role]


def table(tradeoff: Tradeoff) -> str:
    """Return the table of all methods for a model card, in Markdown, with errors and changes."""
    errors = tradeoff.start.errors
    columns: list[tuple[str, Role, str]] = [
        (name, row.role, metric)
        for name, row in tradeoff.sets.items()
        for metric in shown_metrics(row.role)
        # other sets show energies only if they have no forces: a card is narrower than the page
        if metric in errors[name]
        and (row.role == "retained" or metric != "energy_mae" or "force_mae" not in errors[name])
    ]
    titles = [f"{markdown(name)}: {QUANTITIES[metric].title}" for name, _, metric in columns]
    start = [QUANTITIES[metric].text(errors[name][metric].value) for name, _, metric in columns]
    rows = [["method", "seeds", "steps", "s/step", *titles], ["---"] * (4 + len(columns)), ["start", *[""] * 3, *start]]
    for method in tradeoff.methods:
        for point in reversed(method.points):
            label = markdown(label_of(method.name, point.alpha)) + ("" if point.dominated_by else " ●")
            run = ["", "", ""]
            if point.alpha == 1:
                time = "–" if method.seconds_per_step is None else f"{method.seconds_per_step:.3g}"
                run = [str(len(method.seeds)), str(method.steps or "–"), time]
            rows.append([label, *run, *(_cell(point.sets[name], role, metric) for name, role, metric in columns)])
    level = f"{100 * tradeoff.bootstrap.level:.0f} %"
    lines = [" | ".join(row) for row in rows]
    return "".join(f"| {line} |\n" for line in lines) + (
        f"\nMeans over seeds. For retained sets, the change against the start with its {level} interval over seeds and "
        "frames. ●: not dominated by another method.\n"
    )


def _cell(row: RangedPoint, role: Role, metric: str) -> str:
    return percent(row.change[metric]) if role == "retained" else QUANTITIES[metric].text(row.errors[metric].value)


def _check_start(first: TunedRun, run: TunedRun) -> None:
    check_pair(first.before, run.before, f"{run.folder} and {first.folder}")
    ours, theirs = first.before.weights_sha256, run.before.weights_sha256
    if ours != theirs:
        raise ValueError(
            f"{run.folder} started from the weights {theirs[:12]}… and {first.folder} from {ours[:12]}…: methods are "
            "compared from one start"
        )


def compare_methods(methods: dict[str, list[TunedRun]], before: Measurement) -> Tradeoff:
    """Return errors and changes of methods as means over seeds, with the dominated points.

    Raises:
        ValueError: no target or no retained set.
    """
    target, retained = (_sets_of(before, role) for role in ("target", "retained"))
    start = {name: bootstrap(errors.errors, elements=False) for name, errors in before.sets.items()}
    has_forces = all("force_mae" in start[name] for name in (*retained, *target))
    axes = Axes(metric="force_mae" if has_forces else "energy_mae", retained=retained, target=target)
    points = _points(methods, start)
    numbers = [axes.of(point) for point in points]
    dominated_by = {
        point.label: tuple(
            other.label for other, theirs in zip(points, numbers, strict=True) if dominates(theirs, ours)
        )
        for point, ours in zip(points, numbers, strict=True)
    }
    physics = physics_axes({name: [run.suites for run in runs] for name, runs in methods.items()})
    return Tradeoff(
        bootstrap=RESAMPLING,
        metric=axes.metric,
        sets={
            name: ComparedSet(
                role=errors.role,
                split=errors.split,
                manifest_fingerprint=errors.fingerprint,
                num_frames=len(errors.errors.ids),
            )
            for name, errors in before.sets.items()
        },
        start=StartErrors(
            weights_sha256=before.weights_sha256, errors={name: estimates(row) for name, row in start.items()}
        ),
        methods=tuple(_method(name, runs, points, dominated_by) for name, runs in methods.items()),
        non_dominated=tuple(label for label, others in dominated_by.items() if not others),
        differences=tuple(_differences(axes, points)),
        physics=physics,
        contradictions=contradictions(physics, axes.better(points, start)),
    )


def _sets_of(measurement: Measurement, role: Role) -> tuple[str, ...]:
    """Return the names of the sets with a role; at least one is required."""
    names = tuple(name for name, errors in measurement.sets.items() if errors.role == role)
    if not names:
        raise ValueError(f"the runs measured no {role} set, which a trade-off needs; name one in forgetting.{role}")
    return names


def _method(
    name: str, runs: Sequence[TunedRun], points: Sequence[Point], dominated_by: dict[str, tuple[str, ...]]
) -> Method:
    times = [run.seconds_per_step for run in runs if run.seconds_per_step is not None]
    return Method(
        name=name,
        seeds=tuple(run.seed for run in runs),
        runs=tuple(str(run.folder) for run in runs),
        steps=runs[0].steps,
        seconds_per_step=median(times) if times else None,
        points=tuple(
            MethodPoint(alpha=point.alpha, dominated_by=dominated_by[point.label], sets=_ranged(point))
            for point in points
            if point.method == name
        ),
    )


def _ranged(point: Point) -> dict[str, RangedPoint]:
    return {
        name: RangedPoint(
            errors=estimates(errors),
            change=estimates(point.changes[name]),
            range={metric: _range([each[metric].value for each in point.of_seeds[name]]) for metric in errors},
        )
        for name, errors in point.errors.items()
    }


def _range(numbers: Sequence[float]) -> tuple[float, float] | None:
    """Return the smallest and largest of the seeds, None if one of them is NaN."""
    return (min(numbers), max(numbers)) if all(map(math.isfinite, numbers)) else None


def _differences(axes: Axes, points: Sequence[Point]) -> list[Difference]:
    """Return for each two methods how much more the second forgets, and how much larger its target error is."""
    results = [point for point in points if point.alpha == 1.0]
    return [
        Difference(
            first=first.method,
            second=second.method,
            forgetting={
                name: difference(first.changes[name][axes.metric], second.changes[name][axes.metric]).estimate
                for name in axes.retained
            },
            target={
                name: difference(first.errors[name][axes.metric], second.errors[name][axes.metric]).estimate
                for name in axes.target
            },
        )
        for first, second in combinations(results, 2)
    ]


def tradeoff(config: TradeoffConfig) -> Tradeoff:
    """Compare the runs of a configuration; see write_tradeoff()."""
    return write_tradeoff(config.runs, config.out)
