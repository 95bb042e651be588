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

import torch
from rich.table import Table
from rich.text import Text

from data_pipeline.building.build import BuildConfig, build
from data_pipeline.loading.datasets import Dataset
from data_pipeline.loading.plan import HEADROOM
from data_pipeline.loading.stream import Stream
from data_pipeline.sources import EmtAlloys
from data_pipeline.store.manifest import Provenance
from foundation.datasets import open_datasets, refuse_unlabelled
from foundation.pretrain import PretrainConfig
from foundation.training.fit_config import FitConfig, with_defaults
from foundation.training.lengths import sized
from foundation.training.loss import refuse_idle_terms
from foundation.training.machine import MachineConfig
from foundation.training.probe import Measured, OutOfMemory, Probe, measure, memory_of_device
from foundation.training.strategy import device_type
from launch import tables as tables
from launch.checks import (
    Batches,
    Check,
    check_batches,
    check_cutoff,
    check_files,
    check_folder,
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
    lines,
)
from launch.slurm import seconds_of

ELSEWHERE_EDGES = 20_000
"""Number of edges of the largest micro-batch measured on a CPU in place of the run's GPU."""
STAND_IN_FRAMES = 400
"""Number of frames in place of missing data."""
COLORS = {"ok": "green", "warn": "bold yellow", "fail": "bold red"}


@dataclass(frozen=True, kw_only=True)
class PreflightConfig(PretrainConfig):
    """A pretraining run to check and estimate instead of starting it.

    Fine-tunings cannot be estimated yet: `foundation finetune` with --fit.steps 1 and another --out shows if one runs.
    """

    verify: bool = False
    """Compare every file of the data with its checksum, instead of a sample of blocks."""
    memory: float | None = None
    """Memory of one device [GiB]; None: this machine's (each process's share of the CPU memory)."""
    free_disk: float | None = None
    """Disk space for the run [GB], such as the rest of a quota; None: the free space."""
    edges_per_second: float | None = None
    """Speed of one device in training [edges/s], for example from a log; None: measured here."""
    price: float | None = None
    """Price of one device for an hour, in any currency."""
    time_limit: str | None = None
    """Time limit of a job in sbatch's format, such as 24:00:00 or 2-00:00:00."""
    report: Path | None = None
    """JSON file for the report, or None."""
    strict: bool = False
    """End with exit code 1 after warnings."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("memory", "free_disk", "edges_per_second", "price"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be positive, not {value}")
        if self.time_limit is not None:
            seconds_of(self.time_limit)

    @property
    def lengths(self) -> FitConfig:
        """Section fit once every length is known."""
        assert isinstance(self.fit, FitConfig), "before _sized()"
        return self.fit


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
    _examine(config, report)
    _print(config, report)
    code = report.code(strict=config.strict)
    if config.report is not None:
        config.report.parent.mkdir(parents=True, exist_ok=True)
        checks = [dataclasses.asdict(check) for check in report.checks]
        config.report.write_text(json.dumps({"exit_code": code, "checks": checks, "numbers": report.numbers}, indent=1))
    return code


def _examine(config: PreflightConfig, report: Report) -> None:
    """Fill the report, up to the first obstacle."""
    of_data = Report()
    datasets = _open(config, of_data)
    config = _sized(config, datasets, of_data)
    report.checks += [
        check_folder(config),
        check_lanes(config.lengths, config.machine),
        check_strategy(config),
        _check_devices(config.machine),
        *of_data.checks,
    ]
    batches = _plan(config, datasets, report) if datasets else None
    if batches is None:
        _without_data(config, report)
        return
    work = Workload(
        mean_edges=float(batches.edges.mean()),
        largest=batches.largest,
        unevenness=batches.unevenness(config.machine.world_size),
        validation_edges=_validation_edges(datasets, config.model.cutoff),
    )
    report.numbers |= {"edges_per_step": float(batches.edges.sum(axis=1).mean())}
    report.numbers |= {"structures_per_step": float(batches.graphs.sum(axis=1).mean())}
    limit = batches.largest if _is_here(config.machine) else min(batches.largest, ELSEWHERE_EDGES)
    _estimate(config, work, _measured(config, datasets, batches, limit, report), report)


def _sized(config: PreflightConfig, datasets: Sequence[Dataset], report: Report) -> PreflightConfig:
    """Return the configuration with all lengths: of the data, or the defaults without data."""
    if datasets:
        fit, optim, reasons = sized(
            config.fit, config.optim, datasets, cutoff=config.model.cutoff, world_size=config.machine.world_size
        )
        report.checks += [Check(name="from the data", verdict="ok", finding=reason) for reason in reasons]
        return dataclasses.replace(config, fit=fit, optim=optim)
    if config.fit.steps is None:
        finding = "the number of steps follows from the data, which are not here: a single one is estimated"
        report.checks.append(Check(name="length", verdict="warn", finding=finding, advice="give --fit.steps"))
    return dataclasses.replace(config, fit=with_defaults(config.fit))


def _without_data(config: PreflightConfig, report: Report) -> None:
    """Add estimates without the data, measured on a small set of alloys in their place."""
    fit = config.lengths
    edges = HEADROOM * fit.lanes * fit.edge_budget
    report.numbers |= {"steps": fit.steps, "edges_per_step": edges}
    finding = (
        f"{fit.steps:,} steps of {edges:,.0f} edges if micro-batches are as full as usual. What follows is measured "
    )
    finding += "on alloys of seven metals in place of the data; its elements and validation are not counted"
    report.checks.append(Check(name="without data", verdict="warn", finding=finding))
    budget = min(fit.edge_budget, ELSEWHERE_EDGES)
    with tempfile.TemporaryDirectory() as folder:
        provenance = Provenance(**{item.name: "stand-in" for item in dataclasses.fields(Provenance)})
        source = EmtAlloys(num_frames=STAND_IN_FRAMES)
        cutoffs = (config.model.cutoff,)
        built = build(BuildConfig(source=source, provenance=provenance, out=Path(folder) / "data", cutoffs=cutoffs))
        datasets, _ = open_datasets(built.root)
        stream = Stream(datasets, cutoff=config.model.cutoff, lanes=1, edge_budget=budget, oversize="alone")
        replaced = dataclasses.replace(config, data=built.root)
        measured = _measured(replaced, datasets, sample(stream), budget, report)
    work = Workload(mean_edges=HEADROOM * fit.edge_budget, largest=fit.edge_budget, unevenness=1.0, validation_edges=0)
    _estimate(config, work, measured, report)


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


def _open(config: PreflightConfig, report: Report) -> list[Dataset]:
    """Return the checked data sets; [] if a run could not open them or their edges were not counted."""
    try:
        datasets, _ = open_datasets(config.data)
        refuse_unlabelled(datasets)
        refuse_idle_terms(datasets, config.loss)
    except (ValueError, OSError) as error:
        report.checks.append(Check(name="data", verdict="fail", finding=str(error)))
        return []
    checks = []
    for dataset in datasets:
        quarantine = config.fit.corrupt == "quarantine"
        checks.append(check_files(dataset, verify=config.verify, quarantine=quarantine))
        checks.append(check_cutoff(dataset, config.model.cutoff))
    report.checks += checks
    return [] if any(check.verdict != "ok" for check in checks) else datasets


def _plan(config: PreflightConfig, datasets: Sequence[Dataset], report: Report) -> Batches | None:
    """Return micro-batches of the run's plan; with too large structures, of one in which these are alone."""
    fit, batches = config.lengths, None
    for oversize in dict.fromkeys((fit.oversize, "alone")):
        try:
            stream = Stream(
                datasets,
                cutoff=config.model.cutoff,
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
        checks = check_batches(fit, config.machine.world_size, stream.plan, batches)
        report.checks += checks if oversize == fit.oversize else checks[1:]
        number, place = stream.plan.locate(fit.steps)
        passes = number + place / stream.plan.steps_of_pass(number)
        report.checks.append(_check_length(fit, datasets, passes, report))
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


def _measured(
    config: PreflightConfig, datasets: Sequence[Dataset], batches: Batches, largest: int, report: Report
) -> list[Measured]:
    """Return the measurements of a node's processes, up to `largest` edges; [] if they failed."""
    fit, count = config.lengths, _processes(config.machine)
    kinds = kinds_of(batches, datasets)
    probe = Probe(
        data=config.data,
        model=config.model,
        fit=dataclasses.replace(fit, lanes=count),
        machine=dataclasses.replace(config.machine, devices=count, num_nodes=1),
        loss=config.loss,
        optim=config.optim,
        ladder=ladder_of(batches, largest),
        kinds={name: batches.cut(frames, largest) for name, frames in kinds.items()},
        folder=existing_parent(config.out),
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


def _estimate(config: PreflightConfig, work: Workload, measured: Sequence[Measured], report: Report) -> None:
    """Add the estimates that follow from measurements, if there are any."""
    if not measured:
        return
    fit, machine, first = config.lengths, config.machine, measured[0]
    here, kind = _is_here(machine), device_type(machine.accelerator)
    share = machine.devices if kind == "cpu" and here else 1
    limit = config.memory * 2**30 if config.memory else memory_of_device(kind) / share
    memory = max((lines(one.ladder)[1] for one in measured), key=lambda line: line(work.largest))
    run = duration(fit, machine, measured, work, config.edges_per_second)
    model = f"{first.num_parameters:,} parameters; convolution: {first.convolution}"
    report.checks += [
        Check(name="model", verdict="ok", finding=model),
        check_memory(memory, work.largest, fit, limit, here=here),
        check_reduce(machine, measured),
        check_workers(machine, measured, config.edges_per_second),
        check_disk(fit, existing_parent(config.out), first, config.free_disk and config.free_disk * 1e9),
        _check_speed(config, run, measured),
    ]
    report.numbers |= {
        "parameters": first.num_parameters,
        "memory_per_edge": memory.slope,
        "checkpoint_bytes": first.checkpoint_bytes,
        "seconds_per_step": run.step,
        "reduce_seconds": run.reduce,
    }
    _price(config, run.total, report)


def _check_speed(config: PreflightConfig, run: Duration, measured: Sequence[Measured]) -> Check:
    """Return the times of steps, validations and checkpoints."""
    fit, here, seconds = config.lengths, _is_here(config.machine), lines(measured[0].ladder)[0]
    how = f"{seconds.fixed * 1e3:.1f} ms per micro-batch plus {seconds.slope * 1e6:.3g} µs per edge"
    if config.edges_per_second:
        how = f"from --edges_per_second {config.edges_per_second:,.0f}, not measured"
    elif not here:
        how += ", on this machine's CPU"
    finding = (
        f"{run.step:.3g} s per step ({how}): {run.steps / 3600:,.2f} h; {fit.steps // fit.validate_every} validations "
    )
    finding += f"{run.validations / 3600:,.2f} h, checkpoints {run.checkpoints / 3600:,.2f} h"
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


def _validation_edges(datasets: Sequence[Dataset], cutoff: float) -> int:
    """Return the number of edges of all validation frames."""
    total = 0
    for manifest in (dataset.manifest for dataset in datasets):
        if "val" in manifest.splits and manifest.split("val").shards:
            number = manifest.split("val").statistics.cutoff_number(cutoff)
            total += int(manifest.index("val").blocks.cost[:, number].sum())
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
