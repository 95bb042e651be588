"""Checkpoints of a run in training: written whole or not at all, checked before they are used.

A checkpoint is one file beside its checksum, whatever the number of processes and the strategy. It is written by a
thread under another name, flushed to the disk, and then renamed; only then is an older one deleted. So a run that dies
in the middle of a save has lost nothing, and one whose newest file was damaged goes on from the one before.
"""

import hashlib
import json
import logging
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
import torch.distributed
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import AsyncCheckpointIO, TorchCheckpointIO

from data_pipeline.quoting import one_line
from data_pipeline.store import durable, lock
from data_pipeline.store.shards import sha256
from foundation.configuration import deciding_changes
from foundation.training.lightning_internals import averaged_steps, datamodule_of, state_without_barrier
from foundation.training.machine import with_machine
from foundation.training.strategy import ZeroStrategy

log = logging.getLogger(__name__)

CHECKSUM = ".sha256"
BEST = "best.json"
NAME = re.compile(r"step=(\d{1,12})\.ckpt")
PARTS = {"global_step": int, "state_dict": dict, "optimizer_states": list, "lr_schedulers": list, "callbacks": dict}
"""Parts of every checkpoint."""
BACKEND = "backend"
"""Entry of a checkpoint: what computed its convolutions."""


@dataclass(frozen=True, kw_only=True)
class WholeCheckpoint:
    """A checkpoint that is what was written: hashed and opened once, by whoever found it."""

    path: Path
    """File."""
    step: int
    """Number of steps taken."""
    config: Any
    """Configuration of its run, as JSON; None if it does not say."""
    backend: Any
    """Name of what computed its convolutions; None if it does not say."""


def newest_checkpoint(out: Path, every: int = 1, last: int | None = None) -> WholeCheckpoint:
    """Return the newest checkpoint of a run folder that is what was written; others are skipped with a warning.

    Args:
        out: The run folder.
        every: Only checkpoints of multiples of so many steps count.
        last: Only checkpoints up to this step count.

    Raises:
        FileNotFoundError: there is none.
    """
    folder = out / "checkpoints"
    found = {path: step for path in _named(folder) if (step := step_of(path)) is not None and step % every == 0}
    for path in _named(folder):
        if step_of(path) is None:
            log.warning("%s: not the name of a checkpoint; passed over", path)
    for path, step in sorted(found.items(), key=lambda item: -item[1]):
        if last is not None and step > last:
            continue
        try:
            return _whole(path, step)
        except ValueError as damage:
            log.warning("%s: %s; the checkpoint before it is used", path, damage)
    what = "none of its checkpoints is whole" if found else "no checkpoint to resume from"
    raise FileNotFoundError(f"{folder}: {what}; start with --fit.resume false")


def step_of(path: Path) -> int | None:
    """Return the step of a checkpoint by its name, None for any other name."""
    name = NAME.fullmatch(path.name)
    return int(name[1]) if name else None


def checkpoint_to_resume(out: Path, resume: bool | Literal["auto"]) -> WholeCheckpoint | None:
    """Return the checkpoint that a run starts from, if any.

    Raises:
        FileNotFoundError: resume is True and there is none; or, also with 'auto', there are and all are damaged.
    """
    if not resume or (resume == "auto" and all(step_of(path) is None for path in _named(out / "checkpoints"))):
        return None
    return newest_checkpoint(out)


def _named(folder: Path) -> list[Path]:
    return sorted(folder.glob("step=*.ckpt"))


def _whole(path: Path, step: int) -> WholeCheckpoint:
    """Return a checkpoint that is what was written.

    Raises:
        ValueError: it is not; the message says what is wrong with it.
    """
    checksum = path.with_name(path.name + CHECKSUM)
    if not path.is_file():
        raise ValueError("is no file")
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
        raise ValueError(f"is of step {one_line(str(state['global_step']))}, not of the one in its name")
    if step > _length(state):
        raise ValueError(f"is of step {step} and of a run of {_length(state)} steps")
    return WholeCheckpoint(path=path, step=step, config=state.get("config"), backend=state.get(BACKEND))


def _length(state: dict[str, Any]) -> float:
    """Return the steps of the run that a checkpoint is of, as far as it says so."""
    try:
        return float(state["config"]["fit"]["steps"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return math.inf


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return what a checkpoint holds, its tensors on the disk until they are used.

    The file is a pickle inside a zip archive, and torch's own reader of weights reads it: tensors, numbers, strings and
    containers, and no function or class that the file could name.

    Raises:
        ValueError: it is no checkpoint.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # the bytes of a file decide which one it is
        raise ValueError(f"not a checkpoint: {one_line(str(error))}") from error
    missing = [name for name, kind in PARTS.items() if not (isinstance(state, dict) and type(state.get(name)) is kind)]
    if missing:
        raise ValueError(f"not a checkpoint: without {', '.join(missing)}")
    return state


def read_best(folder: Path) -> dict[str, Any] | None:
    """Return which checkpoint of a folder is best, its file, step and error; None if nothing readable says so."""
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
    log.warning("%s: does not say which checkpoint is best; passed over", file)
    return None


def refuse_changes(checkpoint: WholeCheckpoint, config: object) -> None:
    """Refuse to go on with another configuration than a checkpoint's run had, as far as it decides what a step does.

    Args:
        checkpoint: The checkpoint.
        config: The configuration of this run.

    Raises:
        ValueError: something that decides what a step does has changed.
    """
    if not isinstance(checkpoint.config, dict) or not checkpoint.config:
        log.warning("%s does not say with which configuration it was made: not compared", checkpoint.path)
        return
    changed = deciding_changes(with_machine(checkpoint.config), config)
    if changed:
        raise ValueError(
            f"cannot resume {checkpoint.path} with another configuration: {'; '.join(changed)}. Restore it, or start a "
            "new run."
        )


def refuse_other_backend(checkpoint: WholeCheckpoint, backend: str) -> None:
    """Refuse to go on with convolutions that are computed by something else than before.

    Args:
        checkpoint: The checkpoint.
        backend: What computes them now: what fit.backend comes to on this machine.

    Raises:
        ValueError: it was something else.
    """
    path = checkpoint.path
    if checkpoint.backend is None:
        log.warning("%s does not say what computed its convolutions: not compared; now it is %s", path, backend)
    elif checkpoint.backend != backend:
        named = one_line(str(checkpoint.backend))
        raise ValueError(
            f"cannot resume {path}: its convolutions were computed by {named} and are by {backend} now, which "
            f"rounds differently. Say --fit.backend {named} where that works, or start a new run."
        )


class CheckpointFiles(TorchCheckpointIO):
    """Writes checkpoints whole or not at all, and deletes old ones: all but the newest few and the best."""

    def __init__(self, keep: int) -> None:
        self.keep = keep
        self.best: dict[str, Any] | None = None
        """File, step and error of the best checkpoint."""
        self.lost = False
        """Whether the run folder is gone, so that nothing more can be written."""
        self.failure: str | None = None
        """Why the last checkpoint could not be written."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint; if that fails, remember why: the run decides what follows, in all processes alike."""
        path = Path(path)
        try:
            lock.refuse_lost(lock.inside(path.parent.parent), path.parent.parent)
            with durable.whole_file(path) as partial:
                with partial.open("xb") as file:
                    torch.save(checkpoint, file)
                checksum = f"{sha256(partial)}  {path.name}\n"
                durable.write_whole(path.with_name(path.name + CHECKSUM), checksum)
            if self.best is not None and self.best["file"] == path.name:
                durable.write_whole(path.parent / BEST, json.dumps(self.best) + "\n")
        except lock.Lost as error:
            self.lost, self.failure = True, str(error)
            log.error("%s", error)
            return
        except (OSError, RuntimeError) as error:  # torch's writer reports a full disk as a RuntimeError
            self.failure = f"{path} could not be written ({error}); the checkpoint before it is whole"
            log.error("%s", self.failure)
            return
        self.failure = None
        self._delete_old(path)

    def _delete_old(self, newest: Path) -> None:
        """Delete older checkpoints than the newest few; what a person has put beside them is not counted."""
        folder, last = newest.parent, step_of(newest)
        assert last is not None
        # what the file says: the best one may just be waiting to be written
        best = (read_best(folder) or {"file": None})["file"]
        steps = {path: step for path in _named(folder) if (step := step_of(path)) is not None and step <= last}
        for old in sorted(steps, key=steps.__getitem__)[: -self.keep]:
            if old.name != best and old.is_file():
                old.unlink()
                old.with_name(old.name + CHECKSUM).unlink(missing_ok=True)


class Checkpoints(Checkpoint):
    """Saves a checkpoint every so many steps, at the best validation, at the end and on an exception.

    Lightning's ModelCheckpoint expects automatic optimization: with manual it wants the weights from before the step.
    """

    def __init__(self, folder: Path, every: int, keep: int, best_by: str) -> None:
        self.folder, self.every, self.best_by = folder, every, best_by
        self.files = CheckpointFiles(keep)
        self.writer = AsyncCheckpointIO(self.files)
        self._saved: int | None = None

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Make the folder, and delete what a save that was cut short has left in it."""
        if trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            for partial in self.folder.glob("*" + durable.PARTIAL):
                durable.remove(partial)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Compare where the processes begin and what they will read: each has found out by itself.

        Raises:
            RuntimeError: they do not begin at the same step, or not with the same data.
        """
        if trainer.world_size == 1:
            return
        data = json.dumps(datamodule_of(trainer).state_dict(), sort_keys=True).encode()
        own = torch.tensor([trainer.global_step, int.from_bytes(hashlib.sha256(data).digest()[:7])])
        extremes = torch.cat([own, -own]).to(trainer.strategy.root_device)
        torch.distributed.all_reduce(extremes, op=torch.distributed.ReduceOp.MAX)
        (last, first), (largest, smallest) = ((int(extremes[i]), -int(extremes[i + 2])) for i in (0, 1))
        if first != last:
            raise RuntimeError(
                f"process {trainer.global_rank} begins at step {trainer.global_step} and others at steps from {first} "
                f"to {last}: {self.folder} does not look the same from all nodes; start the run again"
            )
        if smallest != largest:
            raise RuntimeError(
                f"process {trainer.global_rank} does not read the same data as others: manifests do not look the same "
                "from all nodes, or frames to rehearse were chosen from features that differ by rounding; with "
                "rehearsal.method farthest-point, all nodes must be alike"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return which checkpoint was best so far."""
        return {"best": self.files.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what was best before."""
        self.files.best = state_dict["best"]

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is time."""
        if trainer.global_step % self.every == 0 or trainer.global_step == trainer.max_steps:
            self.save(trainer)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Save if there was no better validation before."""
        value = float(trainer.callback_metrics.get(self.best_by, float("inf")))
        before = float("inf") if self.files.best is None else self.files.best["error"]
        if value < before and trainer.global_step > 0:
            file = self.path(trainer).name
            self.files.best = {"file": file, "step": trainer.global_step, "by": self.best_by, "error": value}
            self.save(trainer)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Wait for the last checkpoint."""
        self.finish()

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Save what there is, if any step has been taken and finished since the last time.

        Without Lightning's barrier: the other processes may not be failing, and would never come to it. So not under
        ZeRO, where each has a part of the state.
        """
        finished = all(step == trainer.global_step for step in averaged_steps(trainer)) and trainer.global_step > 0
        finished = finished and trainer.global_step != self._saved and not self.files.lost
        alone = trainer.is_global_zero and not isinstance(trainer.strategy, ZeroStrategy)
        if finished and alone and not isinstance(exception, NothingToSave):
            trainer.strategy.save_checkpoint(state_without_barrier(trainer), self.path(trainer))

    def path(self, trainer: lightning.Trainer) -> Path:
        """Return where the checkpoint of the current step is."""
        return self.folder / f"step={trainer.global_step:09d}.ckpt"

    def save(self, trainer: lightning.Trainer) -> None:
        """Save the current step; all processes have to call it together."""
        trainer.save_checkpoint(self.path(trainer))
        self._saved = trainer.global_step

    def finish(self) -> None:
        """Wait until all that was saved is on the disk.

        Raises:
            OSError: the last checkpoint could not be written.
        """
        self.writer.teardown()
        if self.files.failure is not None:
            raise OSError(self.files.failure)


class NothingToSave(ValueError):
    """An error after which the state of the run is not worth keeping."""
