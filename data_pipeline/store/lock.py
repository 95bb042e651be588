"""Lock: what a process writes to belongs to it, and a second process is told whose it is.

A byte-range lock of POSIX on a small file. The kernel lets go of it when its process ends, however it ends, so no lock
is ever stale; on NFS, Lustre and their like the server keeps it for all nodes, and lets go when it has given up the
node of the holder. Forked processes do not inherit it: loader workers may outlive a killed run by a second, and a lock
of flock() would live on in them. The price is that a process which closes any descriptor of the file has let go of the
lock, so the file is opened here only.

The file says who holds it and is removed in the end; that of a killed process stays, and the next one takes it over.
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
"""Longest wait for a holder [s]: a process of this machine that was killed is gone in a moment; of a node that died,
the server of a file system keeps the locks for a minute or two."""
POLL_SECONDS = 0.05
HELD = (errno.EACCES, errno.EAGAIN)
WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
MAX_SHOWN = 200
"""Characters of a command that a message shows."""

_held: dict[str, tuple[int, int]] = {}
"""Descriptor, and process that holds it, of each lock, by path."""


class InUse(BlockingIOError):
    """Another process is writing there; the message names it."""


class Lost(FileNotFoundError):
    """What this process was writing to was deleted, moved or replaced."""


def inside(folder: Path) -> Path:
    """Return the file by which a folder is locked that stays in its place while it is written to."""
    return folder / NAME


def beside(path: Path) -> Path:
    """Return the file by which a file or folder is locked that gets its name only in the end, by a rename.

    Raises:
        ValueError: it has no name, as the root has none.
    """
    path = real(path)
    return path.with_name(f".{path.name}{NAME}")


def real(path: Path) -> Path:
    """Return where a path leads to, with a name even if it was given as `.` or `..`.

    Raises:
        ValueError: it is the root of the file system.
    """
    resolved = path.resolve()
    if not resolved.name:
        raise ValueError(f"{path} is the root of the file system, in whose place nothing can be written; choose a name")
    return resolved


@contextmanager
def hold(file: Path, what: Path) -> Iterator[None]:
    """Hold a lock, while something is written to.

    A file system without locks is said in the log, and that a second process would then not be noticed.

    Args:
        file: The file of the lock: inside() or beside() what is written to. Its folder is made if it is not there.
        what: What is written to, for messages.

    Raises:
        InUse: another process holds it, or this one does already.
        NotADirectoryError: what should be its folder is a file.
        OSError: the file cannot be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(
            f"{file.parent} is a file, so nothing can be written in it; choose a folder"
        ) from error
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
    """Refuse what another process is writing to, without taking it.

    Raises:
        InUse: another process holds it, or this one does.
    """
    if file.is_file():
        os.close(_waited_for(file, what))


def refuse_lost(file: Path, what: Path) -> None:
    """Refuse to write on where the file of a lock that this process holds is gone.

    Raises:
        Lost: it is gone, or another one is in its place.
    """
    descriptor, owner = _held.get(os.path.realpath(file), (-1, -1))
    if owner == os.getpid() and not _leads_to(file, descriptor):
        raise Lost(f"{what} was deleted, moved or replaced while it was written to; nothing more is written there")


def _waited_for(file: Path, what: Path) -> int:
    """Return a descriptor of the file, locked; whoever holds it may just be ending, as after a kill."""
    if _held.get(os.path.realpath(file), (-1, -1))[1] == os.getpid():
        raise InUse(f"{what} is being written to by this very process")
    began, told = time.monotonic(), False
    while (descriptor := _taken(file, what)) is None:
        holder = _holder(file)
        name = _in_words(holder)
        patience = PATIENCE_HERE if holder.get("host") in (None, socket.gethostname()) else PATIENCE_ELSEWHERE
        if time.monotonic() - began > patience:
            raise InUse(f"{what} is in use by {name}: wait for it to end or end it, or choose another name")
        if not told:
            log.warning("%s is in use by %s; waiting up to %g s in case that is just ending", what, name, patience)
            told = True
        time.sleep(POLL_SECONDS)
    return descriptor


def _taken(file: Path, what: Path) -> int | None:
    """Return a descriptor of the file, locked, or None if another process has the lock."""
    while True:
        # links are not followed: who put one there could have any file of ours overwritten
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
        os.close(descriptor)  # the holder has ended in between and taken the file away


def _leads_to(file: Path, descriptor: int) -> bool:
    """Return whether a descriptor is still that of the file under a name; NFS may remember names, but not counts."""
    opened = os.fstat(descriptor)
    try:
        return opened.st_nlink > 0 and os.path.samestat(opened, os.lstat(file))
    except FileNotFoundError:
        return False


def say_who(descriptor: int) -> None:
    """Write into the file of a lock, given by its descriptor, who holds it: this process."""
    now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    values = {"host": socket.gethostname(), "pid": os.getpid(), "since": now, "command": " ".join(sys.argv)}
    with suppress(OSError):  # a full disk does not keep from holding the lock
        os.ftruncate(descriptor, 0)
        os.write(descriptor, (json.dumps(values) + "\n").encode())
        os.fsync(descriptor)


def holder_of(file: Path) -> str:
    """Return in words who holds a lock, by what its file says."""
    return _in_words(_holder(file))


def _holder(file: Path) -> dict[str, Any]:
    """Return what the file says of its holder; nothing if that is just being written, or is no such thing."""
    try:
        with file.open("rb") as opened:
            values = json.loads(opened.read(1 << 16))
        return values if isinstance(values, dict) else {}
    except (OSError, ValueError, RecursionError):
        return {}


def _in_words(holder: dict[str, Any]) -> str:
    if not {"host", "pid", "since"} <= holder.keys():
        return "another process"
    words = f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    if command := holder.get("command"):
        words += f" ({command})"
    words = "".join(letter if letter.isprintable() else "?" for letter in words[: 2 * MAX_SHOWN])
    return words if len(words) <= MAX_SHOWN else words[:MAX_SHOWN] + "…"
