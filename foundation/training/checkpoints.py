"""Checkpoints of a run in training: when they are written, how many are kept, which one is newest."""

from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Checkpoint


def newest_checkpoint(out: Path) -> Path:
    """Return the newest checkpoint of a run folder.

    Raises:
        FileNotFoundError: there is none.
    """
    found = sorted((out / "checkpoints").glob("step=*.ckpt"))
    if not found:
        raise FileNotFoundError(f"{out / 'checkpoints'}: no checkpoint to resume from; start with --fit.resume false")
    return found[-1]


class Checkpoints(Checkpoint):
    """Saves a checkpoint every so many steps, at the end and on an exception, and keeps the newest few.

    Lightning's ModelCheckpoint expects automatic optimization: with manual it wants the weights from before the step.
    """

    def __init__(self, folder: Path, every: int, keep: int) -> None:
        self.folder, self.every, self.keep = folder, every, keep

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is time."""
        if trainer.global_step % self.every == 0 or trainer.global_step == trainer.max_steps:
            self._save(trainer)

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Save what there is, if any step has been taken.

        Without Lightning's barrier: the other processes may not be failing, and would never come to it.
        """
        if trainer.global_step > 0 and trainer.is_global_zero:
            state = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
            trainer.strategy.save_checkpoint(state, self._path(trainer))

    def _path(self, trainer: lightning.Trainer) -> Path:
        return self.folder / f"step={trainer.global_step:09d}.ckpt"

    def _save(self, trainer: lightning.Trainer) -> None:
        trainer.save_checkpoint(self._path(trainer))
        if trainer.is_global_zero:
            for old in sorted(self.folder.glob("step=*.ckpt"))[: -self.keep]:
                old.unlink()
