"""Processes on this machine, restarted together when one of them fails: torchrun's agent, in this process."""

import os
import signal
import sys
import uuid
from dataclasses import dataclass

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from foundation.run_folder import refuse_in_use
from foundation.training.fault_tolerance.preemption import PreemptedError
from foundation.training.fault_tolerance.watchdog import TRY_AGAIN
from launch.command import Parse, check

FORWARDED = ("SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1")
"""Signals that are passed on to the processes."""


@dataclass(frozen=True, kw_only=True)
class LocalConfig:
    """Processes on this machine, restarted when one fails. The command to run comes after `--`."""

    processes: int
    """Number of processes, one per GPU if there are any."""
    max_restarts: int = 3
    """Number of restarts."""
    command: tuple[str, ...]
    """Command to run."""

    def __post_init__(self) -> None:
        if self.processes < 1 or self.max_restarts < 0:
            raise ValueError("processes must be at least 1 and max_restarts at least 0")


def launch_local(config: LocalConfig, parse: Parse) -> None:
    """Check the command and run it on several processes.

    Raises:
        ChildProcessError: the processes failed more often than max_restarts.
        PreemptedError: they stopped after a signal or a stall and can be resumed.
        ValueError: the command is wrong.
        FileExistsError: the run folder already exists.
        InUse: another run holds it.
    """
    run, added = check(config.command, parse, {"--machine.devices": config.processes, "--machine.num_nodes": 1})
    refuse_in_use(run.out)
    agent = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=config.processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=config.max_restarts,
        signals_to_handle=",".join(FORWARDED),
    )
    # torch keeps one store over restarts, in which new processes find and wait for addresses of dead ones
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    # blocked since the start for a process that trains; the agent passes it on
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
    try:
        elastic_launch(agent, sys.executable)("-m", "launch", *config.command, *added)
    except SignalException as error:
        raise PreemptedError(str(error)) from None
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode == TRY_AGAIN:
            raise PreemptedError(f"process {rank} stopped and can be started again") from None
        raise ChildProcessError(
            f"process {rank} failed with exit code {failure.exitcode} after {config.max_restarts} restarts; "
            "its output is above"
        ) from None
