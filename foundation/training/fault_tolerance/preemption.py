"""Preemption: after a signal all ranks stop after the same step, a checkpoint is saved, and the job is requeued.

SLURM sends SIGUSR1 ahead of the time limit (`--signal=USR1@300`), and SIGTERM when it takes the nodes away or a person
cancels the job; torchrun sends SIGTERM when another process has failed. Signals reach the ranks in different steps, so
the ranks vote: each step reduces the maximum of one small integer per rank, read one step later, so that neither CPU
nor GPU waits for it. A run stops up to two steps after the signal.
"""

import logging
import os
import signal
import subprocess
import threading
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from foundation.training.fault_tolerance.checkpoints import Checkpoints
from foundation.training.lightning_internals import ask_no_rank_for_sigterm

log = logging.getLogger(__name__)

GO_ON, STOP, STOP_AND_REQUEUE = 0, 1, 2
"""Votes; the highest one counts."""


class PreemptedError(RuntimeError):
    """A signal stopped the run; its state is in the newest checkpoint."""


class Preemption(Callback):
    """Callback that stops a run on SIGUSR1 or SIGTERM.

    After SIGUSR1 a SLURM job requeues itself. After SIGTERM it does not: either SLURM requeues it (preemption,
    `scontrol requeue`), or somebody cancelled the job.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints
        self._wish = GO_ON
        self._votes: tuple[Tensor, torch.cuda.Event | None] | None = None

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Handle SIGUSR1 from now on; after training it is ignored, as the rest is short."""
        if threading.current_thread() is threading.main_thread():  # Python handles signals only there
            signal.signal(signal.SIGUSR1, self._take)

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Take over SIGTERM from Lightning until training ends, and unblock SIGUSR1."""
        ask_no_rank_for_sigterm(trainer)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._take)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Ignore SIGUSR1 from now on."""
        _ignore_usr1()

    def _take(self, number: int, frame: object) -> None:
        self._wish = max(self._wish, STOP_AND_REQUEUE if number == signal.SIGUSR1 else STOP)

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Vote, and stop if the previous step's vote says so.

        Raises:
            PreemptedError: on every rank at the same step.
            OSError: the checkpoint could not be written.
        """
        decision = self._outcome()
        self._vote(trainer.strategy.root_device)
        if decision == GO_ON or trainer.global_step >= trainer.max_steps:
            return
        self.checkpoints.save(trainer)
        self.checkpoints.finish()
        name = "SIGUSR1" if decision == STOP_AND_REQUEUE else "SIGTERM"
        message = f"stopped by {name} after step {trainer.global_step} with a checkpoint: resume with --fit.resume auto"
        if trainer.is_global_zero:
            log.warning("%s", message)
            if decision == STOP_AND_REQUEUE and "SLURM_JOB_ID" in os.environ:
                requeue(os.environ["SLURM_JOB_ID"])
        # srun kills the others when a rank leaves; rank zero must requeue the job before
        trainer.strategy.barrier("requeued")
        _ignore_usr1()
        raise PreemptedError(message)

    def _outcome(self) -> int:
        """Return the highest vote of the previous step."""
        if self._votes is None:
            return GO_ON
        votes, copied = self._votes
        if copied is not None:
            copied.synchronize()
        return int(votes)

    def _vote(self, device: torch.device) -> None:
        votes = torch.full((), self._wish, dtype=torch.int32, device=device)  # torch.tensor would wait for the GPU
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(votes, op=torch.distributed.ReduceOp.MAX)
        copied = torch.cuda.Event() if device.type == "cuda" else None
        self._votes = votes.to("cpu", non_blocking=True), copied
        if copied is not None:
            copied.record()


def _ignore_usr1() -> None:
    """Ignore SIGUSR1 at the level of the system.

    Python removes its own handlers on exit, and the default one would kill the process: a complete job would count as
    failed.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def requeue(job: str) -> None:
    """Requeue the SLURM job of this process, which ends this process too."""
    if "SLURM_ARRAY_JOB_ID" in os.environ:  # the bare number of an array's last task means the whole array
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        subprocess.run(["scontrol", "requeue", job], check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else error
        log.error("scontrol requeue %s failed: %s; submit the job again to continue", job, reason)
