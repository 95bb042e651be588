"""Downloads of files too large for one connection: resumed, verified, and never visible half complete.

Bytes go to NAME.partial, which is renamed to NAME when size and checksum are right. A broken download is resumed, in
this run or a later one, with a Range request that the server answers only for the same version of the file (If-Range
with its ETag, or else its date); a file that changed meanwhile starts anew. The file is read once more for the
checksum: about half a minute for 12 GB from a good disk.
"""

import hashlib
import logging
import re
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import requests
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from urllib3.exceptions import HTTPError

from data_pipeline.corpora.pace import LEAST_RATE, Pace
from data_pipeline.store import durable

CHUNK_BYTES = 2**20
HEAD_TIMEOUTS = 3
"""Number of timeouts within which the head of an answer must arrive, including redirections and several addresses of a
host."""
LONGEST_WAIT = 60.0
"""Longest time between two attempts [s]."""
RETRIED_STATUS = {408, 425, 429, 500, 502, 503, 504}
"""HTTP status codes worth another attempt."""

logger = logging.getLogger(__name__)


class DownloadError(ValueError):
    """A failed download; the message says which, why and what to do."""


class _BrokenError(Exception):
    """A failed attempt that is worth another."""


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
    """Download a file, resuming an earlier run, and return its path.

    An existing file is only checked. If no checksum is known, the SHA-256 of the download is recorded in NAME.sha256
    and compared the next time.

    Args:
        url: Address.
        path: Target file.
        size: Its size [bytes], if known.
        checksum: md5:... or sha256:..., if known.
        tries: Number of consecutive attempts without progress before giving up.
        backoff: Pause after the first of those [s], doubled after each further one, up to a minute.
        timeout: Time of silence, or of less than 1 kB/s, after which a connection counts as broken [s].

    Raises:
        DownloadError: the server refuses, stays silent or is too slow, the file's size is unknown, it does not fit on
            the disk, or size or checksum differ.
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
        durable.put_in_place(partial.file, path)
        partial.discard()
    else:
        _verify(path, path, url, size, checksum)
    return path


class _Partial:
    """The beginning of a file, and the server's identifier of its version."""

    def __init__(self, path: Path) -> None:
        self.file = durable.partial_of(path)
        self._version_file = self.file.with_name(self.file.name + ".version")

    @property
    def num_bytes(self) -> int:
        return self.file.stat().st_size if self.file.exists() else 0

    @property
    def version(self) -> str | None:
        return (self._version_file.read_text() or None) if self._version_file.exists() else None

    def restart(self, version: str | None) -> None:
        self.discard()
        self.file.touch()
        durable.write_whole(self._version_file, version or "")

    def discard(self) -> None:
        self.file.unlink(missing_ok=True)
        self._version_file.unlink(missing_ok=True)


def _fill(
    partial: _Partial, url: str, size: int | None, *, resumable: bool, tries: int, backoff: float, timeout: float
) -> None:
    """Attempt until the partial file is complete; one that got further than all earlier ones resets the count."""
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, TimeRemainingColumn()) as progress:
        task = progress.add_task(partial.file.name.removesuffix(".partial"), total=size, completed=partial.num_bytes)

        def report(completed: int, total: int | None) -> None:
            progress.update(task, completed=completed, total=total)

        furthest, failures, began = partial.num_bytes, 0, time.monotonic()
        while True:
            try:
                return _attempt(partial, url, size, resumable, timeout, report)
            except _BrokenError as error:
                # a few bytes per attempt are not progress: attempts would never end
                worth = LEAST_RATE * (time.monotonic() - began)
                failures = 1 if partial.num_bytes > furthest + worth else failures + 1
                furthest, began = max(furthest, partial.num_bytes), time.monotonic()
                if failures >= tries:
                    raise DownloadError(
                        f"{url}: {error}; {tries} attempts without progress. The partial file is kept: {partial.file} "
                        f"({partial.num_bytes:,} bytes); the same command continues from there."
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
    """Request the missing bytes once and append them to the partial file.

    Raises:
        _BrokenError: the connection failed or ended too early.
        DownloadError: another attempt would be no better, or the disk is full.
    """
    # a stored encoding would be decoded in transfer, but the checksum is that of the stored file
    headers = {"Accept-Encoding": "identity"}
    if partial.num_bytes and (partial.version or resumable):
        headers["Range"] = f"bytes={partial.num_bytes}-"
        if partial.version:
            headers["If-Range"] = partial.version
    try:
        with _answer(url, headers, timeout) as response:
            total = _accept(response, partial, url, size)
            if partial.num_bytes != total:
                _append(response, partial, url, size or total or 0, timeout, report)
    except (requests.ConnectionError, requests.Timeout, HTTPError, ConnectionError, TimeoutError) as error:
        raise _BrokenError(f"the connection failed ({error})") from error
    except requests.RequestException as error:
        raise DownloadError(f"{url}: {error}. Correct the address.") from error
    except OSError as error:
        raise DownloadError(
            f"{partial.file}: writing failed ({error.strerror}). Free space or choose another folder: the file is kept "
            f"({partial.num_bytes:,} bytes), and the same command continues from there."
        ) from error
    if total is not None and partial.num_bytes != total:
        if partial.num_bytes > total:
            partial.discard()
        raise _BrokenError(f"the connection ended before byte {total:,}")


def _answer(url: str, headers: dict[str, str], timeout: float) -> requests.Response:
    """Send the request and wait for the head of the answer; socket timeouts do not bound a slow head."""
    answers: list[requests.Response | Exception] = []

    def ask() -> None:
        try:
            answers.append(requests.get(url, headers=headers, stream=True, timeout=timeout))
        except Exception as error:
            answers.append(error)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(HEAD_TIMEOUTS * timeout)
    if not answers:
        raise TimeoutError(f"no answer in {HEAD_TIMEOUTS * timeout:g} s")
    if isinstance(answers[0], Exception):
        raise answers[0]
    return answers[0]


def _accept(response: requests.Response, partial: _Partial, url: str, size: int | None) -> int | None:
    """Read the answer's head; start anew if it does not continue the partial file; return the file's whole size."""
    status = response.status_code
    if status in RETRIED_STATUS:
        raise _BrokenError(f"the server answers {status} ({response.reason})")
    start, total = _range(response)
    version = _version(response)
    if status == 416 and total != partial.num_bytes:
        partial.discard()
        raise _BrokenError("the file is now shorter than its partial download")
    if status not in (200, 206, 416):
        raise DownloadError(
            f"{url}: the server answers {status} ({response.reason}). The file may have moved or need permission: "
            f"find it, and put it into {partial.file.parent} yourself."
        )
    if size is None and total is None:
        raise DownloadError(
            f"{url}: neither the server nor the catalogue gives the size of the file, so it could fill the disk. "
            f"Download it yourself into {partial.file.parent}."
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
    missing, free = (size or total or 0) - partial.num_bytes, shutil.disk_usage(partial.file.parent).free
    if missing > free:
        raise DownloadError(
            f"{partial.file}: {missing:,} bytes are missing, {free:,} are free. Free space or choose another folder."
        )
    return total


def _range(response: requests.Response) -> tuple[int, int | None]:
    """Return the first byte of an answer and the size of the whole file, None if unknown."""
    words = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
    if words[1]:
        first = words[0].partition("-")[0]
        return int(first) if first.isdigit() else 0, int(words[2]) if words[2].isdigit() else None
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


def _version(response: requests.Response) -> str | None:
    """Return a value for If-Range: a strong ETag, or else the date of the last change."""
    tag = response.headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified")


def _append(
    response: requests.Response,
    partial: _Partial,
    url: str,
    most: int,
    timeout: float,
    report: Callable[[int, int | None], None],
) -> None:
    completed = partial.num_bytes
    pace = Pace(timeout, completed)
    with partial.file.open("ab") as file:
        # read1 returns available bytes; read would wait for a whole chunk, however slow
        while chunk := response.raw.read1(CHUNK_BYTES, decode_content=False):
            completed += len(chunk)
            if completed > most:
                partial.discard()
                raise DownloadError(f"{url}: the server sends more than the file's {most:,} bytes")
            file.write(chunk)
            report(completed, most)
            pace.check(completed)


def _verify(file: Path, path: Path, url: str, size: int | None, checksum: str | None) -> None:
    """Compare a file with size and checksum, or with the checksum recorded at its download.

    Raises:
        DownloadError: it differs.
    """
    advice = (
        f"It was not kept; try again, and if the result is the same, the file at {url} is not the expected one."
        if file != path
        else "Delete it to have it downloaded again."
    )
    if size is not None and file.stat().st_size != size:
        raise DownloadError(f"{path}: has {file.stat().st_size:,} bytes, expected {size:,}. {advice}")
    record = path.with_name(path.name + ".sha256")
    if checksum is None and record.is_file() and file == path:
        checksum = "sha256:" + (re.findall(r"^[0-9a-f]{64}", record.read_text(errors="replace")) or ["unreadable"])[0]
    algorithm, _, expected = (checksum or "sha256:").partition(":")
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, algorithm).hexdigest()
    if checksum is None:
        logger.warning("%s: no checksum is published, so it cannot be verified; sha256 %s", path, found)
        durable.write_whole(record, f"{found}  {path.name}\n")
    elif found != expected:
        raise DownloadError(f"{path}: its {algorithm} is {found}, expected {expected}. {advice}")
