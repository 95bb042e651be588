"""The judge of the fuzzer: a damaged input is read under limits, and the outcome is right, a refusal or a failure.

Every case runs in a fork of this process, so that a signal, a hang or a full memory ends the case and not the run, and
a case costs milliseconds instead of the seconds of an import. A case is a function of the seed, the target's name and
the case's number alone: what failed once fails again by `python -m tests.fuzz --target NAME --seed S --case N`.
"""

import os
import pickle
import random
import resource
import select
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

CPU_SECONDS = 5
"""CPU time of a case."""
WALL_SECONDS = 60
"""Time of a case by the clock, after which it hangs: waiting costs no CPU time, and other processes may be busy."""
MEMORY = 2**30
"""Memory of a case above that of the process it is forked from [bytes]."""
MESSAGE_LENGTH = 2000
"""Longest message of a refusal [characters]: longer ones quote what they refuse."""

Expectation = Literal["any", "same", "refused"]
"""Which outcomes are right: any value or a refusal, the value of the valid input or a refusal, a refusal only."""


@dataclass(frozen=True, kw_only=True)
class Mutation:
    """One way to change an input."""

    edit: Callable[[Path, random.Random], str]
    """Changes the input in its folder and says what it changed."""
    expects: Expectation = "any"
    """Outcomes that are right for this change."""
    names: str = ""
    """Text that a refusal must contain besides the file's name, such as `frame`."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """A kind of file that users read, a valid one, and ways to damage it."""

    name: str
    """Name, unique among the targets."""
    make: Callable[[Path], None]
    """Writes the valid input into an empty folder."""
    read: Callable[[Path], Any]
    """Reads the input in the folder as a user would; returns what can be compared with == and pickled."""
    mutations: Mapping[str, Mutation]
    """Ways to change the input, by name."""
    refusals: tuple[type[BaseException], ...]
    """Exceptions that mean that the input is refused: not those that a bug raises."""
    judge: Callable[[Any], str | None] = lambda value: None
    """Says what is wrong with a value that was read; None if it is right."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one case."""

    target: str
    """Name of the target."""
    seed: int
    """Seed of the run."""
    case: int
    """Number of the case."""
    change: str
    """Name of the mutation and what it changed."""
    verdict: Literal["right", "refused", "failed"]
    """Whether the outcome is one that may be."""
    detail: str
    """Message of the refusal, or the failure."""
    cpu_seconds: float
    """CPU time of the case."""


def run(target: Target, folder: Path, *, seed: int, cases: range) -> list[Outcome]:
    """Run some cases of a target below a folder, which keeps the inputs of those that failed."""
    valid = folder / target.name / "valid"
    valid.mkdir(parents=True)
    target.make(valid)
    kind, value, _ = _in_child(target.read, valid)
    if kind != "value" or (complaint := target.judge(value)) is not None:
        raise RuntimeError(f"{target.name}: the valid input is not read: {value if kind != 'value' else complaint}")
    return [_one_case(target, folder / target.name, valid, value, seed, number) for number in cases]


def _one_case(target: Target, folder: Path, valid: Path, original: Any, seed: int, number: int) -> Outcome:
    chance = random.Random(f"{seed}/{target.name}/{number}")
    name = chance.choice(sorted(target.mutations))
    mutation, place = target.mutations[name], folder / f"case-{number}"
    shutil.copytree(valid, place, symlinks=True)
    change = f"{name}: {mutation.edit(place, chance)}"
    kind, value, cpu_seconds = _in_child(target.read, place)
    if kind == "raised" and isinstance(value, tuple):
        complaint = _refusal_complaint(target, mutation, place, *value)
        verdict, detail = ("refused", value[1]) if complaint is None else ("failed", complaint)
    elif kind == "value":
        complaint = _value_complaint(target, mutation, value, original)
        verdict, detail = ("right", "") if complaint is None else ("failed", complaint)
    else:
        verdict, detail = "failed", str(value)
    if verdict != "failed":
        shutil.rmtree(place)
    return Outcome(
        target=target.name,
        seed=seed,
        case=number,
        change=change,
        verdict=verdict,
        detail=detail,
        cpu_seconds=cpu_seconds,
    )


def _value_complaint(target: Target, mutation: Mutation, value: Any, original: Any) -> str | None:
    if mutation.expects == "refused":
        return "accepted, and should be refused"
    if mutation.expects == "same" and value != original:
        return "read as something else than the valid input"
    return target.judge(value)


def _refusal_complaint(
    target: Target, mutation: Mutation, place: Path, error: type[BaseException], message: str, trace: str
) -> str | None:
    if not issubclass(error, target.refusals):
        return f"{error.__name__} is no refusal: {message[:300]}\n{trace}"
    if len(message) > MESSAGE_LENGTH:
        return f"the message of {error.__name__} has {len(message):,} characters: {message[:300]} ..."
    if str(place) not in message and not any(path.name in message for path in place.rglob("*")):
        return f"{error.__name__} names no file: {message}"
    if mutation.names and mutation.names not in message:
        return f"{error.__name__} does not name the {mutation.names}: {message}"
    return None


def _in_child(read: Callable[[Path], Any], place: Path) -> tuple[str, Any, float]:
    """Return "value" and what was read, "raised" and (type, message, traceback), or "died" and how; and CPU seconds."""
    sys.stdout.flush()
    sys.stderr.flush()
    receiving, sending = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receiving)
        _read_under_limits(read, place, sending)
    os.close(sending)
    content, hangs = _received(receiving)
    if hangs:
        os.kill(child, signal.SIGKILL)
    _, status, usage = os.wait4(child, 0)
    cpu_seconds = usage.ru_utime + usage.ru_stime
    if hangs:
        return "died", f"hangs: no outcome after {WALL_SECONDS} s, {cpu_seconds:.1f} s of CPU time", cpu_seconds
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return "died", f"{signal.Signals(number).name} after {cpu_seconds:.1f} s of CPU time", cpu_seconds
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if (usage.ru_maxrss - own) * 1024 > MEMORY:
        return "died", f"took {usage.ru_maxrss / 2**10:,.0f} MB of memory", cpu_seconds
    if not content:
        return "died", f"the process ended with code {os.waitstatus_to_exitcode(status)}", cpu_seconds
    kind, value = pickle.loads(content)  # written by our own child
    return kind, value, cpu_seconds


def _received(receiving: int) -> tuple[bytes, bool]:
    """Return what the child sent until it closed the pipe, and whether it took too long."""
    chunks, deadline = [], time.monotonic() + WALL_SECONDS
    with os.fdopen(receiving, "rb", buffering=0) as pipe:
        while True:
            ready, _, _ = select.select([pipe], [], [], max(deadline - time.monotonic(), 0))
            if not ready:
                return b"", True
            chunk = pipe.read(2**16)
            if not chunk:
                return b"".join(chunks), False
            chunks.append(chunk)


def _read_under_limits(read: Callable[[Path], Any], place: Path, sending: int) -> None:
    """Read in this process, the child, send the outcome, and end without running what the parent registered."""
    # data, not address space: a database maps a file that is larger than memory without using any
    data_pages = int(Path("/proc/self/statm").read_text().split()[5])
    limit = data_pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    try:
        content = pickle.dumps(("value", read(place)))
    except BaseException as error:
        trace = "".join(traceback.format_tb(error.__traceback__)[-4:])
        content = pickle.dumps(("raised", (type(error), str(error), trace)))
    with os.fdopen(sending, "wb") as pipe:
        pipe.write(content)
    os._exit(0)
