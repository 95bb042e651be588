"""Downloads of files that are larger than a connection lasts: resumed, checked, and never half there.

Bytes go to NAME.partial, and become NAME only when size and checksum hold. A broken connection is taken up where it
broke, in this run or in a later one, with a Range request that the server answers only for the version of the file
that the beginning came from (If-Range with its ETag, or else its date); a file that changed meanwhile starts anew.
The whole is read once more for the checksum: about half a minute for 12 GB from a good disk.
"""

import gzip
import hashlib
import logging
import os
import shutil
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import requests
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from urllib3.exceptions import HTTPError

CHUNK_BYTES = 2**20
LONGEST_WAIT = 60.0
"""Longest time between two attempts [s]."""
RETRIED_STATUS = {408, 425, 429, 500, 502, 503, 504}
"""Answers that may be different the next time."""

logger = logging.getLogger(__name__)


class DownloadError(ValueError):
    """A file that could not be had; the message says which, why and what to do."""


class _BrokenError(Exception):
    """An attempt that failed and is worth another."""


def download(
    url: str,
    path: Path,
    *,
    size: int | None = None,
    checksum: str | None = None,
    tries: int = 8,
    backoff: float = 1.0,
    timeout: float = 60.0,
) -> Path:
    """Download a file, resuming what an earlier run left, and return its path.

    A file that is there already is only checked. Where no checksum is known, the SHA-256 of what came is recorded in
    NAME.sha256, and compared the next time.

    Args:
        url: Address.
        path: Where to put it.
        size: Its size [bytes], if known.
        checksum: md5:... or sha256:..., if known.
        tries: Attempts in a row that bring nothing new before giving up.
        backoff: Wait after the first of those [s]; doubled after each further one, up to a minute.
        timeout: Silence after which a connection counts as broken [s].

    Raises:
        DownloadError: the server refuses or stays silent, the disk is full, or size or checksum differ.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file():
        partial = _Partial(path)
        _fill(partial, url, size, resumable=checksum is not None, tries=tries, backoff=backoff, timeout=timeout)
        try:
            _verify(partial.file, path, url, size, checksum)
        except DownloadError:
            partial.discard()
            raise
        os.replace(partial.file, path)
        partial.discard()
    else:
        _verify(path, path, url, size, checksum)
    return path


class _Partial:
    """The beginning of a file, and the server's mark of the version that it is the beginning of."""

    def __init__(self, path: Path) -> None:
        self.file = path.with_name(path.name + ".partial")
        self._version_file = path.with_name(path.name + ".partial.version")

    @property
    def num_bytes(self) -> int:
        return self.file.stat().st_size if self.file.exists() else 0

    @property
    def version(self) -> str | None:
        return (self._version_file.read_text() or None) if self._version_file.exists() else None

    def restart(self, version: str | None) -> None:
        self.discard()
        self.file.touch()
        self._version_file.write_text(version or "")

    def discard(self) -> None:
        self.file.unlink(missing_ok=True)
        self._version_file.unlink(missing_ok=True)


def _fill(
    partial: _Partial, url: str, size: int | None, *, resumable: bool, tries: int, backoff: float, timeout: float
) -> None:
    """Attempt until the partial file is complete; an attempt that got further than all before starts the count anew."""
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, TimeRemainingColumn()) as progress:
        task = progress.add_task(partial.file.name.removesuffix(".partial"), total=size, completed=partial.num_bytes)

        def report(completed: int, total: int | None) -> None:
            progress.update(task, completed=completed, total=total)

        furthest, failures = partial.num_bytes, 0
        while True:
            try:
                return _attempt(partial, url, size, resumable, timeout, report)
            except _BrokenError as error:
                failures = 1 if partial.num_bytes > furthest else failures + 1
                furthest = max(furthest, partial.num_bytes)
                if failures >= tries:
                    raise DownloadError(
                        f"{url}: {error}; {tries} attempts brought nothing more. What came is kept in {partial.file} "
                        f"({partial.num_bytes:,} bytes); the same command goes on from there."
                    ) from error
                logger.warning("%s: %s; trying again", url, error)
                time.sleep(min(backoff * 2 ** (failures - 1), LONGEST_WAIT))


def _attempt(
    partial: _Partial,
    url: str,
    size: int | None,
    resumable: bool,
    timeout: float,
    report: Callable[[int, int | None], None],
) -> None:
    """Ask once for what is missing and append it to the partial file.

    Raises:
        _BrokenError: the connection failed or ended too early.
        DownloadError: another attempt would be no better, or the disk is full.
    """
    # a stored encoding would be undone on the way, and the checksum is that of the file as it is stored
    headers = {"Accept-Encoding": "identity"}
    if partial.num_bytes and (partial.version or resumable):
        headers["Range"] = f"bytes={partial.num_bytes}-"
        if partial.version:
            headers["If-Range"] = partial.version
    try:
        with requests.get(url, headers=headers, stream=True, timeout=timeout) as response:
            total = _accept(response, partial, url, size)
            if partial.num_bytes != total:
                _append(response, partial, total, report)
    except (requests.ConnectionError, requests.Timeout, HTTPError, ConnectionError, TimeoutError) as error:
        raise _BrokenError(f"the connection failed ({error})") from error
    except requests.RequestException as error:
        raise DownloadError(f"{url}: {error}. Correct the address.") from error
    except OSError as error:
        raise DownloadError(
            f"{partial.file}: writing failed ({error.strerror}). Make room or choose another folder: what came is kept "
            f"({partial.num_bytes:,} bytes), and the same command goes on from there."
        ) from error
    if total is not None and partial.num_bytes != total:
        if partial.num_bytes > total:
            partial.discard()
        raise _BrokenError(f"the connection ended before byte {total:,}")


def _accept(response: requests.Response, partial: _Partial, url: str, size: int | None) -> int | None:
    """Read the answer's head, start anew if it is not the rest of what is there; return the size of the whole file."""
    status = response.status_code
    if status in RETRIED_STATUS:
        raise _BrokenError(f"the server answers {status} ({response.reason})")
    start, total = _range(response)
    version = _version(response)
    if status == 416 and total != partial.num_bytes:
        partial.discard()
        raise _BrokenError("the file is now shorter than what is there of it")
    if status not in (200, 206, 416):
        raise DownloadError(
            f"{url}: the server answers {status} ({response.reason}). The file may have moved or need a permission: "
            f"look it up, and put it into {partial.file.parent} yourself."
        )
    if size is not None and total is not None and total != size:
        raise DownloadError(
            f"{url}: the server has {total:,} bytes, expected {size:,}. The file changed since its size was recorded; "
            "find out what changed before using it."
        )
    if status == 206 and (start != partial.num_bytes or (partial.version and version != partial.version)):
        partial.discard()
        raise _BrokenError("the server sent a part of another version of the file")
    if status == 200:
        partial.restart(version)
    return total


def _range(response: requests.Response) -> tuple[int, int | None]:
    """Return the first byte of an answer and the size of the whole file, None if it is not said."""
    words = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
    if words[1]:
        first = words[0].partition("-")[0]
        return int(first) if first.isdigit() else 0, int(words[2]) if words[2].isdigit() else None
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


def _version(response: requests.Response) -> str | None:
    """Return what If-Range accepts: a strong ETag, or else the date of the last change."""
    tag = response.headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified")


def _append(
    response: requests.Response, partial: _Partial, total: int | None, report: Callable[[int, int | None], None]
) -> None:
    completed = partial.num_bytes
    with partial.file.open("ab") as file:
        for chunk in response.raw.stream(CHUNK_BYTES, decode_content=False):
            file.write(chunk)
            completed += len(chunk)
            report(completed, total)


def _verify(file: Path, path: Path, url: str, size: int | None, checksum: str | None) -> None:
    """Compare a file with size and checksum, or with the checksum that was recorded when it came.

    Raises:
        DownloadError: it differs.
    """
    advice = (
        f"It was not kept; try again, and if it comes out the same, the file at {url} is not the one expected."
        if file != path
        else "Delete it to have it downloaded again."
    )
    if size is not None and file.stat().st_size != size:
        raise DownloadError(f"{path}: has {file.stat().st_size:,} bytes, expected {size:,}. {advice}")
    record = path.with_name(path.name + ".sha256")
    if checksum is None and record.is_file() and file == path:
        checksum = "sha256:" + record.read_text().split()[0]
    algorithm, _, expected = (checksum or "sha256:").partition(":")
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, algorithm).hexdigest()
    if checksum is None:
        logger.warning("%s: no checksum is published, so it cannot be verified; sha256 %s", path, found)
        record.write_text(f"{found}  {path.name}\n")
    elif found != expected:
        raise DownloadError(f"{path}: its {algorithm} is {found}, expected {expected}. {advice}")


def unpack(archive: Path) -> Path:
    """Unpack a .tar.gz or .zip beside itself, into a folder of its name, and return the folder.

    A folder that is all there is in the archive, and that folder's only folder, and so on, are left out. The name
    appears when everything is unpacked; a folder that is there already is taken as it is.

    Raises:
        DownloadError: the archive is damaged, or would write outside its folder, or the disk is full.
    """
    folder = archive.with_name(unpacked_name(archive.name))
    if folder.is_dir():
        return folder
    partial = archive.with_name(f".{folder.name}.unpacking")  # hidden from patterns such as train/*
    shutil.rmtree(partial, ignore_errors=True)
    logger.info("unpacking %s", archive)
    try:
        if archive.suffix == ".zip":
            with zipfile.ZipFile(archive) as file:
                file.extractall(partial)
        else:
            with tarfile.open(archive) as file:
                file.extractall(partial, filter="data")
        inner = partial
        while len(entries := list(inner.iterdir())) == 1 and entries[0].is_dir():
            inner = entries[0]
        os.replace(inner, folder)
    except (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DownloadError(
            f"{archive}: cannot be unpacked ({error}). Delete it to have it downloaded again."
        ) from error
    except OSError as error:
        raise DownloadError(f"{archive}: unpacking failed ({error}). Make room and run the same again.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def unpacked_name(name: str) -> str:
    """Return the name of an archive without .tar.gz or .zip, and other names as they are."""
    return name.removesuffix(".tar.gz").removesuffix(".zip")
