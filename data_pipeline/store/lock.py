"""Lock: one process writes to a place, and a second one is told who holds it.

A POSIX byte-range lock on a small file. The kernel releases it when its process ends in any way, so no lock is ever
stale; on NFS, Lustre and the like the server keeps it for all nodes, and releases it when it gives up the holder's
node. Forked processes do not inherit it: loader workers may outlive a killed run by a second, and a flock() would live
on in them. The price is that closing any descriptor of the file releases the lock, so the file is opened only here.

The file names the holder and is removed at the end; that of a killed process stays, and the next one takes it over.
"""

import datetime
import errno
import fcntl
import json
import logging
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

NAME = ".lock"
PATIENCE_HERE, PATIENCE_ELSEWHERE = 5.0, 120.0
"""Longest wait for a holder [s]: a killed process of this machine is gone in a moment; a file server keeps the locks of
a dead node for a minute or two."""
POLL_SECONDS = 0.05
HELD = (errno.EACCES, errno.EAGAIN)
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
MAX_SHOWN = 200
"""Longest command in a message [characters]."""

_held: dict[str, tuple[int, int]] = {}
"""Descriptor and holding process of each lock, by path."""


class InUse(BlockingIOError):
    """Another process is writing there; the message names it."""


class Lost(FileNotFoundError):
    """The file or folder that this process was writing to was deleted, moved or replaced."""


def inside(folder: Path) -> Path:
    """Return the lock file of a folder that keeps its name while it is written to."""
    return folder / NAME


def beside(path: Path) -> Path:
    """Return the lock file of a file or folder that gets its name only at the end, by a rename.

    Raises:
        ValueError: the path is the root, which has no name.
    """
    path = real(path)
    return path.with_name(f".{path.name}{NAME}")


def real(path: Path) -> Path:
    """Return the resolved path, with a name even if it was given as `.` or `..`.

    Raises:
        ValueError: it is the root of the file system.
    """
    resolved = path.resolve()
    if not resolved.name:
        raise ValueError(f"{path} is the root of the file system, which cannot be written; choose a name")
    return resolved


@contextmanager
def hold(file: Path, what: Path) -> Iterator[None]:
    """Hold a lock while writing.

    On a file system without locks, a warning is logged that a second process would not be noticed.

    Args:
        file: Lock file: inside() or beside() the path to write. Its folder is made if it is missing.
        what: Path to write, for messages.

    Raises:
        InUse: another process or this one already holds it.
        NotADirectoryError: its folder is a file.
        OSError: the file cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(f"{file.parent} is a file, not a folder; choose a folder") from error
    descriptor, key = _waited_for(file, what), os.path.realpath(file)
    _held[key] = descriptor, os.getpid()
    try:
        say_who(descriptor)
        yield
    finally:
        _, owner = _held.pop(key)
        with suppress(OSError):
            if owner == os.getpid() and _leads_to(file, descriptor):
                os.unlink(file)
        os.close(descriptor)


def refuse_in_use(file: Path, what: Path) -> None:
    """Raise an error if another process is writing there, without taking the lock.

    Raises:
        InUse: another process or this one holds it.
    """
    if file.is_file():
        os.close(_waited_for(file, what))


def refuse_lost(file: Path, what: Path) -> None:
    """Raise an error if the lock file held by this process is gone.

    Raises:
        Lost: it is gone or replaced.
    """
    descriptor, owner = _held.get(os.path.realpath(file), (-1, -1))
    if owner == os.getpid() and not _leads_to(file, descriptor):
        raise Lost(f"{what} was deleted, moved or replaced while it was written to; nothing more is written there")


def _waited_for(file: Path, what: Path) -> int:
    """Return a locked descriptor of the file; wait for a holder that may be ending, as after a kill."""
    if _held.get(os.path.realpath(file), (-1, -1))[1] == os.getpid():
        raise InUse(f"{what} is already being written to by this process")
    began, told = time.monotonic(), False
    while (descriptor := _taken(file, what)) is None:
        holder = _holder(file)
        name = _described(holder)
        patience = PATIENCE_HERE if holder.get("host") in (None, socket.gethostname()) else PATIENCE_ELSEWHERE
        if time.monotonic() - began > patience:
            raise InUse(f"{what} is in use by {name}: wait for it to end or end it, or choose another name")
        if not told:
            log.warning("%s is in use by %s; waiting up to %g s in case it is ending", what, name, patience)
            told = True
        time.sleep(POLL_SECONDS)
    return descriptor


def _taken(file: Path, what: Path) -> int | None:
    """Return a locked descriptor of the file, or None if another process has the lock."""
    while True:
        # links are not followed: one could make us overwrite any file of ours
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _leads_to(file, descriptor):
                return descriptor
        except OSError as error:
            if error.errno in WITHOUT_LOCKS:
                log.warning("%s: no locks on this file system (%s): a second process will go unnoticed", what, error)
                return descriptor
            if error.errno in HELD:
                os.close(descriptor)
                return None
            if error.errno != errno.ESTALE:
                os.close(descriptor)
                raise
        os.close(descriptor)  # the holder ended in between and removed the file


def _leads_to(file: Path, descriptor: int) -> bool:
    """Return whether a descriptor still belongs to the file of this name; NFS may cache names, but not link counts."""
    opened = os.fstat(descriptor)
    try:
        return opened.st_nlink > 0 and os.path.samestat(opened, os.lstat(file))
    except FileNotFoundError:
        return False


def say_who(descriptor: int) -> None:
    """Write this process as the holder into a lock file, given by its descriptor."""
    now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    values = {"host": socket.gethostname(), "pid": os.getpid(), "since": now, "command": " ".join(sys.argv)}
    with suppress(OSError):  # the lock holds even on a full disk
        os.ftruncate(descriptor, 0)
        os.write(descriptor, (json.dumps(values) + "\n").encode())
        os.fsync(descriptor)


def holder_of(file: Path) -> str:
    """Describe the holder of a lock from its file."""
    return _described(_holder(file))


def _holder(file: Path) -> dict[str, Any]:
    """Return the holder's record in the file; {} if it is incomplete or not a record."""
    try:
        with file.open("rb") as opened:
            values = json.loads(opened.read(1 << 16))
        return values if isinstance(values, dict) else {}
    except (OSError, ValueError, RecursionError):
        return {}


def _described(holder: dict[str, Any]) -> str:
    if not {"host", "pid", "since"} <= holder.keys():
        return "another process"
    words = f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    if command := holder.get("command"):
        words += f" ({command})"
    words = "".join(letter if letter.isprintable() else "?" for letter in words[: 2 * MAX_SHOWN])
    return words if len(words) <= MAX_SHOWN else words[:MAX_SHOWN] + "…"
