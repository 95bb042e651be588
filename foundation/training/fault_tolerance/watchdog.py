"""Watchdog of unattended runs: a process that takes no more steps is reported by name, then ended.

A process waiting in a collective cannot tell for whom, and a stopped one reports nothing. So a thread of every process
writes its current step into a shared store, and any process that detects a stall names those that are behind. Ending
the run lets the launcher start it again from a checkpoint.
"""

# torch exports TCPStore without saying so
# pyright: reportPrivateImportUsage=false

import logging
import os
import socket
import sys
import threading
import time
import traceback
from datetime import timedelta
from typing import Any

import lightning
import torch.distributed
from lightning.pytorch.callbacks import Callback

log = logging.getLogger(__name__)

TRY_AGAIN = 75
"""Exit code of a process that ends because of a stall: EX_TEMPFAIL of sysexits.h."""


class Watchdog(Callback):
    """Callback that watches the steps of a run from a thread."""

    def __init__(self, stall_after: float) -> None:
        self._stall_after = stall_after
        self._step, self._moved = 0, time.monotonic()
        self._ended = threading.Event()
        self._store: torch.distributed.TCPStore | None = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Start the watching thread."""
        self._step, self._moved = trainer.global_step, time.monotonic()
        self._name = f"process {trainer.global_rank} on {socket.gethostname()}, pid {os.getpid()}"
        self._rank, self._world_size = trainer.global_rank, trainer.world_size
        if trainer.world_size > 1:
            self._store = _shared_store(trainer)
            self._tell()
            trainer.strategy.barrier()
        threading.Thread(target=self._watch, args=(threading.main_thread().ident,), daemon=True).start()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Record a step."""
        self._step, self._moved = trainer.global_step, time.monotonic()

    def on_validation_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, *args: Any, **kwargs: Any
    ) -> None:
        """Record a validation batch."""
        self._moved = time.monotonic()

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Stop the watching thread."""
        self._ended.set()

    def _watch(self, main_thread: int) -> None:
        reported = False
        while not self._ended.wait(min(5.0, self._stall_after / 5)):
            self._tell()
            still = time.monotonic() - self._moved
            if still < self._stall_after:
                reported = False
            elif not reported:
                log.error("%s: no step for %.0f s, at step %d, %s", self._name, still, self._step, _place(main_thread))
                self._name_those_behind()
                reported = True
            if still > 2 * self._stall_after:
                log.error("%s: ended because of the stall; start the run again with --fit.resume true", self._name)
                logging.shutdown()
                os._exit(TRY_AGAIN)

    def _tell(self) -> None:
        if self._store is None:
            return
        try:
            self._store.set(f"step/{self._rank}", f"{self._step} {time.time()} {self._name}")
        except RuntimeError as error:  # the process that keeps the store has ended
            log.error("%s: cannot tell the others its step (%s)", self._name, error)
            self._store = None

    def _name_those_behind(self) -> None:
        """Name the processes whose threads are silent too, or else those at the lowest step."""
        if self._store is None:
            return
        told = [self._store.get(f"step/{rank}").decode().split(" ", 2) for rank in range(self._world_size)]
        steps = [int(step) for step, _, _ in told]
        silent = [time.time() - float(when) > self._stall_after / 2 for _, when, _ in told]
        behind = [step == min(steps) and min(steps) < max(steps) for step in steps]
        for (step, _, name), is_silent, is_behind in zip(told, silent, behind, strict=True):
            if is_silent or (is_behind and not any(silent)):
                what = "does not answer" if is_silent else f"is behind the others, which are at step {max(steps)}"
                log.error("%s: %s; it was at step %s", name, what, step)


def _shared_store(trainer: lightning.Trainer) -> torch.distributed.TCPStore:
    """Return a store that all processes of a run can read and write."""
    environment: Any = getattr(trainer.strategy, "cluster_environment", None)
    host, timeout = environment.main_address, timedelta(seconds=30)
    server = None
    if trainer.is_global_zero:
        server = torch.distributed.TCPStore(host, 0, is_master=True, timeout=timeout, wait_for_workers=False)
    port = trainer.strategy.broadcast(server.port if server is not None else 0)
    return server or torch.distributed.TCPStore(host, port, is_master=False, timeout=timeout)


def _place(thread: int) -> str:
    """Describe the place of a thread in the code."""
    frame = sys._current_frames().get(thread)
    if frame is None:
        return "which has ended"
    stack = traceback.extract_stack(frame)[-4:]
    return "in " + " > ".join(f"{entry.name} ({os.path.basename(entry.filename)}:{entry.lineno})" for entry in stack)
