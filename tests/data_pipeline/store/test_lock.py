"""Locks: one process at a time, told by name to others, and nothing stale whatever kills a process."""

import errno
import fcntl
import json
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from data_pipeline.store import lock
from data_pipeline.store.lock import InUse, Lost, beside, hold, inside, refuse_in_use, refuse_lost

context = multiprocessing.get_context("fork")


def keep(folder: Path, held: Event, with_child: bool) -> None:
    """Hold the lock of a folder, if asked with a forked child that outlives this process."""
    os.setsid()
    with hold(inside(folder), folder):
        if with_child and os.fork() == 0:
            time.sleep(60)
            os._exit(0)
        held.set()
        time.sleep(60)


@contextmanager
def holder(folder: Path, with_child: bool = False) -> Iterator[BaseProcess]:
    held = context.Event()
    process = context.Process(target=keep, args=(folder, held, with_child))
    process.start()
    assert held.wait(30)
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.join()


@pytest.fixture(autouse=True)
def short_of_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "PATIENCE_HERE", 0.2)
    monkeypatch.setattr(lock, "PATIENCE_ELSEWHERE", 0.2)


def test_a_second_process_is_told_who_holds_a_folder_and_since_when(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        who = rf"{tmp_path} is in use by process {process.pid} on {socket.gethostname()} since 2\d\d\d-\d\d-.*: wait"
        with pytest.raises(InUse, match=who), hold(inside(tmp_path), tmp_path):
            pass
        with pytest.raises(InUse, match=who):
            refuse_in_use(inside(tmp_path), tmp_path)
        assert inside(tmp_path).exists()


@pytest.mark.parametrize("with_child", [False, True])
def test_a_killed_process_leaves_no_lock(tmp_path: Path, with_child: bool) -> None:
    with holder(tmp_path, with_child) as process:
        process.kill()
        process.join()
        assert inside(tmp_path).exists()
        refuse_in_use(inside(tmp_path), tmp_path)
        with hold(inside(tmp_path), tmp_path):
            assert json.loads(inside(tmp_path).read_text())["pid"] == os.getpid()
    assert not inside(tmp_path).exists()


def test_a_process_that_is_just_ending_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lock, "PATIENCE_HERE", 20.0)
    with holder(tmp_path) as process:
        threading.Timer(0.3, process.kill).start()
        with hold(inside(tmp_path), tmp_path):
            process.join()
            assert process.exitcode == -signal.SIGKILL
    assert f"in use by process {process.pid} on {socket.gethostname()}" in caplog.text
    assert caplog.text.count("waiting up to 20 s") == 1


def test_another_machine_is_waited_for_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "PATIENCE_ELSEWHERE", 1.0)
    with holder(tmp_path) as process:
        values = json.loads(inside(tmp_path).read_text())
        inside(tmp_path).write_text(json.dumps(values | {"host": "node7"}))
        began = time.monotonic()
        with pytest.raises(InUse, match=rf"process {process.pid} on node7"), hold(inside(tmp_path), tmp_path):
            pass
        assert time.monotonic() - began > 0.9


def take_turns(file: Path, log: Path, times: int) -> None:
    lock.PATIENCE_HERE = 60.0
    for _ in range(times):
        with hold(file, file), log.open("a") as lines:
            lines.write(f"in {os.getpid()}\n")
            lines.flush()
            time.sleep(0.001)
            lines.write(f"out {os.getpid()}\n")


def test_of_many_that_take_and_remove_the_file_at_once_one_is_in_at_a_time(tmp_path: Path) -> None:
    log = tmp_path / "log"
    crew = [context.Process(target=take_turns, args=(beside(tmp_path / "data"), log, 25)) for _ in range(4)]
    for each in crew:
        each.start()
    for each in crew:
        each.join()
        assert each.exitcode == 0
    lines = [line.split() for line in log.read_text().splitlines()]
    assert len(lines) == 2 * 4 * 25
    for (begun, first), (ended, second) in zip(lines[::2], lines[1::2], strict=True):
        assert (begun, ended, first) == ("in", "out", second)
    assert not beside(tmp_path / "data").exists()


def test_the_same_process_does_not_take_it_twice(tmp_path: Path) -> None:
    file = inside(tmp_path)
    with hold(file, tmp_path):
        with pytest.raises(InUse, match="already being written to by this process"), hold(file, tmp_path):
            pass
        other = context.Process(target=refuse_in_use, args=(file, tmp_path))
        other.start()
        other.join()
        assert other.exitcode == 1


@pytest.mark.parametrize("loss", ["deleted", "replaced", "moved"])
def test_a_folder_that_is_gone_is_noticed_and_that_of_others_left_alone(tmp_path: Path, loss: str) -> None:
    folder = tmp_path / "run"
    with hold(inside(folder), folder):
        refuse_lost(inside(folder), folder)
        os.rename(folder, tmp_path / "elsewhere")
        if loss != "moved":
            inside(tmp_path / "elsewhere").unlink()
        if loss == "replaced":
            folder.mkdir()
            inside(folder).write_text("another")
        with pytest.raises(Lost, match=rf"{folder} was deleted, moved or replaced"):
            refuse_lost(inside(folder), folder)
    assert inside(folder).exists() == (loss == "replaced")


def test_a_file_system_without_locks_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", none)
    with hold(inside(tmp_path), tmp_path):
        assert "no locks on this file system" in caplog.text
    assert not inside(tmp_path).exists()


def a_link(file: Path, victim: Path) -> None:
    file.symlink_to(victim)


def a_folder(file: Path, victim: Path) -> None:
    file.mkdir()


@pytest.mark.parametrize("plant", [a_link, a_folder])
def test_what_lies_in_its_place_is_neither_followed_nor_overwritten(
    tmp_path: Path, plant: Callable[[Path, Path], None]
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    plant(inside(tmp_path), victim)
    with pytest.raises(OSError, match=r"\.lock"), hold(inside(tmp_path), tmp_path):
        pass
    assert victim.read_text() == "mine"


@pytest.mark.parametrize("text", ["", "[1]", "{", "[" * 100_000, '{"pid": "' + "9" * 70_000, '{"host": 1}', "\xff\x00"])
def test_a_record_that_says_nothing_is_another_process(tmp_path: Path, text: str) -> None:
    with holder(tmp_path):
        inside(tmp_path).write_text(text)
        with pytest.raises(InUse, match=r"in use by another process: wait"):
            refuse_in_use(inside(tmp_path), tmp_path)


def test_a_record_cannot_fill_or_steer_a_terminal(tmp_path: Path) -> None:
    with holder(tmp_path):
        values = {"host": "\x1b[2J", "pid": 1, "since": "x" * 5000}
        inside(tmp_path).write_text(json.dumps(values))
        with pytest.raises(InUse) as caught:
            refuse_in_use(inside(tmp_path), tmp_path)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("out", "name"), [("data", ".data.lock"), (".", ".here.lock"), ("..", None), ("x/..", ".here.lock")]
)
def test_a_name_is_found_for_dots_too(
    out: str, name: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert beside(Path(out)).name == (name or f".{tmp_path.name}.lock")


def test_the_root_is_refused() -> None:
    with pytest.raises(ValueError, match="/ is the root of the file system"):
        beside(Path("/"))
