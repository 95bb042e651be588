"""Durable writes: the one way to write a file or a folder whole, so that readers find either the old or the new one.

Content is written under another name, flushed to the disk and renamed; then the folder, which holds the name, is
flushed. A killed process leaves at most the other name, which the next writer removes. After a power cut, a completed
write is on the disk. The price is some milliseconds per file.
"""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIAL = ".partial"
"""Suffix of the name under which something is written."""


def partial_of(path: Path) -> Path:
    """Return the name under which a file or folder is written until it is complete."""
    return path.with_name(path.name + PARTIAL)


@contextmanager
def whole_file(path: Path, *, shared: bool = False, flush: bool = True) -> Iterator[Path]:
    """Yield the temporary name of a file, which is renamed, replacing an older one, after the block.

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
    """Rename a finished file or folder; an older folder of that name is removed only afterwards.

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
    """Restore an older folder if a process was killed while replacing it."""
    if os.path.lexists(_replaced(path)) and not os.path.lexists(path):
        os.replace(_replaced(path), path)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _replaced(path: Path) -> Path:
    # hidden, and not a name that people give to copies
    return path.with_name(f".{path.name}.replaced")


def _flush(path: Path) -> None:
    """Flush the content of a file, or the names in a folder, to the disk."""
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
