"""Campaigns: thousands of structures, each computed once, however often the command is killed and started again.

Outcomes are appended to a file of lines of each process and flushed to the disk: those that belong together are one
line, so a torn line loses them together and they are computed again. Whoever finds all structures done writes the
results. A structure that fails has an outcome as well, with the reason.
"""

import json
import logging
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import torch

from data_pipeline.graphs.packing import EDGE_BUDGET
from data_pipeline.quoting import one_line
from data_pipeline.store import lock
from data_pipeline.store.untrusted import CorruptFile, OpenRecord, refusing, typed
from data_pipeline.structure import InvalidStructure, Structure
from foundation.interop.calculator import DTYPES, tabulate
from foundation.interop.lines import SUFFIX, append_line, read_lines
from foundation.interop.result_files import write_results
from foundation.kernels.memory import keep_freed_memory
from foundation.naming import Choice, resolve
from foundation.potential import Potential
from foundation.simulation.driver import Task, drive
from foundation.simulation.inputs import Inputs
from foundation.simulation.outcome import Outcome, from_json, put_aside, to_json
from foundation.simulation.predictor import MAX_ATOMS, PotentialPredictor
from foundation.simulation.settings import part_of, settled

log = logging.getLogger(__name__)

PARTS, RESULTS, TABLE = "parts", "results.extxyz", "results.csv"
"""Files and folder of a campaign."""
FREE = ("model", "data", "out", "processes", "part", "device", "checkpoint")
"""Options that do not decide the results, or that others stand for in the settings."""
TOLD_SECONDS = 30.0
"""Time between two lines of the log [s]."""
Begin = Callable[[int, Structure], Task | Outcome]
"""Function that begins the task of a structure, by its number."""


@dataclass(frozen=True, kw_only=True)
class CampaignConfig:
    """Structures, potential, and how to share the work."""

    model: Path
    """Potential: its folder, run or published name."""
    data: Path | tuple[Path, ...]
    """Structures: files that ASE reads, globs or folders of them, or data sets. Labels are not read."""
    out: Path
    """Folder of the results; a command that was stopped goes on there."""
    theory: str | None = None
    """Level of theory to predict, one of the potential's; None: its only one."""
    checkpoint: Choice = None
    """Checkpoint, if the model is a run: `best` by its validation, `newest`, or a step; None: the potential of a
    finished run, and the newest checkpoint of an unfinished one."""
    mode: Literal["precise", "md"] = "precise"
    """Float64 (precise), or float32 with tabulated radial functions, which is faster (md)."""
    zbl: bool = False
    """Add a repulsion between atoms much closer than a bond; nothing changes at the distances of bonds."""
    device: str = "cpu"
    """torch's name of the device."""
    edge_budget: int = EDGE_BUDGET
    """Number of directed edges of a batch."""
    max_atoms: int = MAX_ATOMS
    """Number of atoms above which a structure is put aside as too large."""
    processes: int = 1
    """Number of processes on this machine."""
    part: str = "1/1"
    """Share of this command, such as 3/32 for the third of 32 on a cluster: every structure is computed by one."""

    def __post_init__(self) -> None:
        if min(self.edge_budget, self.max_atoms, self.processes) < 1:
            raise ValueError("edge_budget, max_atoms and processes must be at least 1")
        part_of(self.part)


@dataclass(frozen=True, kw_only=True)
class Settings(OpenRecord):
    """Content of settings.json: everything that decides the results in a folder."""

    verb: str
    """Kind of the campaign."""
    subject: str
    """Name of the potential as given."""
    weights_sha256: str
    """Checksum of its weights."""
    theory: str
    """Level of theory."""
    data_sha256: str
    """Checksum of the structures."""
    options: dict[str, Any]
    """Options that decide the results."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Outcomes of a finished campaign."""

    outcomes: list[Outcome]
    """Outcome of every structure, in order."""
    files: tuple[Path, ...]
    """Files of the results."""


Prepare = Callable[[Any, Potential], Begin]
"""Function that returns how tasks of a configuration begin; of a module, since processes import it."""


def run_campaign(config: CampaignConfig, verb: str, prepare: Prepare, *, replace: bool) -> Summary | None:
    """Compute the structures that have no outcome yet and, if none is left, write the results.

    Args:
        config: Configuration of the verb.
        verb: Its name.
        prepare: Function that returns how its tasks begin.
        replace: Whether an ended task makes room for the next at once; see drive().

    Returns:
        The outcomes; None if other parts are not finished.

    Raises:
        FileNotFoundError: a file, or the potential, is missing.
        CorruptFile: a file of the campaign is damaged.
        InvalidStructure: a file cannot be read.
        ValueError: the folder has results with other settings.
        BlockingIOError: another process works on the same part.
        ChildProcessError: a process has failed.
    """
    potential, described = resolve(config.model, config.checkpoint).read()
    theory = potential.theories[potential.theory_number(config.theory)]
    inputs = Inputs((config.data,) if isinstance(config.data, Path) else config.data)
    decide = {each.name: getattr(config, each.name) for each in fields(config) if each.name not in FREE}
    settings = Settings(
        verb=verb,
        subject=str(config.model),
        weights_sha256=described.weights_sha256,
        theory=theory,
        data_sha256=inputs.fingerprint(),
        options=json.loads(json.dumps(decide, default=str)),
    )
    # the same weights may be named by another path
    settled(settings, config.out, free=("subject",))
    number, parts = part_of(config.part)
    shares = [((number - 1) * config.processes + each, parts * config.processes) for each in range(config.processes)]
    if config.processes == 1:
        total = _compute(config, prepare, shares[0], potential, replace=replace)
    else:
        total = sum(1 for _ in inputs)
        _in_processes(config, prepare, shares, replace)
    found = read_outcomes(config.out / PARTS)
    if len(found) < total:
        log.info("%d of %d structures are done; other parts are missing", len(found), total)
        return None
    return Summary(outcomes=found, files=write_results(found, config.out / RESULTS, config.out / TABLE))


def _compute(
    config: CampaignConfig, prepare: Prepare, share: tuple[int, int], potential: Potential, *, replace: bool
) -> int:
    """Compute a share, the first number of the second, and return the number of all structures."""
    keep_freed_memory()
    number, shares = share
    potential = potential.to(torch.device(config.device)).cast(
        DTYPES["float64" if config.mode == "precise" else "float32"]
    )
    if config.mode == "md":
        tabulate(potential)
    if config.zbl:
        potential.repel()
    begin = prepare(config, potential)
    inputs = Inputs((config.data,) if isinstance(config.data, Path) else config.data)
    name, folder, total = f"{number + 1}-of-{shares}", config.out / PARTS, 0

    def tasks(done: set[int]) -> Iterator[Task | Outcome]:
        nonlocal total
        for place, structure in enumerate(inputs):
            total += 1
            if place % shares != number or place in done:
                continue
            if isinstance(structure, InvalidStructure):
                yield put_aside(place, structure, one_line(str(structure)))
            else:
                yield begin(place, structure)

    with lock.hold(config.out / f".{name}{lock.NAME}", folder / name):
        done = {each.number for each in read_outcomes(folder)}
        if done:
            log.info("%d structures are done already", len(done))
        predictor = PotentialPredictor(
            potential,
            potential.theory_number(config.theory),
            edge_budget=config.edge_budget,
            max_atoms=config.max_atoms,
        )
        count, told = len(done), time.monotonic()
        for outcomes in drive(tasks(done), predictor, edge_budget=config.edge_budget, replace=replace):
            append_line(folder / f"{name}{SUFFIX}", [to_json(each) for each in outcomes], flush=True)
            count += len(outcomes)
            if time.monotonic() - told > TOLD_SECONDS:
                log.info("%d structures are done", count)
                told = time.monotonic()
            _refuse_orphaned()
    return total


def _in_processes(config: CampaignConfig, prepare: Prepare, shares: list[tuple[int, int]], replace: bool) -> None:
    """Compute shares in processes of their own.

    Raises:
        ChildProcessError: one of them failed; its outcomes so far are kept.
    """
    context = multiprocessing.get_context("spawn")
    started = [
        context.Process(target=_child, args=(config, prepare, share, replace, os.getpid()), daemon=True)
        for share in shares
    ]
    for process in started:
        process.start()
    for process in started:
        process.join()
    if failed := [process.exitcode for process in started if process.exitcode]:
        raise ChildProcessError(
            f"{len(failed)} of {len(started)} processes failed (exit code {failed[0]}), with the reason above; the "
            "same command goes on from what is done"
        )


_parent: int | None = None


def _child(config: CampaignConfig, prepare: Prepare, share: tuple[int, int], replace: bool, parent: int) -> None:
    """Compute a share in a process of its own, which ends when its parent is gone."""
    global _parent
    _parent = parent
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // config.processes))
    _compute(config, prepare, share, resolve(config.model, config.checkpoint).load(), replace=replace)


def _refuse_orphaned() -> None:
    """End a process whose parent was killed: another command may go on in the same folder."""
    if _parent is not None and os.getppid() != _parent:
        raise SystemExit(1)


def read_outcomes(folder: Path) -> list[Outcome]:
    """Return the outcomes of all processes, by number; those of a torn line are left out, and computed again.

    Raises:
        CorruptFile: a line is none of outcomes.
    """
    found: dict[int, Outcome] = {}
    for place, values in read_lines(folder):
        with refusing(Path(place), CorruptFile, "not a line of results ({}); remove it"):
            for each in typed(list[Any], values, ""):
                outcome = from_json(each)
                found[outcome.number] = outcome
    return [found[number] for number in sorted(found)]
