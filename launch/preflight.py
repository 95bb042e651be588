"""Pre-flight: checks of a run, and estimates of its time, memory and cost, before any GPU hour.

Everything uses the run's own code: data through its plan, a step through its loss and optimizer in real processes, a
checkpoint through a real file. Nothing is written to the run folder. Values that cannot be measured here (on a login
node without a GPU) are marked as this machine's.
"""

import dataclasses
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from rich.table import Table
from rich.text import Text

from data_pipeline.building.build import BuildConfig, build
from data_pipeline.graphs.molecules import MoleculeCutoff
from data_pipeline.loading.datasets import Dataset
from data_pipeline.loading.plan import HEADROOM
from data_pipeline.loading.stream import Stream
from data_pipeline.sources import EmtAlloys
from data_pipeline.store.manifest import Provenance
from foundation.datasets import open_datasets, statistics_by_theory
from foundation.potential import new_potential
from foundation.training.fit_config import FitConfig
from foundation.training.machine import MachineConfig
from foundation.training.probe import Measured, OutOfMemory, Probe, measure, memory_of_device
from foundation.training.strategy import device_type
from launch import tables as tables
from launch.checks import (
    Batches,
    Check,
    check_batches,
    check_kernels,
    check_lanes,
    check_strategy,
    existing_parent,
    kinds_of,
    ladder_of,
    sample,
)
from launch.estimate import (
    Duration,
    Workload,
    check_disk,
    check_kinds,
    check_memory,
    check_reduce,
    check_time,
    check_workers,
    duration,
    memory_line,
    time_line,
)
from launch.planned_run import FinetunePreflightConfig, PlannedRun, PreflightConfig, planned

ELSEWHERE_EDGES = 20_000
"""Number of edges of the largest micro-batch measured on a CPU in place of the run's GPU."""
STAND_IN_FRAMES = 400
"""Number of frames in place of missing data."""
COLORS = {"ok": "green", "warn": "bold yellow", "fail": "bold red"}


@dataclass(kw_only=True)
class Report:
    """Lines of the report, and its numbers."""

    checks: list[Check] = field(default_factory=list)
    """Checks, in order."""
    numbers: dict[str, float] = field(default_factory=dict)
    """Findings by name; the unit is part of the description in the table."""

    def failed(self) -> bool:
        """Return whether the run would fail."""
        return any(check.verdict == "fail" for check in self.checks)

    def code(self, *, strict: bool) -> int:
        """Return the exit code: 2 if the run would fail, 1 after warnings with strict, else 0."""
        if self.failed():
            return 2
        return int(strict and any(check.verdict == "warn" for check in self.checks))


def preflight(config: PreflightConfig) -> int:
    """Check and estimate a run, print the report, and return the exit code: 0 good, 1 warnings with strict, 2 fails."""
    report = Report()
    with tempfile.TemporaryDirectory(prefix="foundation-") as folder:
        _examine(config, report, Path(folder))
    _print(config, report)
    code = report.code(strict=config.strict)
    if config.report is not None:
        config.report.parent.mkdir(parents=True, exist_ok=True)
        checks = [dataclasses.asdict(check) for check in report.checks]
        config.report.write_text(json.dumps({"exit_code": code, "checks": checks, "numbers": report.numbers}, indent=1))
    return code


def _examine(config: PreflightConfig, report: Report, folder: Path) -> None:
    """Fill the report, up to the first obstacle.

    Args:
        config: The run to examine.
        report: Report to fill.
        folder: Temporary folder for data.
    """
    run, checks = planned(config, folder)
    report.checks += checks[:1]
    if run is not None:
        report.checks += [
            check_lanes(run.fit, config.machine),
            check_strategy(config.machine, run.optim, run.rehearsal),
            _check_devices(config.machine),
        ]
    report.checks += checks[1:]
    if run is None or (run.datasets and run.potential is None):
        return
    batches = _plan(run, report) if run.datasets else None
    if batches is None:
        _without_data(run, report, folder)
        return
    rehearsed = _rehearsed(run, report)
    work = Workload(
        mean_edges=float(batches.edges.mean()),
        largest=max(batches.largest, rehearsed),
        unevenness=batches.unevenness(config.machine.world_size),
        validation_edges=_validation_edges(run),
        work=1.0 if run.rehearsal is None else run.rehearsal.work,
        relabelled=_relabelled(run),
    )
    report.numbers |= {"edges_per_step": float(batches.edges.sum(axis=1).mean())}
    report.numbers |= {"structures_per_step": float(batches.graphs.sum(axis=1).mean())}
    limit = batches.largest if _is_here(config.machine) else min(batches.largest, ELSEWHERE_EDGES)
    _estimate(run, work, _measured(run, batches, limit, report), report)


def _rehearsed(run: PlannedRun, report: Report) -> int:
    """Return the number of edges of the largest micro-batch of rehearsal, which fills the same lanes; 0 without one."""
    if run.rehearsal is None:
        return 0
    ratio, fit = run.rehearsal.ratio, run.fit
    try:
        stream = Stream(
            run.rehearsal.datasets,
            cutoff=run.cutoff,
            lanes=fit.lanes,
            edge_budget=max(1, round(ratio * fit.edge_budget)),
            atom_budget=None if fit.atom_budget is None else max(1, round(ratio * fit.atom_budget)),
            seed=fit.seed,
            oversize=fit.oversize,
        )
    except ValueError as error:
        report.checks.append(Check(name="rehearsal", verdict="fail", finding=str(error)))
        return 0
    batches = sample(stream)
    finding = (
        f"{batches.graphs.sum(axis=1).mean():,.0f} structures and {batches.edges.sum(axis=1).mean():,.0f} edges a "
    )
    finding += f"step, {run.rehearsal.mode}; the largest micro-batch has {batches.largest:,} edges"
    report.checks.append(Check(name="rehearsal", verdict="ok", finding=finding))
    return batches.largest


def _relabelled(run: PlannedRun) -> float:
    """Return the mean number of edges of a step that the start labels, over that of a step on the run's own data."""
    if run.rehearsal is None or run.rehearsal.relabel is None:
        return 0.0
    return run.rehearsal.ratio * (1.0 if run.rehearsal.mode == "joint" else 0.5)


def _without_data(run: PlannedRun, report: Report, folder: Path) -> None:
    """Add estimates without the data, measured on a small set of alloys in their place."""
    if isinstance(run.config, FinetunePreflightConfig):  # its start might not know these metals
        return
    if isinstance(run.cutoff, MoleculeCutoff):
        finding = "a network of molecules can be measured on its own data only; check again when they are there"
        report.checks.append(Check(name="without data", verdict="warn", finding=finding))
        return
    fit = run.fit
    edges = HEADROOM * fit.lanes * fit.edge_budget
    report.numbers |= {"steps": fit.steps, "edges_per_step": edges}
    finding = (
        f"{fit.steps:,} steps of {edges:,.0f} edges if micro-batches are as full as usual. What follows is measured "
    )
    finding += "on alloys of seven metals in place of the data; its elements and validation are not counted"
    report.checks.append(Check(name="without data", verdict="warn", finding=finding))
    budget = min(fit.edge_budget, ELSEWHERE_EDGES)
    provenance = Provenance(**{item.name: "stand-in" for item in dataclasses.fields(Provenance)})
    source = EmtAlloys(num_frames=STAND_IN_FRAMES)
    built = build(BuildConfig(source=source, provenance=provenance, out=folder / "stand-in", cutoffs=(run.cutoff,)))
    datasets, theories = open_datasets(built.root)
    stream = Stream(datasets, cutoff=run.cutoff, lanes=1, edge_budget=budget, oversize="alone")
    potential = new_potential(run.config.model, statistics_by_theory(datasets, theories))
    measured = _measured(
        dataclasses.replace(run, datasets=datasets, potential=potential), sample(stream), budget, report
    )
    work = Workload(mean_edges=HEADROOM * fit.edge_budget, largest=fit.edge_budget, unevenness=1.0, validation_edges=0)
    _estimate(run, work, measured, report)


def _check_devices(machine: MachineConfig) -> Check:
    """Check that the devices of a node are here."""
    if _is_here(machine):
        kind = device_type(machine.accelerator)
        name = torch.cuda.get_device_name(0) if kind == "cuda" else "CPU"
        found = torch.cuda.device_count() if kind == "cuda" else machine.devices
        if found >= machine.devices:
            return Check(name="devices", verdict="ok", finding=f"{machine.devices} on this node: {name}")
        return Check(
            name="devices",
            verdict="warn",
            finding=f"{found} x {name} here, the run needs {machine.devices}",
            advice="fine on a login node; a node of the run needs as many",
        )
    return Check(
        name="devices",
        verdict="warn",
        finding=f"no GPU here, the run needs {machine.devices}: memory and time below are those of this CPU",
        advice="run preflight on a compute node too, or give --edges_per_second and --memory of its devices",
    )


def _is_here(machine: MachineConfig) -> bool:
    """Return whether this machine has the run's kind of device."""
    return machine.accelerator in ("auto", "cpu") or device_type(machine.accelerator) == "cuda"


def _plan(run: PlannedRun, report: Report) -> Batches | None:
    """Return micro-batches of the run's plan; with too large structures, of one in which these are alone."""
    fit, batches = run.fit, None
    for oversize in dict.fromkeys((fit.oversize, "alone")):
        try:
            stream = Stream(
                run.datasets,
                cutoff=run.cutoff,
                lanes=fit.lanes,
                edge_budget=fit.edge_budget,
                atom_budget=fit.atom_budget,
                seed=fit.seed,
                oversize=oversize,
            )
        except ValueError as error:
            report.checks.append(Check(name="edge budget", verdict="fail", finding=str(error)))
            continue
        batches = sample(stream)
        checks = check_batches(fit, run.config.machine.world_size, stream.plan, batches)
        report.checks += checks if oversize == fit.oversize else checks[1:]
        number, place = stream.plan.locate(fit.steps)
        passes = number + place / stream.plan.steps_of_pass(number)
        report.checks.append(_check_length(fit, run.datasets, passes, report))
        break
    return batches


def _check_length(fit: FitConfig, datasets: Sequence[Dataset], passes: float, report: Report) -> Check:
    """Return the number of passes and frames of the steps."""
    sums = [(d.repeat, d.manifest.split(d.split).statistics) for d in datasets]
    frames = passes * sum(repeat * statistics.num_frames for repeat, statistics in sums)
    atoms = passes * sum(repeat * statistics.num_atoms for repeat, statistics in sums)
    report.numbers |= {"steps": fit.steps, "passes": passes, "frames": frames, "atoms": atoms}
    return Check(
        name="length",
        verdict="ok",
        finding=f"{fit.steps:,} steps, {passes:,.2f} passes over the data, {frames:,.4g} frames and {atoms:,.4g} atoms",
    )


def _measured(run: PlannedRun, batches: Batches, largest: int, report: Report) -> list[Measured]:
    """Return the measurements of a node's processes, up to `largest` edges; [] if they failed."""
    machine, count = run.config.machine, _processes(run.config.machine)
    kinds, ladder = kinds_of(batches, run.datasets), ladder_of(batches, largest)
    assert run.potential is not None
    if device_type(machine.accelerator) == "cuda" and torch.cuda.is_available():
        verdict = check_kernels(run.potential, torch.cuda.current_device())
        report.checks += [verdict] if verdict is not None else []
    probe = Probe(
        potential=run.potential,
        datasets=run.datasets,
        fit=dataclasses.replace(run.fit, lanes=count),
        machine=dataclasses.replace(machine, devices=count, num_nodes=1),
        loss=run.loss,
        optim=run.optim,
        ladder=ladder,
        kinds={name: batches.cut(frames, largest) for name, frames in kinds.items()},
        # a line needs two sizes, also where every micro-batch of the run is one structure
        beyond=np.concatenate([ladder[0], ladder[0]]) if len(ladder) == 1 else None,
        folder=existing_parent(run.config.out),
    )
    try:
        measured = measure(probe)
    except (ValueError, OSError) as error:
        advice = "lower edge_budget" if isinstance(error, OutOfMemory) else ""
        report.checks.append(Check(name="forward and backward", verdict="fail", finding=str(error), advice=advice))
        return []
    report.checks.append(check_kinds(measured))
    return measured if all(any(not trial.trouble for trial in one.ladder) for one in measured) else []


def _processes(machine: MachineConfig) -> int:
    """Return the number of processes of a node that can run here."""
    kind = device_type(machine.accelerator)
    available = torch.cuda.device_count() if kind == "cuda" else (os.cpu_count() or 1) if _is_here(machine) else 1
    return machine.devices if machine.devices <= available else 1


def _estimate(run: PlannedRun, work: Workload, measured: Sequence[Measured], report: Report) -> None:
    """Add the estimates that follow from measurements, if there are any."""
    if not measured:
        return
    config, fit, machine, first = run.config, run.fit, run.config.machine, measured[0]
    here, kind = _is_here(machine), device_type(machine.accelerator)
    share = machine.devices if kind == "cpu" and here else 1
    limit = config.memory * 2**30 if config.memory else memory_of_device(kind) / share
    memory = max((memory_line(one) for one in measured), key=lambda line: line(work.largest))
    took = duration(fit, machine, measured, work, config.edges_per_second)
    model = f"{first.num_parameters:,} parameters; convolution: {first.convolution}"
    report.checks += [
        Check(name="model", verdict="ok", finding=model),
        check_memory(memory, work.largest, fit, limit, here=here),
        check_reduce(machine, measured),
        check_workers(machine, measured, config.edges_per_second),
        check_disk(fit, existing_parent(config.out), first, config.free_disk and config.free_disk * 1e9),
        _check_speed(run, took, measured),
    ]
    report.numbers |= {
        "parameters": first.num_parameters,
        "memory_per_edge": memory.slope,
        "checkpoint_bytes": first.checkpoint_bytes,
        "seconds_per_step": took.step,
        "reduce_seconds": took.reduce,
    }
    _price(config, took.total, report)


def _check_speed(run: PlannedRun, took: Duration, measured: Sequence[Measured]) -> Check:
    """Return the times of steps, validations and checkpoints."""
    config, fit = run.config, run.fit
    here, seconds = _is_here(config.machine), time_line(measured[0])
    how = f"{seconds.fixed * 1e3:.1f} ms per micro-batch plus {seconds.slope * 1e6:.3g} µs per edge"
    if config.edges_per_second:
        how = f"from --edges_per_second {config.edges_per_second:,.0f}, not measured"
    elif not here:
        how += ", on this machine's CPU"
    validations = fit.steps // fit.validate_every
    finding = f"{took.step:.3g} s per step ({how}): {took.steps / 3600:,.2f} h; {validations} validations "
    finding += f"{took.validations / 3600:,.2f} h, checkpoints {took.checkpoints / 3600:,.2f} h"
    trusted = here or config.edges_per_second is not None
    return Check(name="time", verdict="ok" if trusted else "warn", finding=finding)


def _price(config: PreflightConfig, seconds: float, report: Report) -> None:
    """Add hours, device-hours, cost, and the number of jobs within a time limit."""
    world_size, hours = config.machine.world_size, seconds / 3600
    report.numbers |= {"hours": hours, "device_hours": world_size * hours}
    finding = f"{hours:,.2f} h on {world_size} devices: {world_size * hours:,.2f} device-hours"
    if config.price is not None:
        report.numbers["cost"] = config.price * world_size * hours
        finding += f", {config.price * world_size * hours:,.2f} at {config.price:g} per hour"
    report.checks.append(Check(name="cost", verdict="ok", finding=finding))
    report.checks.append(check_time(hours, config.time_limit))


def _validation_edges(run: PlannedRun) -> int:
    """Return the number of edges of all validation frames."""
    splits = [(each.manifest, "val") for each in run.datasets if each.manifest.split("val").shards]
    total = 0
    for manifest, split in [*splits, *((each.manifest, each.split) for each in run.watched)]:
        number = manifest.split(split).statistics.cutoff_number(run.cutoff)
        total += int(manifest.index(split).blocks.cost[:, number].sum())
    return total


def _print(config: PreflightConfig, report: Report) -> None:
    """Print the table and the conclusion."""
    table = Table(title=f"Pre-flight of {config.out}", title_justify="left", show_lines=True)
    table.add_column("check", no_wrap=True)
    table.add_column("")
    table.add_column("finding and advice", overflow="fold")
    for check in report.checks:
        text = Text(check.finding)
        if check.advice:
            text.append(f"\n→ {check.advice}", style="italic")
        table.add_row(check.name, Text(check.verdict, style=COLORS[check.verdict]), text)
    tables.console.print(table)
    verdicts = [check.verdict for check in report.checks]
    ok, warn, fail = (verdicts.count(verdict) for verdict in ("ok", "warn", "fail"))
    conclusion = "the run would fail" if report.failed() else "ready, with warnings" if warn else "ready"
    tables.console.print(f"{conclusion}: {ok} ok, {warn} warn, {fail} fail")
