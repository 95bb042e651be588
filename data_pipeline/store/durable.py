"""Durable: the one way to write a file or a folder whole, so that whoever reads it finds the old one or the new one.

What is written gets another name beside its own, is flushed to the disk and renamed; then the folder is flushed, which
knows the name. A process that is killed leaves the other name at most, and the next one that writes there removes it. A
power cut finds what was promised on the disk. The price is some milliseconds for every file.
"""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIAL = ".partial"
"""End of the name under which something is written."""


def partial_of(path: Path) -> Path:
    """Return the name under which a file or folder is written until it is complete."""
    return path.with_name(path.name + PARTIAL)


@contextmanager
def whole_file(path: Path, *, shared: bool = False, flush: bool = True) -> Iterator[Path]:
    """Yield the name under which to write a file, which gets its own, and replaces an older one, after the block.

    Nothing is left of it after an error.

    Args:
        path: The file.
        shared: Whether other processes may write the same file at the same time.
        flush: Whether it has to be on the disk afterwards; not if its reader would notice a loss and make it again.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}") if shared else partial_of(path)
    remove(partial)  # of a process that was killed, or a link to elsewhere
    try:
        yield partial
        put_in_place(partial, path, flush=flush)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_whole(path: Path, content: str | bytes, *, shared: bool = False, flush: bool = True) -> None:
    """Write a text or bytes as a file; see whole_file()."""
    with whole_file(path, shared=shared, flush=flush) as partial, partial.open("xb") as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def whole_folder(path: Path, *, flush: bool = True) -> Iterator[Path]:
    """Yield an empty folder, which gets its name after the block; until then an older one of that name stays.

    Nothing is left of it after an error. What verifies the new folder belongs into the block.

    Args:
        path: The folder.
        flush: Whether it has to be on the disk afterwards; not if its reader would notice a loss and make it again.
    """
    put_back(path)
    partial = partial_of(path)
    remove(partial)  # of a process that was killed
    partial.mkdir(parents=True)
    try:
        yield partial
        put_in_place(partial, path, flush=flush)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def put_in_place(new: Path, path: Path, *, flush: bool = True) -> None:
    """Give a finished file or folder its name; an older folder of that name is gone only once the new one has it.

    Args:
        new: The file or folder, in the same file system.
        path: Its name.
        flush: Whether it has to be on the disk afterwards.

    Raises:
        OSError: a folder is to have the name of a file, or a file that of a folder; or the disk is full or broken.
    """
    if flush:
        for each in sorted(new.rglob("*")) if new.is_dir() else ():
            _flush(each)
        _flush(new)
    if new.is_dir() and path.is_dir():
        remove(_replaced(path))
        os.replace(path, _replaced(path))
    try:
        os.replace(new, path)
    except BaseException:
        put_back(path)
        raise
    if flush:
        _flush(path.parent)
    if path.is_dir():
        remove(_replaced(path))


def put_back(path: Path) -> None:
    """Give an older folder its name again if a process was killed while the new one took its place."""
    if os.path.lexists(_replaced(path)) and not os.path.lexists(path):
        os.replace(_replaced(path), path)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _replaced(path: Path) -> Path:
    # hidden, and a name that nobody gives to a copy of their own
    return path.with_name(f".{path.name}.replaced")


def _flush(path: Path) -> None:
    """Make the disk know the content of a file, or the names in a folder."""
    if path.is_symlink() or not (path.is_file() or path.is_dir()):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # file systems that cannot flush the names in a folder say so by these
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(descriptor)
