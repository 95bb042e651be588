"""Checkpoints of a run: written whole or not at all, verified before use.

A checkpoint is one file with its checksum beside it, for any number of processes and any strategy. A thread writes it
under another name, flushes it to the disk, and renames it; only then is an older one deleted. So a run that dies during
a save loses nothing, and one whose newest file is damaged resumes from the previous one.
"""

import hashlib
import json
import logging
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
from foundation.training.fault_tolerance.reading import (
    BEST,
    CHECKPOINTS,
    CHECKSUM,
    WholeCheckpoint,
    newest_checkpoint,
    read_best,
    read_checkpoint,
    step_of,
    steps_in,
)
from foundation.training.lightning_internals import averaged_steps, datamodule_of, state_without_barrier
from foundation.training.machine import with_machine
from foundation.training.optim import same_rates
from foundation.training.strategy import ZeroStrategy

log = logging.getLogger(__name__)


def checkpoint_to_resume(out: Path, resume: bool | Literal["auto"]) -> WholeCheckpoint | None:
    """Return the checkpoint that a run starts from, if any.

    Raises:
        FileNotFoundError: resume is True and there is no checkpoint, or all checkpoints are damaged.
    """
    if not resume or (resume == "auto" and not steps_in(out / CHECKPOINTS)):
        return None
    return newest_checkpoint(out)


def refuse_changes(checkpoint: WholeCheckpoint, config: Any, *, settled: bool = True) -> None:
    """Check that a checkpoint's run had the same configuration in all options that decide a step.

    Args:
        checkpoint: The checkpoint.
        config: The configuration of this run.
        settled: False if its data are still to decide what it leaves out, which is then not compared.

    Raises:
        ValueError: an option that decides a step has changed.
    """
    if not isinstance(checkpoint.config, dict) or not checkpoint.config:
        log.warning("%s does not contain its configuration: not compared", checkpoint.path)
        return
    changed = deciding_changes(with_machine(checkpoint.config), config, settled=settled)
    if changed:
        raise ValueError(
            f"cannot resume {checkpoint.path} with another configuration: {'; '.join(changed)}. Restore it, or "
            f"{anew(config)}"
        )
    if settled:
        _refuse_other_length(checkpoint, config)


def anew(config: Any) -> str:
    """Return the advice to train on in another run folder."""
    return f"begin a new run with the weights of this one: --start {config.out} --out <another folder>"


def _refuse_other_length(checkpoint: WholeCheckpoint, config: Any) -> None:
    """Refuse a length of the run that changes the learning rates up to the checkpoint.

    Raises:
        ValueError: they would have been others, or the checkpoint is past the end.
    """
    try:
        before = int(checkpoint.config["fit"]["steps"])
    except (KeyError, TypeError, ValueError):
        return
    now, step = config.fit.steps, checkpoint.step
    if now == before:
        return
    if now < step:
        raise ValueError(
            f"fit.steps {now}: the run has already taken {step} of {before}; export one of its checkpoints"
        )
    if not same_rates(config.optim, step, before, now):
        raise ValueError(
            f"fit.steps {now}: the run was planned for {before}, and its schedule ({config.optim.schedule}) would have "
            f"had other learning rates up to its step {step}. Restore {before}, or {anew(config)}; with "
            "optim.schedule constant a run can be made longer"
        )
    log.info("the run goes on to step %d instead of %d, from step %d", now, before, step)


def refuse_other_backend(checkpoint: WholeCheckpoint, backend: str) -> None:
    """Check that a checkpoint's run had the same backend of convolutions.

    Args:
        checkpoint: The checkpoint.
        backend: The present backend, with auto resolved.

    Raises:
        ValueError: it was another one.
    """
    path = checkpoint.path
    if checkpoint.backend is None:
        log.warning("%s does not name the backend of its convolutions: not compared; now it is %s", path, backend)
    elif checkpoint.backend != backend:
        named = one_line(str(checkpoint.backend))
        raise ValueError(
            f"cannot resume {path}: its convolutions were computed by {named}, but now by {backend}, which "
            f"rounds differently. Set --fit.backend {named} where that works, or start a new run."
        )


class CheckpointFiles(TorchCheckpointIO):
    """Writer of checkpoints, whole or not at all; deletes all but the newest few and the best."""

    def __init__(self, keep: int) -> None:
        self.keep = keep
        self.best: dict[str, Any] | None = None
        """File, step and error of the best checkpoint."""
        self.lost = False
        """True if the run folder is gone, so that nothing can be written."""
        self.failure: str | None = None
        """Reason why the last checkpoint could not be written, or None."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write a checkpoint; store the reason of a failure: the run decides on it, the same in all processes."""
        path = Path(path)
        try:
            lock.refuse_lost(lock.inside(path.parent.parent), path.parent.parent)
            with durable.whole_file(path) as partial:
                with partial.open("xb") as file:
                    torch.save(checkpoint, file)
                read_checkpoint(partial)  # what cannot be read must not replace what can be
                checksum = f"{sha256(partial)}  {path.name}\n"
                durable.write_whole(path.with_name(path.name + CHECKSUM), checksum)
            if self.best is not None and self.best["file"] == path.name:
                durable.write_whole(path.parent / BEST, json.dumps(self.best) + "\n")
        except lock.Lost as error:
            self.lost, self.failure = True, str(error)
            log.error("%s", error)
            return
        except (OSError, RuntimeError, ValueError) as error:  # torch's writer reports a full disk as a RuntimeError
            self.failure = f"{path} could not be written ({error}); the previous checkpoint is intact"
            log.error("%s", self.failure)
            return
        self.failure = None
        self._delete_old(path)

    def _delete_old(self, newest: Path) -> None:
        """Delete checkpoints older than the newest few; other files are not counted."""
        folder, last = newest.parent, step_of(newest)
        assert last is not None
        # from the file: the best one may be waiting to be written
        best = (read_best(folder) or {"file": None})["file"]
        steps = {path: step for path, step in steps_in(folder).items() if step <= last}
        for old in sorted(steps, key=steps.__getitem__)[: -self.keep]:
            if old.name != best and old.is_file():
                old.unlink()
                old.with_name(old.name + CHECKSUM).unlink(missing_ok=True)


class Checkpoints(Checkpoint):
    """Callback that saves a checkpoint at intervals, at the best validation, at the end and on an exception.

    Lightning's ModelCheckpoint expects automatic optimization: with manual it wants the weights before the step.
    """

    def __init__(self, folder: Path, every: int, keep: int, best_by: str) -> None:
        self.folder, self.every, self.best_by = folder, every, best_by
        self.files = CheckpointFiles(keep)
        self.writer = AsyncCheckpointIO(self.files)
        self._saved: int | None = None

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Make the folder, and delete the remains of interrupted saves."""
        if trainer.is_global_zero:
            self.folder.mkdir(parents=True, exist_ok=True)
            for partial in self.folder.glob("*" + durable.PARTIAL):
                durable.remove(partial)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Check that all processes start at the same step and read the same data.

        Raises:
            RuntimeError: they do not.
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
                f"process {trainer.global_rank} starts at step {trainer.global_step} and others at steps from {first} "
                f"to {last}: {self.folder} differs between nodes; start the run again"
            )
        if smallest != largest:
            raise RuntimeError(
                f"process {trainer.global_rank} does not read the same data as others: manifests differ between "
                "nodes, or frames to rehearse were chosen from features that differ by rounding; with "
                "rehearsal.method farthest-point, all nodes must be of one kind"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the best checkpoint so far."""
        return {"best": self.files.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the best checkpoint so far."""
        self.files.best = state_dict["best"]

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save at the interval; let the last step be validated too: it may be the best."""
        trainer.should_stop |= trainer.global_step == trainer.max_steps
        if trainer.global_step % self.every == 0 or trainer.global_step == trainer.max_steps:
            self.save(trainer)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Save after the best validation so far."""
        value = float(trainer.callback_metrics.get(self.best_by, float("inf")))
        before = float("inf") if self.files.best is None else self.files.best["error"]
        if value < before and trainer.global_step > 0:
            file = self.path(trainer).name
            facts = {"file": file, "step": trainer.global_step, "by": self.best_by, "error": value}
            self.files.best = facts | {"errors": validation_errors(trainer)}
            self.save(trainer)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Wait for the last checkpoint."""
        self.finish()

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Save the state, if any step was finished since the last checkpoint.

        Without Lightning's barrier, which other processes may never reach. So not under ZeRO, where each has a part of
        the state.
        """
        finished = all(step == trainer.global_step for step in averaged_steps(trainer)) and trainer.global_step > 0
        finished = finished and trainer.global_step != self._saved and not self.files.lost
        alone = trainer.is_global_zero and not isinstance(trainer.strategy, ZeroStrategy)
        if finished and alone and not isinstance(exception, NothingToSave):
            trainer.strategy.save_checkpoint(state_without_barrier(trainer), self.path(trainer))

    def path(self, trainer: lightning.Trainer) -> Path:
        """Return the path of the current step's checkpoint."""
        return self.folder / f"step={trainer.global_step:09d}.ckpt"

    def save(self, trainer: lightning.Trainer) -> None:
        """Save the current step; all processes must call it together."""
        trainer.save_checkpoint(self.path(trainer))
        self._saved = trainer.global_step

    def finish(self) -> None:
        """Wait until all checkpoints are on the disk.

        Raises:
            OSError: the last checkpoint could not be written.
        """
        self.writer.teardown()
        if self.files.failure is not None:
            raise OSError(self.files.failure)


def validation_errors(trainer: lightning.Trainer) -> dict[str, float]:
    """Return the errors of the last validation by name."""
    return {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}


class NothingToSave(ValueError):
    """An error after which the state of the run is not worth keeping."""
