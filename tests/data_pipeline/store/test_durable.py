"""Durable: a reader finds the old file or folder or the new one, whole, whatever ended the writer and when."""

import errno
import multiprocessing
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from data_pipeline.store import durable
from data_pipeline.store.durable import put_back, put_in_place, whole_file, whole_folder, write_whole


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("shared", [False, True])
def test_a_file_appears_when_it_is_complete_and_replaces_the_old_one(tmp_path: Path, shared: bool) -> None:
    path = tmp_path / "x.json"
    path.write_text("old")
    with whole_file(path, shared=shared) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert names(tmp_path) == ["x.json"]


def test_text_is_written_as_utf_8_and_bytes_as_they_are(tmp_path: Path) -> None:
    write_whole(tmp_path / "text", "Å\n")
    write_whole(tmp_path / "bytes", b"\xff\0")
    assert (tmp_path / "text").read_bytes() == b"\xc3\x85\n"
    assert (tmp_path / "bytes").read_bytes() == b"\xff\0"


def fail_in_a_file(path: Path, error: type[BaseException]) -> None:
    with whole_file(path) as partial:
        partial.write_text("half")
        raise error


def fail_in_a_folder(path: Path) -> None:
    with whole_folder(path) as folder:
        (folder / "b").touch()
        raise ValueError("not verified")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_after_an_error_the_old_file_stays_and_nothing_else(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "x.json"
    path.write_text("old")
    with pytest.raises(error):
        fail_in_a_file(path, error)
    assert (names(tmp_path), path.read_text()) == (["x.json"], "old")


def test_a_file_is_not_written_through_a_link_that_lies_in_its_way(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "x.partial").symlink_to(tmp_path / "mine")
    write_whole(tmp_path / "x", "new")
    assert (tmp_path / "mine").read_text() == "mine"
    assert not (tmp_path / "x").is_symlink()


def test_a_full_disk_is_an_error_that_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            write_whole(path, bytes(100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    assert (names(tmp_path), path.read_text()) == (["x"], "old")


def write_file(path: Path) -> None:
    write_whole(path, b"new" * 1000)


def write_folder(path: Path) -> None:
    with whole_folder(path) as folder:
        (folder / "inner").mkdir()
        (folder / "inner" / "a").write_text("new")


@pytest.mark.parametrize("write", [write_file, write_folder])
def test_the_disk_is_told_the_content_before_the_name_and_then_the_name(
    write: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened, flush, replace = [], durable._flush, os.replace
    monkeypatch.setattr(durable, "_flush", lambda path: (happened.append(path.name), flush(path)))
    monkeypatch.setattr(os, "replace", lambda old, new: (happened.append("named"), replace(old, new)))
    write(tmp_path / "x")
    inside = ["inner", "a"] if write is write_folder else []
    assert happened == [*inside, "x.partial", "named", tmp_path.name]


@pytest.mark.parametrize("old", [True, False])
def test_a_folder_replaces_an_older_one_when_it_is_complete(tmp_path: Path, old: bool) -> None:
    if old:
        (tmp_path / "x").mkdir()
        (tmp_path / "x" / "old").touch()
    with whole_folder(tmp_path / "x") as folder:
        (folder / "new").touch()
        assert (tmp_path / "x").exists() is old
    assert (names(tmp_path), names(tmp_path / "x")) == (["x"], ["new"])


def test_a_folder_that_is_refused_at_the_end_leaves_the_older_one(tmp_path: Path) -> None:
    write_folder(tmp_path / "x")
    with pytest.raises(ValueError, match="not verified"):
        fail_in_a_folder(tmp_path / "x")
    assert (names(tmp_path), names(tmp_path / "x")) == (["x"], ["inner"])


def test_a_folder_whose_name_cannot_be_given_leaves_the_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "x")
    replace = os.replace

    def fails(old: Path, new: Path) -> None:
        if old.name == "x.partial":
            raise OSError(errno.EIO, "the disk is broken")
        replace(old, new)

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(OSError, match="broken"):
        write_folder(tmp_path / "x")
    assert (names(tmp_path), names(tmp_path / "x")) == (["x"], ["inner"])


def test_a_folder_does_not_take_the_place_of_a_file_nor_a_file_that_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    with pytest.raises(NotADirectoryError):
        write_folder(tmp_path / "file")
    with pytest.raises(IsADirectoryError):
        write_file(tmp_path / "folder")
    assert (names(tmp_path), (tmp_path / "file").read_text()) == (["file", "folder"], "mine")


def killed_after(renames: int, write: Callable[[Path], None], path: Path) -> None:
    """Write in a process that is killed before its next rename, or what it removes in the end, after so many."""
    replace, remove, count = os.replace, durable.remove, [0]

    def renaming(old: Path, new: Path) -> None:
        if count[0] == renames:
            os.kill(os.getpid(), signal.SIGKILL)
        count[0] += 1
        replace(old, new)

    def removing(path: Path) -> None:
        if count[0] == renames == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        remove(path)

    def dying() -> None:
        os.replace, durable.remove = renaming, removing
        write(path)

    process = multiprocessing.get_context("fork").Process(target=dying)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_folder_killed_at_any_moment_is_there_whole_and_the_next_writer_finds_no_obstacle(
    tmp_path: Path, renames: int
) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "old").touch()
    killed_after(renames, write_folder, tmp_path / "x")
    put_back(tmp_path / "x")
    assert names(tmp_path / "x") == (["inner"] if renames == 2 else ["old"])
    write_folder(tmp_path / "x")
    assert (names(tmp_path), names(tmp_path / "x")) == (["x"], ["inner"])


def test_a_file_killed_before_its_rename_is_the_old_one_and_leaves_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("old")
    killed_after(0, write_file, tmp_path / "x")
    assert (tmp_path / "x").read_text() == "old"
    assert names(tmp_path) == ["x", "x.partial"]
    write_file(tmp_path / "x")
    assert (names(tmp_path), (tmp_path / "x").stat().st_size) == (["x"], 3000)


def test_a_folder_that_somebody_called_old_is_theirs(tmp_path: Path) -> None:
    for name in ("x", "x.old"):
        write_folder(tmp_path / name)
    write_folder(tmp_path / "x")
    assert names(tmp_path) == ["x", "x.old"]


def test_many_processes_may_write_one_file_at_a_time(tmp_path: Path) -> None:
    def write_often(byte: int) -> None:
        for _ in range(50):
            write_whole(tmp_path / "x", bytes([byte]) * 10_000, shared=True, flush=False)

    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=write_often, args=(byte,)) for byte in (1, 2, 3)]
    for process in processes:
        process.start()
    while any(process.is_alive() for process in processes):
        if (tmp_path / "x").exists():
            content = (tmp_path / "x").read_bytes()
            assert (len(content), len(set(content))) == (10_000, 1)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert names(tmp_path) == ["x"]


def test_a_finished_file_takes_its_place(tmp_path: Path) -> None:
    (tmp_path / "x.partial").write_text("downloaded")
    put_in_place(tmp_path / "x.partial", tmp_path / "x")
    assert (names(tmp_path), (tmp_path / "x").read_text()) == (["x"], "downloaded")


def test_a_file_system_that_cannot_flush_a_folder_is_not_an_error_and_a_file_that_cannot_be_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EINVAL, "not for folders")

    monkeypatch.setattr(os, "fsync", unknown)
    write_folder(tmp_path / "x")

    def broken(descriptor: int) -> None:
        raise OSError(errno.EIO, "the disk is broken")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="broken"):
        write_whole(tmp_path / "y", "new")
    assert names(tmp_path) == ["x"]
