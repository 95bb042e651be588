"""Estimates for a whole run from measurements of a step: memory, largest budget, time, cost and disk."""

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from foundation.training.fit_config import FitConfig
from foundation.training.machine import MachineConfig
from foundation.training.probe import Measured
from launch.checks import Check
from launch.slurm import seconds_of

MEMORY_MARGIN = 0.15
"""Fraction of the memory to leave free: sizes of micro-batches vary, and memory is allocated in pieces."""
VISIBLE_BYTES = 8 * 2**20
"""Rise of the memory from the smallest to the largest measured micro-batch, below which it is noise [bytes]."""
SLACK = 0.1
"""Fraction by which a data worker should be faster than the device."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Work of a run's micro-batches for its devices."""

    mean_edges: float
    """Number of directed edges of the mean micro-batch."""
    largest: int
    """Number of directed edges of the largest micro-batch."""
    unevenness: float
    """Ratio of the largest to the mean work of a process in a step."""
    validation_edges: int
    """Number of directed edges of all validation frames."""
    work: float = 1.0
    """Mean number of edges of a step, rehearsal included, over that of the same step on the run's own data."""
    relabelled: float = 0.0
    """Part of it that the start labels in the step."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """A quantity as a line in the number of edges."""

    fixed: float
    """Value without edges."""
    slope: float
    """Increase per edge."""
    at: tuple[int, ...]
    """Numbers of edges of the fit."""

    def __call__(self, edges: float) -> float:
        """Return its value at a number of edges."""
        return self.fixed + self.slope * edges

    @staticmethod
    def through(edges: Sequence[int], values: Sequence[float]) -> "Line":
        """Return the least-squares line with nonnegative parts, through zero if there is one number of edges."""
        x, y = np.array(edges, dtype=float), np.array(values, dtype=float)
        slope, fixed = np.polyfit(x, y, 1) if len(set(edges)) > 1 else (0.0, -1.0)
        if fixed < 0:
            slope, fixed = float((x * y).sum() / (x * x).sum()), 0.0
        return Line(fixed=max(float(fixed), 0.0), slope=max(float(slope), 0.0), at=tuple(edges))


def time_line(one: Measured) -> Line:
    """Return the line of the time of the trials of growing size [s]."""
    good = [trial for trial in one.ladder if not trial.trouble]
    return Line.through([trial.num_edges for trial in good], [trial.seconds for trial in good])


def memory_line(one: Measured) -> Line:
    """Return the line of the peak memory of the trials of growing size [bytes]."""
    beyond = () if one.beyond is None else (one.beyond,)
    good = [trial for trial in (*one.ladder, *beyond) if not trial.trouble]
    return Line.through([trial.num_edges for trial in good], [float(trial.peak) for trial in good])


def check_kinds(measured: Sequence[Measured]) -> Check:
    """Check that every kind of micro-batch had forward and backward passes with finite numbers."""
    trials = [trial for one in measured for trial in (*one.ladder, *one.kinds)]
    troubles = [
        f"{trial.name or 'plain'} ({trial.num_edges:,} edges): {trial.trouble}" for trial in trials if trial.trouble
    ]
    names = ", ".join(f"{t.name} ({t.num_graphs} structures, {t.num_edges:,} edges)" for t in measured[0].kinds)
    if troubles:
        return Check(
            name="forward and backward",
            verdict="fail",
            finding="; ".join(dict.fromkeys(troubles)),
            advice="look for wrong labels with `foundation inspect`; for memory, lower edge_budget",
        )
    return Check(name="forward and backward", verdict="ok", finding=f"finite: {names}")


def check_memory(memory: Line, largest: int, fit: FitConfig, limit: float, *, here: bool) -> Check:
    """Check that the largest micro-batch fits a device, and find the largest budget that does.

    Args:
        memory: Peak of a process, or of a GPU [bytes].
        largest: Number of edges of the largest micro-batch of the run.
        fit: Section fit.
        limit: Memory of a device [bytes].
        here: Whether the run's own kind of device was measured.
    """
    room = (1 - MEMORY_MARGIN) * limit
    needed = memory(largest)
    finding = f"{memory.slope / 1e3:,.1f} kB per edge plus {memory.fixed / 2**30:.2f} GiB "
    sizes = sorted(set(memory.at))
    guessed = len(sizes) == 1
    how = f"a guess from {sizes[0]:,} edges, the only size measured" if guessed else "fitted at "
    finding += f"({how}{'' if guessed else ', '.join(f'{edges:,}' for edges in sizes) + ' edges'})"
    finding += f"; {needed / 2**30:.2f} of {limit / 2**30:.1f} GiB for the largest micro-batch of {largest:,} edges"
    advice = f"micro-batches of {memory.at[-1]:,} edges are too small to measure the memory per edge"
    if guessed or memory.slope * (sizes[-1] - sizes[0]) > VISIBLE_BYTES:
        # a micro-batch may exceed the budget, by as much as in the sampled part of the run
        ratio = max(1.0, largest / fit.edge_budget) if fit.oversize != "alone" else 1.0
        budget = max(0, int((room - memory.fixed) / memory.slope / ratio))
        advice = f"the largest edge_budget that leaves {MEMORY_MARGIN:.0%} free is {budget:,}"
    verdict = "fail" if needed > limit else "warn" if needed > room or guessed else "ok"
    if not here:
        finding += "; measured on this machine's CPU, not on the run's device"
        verdict = "warn"
    return Check(name="memory", verdict=verdict, finding=finding, advice=advice)


@dataclass(frozen=True, kw_only=True)
class Duration:
    """Duration of a run, and its parts."""

    step: float
    """Time of a step [s]."""
    reduce: float
    """Time of the all-reduce of the gradient in a step [s]."""
    steps: float
    """Time of all steps [s]."""
    validations: float
    """Time of all validations [s]."""
    checkpoints: float
    """Time of all checkpoints [s]."""

    @property
    def total(self) -> float:
        """Time of the run [s]."""
        return self.steps + self.validations + self.checkpoints


def duration(
    fit: FitConfig, machine: MachineConfig, measured: Sequence[Measured], work: Workload, edges_per_second: float | None
) -> Duration:
    """Return the duration of a run, from measurements here or from a given speed in edges/s."""
    world_size = machine.world_size
    seconds = max(time_line(one)(work.mean_edges) for one in measured)
    if edges_per_second:
        seconds = work.mean_edges / edges_per_second
    if machine.num_workers == 0:
        seconds += work.mean_edges * prepare_per_edge(measured)
    reduce = max((one.reduce_seconds or 0.0) for one in measured)
    # validation and labels of the start are inference, a constant fraction of the time of training
    share = max(one.inference_seconds / one.ladder[-1].seconds for one in measured)
    computing = work.work + work.relabelled * share
    step = fit.lanes // world_size * seconds * work.unevenness * computing + reduce
    if not edges_per_second:
        step += max(one.optimizer_seconds for one in measured)
    validation = work.validation_edges / world_size / work.mean_edges * seconds * share
    return Duration(
        step=step,
        reduce=reduce,
        steps=fit.steps * step,
        validations=fit.steps // fit.validate_every * validation,
        checkpoints=math.ceil(fit.steps / fit.checkpoint_every) * measured[0].checkpoint_seconds,
    )


def prepare_per_edge(measured: Sequence[Measured]) -> float:
    """Return the time of a data worker per edge [s]."""
    return max(one.prepare_seconds / one.ladder[-1].num_edges for one in measured)


def check_workers(machine: MachineConfig, measured: Sequence[Measured], edges_per_second: float | None) -> Check:
    """Check that the data workers of a process keep up with its device."""
    prepare = prepare_per_edge(measured)
    compute = (
        1 / edges_per_second if edges_per_second else measured[0].ladder[-1].seconds / measured[0].ladder[-1].num_edges
    )
    needed = math.ceil((1 + SLACK) * prepare / compute)
    finding = f"a worker prepares {1 / prepare:,.0f} edges/s, a device takes {1 / compute:,.0f}; "
    finding += f"{machine.num_workers} workers"
    if machine.num_workers == 0:
        share = prepare / (prepare + compute)
        late, finding = share > SLACK, f"{finding}: preparation in the same process takes {share:.1%} of a step"
    else:
        late = machine.num_workers < needed
    return Check(
        name="data workers",
        verdict="warn" if late else "ok",
        finding=finding,
        advice=f"set --machine.num_workers {needed}" if late else "",
    )


def check_reduce(machine: MachineConfig, measured: Sequence[Measured]) -> Check:
    """Return the time of the all-reduce of the gradient within this node."""
    size, processes = measured[0].gradient_bytes, len(measured)
    seconds = max((one.reduce_seconds or 0.0) for one in measured)
    finding = f"gradient {size / 1e6:.2f} MB"
    if machine.world_size == 1:
        return Check(name="all-reduce", verdict="ok", finding=f"{finding}; one process, nothing to reduce")
    if processes == 1:
        return Check(
            name="all-reduce",
            verdict="warn",
            finding=f"{finding}; not measured: a node's {machine.devices} processes cannot run here",
            advice="run preflight on a compute node as well",
        )
    # bus bandwidth as nccl-tests defines it: every byte crosses the slowest link 2 (n - 1) / n times
    bandwidth = 2 * (processes - 1) / processes * size / seconds
    finding += f", {1e3 * seconds:.2f} ms a step over {processes} processes ({bandwidth / 1e9:.2f} GB/s)"
    if machine.num_nodes > 1:
        finding += f"; within this node, not between the {machine.num_nodes}"
    return Check(name="all-reduce", verdict="ok", finding=finding)


def check_disk(fit: FitConfig, folder: Path, measured: Measured, limit: float | None) -> Check:
    """Check that the kept checkpoints, the best and one being written fit the disk."""
    size = measured.checkpoint_bytes
    needed = size * (fit.keep_checkpoints + 2)
    free = shutil.disk_usage(folder).free if limit is None else limit
    writes = math.ceil(fit.steps / fit.checkpoint_every)
    finding = f"{size / 1e6:,.1f} MB per checkpoint, written in {measured.checkpoint_seconds:.2f} s, {writes} times; "
    finding += f"{fit.keep_checkpoints} newest, the best and one being written: {needed / 1e9:,.3g} GB "
    finding += f"of {free / 1e9:,.1f} GB free"
    if needed > free:
        return Check(name="disk", verdict="fail", finding=finding, advice="free space, or lower keep_checkpoints")
    return Check(name="disk", verdict="ok", finding=finding)


def check_time(hours: float, time_limit: str | None) -> Check:
    """Check that a run of this duration ends within the time limit of a job."""
    finding = f"{hours:,.2f} h in all"
    if time_limit is None:
        return Check(name="time limit", verdict="ok", finding=f"{finding}; no --time_limit given")
    limit = seconds_of(time_limit)
    jobs = math.ceil(3600 * hours / limit)
    if jobs <= 1:
        return Check(name="time limit", verdict="ok", finding=f"{finding}, within {time_limit}")
    return Check(
        name="time limit",
        verdict="warn",
        finding=f"{finding}, {jobs} jobs of {time_limit}",
        advice="start the next ones with --fit.resume true, or let the job requeue itself",
    )
