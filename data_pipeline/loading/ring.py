"""Ring buffer: finished batches pass from worker processes to the training process through shared memory.

Tasks are numbered and task t is prepared by worker t mod num_workers, so the order does not depend on timing and needs
no communication. Each worker has a few slots of shared memory, which it fills in turn; the training process copies a
batch out, once, and returns the slot. The worker writes into its slot with numpy, and the tensors become views of it:
no pickling of arrays, no file descriptors, no torch in the worker. With PyTorch's DataLoader the same batches cost both
processes about a sixth more time.

The memory is an anonymous mapping that the workers inherit by fork. It has no name, so nothing remains however the
processes end, and it does not count against the default 64 MB of /dev/shm in a container.
"""

import contextlib
import itertools
import logging
import mmap
import multiprocessing
import os
import pickle
import signal
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from data_pipeline.graphs.batch import BatchLayout, GraphBatch, Graphs

log = logging.getLogger(__name__)

STALL_SECONDS = 30.0
"""Wait for one batch after which a warning is logged [s]."""
ORPHAN_SECONDS = 1.0
"""Interval at which a waiting worker checks that its parent is alive [s]."""


class WorkerDied(ChildProcessError, RuntimeError):
    """A killed or crashed worker process; the message says how and what to do."""


Prepare = Callable[[int], tuple[Graphs, Sequence[Any]]]
"""Work of a worker: turns the number of a task into a batch, and remarks for the training process."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Numbered batches to prepare and deliver in order."""

    prepare: Prepare
    """Function that makes the batch of a task."""
    first: int
    """First task."""
    last: int | None
    """Task to stop before; None is endless."""
    name: Callable[[int], str]
    """Name of a task in messages."""
    num_workers: int
    """Number of worker processes; with 0 the training process prepares its own batches."""
    num_slots: int
    """Number of batches that each worker may be ahead of the training process."""
    slot_bytes: int
    """Size of a slot [bytes]; a larger batch goes through a slower pipe."""
    pin_memory: bool
    """Copy batches to page-locked memory, from which copies to an accelerator are asynchronous."""

    def tasks(self, worker: int = 0, num_workers: int = 1) -> Iterable[int]:
        """Return the tasks, or those of one of several workers: task mod num_workers is the worker."""
        first = self.first + (worker - self.first) % num_workers
        return itertools.count(first, num_workers) if self.last is None else range(first, self.last, num_workers)


@dataclass
class Tally:
    """Costs of delivery so far."""

    waited: float = 0.0
    """Time that the training process spent waiting for batches [s]; without workers, preparing them."""
    num_large: int = 0
    """Number of batches that did not fit a slot."""


def deliver(job: Job, tally: Tally) -> Generator[tuple[GraphBatch, Sequence[Any]], None, None]:
    """Yield the batches of a job in order, each with its remarks, and record the costs.

    Workers start with the first batch and end when the iterator is exhausted, closed or dropped. An exception in a
    worker is raised here again.

    Raises:
        WorkerDied: a worker was killed.
    """
    if job.num_workers == 0:
        for task in job.tasks():
            started = time.perf_counter()
            graphs, remarks = job.prepare(task)
            buffer = _empty(graphs.layout, job)
            graphs.write(buffer.numpy())
            tally.waited += time.perf_counter() - started
            yield graphs.layout.batch(buffer), remarks
        return
    workers: list[_Worker] = []
    try:
        for number in range(job.num_workers):
            workers.append(_Worker(number, job))
        for task in job.tasks():
            yield workers[task % job.num_workers].receive(task, tally)
    finally:
        for worker in workers:
            worker.close()


def _empty(layout: BatchLayout, job: Job) -> UInt8[Tensor, " bytes"]:
    return torch.empty(layout.num_bytes, dtype=torch.uint8, pin_memory=job.pin_memory)


class _Worker:
    """The training process's side of a worker process."""

    def __init__(self, number: int, job: Job) -> None:
        self._number, self._job, self._owner = number, job, os.getpid()
        self._slot, self._warned = 0, False
        # the mapping is freed with the last view of it
        memory = mmap.mmap(-1, job.num_slots * job.slot_bytes)
        self._slots = np.frombuffer(memory, np.uint8).reshape(job.num_slots, job.slot_bytes)
        self._results, results = multiprocessing.Pipe(duplex=False)
        freed, self._freed = multiprocessing.Pipe(duplex=False)
        not_mine = (self._results, self._freed)
        arguments = (number, job, self._slots, results, freed, not_mine, self._owner)
        # forked, so that the memory and the index of the data are shared, not copied
        context = multiprocessing.get_context("fork")
        self._process = context.Process(target=_work, args=arguments, daemon=True, name=f"data-{number}")
        # Ctrl-C and SLURM's signals to all processes are handled by the training process, which ends this one
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        # also at the end of the program, where multiprocessing itself would send SIGTERM and wait
        self._end = Finalize(self, _kill, args=(self._process,), exitpriority=0)
        # now only the worker holds these ends: when it dies, they close
        results.close()
        freed.close()

    def receive(self, task: int, tally: Tally) -> tuple[GraphBatch, Sequence[Any]]:
        """Return the next batch of this worker, that of the given task."""
        if not self._results.poll():
            started = time.perf_counter()
            self._wait(task)
            tally.waited += time.perf_counter() - started
        try:
            message = self._results.recv()
            if not isinstance(message, BaseException):
                layout, remarks = message
                return self._take(layout, remarks, tally)
        except (EOFError, OSError):  # the message ends, or ends in the middle
            raise self._death(task) from None
        raise message

    def _take(self, layout: BatchLayout, remarks: Sequence[Any], tally: Tally) -> tuple[GraphBatch, Sequence[Any]]:
        """Copy a batch out of its slot and return the slot."""
        buffer = _empty(layout, self._job)
        if layout.num_bytes <= self._job.slot_bytes:
            buffer.numpy()[:] = self._slots[self._slot, : layout.num_bytes]
        else:
            tally.num_large += 1
            self._results.recv_bytes_into(buffer.numpy())
        self._slot = (self._slot + 1) % self._job.num_slots
        with contextlib.suppress(BrokenPipeError):  # the worker has finished its last task
            self._freed.send_bytes(b"1")
        return layout.batch(buffer), remarks

    def _wait(self, task: int) -> None:
        """Wait until there is something to receive.

        Raises:
            WorkerDied: the worker has died.
        """
        timeout = None if self._warned else STALL_SECONDS
        ready = wait([self._results, self._process.sentinel], timeout)
        if not ready:
            self._warned = True
            log.warning(
                "waiting for %s for more than %g s: worker %d (process %d) is reading, or its files are slow to come",
                self._job.name(task),
                STALL_SECONDS,
                self._number,
                self._process.pid,
            )
            ready = wait([self._results, self._process.sentinel])
        # both are ready when it sent something and then ended
        if self._results not in ready and not self._results.poll():
            raise self._death(task)

    def _death(self, task: int) -> WorkerDied:
        self._process.join(1.0)
        code = self._process.exitcode
        how = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
        hint = "The machine may have run out of memory: use fewer workers. " if how == "SIGKILL" else ""
        return WorkerDied(
            f"worker {self._number} (process {self._process.pid}) died of {how} while preparing "
            f"{self._job.name(task)}. {hint}Resume the run with --fit.resume auto; without workers "
            "(--machine.num_workers 0) what is wrong shows in the process itself"
        )

    def close(self) -> None:
        """End the process at once: it writes nothing that a sudden end could damage."""
        if os.getpid() != self._owner:  # a forked copy of this object, collected in another worker
            return
        self._end()
        self._results.close()
        self._freed.close()


def _kill(process: BaseProcess) -> None:
    process.kill()
    process.join()
    process.close()


def _work(
    number: int,
    job: Job,
    slots: UInt8[np.ndarray, "slots bytes"],
    results: Connection,
    freed: Connection,
    not_mine: Sequence[Connection],
    parent: int,
) -> None:
    """Prepare tasks one after another, in a worker process."""
    for connection in not_mine:
        connection.close()
    try:
        for place, task in enumerate(job.tasks(number, job.num_workers)):
            graphs, remarks = job.prepare(task)
            if place >= len(slots) and not _slot_freed(freed, parent):
                return
            layout = graphs.layout
            if layout.num_bytes <= slots.shape[1]:
                graphs.write(slots[place % len(slots), : layout.num_bytes])
                results.send((layout, remarks))
            else:
                buffer = np.empty(layout.num_bytes, dtype=np.uint8)
                graphs.write(buffer)
                results.send((layout, remarks))
                results.send_bytes(buffer.data)
    except Exception as error:
        with contextlib.suppress(BrokenPipeError):  # the training process has ended
            results.send(_portable(error))


def _slot_freed(freed: Connection, parent: int) -> bool:
    """Wait for a slot that the training process returned; return False if that has ended.

    Other forked processes may keep the pipe open after the training process, so its end alone proves nothing.
    """
    try:
        while not freed.poll(ORPHAN_SECONDS):
            if os.getppid() != parent:
                return False
        return bool(freed.recv_bytes())
    except EOFError:
        return False


def _portable(error: Exception) -> Exception:
    """Return an exception that can be pickled, with its traceback as a note."""
    note = f"raised in a worker process:\n{traceback.format_exc()}"
    try:
        copy = pickle.loads(pickle.dumps(error))
        portable = copy if type(copy) is type(error) and str(copy) == str(error) else None
    except Exception:
        portable = None
    portable = RuntimeError(f"{type(error).__name__}: {error}") if portable is None else portable
    portable.add_note(note)
    return portable
