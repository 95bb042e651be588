"""Guard of a run: steps that would spoil the weights are skipped, and a diverging run is rolled back.

The norm of the gradient and the loss are the same in every process, because they result from the sum over processes: a
label or gradient that is not finite in one of them is seen by all in the same step, and all skip it. Only then are the
responsible frames searched, which costs time.
"""

import logging
import math
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import lightning
import torch
from lightning.pytorch.callbacks import Callback, WeightAveraging

from data_pipeline.graphs.batch import GraphBatch
from data_pipeline.store.lock import Lost
from foundation.configuration import DECIDES, MAY_CHANGE
from foundation.potential import Potential
from foundation.training.fault_tolerance.checkpoints import Checkpoints, NothingToSave
from foundation.training.fault_tolerance.reading import newest_checkpoint
from foundation.training.lightning_internals import callbacks_of

log = logging.getLogger(__name__)

MAX_NAMED = 8
"""Number of frames that a message names."""


@dataclass(frozen=True, kw_only=True)
class GuardConfig:
    """Response to diverging training and failing hardware."""

    max_bad_steps: int = field(default=5, metadata=DECIDES)
    """Number of consecutive steps that may be skipped because their loss or gradient is not finite or their loss is a
    spike."""
    then: Literal["rollback", "stop"] = field(default="rollback", metadata=MAY_CHANGE)
    """Action after that: roll back to the newest checkpoint and continue with the next data at a lower learning rate,
    or stop."""
    rate_factor: float = field(default=0.5, metadata=DECIDES)
    """Factor of the learning rate after each rollback."""
    max_rollbacks: int = field(default=3, metadata=MAY_CHANGE)
    """Number of rollbacks before the run stops."""
    spike_factor: float = field(default=100.0, metadata=DECIDES)
    """Factor over the median of the last steps above which a loss is a spike."""
    spike_window: int = field(default=50, metadata=DECIDES)
    """Number of steps in that median; before there are as many, nothing is a spike."""
    save_errors: Literal["stop", "continue"] = field(default="stop", metadata=MAY_CHANGE)
    """Response to a checkpoint that cannot be written; the next one is tried in either case."""
    stall_after: float = field(default=1800.0, metadata=MAY_CHANGE)
    """Time without a step after which a process is reported [s]; after twice this the run ends."""

    def __post_init__(self) -> None:
        if min(self.max_bad_steps, self.spike_window) < 1 or self.max_rollbacks < 0:
            raise ValueError("max_bad_steps and spike_window must be at least 1, max_rollbacks not negative")
        if not 0 < self.rate_factor <= 1 or self.spike_factor <= 1 or self.stall_after <= 0:
            raise ValueError("a guard needs 0 < rate_factor <= 1, spike_factor > 1 and stall_after > 0")


class Diverged(NothingToSave):
    """The run stopped because its loss or gradient stays unusable; the message names the frames."""


class Guard(Callback):
    """Callback that checks every step before it is taken."""

    def __init__(self, config: GuardConfig, checkpoints: Checkpoints) -> None:
        self.config, self._checkpoints = config, checkpoints
        self._losses: deque[float] = deque(maxlen=config.spike_window)
        self._bad_steps = self.num_rollbacks = self.num_skipped = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the state that the check of later steps depends on."""
        return {
            "losses": list(self._losses),
            "bad_steps": self._bad_steps,
            "num_rollbacks": self.num_rollbacks,
            "num_skipped": self.num_skipped,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state."""
        self._losses.extend(state_dict["losses"])
        self._bad_steps, self.num_rollbacks = state_dict["bad_steps"], state_dict["num_rollbacks"]
        self.num_skipped = state_dict["num_skipped"]

    @property
    def save_failure(self) -> bool:
        """True if this process failed to write a checkpoint and the run must stop for it."""
        files = self._checkpoints.files
        return files.lost or (self.config.save_errors == "stop" and files.failure is not None)

    def refuse_lost(self) -> None:
        """Raise an error if the run folder is gone, in the process that writes to it.

        Raises:
            Lost: it is gone.
        """
        if self._checkpoints.files.lost:
            raise Lost(self._checkpoints.files.failure)

    @property
    def rate_factor(self) -> float:
        """Factor of the learning rate after the rollbacks so far."""
        return self.config.rate_factor**self.num_rollbacks

    def trouble(self, loss: float, norm: float) -> str | None:
        """Return the problem of a step, or None."""
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(norm):
            return f"the norm of the gradient is {norm}"
        if len(self._losses) == self.config.spike_window:
            median = statistics.median(self._losses)
            if loss > self.config.spike_factor * median:
                return f"the loss is {loss:.3g}, but the median of the last {self.config.spike_window} was {median:.3g}"
        return None

    def good_step(self, loss: float) -> None:
        """Record a step that was taken."""
        self._losses.append(loss)
        self._bad_steps = 0

    def bad_step(
        self, trainer: lightning.Trainer, potential: Potential, batches: Sequence[GraphBatch], trouble: str
    ) -> None:
        """Record a skipped step: name its frames, and roll back or stop after too many.

        Raises:
            Diverged: too many, and the run must stop or has no checkpoint to go back to.
        """
        self._bad_steps += 1
        self.num_skipped += 1
        suspects = suspects_of(potential, batches)
        step = trainer.global_step
        log.warning("step %d, process %d: skipped, %s. %s", step, trainer.global_rank, trouble, suspects)
        if self._bad_steps < self.config.max_bad_steps:
            return
        what = f"{self._bad_steps} steps in a row up to step {step} were unusable: {trouble}. {suspects}"
        if self.config.then == "stop" or self.num_rollbacks == self.config.max_rollbacks:
            raise Diverged(f"{what} The newest checkpoint is from before these steps.")
        self._roll_back(trainer, what)

    def _roll_back(self, trainer: lightning.Trainer, what: str) -> None:
        """Restore weights, moving average and optimizer from the newest checkpoint; data and schedule continue.

        Raises:
            Diverged: no checkpoint.
        """
        self._checkpoints.writer.teardown()
        path = None
        if trainer.is_global_zero:
            try:
                # not one left by a crash: the run must continue as without the crash
                folder, every = self._checkpoints.folder.parent, self._checkpoints.every
                path = newest_checkpoint(folder, every, last=trainer.global_step).path
            except FileNotFoundError:
                log.error("no checkpoint yet to go back to")
        path = trainer.strategy.broadcast(path)
        if path is None:
            raise Diverged(f"{what} No checkpoint to go back to.")
        state = trainer.strategy.load_checkpoint(path, weights_only=True)
        trainer.strategy.load_model_state_dict(state)
        for averaging in callbacks_of(trainer, WeightAveraging):
            averaging.on_load_checkpoint(trainer, trainer.lightning_module, state)
        rates = [group["initial_lr"] * self.config.rate_factor for group in trainer.optimizers[0].param_groups]
        trainer.strategy.load_optimizer_state_dict(state)
        scheduler: Any = trainer.lr_scheduler_configs[0].scheduler
        scheduler.base_lrs = rates
        for group, rate in zip(trainer.optimizers[0].param_groups, rates, strict=True):
            group["initial_lr"] = rate
        self.num_rollbacks += 1
        self._bad_steps = 0
        self._losses.clear()
        factor = self.config.rate_factor
        log.warning("%s Back to the weights of %s, at %g of the learning rate.", what, path.name, factor)


def suspects_of(potential: Potential, batches: Sequence[GraphBatch]) -> str:
    """Name the frames of a process's micro-batches with a label or prediction that is not finite."""
    found: list[str] = []
    potential.eval()
    for batch in batches:
        if batch.num_graphs == 0:
            continue
        prediction = potential(batch)
        of_graph = torch.isfinite(prediction.energy) & torch.isfinite(batch.energy)
        of_graph &= torch.isfinite(batch.stress).flatten(1).all(1) & torch.isfinite(prediction.stress).flatten(1).all(1)
        of_atom = torch.isfinite(batch.forces).all(1) & torch.isfinite(prediction.forces).all(1)
        bad = ~of_graph
        bad[batch.graph_of_atom[~of_atom]] = True
        found += [batch.ids[number] for number in bad.nonzero().flatten().tolist()]
    potential.train()
    if found:
        more = f" and {len(found) - MAX_NAMED} more" if len(found) > MAX_NAMED else ""
        return f"Not finite in frames {', '.join(found[:MAX_NAMED])}{more}."
    frames = [name for batch in batches for name in batch.ids]
    more = f" and {len(frames) - MAX_NAMED} more" if len(frames) > MAX_NAMED else ""
    return f"All labels and predictions of its frames are finite; these were {', '.join(frames[:MAX_NAMED])}{more}."
