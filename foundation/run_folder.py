"""Run folders: one run at a time starts, resumes or replaces one, never mixed.

The first process of a run holds its lock from before the checks to the end; the others follow it through their process
group. The lock is a file in the folder, so that it works where only the folder is shared, as between containers. So a
replaced folder is emptied around it.

The order is: check that the folder may be written, find the checkpoint to resume from, compare its configuration; then
the run builds plain files into data sets inside, reads its data and its start, and compares what these decide; only
after all checks is anything else written, and a refused run leaves nothing.
"""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from data_pipeline.store import durable, lock
from data_pipeline.store.replacing import named_paths, refuse_foreign, refuse_inside
from foundation.configuration import resolved
from foundation.datasets import PlainFiles
from foundation.training.fault_tolerance.checkpoints import checkpoint_to_resume, refuse_changes
from foundation.training.fault_tolerance.reading import WholeCheckpoint
from foundation.training.machine import with_machine
from foundation.training.monitoring.metrics_file import MAX_STEP
from foundation.training.strategy import is_rank_zero

RECORD = "run.json"
DATA = "data"
"""Folder inside with the data sets built from plain files."""
PROTECTION = "protection"
"""Folder of a protection that a fine-tuning made for its start. It is no part of the run: it takes minutes to make,
depends on the start only, and serves the next run in the folder."""


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """A run folder that this run may write."""

    path: Path
    """The folder."""
    checkpoint: WholeCheckpoint | None
    """Checkpoint to resume from, or None."""
    empties: bool
    """True if an older run in it is removed."""
    record: dict[str, Any] = field(default_factory=dict)
    """Configuration of the run, as JSON, with all that its data decide."""

    def settled(self, config: Any) -> "RunFolder":
        """Return the folder with the configuration that the run goes by, compared with that of its checkpoint.

        Args:
            config: The configuration, with all that its data decide.

        Raises:
            ValueError: the run started with another configuration.
        """
        if self.checkpoint is not None:
            refuse_changes(self.checkpoint, config)
        return replace(self, record=resolved(config))

    def begin(self) -> None:
        """Make, resume or empty the folder, and write the configuration to run.json."""
        self.path.mkdir(parents=True, exist_ok=True)
        for path in self.path.iterdir() if self.empties else ():
            # the record is removed last: without it nothing is replaced
            if path.name not in (lock.NAME, RECORD, DATA, PROTECTION):
                durable.remove(path)
        durable.write_whole(self.path / RECORD, json.dumps(self.record, indent=1) + "\n")
        if self.empties:
            _drop_unused(self.path, _built_inside(self.path))

    def refuse_lost(self) -> None:
        """Raise an error if the folder was deleted, moved or replaced while this process held it.

        Raises:
            Lost: it was.
        """
        lock.refuse_lost(lock.inside(self.path), self.path)


class ReportFailed(RuntimeError):
    """A finished run whose potential is saved, but whose report could not be made; the message says how to make it."""


@contextmanager
def reporting(out: Path) -> Iterator[None]:
    """Measure and report a finished run, whose potential is saved: an error then costs the report alone.

    Args:
        out: The run folder.

    Raises:
        ReportFailed: there was an error.
    """
    try:
        yield
    except Exception as error:  # of any library that measures or draws
        raise ReportFailed(
            f"{out / 'potential'} is saved and can be used, but its report could not be made "
            f"({type(error).__name__}: {error}). Make it again, without training: foundation report {out}"
        ) from error


@contextmanager
def opened(config: Any) -> Iterator[RunFolder]:
    """Hold the folder of a run after checking it; only the lock is written.

    Data sets built inside that no run came to use are removed at the end.

    Args:
        config: The configuration of the run.

    Raises:
        InUse: another run holds it.
        FileExistsError: it exists and is neither resumed nor replaced, or holds other files or those that the run
            reads.
        NotADirectoryError: it is a file.
        FileNotFoundError: no checkpoint to resume from.
        ValueError: the run started with another configuration.
    """
    with _held(config):
        if is_rank_zero():
            _refuse_to_replace(config)
        earlier = {*_built_inside(config.out)}
        try:
            yield RunFolder(
                path=config.out,
                checkpoint=found_checkpoint(config, settled=False),
                empties=config.overwrite and not config.fit.resume,
            )
        finally:
            if is_rank_zero():
                _drop_unused(config.out, {*_built_inside(config.out)} - earlier)


def _built_inside(out: Path) -> list[Path]:
    """Return the data sets in a run folder, whole or begun."""
    return sorted((out / DATA).glob("*"))


def plain_files(config: Any, cutoff: float) -> PlainFiles:
    """Return the place and settings of the data sets that a run builds from plain files.

    Args:
        config: The configuration of the run.
        cutoff: Cutoff of its potential [Å].
    """
    folder = config.out / DATA
    return PlainFiles(folder=folder, read=config.read, cutoff=cutoff, begun=built_by_resumed(config))


def built_by_resumed(config: Any) -> tuple[Path, ...]:
    """Return the data sets that the run to resume has built from plain files; () if none is resumed.

    Args:
        config: The configuration of the run.
    """
    file = config.out / RECORD
    record = file.read_text() if config.fit.resume and file.is_file() else ""
    return tuple(folder for folder in _built_inside(config.out) if folder.name in record)


def _drop_unused(out: Path, folders: Iterable[Path]) -> None:
    """Remove those of some data sets in a run folder that its record does not name."""
    record = (out / RECORD).read_text() if (out / RECORD).is_file() else ""
    for folder in folders:
        if folder.name not in record:
            durable.remove(folder)
    with suppress(OSError):
        (out / DATA).rmdir()  # empty


def found_checkpoint(config: Any, *, settled: bool = True) -> WholeCheckpoint | None:
    """Return the checkpoint from which a run resumes, if any.

    Args:
        config: The configuration of the run.
        settled: False if its data are still to decide what it leaves out, which is then not compared.

    Raises:
        FileNotFoundError: no checkpoint to resume from.
        ValueError: the run started with another configuration.
    """
    checkpoint = checkpoint_to_resume(config.out, config.fit.resume)
    if checkpoint is not None:
        refuse_changes(checkpoint, config, settled=settled)
    return checkpoint


@contextmanager
def _held(config: Any) -> Iterator[None]:
    """Hold the folder of a run, made if missing; processes other than the first hold nothing."""
    if not is_rank_zero():
        yield
        return
    out: Path = config.out
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"{out} is a file, but a run needs a folder; choose another --out")
    new = not out.exists()
    if not (new or config.fit.resume or any(out.iterdir())):
        raise FileExistsError(_already(out))  # empty, so it belongs to somebody else
    try:
        with lock.hold(lock.inside(out), out):
            yield
    finally:
        if new:
            with suppress(OSError):
                out.rmdir()  # still empty


def _refuse_to_replace(config: Any) -> None:
    """Refuse an existing folder, unless the run resumes, or replaces an older run."""
    if config.fit.resume or not occupied(config.out):
        return
    if not config.overwrite:
        raise FileExistsError(_already(config.out))
    refuse_foreign(config.out, "run", RECORD)
    read = [getattr(config, item.name) for item in fields(config) if item.name != "out"]
    refuse_inside(named_paths(read), [config.out])


def _already(out: Path) -> str:
    return (
        f"{out} already exists; continue it with --fit.resume true, replace it with --overwrite true, or choose "
        "another --out"
    )


def refuse_in_use(out: Path) -> None:
    """Refuse a run folder that another run holds.

    Raises:
        InUse: the message names the process.
    """
    lock.refuse_in_use(lock.inside(out), out)


def occupied(out: Path) -> bool:
    """Return whether a run folder holds anything other than the lock and protection of a run killed at its start."""
    ours = (lock.NAME, PROTECTION, PROTECTION + durable.PARTIAL)
    return out.exists() and (not out.is_dir() or any(path.name not in ours for path in out.iterdir()))


def read_record(out: Path) -> dict[str, Any]:
    """Return the configuration of a run from its folder.

    Raises:
        ValueError: run.json cannot be read, or is not a configuration.
    """
    file = out / RECORD
    try:
        record = json.loads(file.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: cannot be read ({str(error)[:100]}); the run's checkpoints have it too") from error
    steps = record["fit"].get("steps") if isinstance(record, dict) and isinstance(record.get("fit"), dict) else None
    if type(steps) is not int or not 1 <= steps <= MAX_STEP:
        raise ValueError(f"{file}: not the configuration of a run, which has a number fit.steps")
    return with_machine(record)
