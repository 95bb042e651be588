"""Checkpoints of a run as they are read: verified by their checksums, and without running anything in them.

Reading is apart from writing (checkpoints.py) because Lightning takes seconds to import, and a potential can be loaded
from an unfinished run without it.
"""

import json
import logging
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data_pipeline.quoting import one_line
from data_pipeline.store.shards import sha256

log = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
"""Folder of a run with its checkpoints."""
CHECKSUM = ".sha256"
BEST = "best.json"
PATTERN, NAME = "step=*.ckpt", re.compile(r"step=(\d{1,12})\.ckpt")
FOREIGN = re.compile(r"Unsupported global: GLOBAL (\S+)")
"""Function or class that a file names, in the error of torch's reader."""
PARTS = {"global_step": int, "state_dict": dict, "optimizer_states": list, "lr_schedulers": list, "callbacks": dict}
"""Parts of every checkpoint."""
BACKEND = "backend"
"""Entry of a checkpoint with the backend of its convolutions."""


@dataclass(frozen=True, kw_only=True)
class WholeCheckpoint:
    """A verified checkpoint, hashed and opened once."""

    path: Path
    """File."""
    step: int
    """Number of steps taken."""
    config: Any
    """Configuration of its run, as JSON; None if unknown."""
    backend: Any
    """Backend of its convolutions; None if unknown."""


def newest_checkpoint(out: Path, every: int = 1, last: int | None = None) -> WholeCheckpoint:
    """Return the newest valid checkpoint of a run folder; damaged ones are skipped with a warning.

    Args:
        out: The run folder.
        every: Only checkpoints at multiples of this number of steps count.
        last: Only checkpoints up to this step count.

    Raises:
        FileNotFoundError: no valid checkpoint there.
    """
    folder = out / CHECKPOINTS
    found = {path: step for path, step in steps_in(folder).items() if step % every == 0}
    for path in folder.glob(PATTERN):
        if step_of(path) is None:
            log.warning("%s: not the name of a checkpoint; ignored", path)
    for path, step in sorted(found.items(), key=lambda item: -item[1]):
        if last is not None and step > last:
            continue
        try:
            return whole_checkpoint(path, step)
        except ValueError as damage:
            log.warning("%s: %s; using the previous checkpoint", path, damage)
    what = "all checkpoints are damaged" if found else "no checkpoint to resume from"
    raise FileNotFoundError(f"{folder}: {what}; start with --fit.resume false")


def step_of(path: Path) -> int | None:
    """Return the step in a checkpoint's name, None for any other name."""
    name = NAME.fullmatch(path.name)
    return int(name[1]) if name else None


def steps_in(folder: Path) -> dict[Path, int]:
    """Return the step of each checkpoint in a folder, by its name alone."""
    return {path: step for path in sorted(folder.glob(PATTERN)) if (step := step_of(path)) is not None}


def whole_checkpoint(path: Path, step: int) -> WholeCheckpoint:
    """Return a checkpoint after verifying it.

    Raises:
        ValueError: it is damaged; the message says how.
    """
    checksum = path.with_name(path.name + CHECKSUM)
    if not path.is_file():
        raise ValueError("is not a file")
    if not checksum.is_file():
        raise ValueError("has no checksum")
    try:
        same = sha256(path) == checksum.read_text(errors="replace").partition(" ")[0]
        state = read_checkpoint(path) if same else {}
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot be read ({error})") from error
    if not same:
        raise ValueError("differs from its checksum")
    if state["global_step"] != step:
        raise ValueError(f"is of step {one_line(str(state['global_step']))}, not the one in its name")
    if step > _length(state):
        raise ValueError(f"is of step {step}, but of a run of {_length(state)} steps")
    return WholeCheckpoint(path=path, step=step, config=state.get("config"), backend=state.get(BACKEND))


def _length(state: dict[str, Any]) -> float:
    """Return the number of steps of a checkpoint's run, infinity if unknown."""
    try:
        return float(state["config"]["fit"]["steps"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return math.inf


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return the content of a checkpoint, with tensors on the disk until they are used.

    The file is a pickle inside a zip archive, and torch's own reader of weights reads it: tensors, numbers, strings and
    containers, and no function or class that the file could name.

    Raises:
        ValueError: it is not a checkpoint.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # the type depends on the bytes of the file
        named = FOREIGN.search(str(error))
        reason = f"it holds a {named[1]}, and only tensors and plain values are read" if named else one_line(str(error))
        raise ValueError(f"not a checkpoint: {reason}") from error
    missing = [name for name, kind in PARTS.items() if not (isinstance(state, dict) and type(state.get(name)) is kind)]
    if missing:
        raise ValueError(f"not a checkpoint: without {', '.join(missing)}")
    return state


def read_best(folder: Path) -> dict[str, Any] | None:
    """Return file, step and error of the best checkpoint of a folder; None if unknown."""
    file = folder / BEST
    if not file.is_file():
        return None
    try:
        best = json.loads(file.read_text())
        kinds = {"file": str, "step": int, "by": str, "error": float}
        if all(type(best[name]) is kind for name, kind in kinds.items()) and step_of(Path(best["file"])) is not None:
            return best
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        pass
    log.warning("%s: does not name the best checkpoint; ignored", file)
    return None
