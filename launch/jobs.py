"""Jobs: commands of this program in processes of their own, a few at a time.

A failure or lack of memory ends only that job, and every job equals its own command; the price is the start of an
interpreter. The folder of several jobs has one folder for each, configs/NAME.yaml (`foundation VERB --config` of it is
the job) and logs/NAME.log.
"""

import contextlib
import fcntl
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from data_pipeline.store import durable
from data_pipeline.store.lock import holder_of, say_who
from foundation.training.fault_tolerance.preemption import PreemptedError, requeue
from launch.yaml_files import to_yaml

log = logging.getLogger(__name__)

CONFIGS, LOGS, LOCK = "configs", "logs", ".lock"
TAIL_LINES = 12
"""Number of lines of a failed job's log that are shown at the end."""
POLL_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True, eq=False)
class Job:
    """A command with its configuration."""

    name: str
    """Name."""
    verb: str
    """Verb of the command."""
    out: Path
    """Its folder."""
    record: dict[str, Any]
    """Resolved configuration, as JSON."""

    @property
    def config(self) -> Path:
        """File with its configuration."""
        return self.out.parent / CONFIGS / f"{self.name}.yaml"

    @property
    def log(self) -> Path:
        """File with its output."""
        return self.out.parent / LOGS / f"{self.name}.log"

    def write_config(self) -> None:
        """Write the file with its configuration, and make the folder of its log."""
        self.config.parent.mkdir(parents=True, exist_ok=True)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        durable.write_whole(self.config, to_yaml(self.record))


def no_cost(job: Job, seconds: float) -> None:
    """Take note of nothing."""


@contextlib.contextmanager
def alone(folder: Path, kind: str) -> Iterator[int]:
    """Hold the lock of a folder and yield its descriptor.

    Jobs inherit it, so it is held as long as any of them runs: it is a flock(), unlike the lock of a run folder.

    Args:
        folder: Folder of the jobs; made if necessary.
        kind: Word for it in the message and in the lock's name.

    Raises:
        BlockingIOError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{kind}{LOCK}").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(
                f"{folder}: this {kind}, or one of its runs, is still running: {holder_of(folder / f'{kind}{LOCK}')}"
            ) from None
        say_who(file.fileno())
        yield file.fileno()


class Processes:
    """Processes of jobs; a signal to this one stops them with a checkpoint each."""

    def __init__(self, at_a_time: int, threads: int, lock: int, cost: Callable[[Job, float], None] = no_cost) -> None:
        """Set how many run at a time, each with how many threads.

        Args:
            at_a_time: Number of processes at a time.
            threads: Number of threads of each (OMP_NUM_THREADS).
            lock: Descriptor of the lock that they inherit.
            cost: Function called with every job whose process has ended, and its CPU time [s].
        """
        self.at_a_time, self.threads, self.lock, self.cost = at_a_time, threads, lock, cost
        self.running: dict[subprocess.Popen, tuple[Job, float]] = {}
        self.told: set[subprocess.Popen] = set()
        self.signals: list[int] = []

    def work(self, jobs: Sequence[Job]) -> dict[Job, int]:
        """Do jobs and return the exit codes of those that failed, whose ends of logs are shown.

        Raises:
            KeyboardInterrupt: stopped by SIGINT, after checkpoints of the active jobs.
            PreemptedError: stopped by SIGTERM or SIGUSR1, in the same way.
        """
        failed: dict[Job, int] = {}
        waiting = list(jobs)
        with self._signals_taken():
            while self.running or (waiting and not self.signals):
                while waiting and len(self.running) < self.at_a_time and not self.signals:
                    self._start(waiting.pop(0))
                time.sleep(POLL_SECONDS)
                self._tell()
                failed |= self._ended()
        if signal.SIGUSR1 in self.signals and "SLURM_JOB_ID" in os.environ:
            requeue(os.environ["SLURM_JOB_ID"])
        if self.signals:
            name = signal.Signals(self.signals[0]).name
            kind = KeyboardInterrupt if self.signals[0] == signal.SIGINT else PreemptedError
            raise kind(f"stopped by {name}; the same command goes on")
        for job, code in failed.items():
            lines = job.log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
            said = "\n".join(f"    {line}" for line in lines)
            how = f"exit code {code}" if code > 0 else signal.Signals(-code).name
            log.error("%s failed with %s; the end of %s:\n%s", job.name, how, job.log, said)
        return failed

    def _start(self, job: Job) -> None:
        again = "resumes" if (job.out / "run.json").is_file() else "starts"
        log.info("%s %s; it writes to %s", job.name, again, job.log)
        with job.log.open("a") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "launch", job.verb, "--config", str(job.config)],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": str(self.threads)},
                pass_fds=(self.lock,),
                start_new_session=True,  # Ctrl-C of a terminal goes only to this process, which tells the others
            )
        self.running[process] = job, time.monotonic()

    def _ended(self) -> dict[Job, int]:
        """Record the processes that have ended and return those that failed."""
        failed = {}
        for process, seconds in [(each, seconds) for each in self.running if (seconds := _waited(each)) is not None]:
            job, began = self.running.pop(process)
            self.cost(job, seconds)
            minutes = (time.monotonic() - began) / 60
            if process.returncode == 0:
                log.info("%s is finished after %.1f minutes", job.name, minutes)
            elif self.signals:
                log.info("%s stopped after %.1f minutes", job.name, minutes)
            else:
                log.error("%s failed after %.1f minutes", job.name, minutes)
                failed[job] = process.returncode
        return failed

    def _tell(self) -> None:
        """After a signal, ask each process once to end with a checkpoint; after a second Ctrl-C, end them."""
        if self.signals.count(signal.SIGINT) > 1:
            for process in self.running:
                os.killpg(process.pid, signal.SIGKILL)  # with its workers
        elif self.signals:
            for process in self.running.keys() - self.told:
                process.terminate()
                self.told.add(process)

    def _take(self, number: int, frame: FrameType | None) -> None:
        self.signals.append(number)

    @contextlib.contextmanager
    def _signals_taken(self) -> Iterator[None]:
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
        before = {number: signal.signal(number, self._take) for number in numbers}
        # blocked since the start of a job for a process that trains
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
        try:
            yield
        finally:
            for process in self.running:  # if this process itself failed
                process.terminate()
            for process in self.running:
                process.wait()
            for number, handler in before.items():
                signal.signal(number, handler)


def _waited(process: subprocess.Popen) -> float | None:
    """Return the CPU time of a process that has ended, with its children [s]; None: it has not."""
    pid, status, used = os.wait4(process.pid, os.WNOHANG)
    if pid == 0:
        return None
    process.returncode = os.waitstatus_to_exitcode(status)
    return used.ru_utime + used.ru_stime
