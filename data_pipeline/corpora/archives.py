"""Downloaded archives: unpacked member by member, into one folder and up to a plausible size.

The libraries' own extraction silently changes names, follows links, and writes any amount that a few kilobytes expand
to. Here every member must be a plain file or folder below the archive's own, each name once; else the archive is
refused.
"""

import gzip
import io
import itertools
import logging
import lzma
import re
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from data_pipeline.corpora.download import DownloadError
from data_pipeline.quoting import abbreviated
from data_pipeline.store import durable

logger = logging.getLogger(__name__)

LARGEST_RATIO, SMALLEST_BOUND = 100, 16 * 2**20
"""Largest unpacked bytes per byte of an archive, and bound for small archives [bytes]: labelled frames as text shrink
to a quarter or a tenth, zeros to a thousandth. No public corpus states its unpacked size."""
MEMBER_BYTES = 512
"""Size counted for a member in addition to its content [bytes]: empty members fill a disk as well."""
COPIED_BYTES = 2**20
LARGEST_READ = 2**24
"""Largest amount unpacked at a time [bytes]: names and extended headers are read whole."""
DRIVE = re.compile(r"[A-Za-z]:")


class _Member(NamedTuple):
    name: str
    is_folder: bool
    open: Callable[[], Any]


def unpack(archive: Path) -> Path:
    """Unpack a .tar.gz or .zip into a folder of its name beside it, and return the folder.

    A folder that is the only content of the archive, or of such a folder, is left out. The name appears when everything
    is unpacked; an existing folder is returned unchanged.

    Raises:
        DownloadError: the archive is damaged, encrypted or implausibly large; a member is a link or device, occurs
            twice, or would be written outside the folder; or the disk is full.
    """
    folder = archive.with_name(unpacked_name(archive.name))
    if folder.is_dir():
        return folder
    unpacking = archive.with_name(f".{folder.name}.unpacking")  # hidden from patterns such as train/*
    shutil.rmtree(unpacking, ignore_errors=True)
    logger.info("unpacking %s", archive)
    try:
        unpacking.mkdir()
        with archive.open("rb") as file:
            bound = max(LARGEST_RATIO * archive.stat().st_size, SMALLEST_BOUND)
            members = _zip_members(file) if archive.suffix == ".zip" else _tar_members(file, bound)
            _write(archive, members, unpacking, bound)
        inner = unpacking
        while len(entries := list(inner.iterdir())) == 1 and entries[0].is_dir():
            inner = entries[0]
        durable.put_in_place(inner, folder)
    except _DAMAGE as error:
        raise DownloadError(
            f"{archive}: cannot be unpacked ({str(error)[:300]}). Delete it to have it downloaded again."
        ) from error
    except OSError as error:
        raise DownloadError(f"{archive}: unpacking failed ({error}). Free space and run the same again.") from error
    finally:
        shutil.rmtree(unpacking, ignore_errors=True)
    return folder


def unpacked_name(name: str) -> str:
    """Return the name of an archive without .tar.gz or .zip, and other names unchanged."""
    return name.removesuffix(".tar.gz").removesuffix(".zip")


class _RefusedError(Exception):
    """A refused member, or an archive that is too large."""


_DAMAGE = (
    _RefusedError,
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    NotImplementedError,  # a compression unknown to zipfile
    ValueError,  # raised by zipfile and tarfile for wrong numbers and names in headers
    OverflowError,
    IndexError,
    RecursionError,  # headers of headers
    struct.error,
)


def _write(archive: Path, members: Iterator[_Member], folder: Path, bound: int) -> None:
    """Write the members below a folder, up to the bound in total."""
    written, seen = 0, dict[tuple[str, ...], bool]()
    for member in members:
        parts = _parts(member.name)
        if not parts and not member.is_folder:
            raise _RefusedError(f"member {abbreviated(member.name)} has no name")
        written += MEMBER_BYTES
        _refuse_above(bound, written, member.name)
        for depth in range(1, len(parts) + 1):
            is_folder = depth < len(parts) or member.is_folder
            if seen.setdefault(parts[:depth], is_folder) is not is_folder:
                raise _RefusedError(f"member {abbreviated(member.name)} is a file and a folder")
        if member.is_folder:
            folder.joinpath(*parts).mkdir(parents=True, exist_ok=True)
            continue
        path = folder.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with member.open() as source, path.open("xb") as target:
                while chunk := source.read(COPIED_BYTES):
                    written += len(chunk)
                    _refuse_above(bound, written, member.name)
                    target.write(chunk)
        except FileExistsError as error:
            raise _RefusedError(f"member {abbreviated(member.name)} occurs twice") from error


def _refuse_above(bound: int, written: int, name: str) -> None:
    if written > bound:
        raise _RefusedError(
            f"member {abbreviated(name)} brings it above {bound:,} bytes, too much for an archive of data"
        )


def _parts(name: str) -> tuple[str, ...]:
    """Return the folders and the file in a member's name; () for the folder of the archive itself."""
    unsafe = name.startswith("/") or "\\" in name or DRIVE.match(name) or not name.isprintable()
    parts = PurePosixPath(name).parts
    if unsafe or ".." in parts or max(map(len, parts), default=0) > 255 or len(parts) > 100:
        raise _RefusedError(f"member {abbreviated(name)} has a name that may lead out of its folder")
    return parts


def _zip_members(file: IO[bytes]) -> Iterator[_Member]:
    with zipfile.ZipFile(file) as archive:
        for info in archive.infolist():
            # the raw name: zipfile ends it at a NUL
            name, kind = info.orig_filename, stat.S_IFMT(info.external_attr >> 16)
            if info.flag_bits & 0x41:
                raise _RefusedError(f"member {abbreviated(name)} is encrypted; unpack it by hand")
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise _RefusedError(f"member {abbreviated(name)} is a link or device")
            yield _Member(name, info.is_dir(), partial(archive.open, info))


def _tar_members(file: IO[bytes], bound: int) -> Iterator[_Member]:
    with gzip.GzipFile(fileobj=file) as content:
        bounded = _Bounded(content, bound)
        with tarfile.open(fileobj=bounded, mode="r:") as archive:
            for number in itertools.count():
                bounded.place = f"after member {number}"
                info = archive.next()
                if info is None:
                    return _refuse_rest(bounded, archive.offset)
                if not (info.isreg() or info.isdir()):
                    raise _RefusedError(f"member {abbreviated(info.name)} is a link or device")
                # the library keeps them all, and there may be millions
                archive.members = []  # pyright: ignore[reportAttributeAccessIssue]
                yield _Member(info.name, info.isdir(), partial(archive.extractfile, info))


def _refuse_rest(content: "_Bounded", place: int) -> None:
    """Read to the end, where gzip has its checksum: tarfile takes a damaged header as the end."""
    content.seek(place)
    while chunk := content.read(COPIED_BYTES):
        if chunk.strip(b"\0"):
            raise _RefusedError(f"the data {content.place} are not a member")


class _Bounded(io.RawIOBase):
    """Content of a compressed file, bounded per read and in total, including seeking."""

    def __init__(self, file: gzip.GzipFile, bound: int) -> None:
        self._file, self._bound = file, bound
        self.place = "at its beginning"

    def read(self, size: int = -1) -> bytes:
        """Return `size` bytes, fewer at the end."""
        if not 0 <= size <= LARGEST_READ:
            raise _RefusedError(f"a header {self.place} is larger than {LARGEST_READ:,} bytes")
        content = self._file.read(size)
        self._check(self._file.tell())
        return content

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to an absolute position, by unpacking everything before it."""
        self._check(offset)
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Return the position."""
        return self._file.tell()

    def _check(self, place: int) -> None:
        if place > self._bound:
            raise _RefusedError(f"{self.place} it has more than {self._bound:,} bytes, too much for an archive of data")
