"""The ring: order, bounded prefetch, large batches; and every way in which a worker or its parent can end."""

import contextlib
import gc
import itertools
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.graphs.batch import TENSORS, Graphs, collate
from data_pipeline.loading import ring
from data_pipeline.loading.ring import Job, Tally, deliver
from data_pipeline.structure import Structure

Prepare = Callable[[int], tuple[Graphs, list]]


def structures(task: int) -> list[Structure]:
    """A chain of task % 5 + 1 atoms, and nothing in every seventh task."""
    if task % 7 == 6:
        return []
    positions = np.arange(3 * (task % 5 + 1), dtype=float).reshape(-1, 3)
    numbers = np.full(len(positions), task % 100 + 1)
    return [
        Structure.checked(
            numbers=numbers, positions=positions, cell=np.zeros((3, 3)), pbc=[False] * 3, energy=float(task)
        )
    ]


def prepare(task: int) -> tuple[Graphs, list]:
    return Graphs(structures(task), 6.0), [task] if task % 2 else []


def job(prepare: Prepare = prepare, **changes: object) -> Job:
    defaults = {
        "first": 0,
        "last": 20,
        "name": lambda task: f"task {task}",
        "num_workers": 2,
        "num_slots": 3,
        "slot_bytes": 65536,
        "pin_memory": False,
    }
    return Job(prepare=prepare, **{**defaults, **changes})


def children() -> set[int]:
    """Processes of this one that have not been collected."""
    return {int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()}


def shared_memory() -> set[str]:
    """Segments and semaphores of Python and of torch."""
    return {name for name in os.listdir("/dev/shm") if name.startswith(("psm_", "torch_", "sem.", "pym-"))}


def of_others(names: set[str]) -> set[str]:
    """Which of the segments other processes than this one have mapped."""
    maps = [path for path in Path("/proc").glob("[0-9]*/maps") if path.parent.name != str(os.getpid())]
    found = set()
    for path in maps:
        with contextlib.suppress(OSError):  # it has ended
            text = path.read_text()
            found |= {name for name in names if name in text}
    return found


def stay(names: set[str]) -> set[str]:
    """Which of the segments are nobody else's and still there a little later: others come and go meanwhile."""
    deadline = time.monotonic() + 30
    while (names := (names & shared_memory()) - of_others(names)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return names


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    before, segments, files = children(), shared_memory(), len(os.listdir("/proc/self/fd"))
    yield
    gc.collect()
    assert children() <= before
    assert not stay(shared_memory() - segments)
    assert len(os.listdir("/proc/self/fd")) <= files


@pytest.mark.parametrize("num_workers", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("first", [0, 1, 4])
def test_batches_come_in_order_with_their_remarks_whatever_the_workers(num_workers: int, first: int) -> None:
    delivered = list(deliver(job(num_workers=num_workers, first=first), Tally()))
    for task, (batch, remarks) in zip(range(first, 20), delivered, strict=True):
        expected = collate(structures(task), 6.0)
        assert all(torch.equal(getattr(batch, name), getattr(expected, name)) for name in TENSORS)
        assert remarks == ([task] if task % 2 else [])


def test_a_batch_stays_as_it_is_while_others_come() -> None:
    batches = [batch for batch, _ in deliver(job(num_slots=1, last=60), Tally())]
    assert [batch.energy.tolist() for batch in batches] == [[s.energy for s in structures(task)] for task in range(60)]


def test_a_batch_larger_than_a_slot_comes_through_the_pipe_and_is_counted() -> None:
    tally = Tally()
    small = [batch for batch, _ in deliver(job(slot_bytes=960), tally)]
    assert 0 < tally.num_large < 20
    for one, other in zip(small, deliver(job(), Tally()), strict=True):
        assert torch.equal(one.receivers, other[0].receivers)


def test_workers_are_ahead_by_their_slots_and_no_more(tmp_path: Path) -> None:
    def counted(task: int) -> tuple[Graphs, list]:
        (tmp_path / str(task)).touch()
        return prepare(task)

    batches = deliver(job(counted, last=None), Tally())
    next(batches)
    time.sleep(0.5)
    # three slots each and one batch in hand each, and one slot that was handed back
    assert len(list(tmp_path.iterdir())) <= 2 * (3 + 1) + 1
    batches.close()


def test_the_time_of_waiting_is_counted() -> None:
    def slow(task: int) -> tuple[Graphs, list]:
        time.sleep(0.1)
        return prepare(task)

    for num_workers in (0, 1):
        tally, began = Tally(), time.perf_counter()
        assert len(list(deliver(job(slow, num_workers=num_workers, last=4), tally))) == 4
        assert 0.2 < tally.waited < time.perf_counter() - began
    # what the training process does with a batch is no waiting, however busy the machine
    tally, began, used = Tally(), time.perf_counter(), 0.0
    for _ in deliver(job(num_workers=1, last=30), tally):
        taken = time.perf_counter()
        time.sleep(0.01)
        used += time.perf_counter() - taken
    assert tally.waited < time.perf_counter() - began - used


def test_a_long_wait_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    def stuck(task: int) -> tuple[Graphs, list]:
        while task == 3 and not (tmp_path / "said").exists():
            time.sleep(0.01)
        time.sleep(1.0 if task == 5 else 0.0)
        return prepare(task)

    caplog.handler.addFilter(lambda record: (tmp_path / "said").touch() or True)
    batches = deliver(job(stuck, last=8), Tally())
    for _ in range(3):
        next(batches)
    monkeypatch.setattr(ring, "STALL_SECONDS", 0.5)
    with caplog.at_level(logging.WARNING):
        assert len(list(batches)) == 5
    messages = [record.message for record in caplog.records]
    assert len(messages) == 1
    assert messages[0].startswith("waiting for task 3 for more than 0.5 s: worker 1 (process ")


class OddError(Exception):
    """Cannot be made again from its message."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} and {second}")


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (KeyError("a name"), KeyError, "a name"),
        (FileNotFoundError("x.tar: the shard is missing"), FileNotFoundError, r"x\.tar: the shard is missing"),
        (ConnectionError("gone"), ConnectionError, "gone"),
        (BrokenPipeError("not the worker's own pipe"), BrokenPipeError, "not the worker's own pipe"),
        (EOFError("nor its end"), EOFError, "nor its end"),
        (OddError("this", "that"), RuntimeError, "OddError: this and that"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_an_exception_is_raised_as_it_was_in_the_worker(error: Exception, kind: type[Exception], message: str) -> None:
    def fail(task: int) -> tuple[Graphs, list]:
        if task == 3:
            raise error
        return prepare(task)

    delivered = deliver(job(fail), Tally())
    assert len(list(itertools.islice(delivered, 3))) == 3
    with pytest.raises(kind, match=message) as raised:
        next(delivered)
    assert "raise error" in "".join(raised.value.__notes__)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV])
def test_a_killed_worker_is_an_error_that_names_it(how: signal.Signals) -> None:
    def die(task: int) -> tuple[Graphs, list]:
        if task == 5:
            os.kill(os.getpid(), how)
        return prepare(task)

    message = rf"worker 1 \(process \d+\) died of {how.name} while preparing task 5"
    with pytest.raises(RuntimeError, match=message):
        list(deliver(job(die), Tally()))


def test_a_worker_that_leaves_is_an_error() -> None:
    def leave(task: int) -> tuple[Graphs, list]:
        if task == 4:
            os._exit(3)
        return prepare(task)

    with pytest.raises(RuntimeError, match=r"worker 0 .* died of exit code 3 while preparing task 4"):
        list(deliver(job(leave), Tally()))


def test_a_worker_killed_while_it_waits_is_an_error() -> None:
    batches = deliver(job(num_workers=1, last=None), Tally())
    before = children()
    next(batches)
    (worker,) = children() - before
    os.kill(worker, signal.SIGKILL)
    with pytest.raises(RuntimeError, match=rf"worker 0 \(process {worker}\) died of SIGKILL"):
        list(itertools.islice(batches, 20))


def test_a_worker_killed_while_it_sends_is_an_error() -> None:
    def large(task: int) -> tuple[Graphs, list]:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        if task:
            signal.setitimer(signal.ITIMER_REAL, 0.1)  # when the pipe is full
        frame = structures(task)[0]
        return Graphs([Structure(**{**vars(frame), "id": 300_000 * "x"})], 6.0), []

    batches = deliver(job(large, num_workers=1, slot_bytes=64), Tally())
    batches = map(lambda delivered: time.sleep(0.3), batches)
    with pytest.raises(RuntimeError, match=r"worker 0 .* died of SIGALRM while preparing task 1"):
        list(batches)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_all_processes_is_for_the_training_process(number: signal.Signals) -> None:
    batches = deliver(job(num_workers=2, last=None), Tally())
    before = children()
    next(batches)
    for worker in children() - before:
        os.kill(worker, number)
    assert len(list(itertools.islice(batches, 20))) == 20
    batches.close()


@pytest.mark.parametrize("ending", ["close", "drop", "error"])
def test_workers_end_with_the_iterator(ending: str) -> None:
    def stuck(task: int) -> tuple[Graphs, list]:
        time.sleep(600 if task > 2 else 0)
        return prepare(task)

    before = children()
    batches = deliver(job(stuck, last=None), Tally())
    next(batches)
    assert len(children() - before) == 2
    started = time.perf_counter()
    if ending == "close":
        batches.close()
    elif ending == "drop":
        del batches
    else:
        with pytest.raises(RuntimeError, match="generator"), contextlib.closing(batches):
            batches.throw(RuntimeError("thrown into the generator"))
    gc.collect()
    assert children() == before
    assert time.perf_counter() - started < 60


@pytest.mark.parametrize(
    ("end", "state"),
    [
        ("os.kill(os.getpid(), 9)", "waiting for a slot"),
        ("os.kill(os.getpid(), 9)", "sending a large batch"),
        ("raise ValueError('an error')", "waiting for a slot"),
    ],
)
def test_workers_end_when_their_parent_does(end: str, state: str, tmp_path: Path) -> None:
    script = f"""
        import os, sys, time
        from pathlib import Path
        from data_pipeline.loading.ring import Tally, deliver
        from tests.data_pipeline.loading.test_ring import job, prepare

        def noted(task):
            Path({str(tmp_path)!r}, str(os.getpid())).touch()
            return prepare(task)

        batches = deliver(job(noted, last=None, slot_bytes={64 if "large" in state else 65536}), Tally())
        next(batches)
        others = deliver(job(noted, last=None), Tally())  # a second ring holds copies of the first one's pipes
        next(others)
        time.sleep(0.3)
        {end}
    """
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert "Warning" not in done.stderr
    assert "leaked" not in done.stderr
    workers = [int(path.name) for path in tmp_path.iterdir()]
    assert len(workers) == 4
    deadline = time.monotonic() + 60
    while any(_alive(worker) for worker in workers):
        assert time.monotonic() < deadline, "a worker has outlived its parent"
        time.sleep(0.05)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
