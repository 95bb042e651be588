"""SLURM job scripts that a person can read, change and submit by hand; submitted on request.

The job may be stopped by its time limit, preempted, or lose a node; each time it is requeued and resumes. All starts
write to the same log.
"""

import logging
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.store import durable
from launch.command import SCRIPT, VERBS_THAT_SHARE, Parse, check, refuse_unprintable

log = logging.getLogger(__name__)

TASK = "{task}"
"""Placeholder of the task number in the command of a job array."""
MAX_TASKS = 100_000
"""Largest number of tasks of an array, all checked before the script is written."""
TEMPLATE = """\
#!/bin/bash
# Written by `foundation launch slurm`. Submit it again with: sbatch {script}
{directives}

{prologue}export OMP_NUM_THREADS={threads}
# this script runs on the first node, as does rank 0
export MASTER_ADDR=$(hostname)
export MASTER_PORT=$((15000 + SLURM_JOB_ID % 10000))
echo "start $((${{SLURM_RESTART_COUNT:-0}} + 1)) of job {job} on $SLURM_JOB_NODELIST, $(date)"
# SIGUSR1 waits until training starts; where env is too old for it, only from Python's first imports on
hold=$(env --block-signal=USR1 echo "env --block-signal=USR1" 2>/dev/null)
srun --cpus-per-task={cpus} --kill-on-bad-exit=1 $hold \\
    {command}
"""


@dataclass(frozen=True, kw_only=True)
class SlurmConfig:
    """A SLURM job that trains and requeues itself when it is stopped. The command to run comes after `--`.

    An array may also share the work of predict, relax, md or discovery by their --part.
    """

    time: str
    """Time limit of one start, in SLURM's format: minutes, hours:minutes:seconds or days-hours:minutes:seconds."""
    nodes: int = 1
    """Nodes."""
    gpus_per_node: int = 0
    """Number of GPUs per node, with one process each; 0 trains on CPUs."""
    processes_per_node: int = 1
    """Number of processes per node without GPUs."""
    cpus_per_task: int | None = None
    """Number of CPU cores per process; None: one plus one for each of its --machine.num_workers."""
    memory: str | None = None
    """Memory of a node, in SLURM's format (240G); None: the partition's default."""
    partition: str | None = None
    """Partition."""
    account: str | None = None
    """SLURM account (--account)."""
    qos: str | None = None
    """Quality of service."""
    name: str | None = None
    """Name of the job; None: that of the run folder."""
    array: str | None = None
    """Task numbers of a job array, in SLURM's format (0-15, or 0-15%4 for four at a time). `{task}` in the command, as
    in `--config sweep/{task}.yaml --out runs/sweep-{task}`, is the number of the task."""
    signal_before: int = 300
    """Time before the time limit at which the run saves a checkpoint and requeues itself [s]."""
    directives: tuple[str, ...] = ()
    """More options of sbatch, one line each: ["--constraint=h100", "--exclusive"]."""
    prologue: tuple[str, ...] = ()
    """Lines of shell to run first: ["module load cuda"]. The only option that is run unquoted."""
    out: Path | None = None
    """Folder of the script and of the logs; None: the run folder."""
    submit: bool = False
    """Submit the script."""
    command: tuple[str, ...]
    """Command to run."""

    def __post_init__(self) -> None:
        _refuse_what_shells_would_run(self)
        for name in ("nodes", "processes_per_node", "signal_before"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.gpus_per_node < 0 or (self.cpus_per_task is not None and self.cpus_per_task < 1):
            raise ValueError("gpus_per_node must be at least 0 and cpus_per_task at least 1")
        if self.gpus_per_node and self.processes_per_node > 1:
            raise ValueError("with --gpus-per-node each GPU has one process; leave --processes-per-node out")
        if seconds_of(self.time) <= self.signal_before:
            raise ValueError(f"time {self.time}: shorter than signal_before, {self.signal_before} s; nothing would run")
        if self.array is not None and self.out is None:
            raise ValueError("the tasks of an array have different run folders; give the script a folder with --out")


def _refuse_what_shells_would_run(config: SlurmConfig) -> None:
    for name in ("time", "memory", "partition", "account", "qos", "name", "array", "out"):
        refuse_unprintable(name, str(getattr(config, name)))
    for name in ("directives", "prologue"):
        for place, line in enumerate(getattr(config, name)):
            refuse_unprintable(f"{name}, line {place + 1},", line)
    for directive in config.directives:
        _directive(directive)


def launch_slurm(config: SlurmConfig, parse: Parse) -> Path:
    """Check the command, write the job script and submit it on request; return the script.

    Raises:
        ValueError: the command or the configuration is wrong.
        FileExistsError: the run folder already exists.
        OSError: sbatch is missing or refuses the script.
    """
    machine = {
        "--machine.accelerator": "gpu" if config.gpus_per_node else "cpu",
        "--machine.devices": config.gpus_per_node or config.processes_per_node,
        "--machine.num_nodes": config.nodes,
    }
    if config.array is None and any(TASK in word for word in config.command):
        raise ValueError(f"{TASK} in the command is the task number of a job array; give the numbers with --array")
    commands = [[word.replace(TASK, task) for word in config.command] for task in tasks_of(config.array)]
    checked = [check(command, parse, machine, shared=True) for command in commands]
    run, added = checked[0]
    if _shared(config):
        _refuse_unshared(config, [(task_run.out, task_run.part) for task_run, _ in checked])
    else:
        if not config.gpus_per_node:
            _refuse_dropped_gpus(commands, parse)
        if len({task_run.out for task_run, _ in checked}) < len(checked):
            raise ValueError(f"the tasks of the array would share a run folder; put {TASK} into --out of the command")
    folder = (config.out or run.out).absolute()
    refuse_unprintable("the folder of the script", str(folder))
    if "\\" in str(folder):
        raise ValueError(f"{folder}: SLURM removes backslashes from the name of a log; choose another --out")
    script = folder / SCRIPT
    text = script_text(config, run, [*config.command, *added], script)
    folder.mkdir(parents=True, exist_ok=True)
    durable.write_whole(script, text)
    log.info("wrote %s", script)
    if config.submit:
        done = subprocess.run(["sbatch", str(script)], capture_output=True, text=True, check=False)
        if done.returncode:
            raise OSError(f"sbatch refuses {script}: {done.stderr.strip()}")
        log.info("%s", done.stdout.strip())
    return script


def _shared(config: SlurmConfig) -> bool:
    """Return whether the tasks of an array share the work of the command by its --part."""
    return config.command[:1] != () and config.command[0] in VERBS_THAT_SHARE


def _refuse_unshared(config: SlurmConfig, parts: Sequence[tuple[Path, str]]) -> None:
    """Refuse a job whose tasks would do the same work, or of several processes that would.

    Raises:
        ValueError: the message says how the work is shared.
    """
    how = f"share it by an array, such as --array 1-32 and --part {TASK}/32 in the command"
    if config.nodes > 1 or config.processes_per_node > 1 or config.gpus_per_node > 1:
        raise ValueError(f"`{config.command[0]}` is one process; {how}")
    if len(set(parts)) < len(parts):
        raise ValueError(f"the tasks of the array would do the same work; {how}")


def _refuse_dropped_gpus(commands: Sequence[Sequence[str]], parse: Parse) -> None:
    """Refuse a job without GPUs for a recipe that asks for them: it would train on CPUs for days, without a word.

    Raises:
        ValueError: the message says how to ask for them, or how not to.
    """
    for command in commands:
        machine = parse([*command])[1].machine
        if machine.accelerator == "gpu":
            raise ValueError(
                f"the command's configuration asks for GPUs (machine.accelerator gpu, {machine.devices} per node), but "
                f"the job has none: add --gpus-per-node {machine.devices}, or set machine.accelerator to auto in the "
                "configuration to train on CPUs"
            )


def script_text(config: SlurmConfig, run: Any, command: Sequence[str], script: Path) -> str:
    """Return the text of a job script."""
    workers = 0 if _shared(config) else run.machine.num_workers
    cpus = config.cpus_per_task or getattr(run, "processes", 1) + workers
    job, log_name = ("${SLURM_JOB_ID}", "slurm-%j.log")
    if config.array:
        job, log_name = "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}", "slurm-%A_%a.log"
    directives = {
        "job-name": config.name or script.parent.name,
        "nodes": config.nodes,
        "ntasks-per-node": config.gpus_per_node or config.processes_per_node,
        "gpus-per-node": config.gpus_per_node or None,
        "cpus-per-task": cpus,
        "mem": config.memory,
        "time": config.time,
        "partition": config.partition,
        "account": config.account,
        "qos": config.qos,
        "array": config.array,
        "signal": None if _shared(config) else f"USR1@{config.signal_before}",
        "output": f"{script.parent}/".replace("%", "%%") + log_name,
        "open-mode": "append",
        "chdir": Path.cwd(),
    }
    options = [f"--{name}={shlex.quote(str(value))}" for name, value in directives.items() if value is not None]
    options += ["--requeue", *map(_directive, config.directives)]
    return TEMPLATE.format(
        script=shlex.quote(str(script)),
        directives="\n".join(f"#SBATCH {option}" for option in options),
        prologue="".join(line + "\n" for line in config.prologue),
        threads=max(1, (cpus - workers) // getattr(run, "processes", 1)),
        cpus=cpus,
        command=_lines([sys.executable, "-m", "launch", *command]),
        job=job,
    )


def _directive(line: str) -> str:
    """Return an option of sbatch, with shell quoting.

    Raises:
        ValueError: it is not an option, or a quotation in it is not closed.
    """
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise ValueError(f"directives: {line!r}: {error}; write an option as on the command line of sbatch") from None
    if not words or not words[0].startswith("-"):
        raise ValueError(f"directives: {line!r} is not an option of sbatch; write it as --constraint=h100")
    return shlex.join(words)


def _lines(words: Sequence[str]) -> str:
    """Return a command as shell text, with an option and its value on each line."""
    lines = [[]]
    for word in words:
        if word.startswith("--"):
            lines.append([])
        lines[-1].append(_quoted(word))
    return " \\\n    ".join(" ".join(line) for line in lines)


def _quoted(word: str) -> str:
    return '"${SLURM_ARRAY_TASK_ID}"'.join(part and shlex.quote(part) for part in word.split(TASK)) or "''"


def tasks_of(array: str | None) -> list[str]:
    """Return the task numbers of a job array; [''] if the job is not an array.

    Raises:
        ValueError: SLURM would not understand it.
    """
    if array is None:
        return [""]
    tasks: list[int] = []
    for part in array.partition("%")[0].split(","):
        found = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9})(?::([1-9][0-9]{0,8}))?)?", part)
        if not found or not re.fullmatch(r"[^%]+(%[1-9][0-9]{0,8})?", array):
            raise ValueError(f"array {array!r}: write it as 0-15, 0-15%4, 1,3,7 or 0-30:10")
        first, last, step = found.groups()
        numbers = range(int(first), int(last or first) + 1, int(step or 1))
        if not numbers or len(tasks) + len(numbers) > MAX_TASKS:
            raise ValueError(f"array {array!r}: {part} is {len(numbers):,} tasks; use 1 to {MAX_TASKS:,} in all")
        tasks += numbers
    return [str(task) for task in tasks]


def seconds_of(time: str) -> int:
    """Return a time limit of SLURM in seconds.

    Raises:
        ValueError: SLURM would not understand it.
    """
    found = re.fullmatch(r"(?:(\d{1,9})-)?(\d{1,9})(?::(\d{1,9}))?(?::(\d{1,9}))?", time, re.ASCII)
    if not found:
        raise ValueError(f"time {time!r}: write it as minutes, hours:minutes:seconds or days-hours:minutes:seconds")
    days, *numbers = (int(number) if number else None for number in found.groups())
    first, second, third = (number or 0 for number in numbers)
    if days is not None or numbers[2] is not None:
        return (((days or 0) * 24 + first) * 60 + second) * 60 + third
    return first * 60 + second
