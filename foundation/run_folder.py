"""A run folder: it belongs to one run at a time, and is begun, continued or replaced, never mixed.

The first process of a run holds its lock from before anything is looked at to the end; the others follow it through
their process group. The lock is a file in the folder, which is there also where the folder alone is shared, as between
containers. So a folder that is replaced is emptied around it.
"""

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from data_pipeline.store import durable, lock
from foundation.configuration import resolved
from foundation.training.fault_tolerance.checkpoints import checkpoint_to_resume, refuse_changes
from foundation.training.machine import with_machine
from foundation.training.monitoring.metrics_file import MAX_STEP
from foundation.training.strategy import is_rank_zero

RECORD = "run.json"


@contextmanager
def held(config: Any) -> Iterator[None]:
    """Hold the folder of a run, which is made if it is not there; processes other than the first hold nothing.

    Args:
        config: The configuration of the run.

    Raises:
        InUse: another run holds it.
        FileExistsError: it is there and empty, so it is somebody else's.
        NotADirectoryError: it is a file.
    """
    if not is_rank_zero():
        yield
        return
    out: Path = config.out
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"{out} is a file, and a run needs a folder; choose another --out")
    new = not out.exists()
    if not (new or config.fit.resume or any(out.iterdir())):
        raise FileExistsError(_already(out))
    try:
        with lock.hold(lock.inside(out), out):
            yield
    finally:
        if new:
            with suppress(OSError):
                out.rmdir()  # nothing has come of it


def refuse_in_use(out: Path) -> None:
    """Refuse a run folder that another run holds.

    Raises:
        InUse: the message names the process.
    """
    lock.refuse_in_use(lock.inside(out), out)


def refuse_lost(out: Path) -> None:
    """Refuse to write on into a run folder that was deleted, moved or replaced while this process held it.

    Raises:
        Lost: it was.
    """
    lock.refuse_lost(lock.inside(out), out)


def occupied(out: Path) -> bool:
    """Return whether there is anything in a run folder, besides the lock of a run that was killed at its beginning."""
    return out.exists() and (not out.is_dir() or any(path.name != lock.NAME for path in out.iterdir()))


def read_record(out: Path) -> dict[str, Any]:
    """Return the configuration of a run as its folder has it.

    Raises:
        ValueError: run.json cannot be read, or is no configuration.
    """
    file = out / RECORD
    try:
        record = json.loads(file.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: cannot be read ({str(error)[:100]}); the run's checkpoints have it too") from error
    steps = record["fit"].get("steps") if isinstance(record, dict) and isinstance(record.get("fit"), dict) else None
    if type(steps) is not int or not 1 <= steps <= MAX_STEP:
        raise ValueError(f"{file}: is no configuration of a run, which has a number of fit.steps")
    return with_machine(record)


def check_folder(config: Any) -> None:
    """Refuse to touch a run folder that is there, unless it is to be continued with its configuration or replaced.

    Args:
        config: The configuration of the run.

    Raises:
        FileExistsError: there is one, which is neither to be continued nor to be replaced, or what the run reads lies
            in one that is to be replaced.
        FileNotFoundError: there is no checkpoint to go on from.
        ValueError: it began with another configuration.
    """
    out, resume = config.out, config.fit.resume
    checkpoint = checkpoint_to_resume(out, resume)
    if checkpoint is not None:
        refuse_changes(checkpoint, config)
    if occupied(out) and not resume:
        if not config.overwrite:
            raise FileExistsError(_already(out))
        if not (out / RECORD).is_file():
            raise FileExistsError(f"{out} has no {RECORD}, so it is no run and stays as it is; choose another --out")
        for path in _paths(config):
            if path != out and path.resolve().is_relative_to(out.resolve()):
                raise FileExistsError(f"{path} lies in {out}, which --overwrite would empty; choose another --out")


def _paths(value: Any) -> Iterator[Path]:
    """Yield the paths in a configuration."""
    if isinstance(value, Path):
        yield value
    elif dataclasses.is_dataclass(value):
        for item in dataclasses.fields(value):
            yield from _paths(getattr(value, item.name))
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _paths(each)


def _already(out: Path) -> str:
    return (
        f"{out} already exists; continue it with --fit.resume true, replace it with --overwrite true, or choose "
        "another --out"
    )


def prepare_folder(config: Any) -> None:
    """Make a run folder, also out of or in place of one that is there, with the configuration in run.json."""
    out = config.out
    out.mkdir(parents=True, exist_ok=True)
    if config.overwrite and not config.fit.resume:
        for path in out.iterdir():
            if path.name in (lock.NAME, RECORD):  # the record goes last: without it nothing is replaced
                continue
            durable.remove(path)
    durable.write_whole(out / RECORD, json.dumps(resolved(config), indent=1) + "\n")
