"""Downloads of files too large for one connection: resumed, verified, and never visible half complete.

Bytes go to NAME.partial, which is renamed to NAME when size and checksum are right. A broken download is resumed, in
this run or a later one, with a Range request that the server answers only for the same version of the file (If-Range
with its ETag, or else its date); a file that changed meanwhile starts anew. The file is read once more for the
checksum: about half a minute for 12 GB from a good disk.
"""

import hashlib
import logging
import math
import re
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import requests
from rich.console import Console
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
PAGE = (
    "a web page came in place of the file, as from a login, a proxy or a wrong address: open the address in a browser, "
    "or use another network"
)
RETRIED_STATUS = {408, 425, 429, 500, 502, 503, 504}
"""HTTP status codes worth another attempt."""

logger = logging.getLogger(__name__)


class DownloadError(ValueError):
    """A failed download; the message says which, why and what to do."""


class _BrokenError(Exception):
    """A failed attempt that is worth another."""


@dataclass(frozen=True, kw_only=True)
class _Request:
    """A file to ask for, and the limits of asking; see download()."""

    url: str
    size: int | None
    resumable: bool
    """True if a checksum will tell whether parts of the file belong together."""
    headers: Mapping[str, str]
    tries: int
    backoff: float
    timeout: float
    total: float
    most: int | None
    began: float = field(default_factory=time.monotonic)


def download(
    url: str,
    path: Path,
    *,
    size: int | None = None,
    checksum: str | None = None,
    tries: int = 8,
    backoff: float = 1.0,
    timeout: float = 60.0,
    total: float = math.inf,
    most: int | None = None,
    headers: Mapping[str, str] | None = None,
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
        total: Time after which the download is given up, however far it is [s].
        most: Largest size [bytes]; None: what fits on the disk.
        headers: Headers of the request, such as a token.

    Raises:
        DownloadError: the server refuses, stays silent or is too slow, sends a web page in place of the file, the
            file's size is unknown, it is too large or does not fit on the disk, or size or checksum differ.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file():
        partial = _Partial(path)
        request = _Request(
            url=url,
            size=size,
            resumable=checksum is not None,
            headers=headers or {},
            tries=tries,
            backoff=backoff,
            timeout=timeout,
            total=total,
            most=most,
        )
        _fill(partial, request)
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


def _fill(partial: _Partial, request: _Request) -> None:
    """Attempt until the partial file is complete; one that got further than all earlier ones resets the count."""
    url = request.url
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        name = partial.file.name.removesuffix(".partial")
        task = progress.add_task(name, total=request.size, completed=partial.num_bytes)

        def report(completed: int, total: int | None) -> None:
            progress.update(task, completed=completed, total=total)

        furthest, failures, began = partial.num_bytes, 0, time.monotonic()
        while True:
            try:
                return _attempt(partial, request, report)
            except _BrokenError as error:
                # a few bytes per attempt are not progress: attempts would never end
                worth = LEAST_RATE * (time.monotonic() - began)
                failures = 1 if partial.num_bytes > furthest + worth else failures + 1
                furthest, began = max(furthest, partial.num_bytes), time.monotonic()
                if failures >= request.tries:
                    raise DownloadError(
                        f"{url}: {error}; {request.tries} attempts without progress. {_kept(partial)}"
                    ) from error
                logger.warning("%s: %s; trying again", url, error)
                time.sleep(min(request.backoff * 2 ** (failures - 1), LONGEST_WAIT))


def _kept(partial: _Partial) -> str:
    return (
        f"The partial file is kept: {partial.file} ({partial.num_bytes:,} bytes); the same command continues from "
        "there."
    )


def _refuse_late(partial: _Partial, request: _Request) -> None:
    """Give up if the total time is over.

    Raises:
        DownloadError: it is.
    """
    if time.monotonic() - request.began > request.total:
        raise DownloadError(f"{request.url}: not complete after {request.total:g} s. {_kept(partial)}")


def _attempt(partial: _Partial, request: _Request, report: Callable[[int, int | None], None]) -> None:
    """Request the missing bytes once and append them to the partial file.

    Raises:
        _BrokenError: the connection failed or ended too early.
        DownloadError: another attempt would be no better, the time is over, or the disk is full.
    """
    _refuse_late(partial, request)
    # a stored encoding would be decoded in transfer, but the checksum is that of the stored file
    headers = {"Accept-Encoding": "identity", **request.headers}
    if partial.num_bytes and (partial.version or request.resumable):
        headers["Range"] = f"bytes={partial.num_bytes}-"
        if partial.version:
            headers["If-Range"] = partial.version
    try:
        with _answer(request.url, headers, request.timeout) as response:
            total = _accept(response, partial, request)
            if partial.num_bytes != total:
                _append(response, partial, request, request.size or total or 0, report)
    except (requests.ConnectionError, requests.Timeout, HTTPError, ConnectionError, TimeoutError) as error:
        raise _BrokenError(f"the connection failed ({error})") from error
    except requests.RequestException as error:
        raise DownloadError(f"{request.url}: {error}. Correct the address.") from error
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


def _accept(response: requests.Response, partial: _Partial, request: _Request) -> int | None:
    """Read the answer's head; start anew if it does not continue the partial file; return the file's whole size."""
    url, status = request.url, response.status_code
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
    _refuse_size(response, partial, request, total)
    if status == 206 and (start != partial.num_bytes or (partial.version and version != partial.version)):
        partial.discard()
        raise _BrokenError("the server sent a part of another version of the file")
    if status == 200:
        partial.restart(version)
    missing, free = (request.size or total or 0) - partial.num_bytes, shutil.disk_usage(partial.file.parent).free
    if missing > free:
        raise DownloadError(
            f"{partial.file}: {missing:,} bytes are missing, {free:,} are free. Free space or choose another folder."
        )
    return total


def _refuse_size(response: requests.Response, partial: _Partial, request: _Request, total: int | None) -> None:
    """Refuse a file of unknown or wrong size.

    Raises:
        DownloadError: its size is unknown, not the expected one, or too large.
    """
    url, size = request.url, request.size
    if size is None and total is None:
        if response.headers.get("Content-Type", "").startswith("text/html"):
            raise DownloadError(f"{url}: {PAGE}")
        raise DownloadError(
            f"{url}: neither the server nor the catalogue gives the size of the file, so it could fill the disk. "
            f"Download it yourself into {partial.file.parent}."
        )
    if size is not None and total is not None and total != size:
        raise DownloadError(
            f"{url}: the server has {total:,} bytes, expected {size:,}. The file changed since its size was recorded; "
            "find out what changed before using it."
        )
    if request.most is not None and (size or total or 0) > request.most:
        raise DownloadError(f"{url}: {size or total:,} bytes, at most {request.most:,} are expected of such a file")


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
    request: _Request,
    most: int,
    report: Callable[[int, int | None], None],
) -> None:
    completed = partial.num_bytes
    pace = Pace(request.timeout, completed)
    with partial.file.open("ab") as file:
        # read1 returns available bytes; read would wait for a whole chunk, however slow
        while chunk := response.raw.read1(CHUNK_BYTES, decode_content=False):
            completed += len(chunk)
            if completed > most:
                partial.discard()
                raise DownloadError(f"{request.url}: the server sends more than the file's {most:,} bytes")
            file.write(chunk)
            report(completed, most)
            pace.check(completed)
            if completed < most:
                _refuse_late(partial, request)


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
    if found != expected and path.suffix not in (".html", ".htm") and _is_page(file):
        raise DownloadError(f"{url}: {PAGE}")
    if checksum is None:
        logger.warning("%s: no checksum is published, so it cannot be verified; sha256 %s", path, found)
        durable.write_whole(record, f"{found}  {path.name}\n")
    elif found != expected:
        raise DownloadError(f"{path}: its {algorithm} is {found}, expected {expected}. {advice}")


def _is_page(file: Path) -> bool:
    """Return whether a file is a page for a browser."""
    with file.open("rb") as opened:
        return opened.read(512).lstrip().lower().startswith((b"<!doctype html", b"<html"))
