"""Loading of compiled code, only from places that nobody else can write: a library acts as the user who loads it.

The open file is checked and loaded, so that nothing can be exchanged in between. Among the parent folders, only one
writable by everybody is refused, unless it is sticky like /tmp: who exchanges a folder below cannot make one that
belongs to the user.
"""

import ctypes
import hashlib
import os
import stat
from pathlib import Path

EXTENSIONS_VARIABLE = "TORCH_EXTENSIONS_DIR"
"""Environment variable with the folder of torch's compiled extensions."""


class UntrustedCode(PermissionError):
    """A compiled library that somebody else could have written; the message says where and what to do."""


def make_private(folder: Path) -> None:
    """Make a folder and its missing parents for this user alone, with any umask.

    Raises:
        OSError: it cannot be made.
    """
    if folder.is_dir():
        return
    make_private(folder.parent)
    try:
        folder.mkdir()
    except FileExistsError:  # another process was faster, or it is a file
        if not folder.is_dir():
            raise
    else:
        folder.chmod(0o700)


def refuse_untrusted_folder(folder: Path, variable: str) -> None:
    """Refuse a folder of compiled code that others can write, or whose content they can write.

    Args:
        folder: The folder; links are followed.
        variable: Environment variable with another place for it.

    Raises:
        OSError: it cannot be read.
        UntrustedCode: it is not this user's, or others can write it.
    """
    status = folder.stat()
    _refuse(status, folder, variable)
    for above in folder.resolve().parents:
        mode = above.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            raise UntrustedCode(
                f"{above}, in which {folder} lies, can be written by everybody, so its compiled code is not run; "
                f"`chmod o-w {above}`, or set {variable} to a folder of your own"
            )


def refuse_untrusted_extensions() -> None:
    """Refuse the folder of extensions for OpenEquivariance and DeepSpeed if others can write it; make it if missing.

    Raises:
        OSError: it cannot be made or read.
        UntrustedCode: something there is not this user's, or others can write it.
    """
    from torch.utils.cpp_extension import get_default_build_root

    folder = Path(os.environ.get(EXTENSIONS_VARIABLE) or get_default_build_root())
    make_private(folder)
    refuse_untrusted_folder(folder, EXTENSIONS_VARIABLE)
    if folder.stat().st_mode & (stat.S_IXGRP | stat.S_IXOTH):  # others can access its content
        for path in sorted(folder.rglob("*")):
            _refuse(path.lstat(), path, EXTENSIONS_VARIABLE)


def load_library(file: Path, checksum: str, variable: str) -> ctypes.CDLL | None:
    """Load a compiled library; None if it is missing or its SHA-256 does not begin with the checksum.

    Raises:
        OSError: it cannot be opened, or is a link.
        UntrustedCode: it or its folder is not this user's, or others can write it.
    """
    opened = _opened(file, checksum, variable)
    # stays open: the loader identifies libraries by name, and a reused descriptor would have the same one
    return None if opened is None else ctypes.CDLL(f"/proc/self/fd/{opened}")


def read_code(file: Path, checksum: str, variable: str) -> bytes | None:
    """Return the content of a file of compiled code; None where load_library() returns none.

    Raises:
        OSError: it cannot be opened, or is a link.
        UntrustedCode: it or its folder is not this user's, or others can write it.
    """
    opened = _opened(file, checksum, variable)
    if opened is None:
        return None
    with open(opened, "rb") as content:
        content.seek(0)
        return content.read()


def _opened(file: Path, checksum: str, variable: str) -> int | None:
    """Return the descriptor of a file that only this user can write and that has the checksum, or None."""
    try:
        refuse_untrusted_folder(file.parent, variable)
        inside = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _refuse(os.fstat(inside), file.parent, variable)
            # without waiting for a writer, if it is a pipe
            opened = os.open(file.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=inside)
        finally:
            os.close(inside)
    except FileNotFoundError:
        return None
    except OSError as error:
        if file.is_symlink():
            raise UntrustedCode(f"{file} is a link, but this program makes none; remove it") from error
        raise
    status = os.fstat(opened)
    _refuse(status, file, variable)
    whole = stat.S_ISREG(status.st_mode) and len(checksum) >= 32
    if whole:
        with open(opened, "rb", closefd=False) as content:
            whole = hashlib.file_digest(content, "sha256").hexdigest().startswith(checksum)
    if not whole:
        os.close(opened)
        return None
    return opened


def _refuse(status: os.stat_result, path: Path, variable: str) -> None:
    advice = f"set {variable} to a folder of your own, as compiled code cannot be shared"
    if status.st_uid != os.geteuid():
        raise UntrustedCode(
            f"{path} belongs to user {status.st_uid}, not to you (user {os.geteuid()}), so its compiled code is "
            f"not run; {advice}"
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not stat.S_ISLNK(status.st_mode):
        raise UntrustedCode(
            f"{path} can be written by others (mode {stat.S_IMODE(status.st_mode):o}), so its compiled code is "
            f"not run; remove it, or `chmod go-w {path}` if only you have written it, or {advice}"
        )
