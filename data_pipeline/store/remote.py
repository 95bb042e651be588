"""Remote data sets: blocks fetched by byte range over http(s), s3 or other protocols of fsspec, and kept on local disk.

One request fetches a block, some 250 kB: training on many shards would wait long for whole ones. Blocks are kept under
a size limit, the least recently used are removed, and any number of processes may share the folder: a file appears
under its name only when it is complete, and every block is compared with the checksum of the index at every read.
"""

import asyncio
import hashlib
import itertools
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
import fsspec

from data_pipeline.corpora.pace import Pace
from data_pipeline.store import durable
from data_pipeline.store.block import Block, CorruptShard
from data_pipeline.store.index import BlockIndex
from data_pipeline.store.shards import decode_block

log = logging.getLogger(__name__)

CACHE_BYTES = 50 * 10**9
"""Default size limit of local copies of all remote data sets [bytes]."""
TRIES = 5
"""Number of attempts at a request."""
FIRST_PAUSE = 0.5
"""Pause before a request is repeated [s], doubled before each further one."""
PATIENCE = 60.0
"""Time of silence, or of bytes that come too slowly, after which a connection counts as broken [s]."""
RANGE_NOT_SATISFIABLE = 416
FULL, EMPTIED = 0.9, 0.8
"""Fractions of the limit: when a scan finds the cache filled to the first, files are removed down to the second."""
SCAN_FRACTION = 0.01
"""Fraction of the limit after whose writing a process scans the cache, so that ten processes stay below the limit."""


class DiskCache:
    """Files on local disk under a size limit; the least recently used are removed."""

    def __init__(self, folder: Path | None = None, num_bytes: int = CACHE_BYTES) -> None:
        """Use a folder, by default the user's cache folder. Nothing outside its foundation-blocks/ is touched.

        Raises:
            ValueError: the limit is not positive.
        """
        if num_bytes < 1:
            raise ValueError(f"the size limit of the cache must be positive, not {num_bytes}")
        parent = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") if folder is None else folder
        self.folder, self._limit = parent / "foundation-blocks", num_bytes
        self._unscanned: float = num_bytes  # the writes of others are unknown

    def read(self, path: Path) -> bytes | None:
        """Return a file's content and mark it as used; None if it cannot be read."""
        try:
            os.utime(path)
            return path.read_bytes()
        except OSError:
            return None

    def write(self, path: Path, content: bytes) -> None:
        """Write a file, completely or not at all.

        Raises:
            OSError: the folder cannot be written or is a link to elsewhere, or the disk is full.
        """
        self._unscanned += len(content)
        if self._unscanned > SCAN_FRACTION * self._limit:
            self._make_room(len(content))
            self._unscanned = len(content)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.parent.resolve().is_relative_to(self.folder.resolve()):
            raise PermissionError(f"{path.parent}: leads out of the cache, {self.folder}; remove the link")
        # what a power cut takes is found missing by its checksum and fetched again
        durable.write_whole(path, content, shared=True, flush=False)

    def _make_room(self, num_bytes: int) -> None:
        """Remove the least recently used files if writing num_bytes more makes the cache nearly full."""
        found = []
        for folder, _, names in os.walk(self.folder):
            for name in names:
                path = Path(folder, name)
                try:
                    status = path.stat()
                except FileNotFoundError:  # another process removed it
                    continue
                found.append((status.st_mtime_ns, status.st_size, path))
        total = num_bytes + sum(size for _, size, _ in found)
        if total <= FULL * self._limit:
            return
        for _, size, path in sorted(found):
            if total <= EMPTIED * self._limit:
                return
            path.unlink(missing_ok=True)
            total -= size


class RemoteFolder:
    """Folder of a data set at a URL, with local copies of what was read."""

    def __init__(self, url: str, cache: DiskCache) -> None:
        self.url, self._cache = url.rstrip("/"), cache
        self._opened: tuple[int, Any, str] | None = None
        self.copies = cache.folder
        """Local folder of the copies; open_manifest() makes one for each version of a data set."""

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_opened": None}

    def manifest(self, name: str, most: int) -> bytes:
        """Return the manifest, cut one byte after the limit, and set the folder of its copies.

        Raises:
            FileNotFoundError: it is not there.
            ValueError: the server does not support byte ranges.
            OSError: it cannot be reached.
        """
        self._download(name, 0, 1)
        content = self._download(name, 0, most + 1)
        self.copies = self._cache.folder / hashlib.sha256(self.url.encode() + b"\0" + content).hexdigest()[:16]
        return content

    def fetch(self, name: str, sha256: str, most: int) -> tuple[Path, bytes]:
        """Return path and content of the local copy of a whole file of at most `most` bytes, checksum verified.

        Raises:
            CorruptShard: the file is not the one of the manifest.
            FileNotFoundError: it is not there.
            OSError: it cannot be reached, or the copy cannot be written.
        """
        path = self.copies / name
        copy = self._cache.read(path)
        if copy is not None and hashlib.sha256(copy).hexdigest() == sha256:
            return path, copy
        if copy is not None:
            log.warning("%s: the checksum differs from the manifest's; fetching it again", path)
        content = self._download(name, 0, most)
        if hashlib.sha256(content).hexdigest() != sha256:
            raise CorruptShard(f"{self.url}/{name}: the checksum differs from the manifest's; copy or build it again")
        self._cache.write(path, content)
        return path, content

    def read_block(self, name: str, blocks: BlockIndex, number: int) -> Block:
        """Read one block of a shard, from the local copy if it is valid.

        Raises:
            CorruptShard: the bytes are not those that were written, or the shard ends early.
            FileNotFoundError: the shard is missing.
            OSError: it cannot be reached.
        """
        offset, size = int(blocks.offset[number]), int(blocks.size[number])
        path = self.copies / name / f"{offset}.block"
        copy = self._cache.read(path)
        if copy is not None:
            try:
                return decode_block(copy, str(path), blocks, number)
            except CorruptShard as error:
                log.warning("%s; fetching it again", error)
        content = self._download(name, offset, offset + size)
        block = decode_block(content, f"{self.url}/{name}", blocks, number)
        try:
            self._cache.write(path, content)
        except OSError as error:  # a full disk makes reading slow, not wrong
            log.warning("%s: cannot keep a copy of %s/%s: %s", path, self.url, name, error)
        return block

    def _download(self, name: str, start: int, stop: int) -> bytes:
        """Return a byte range of a file, shorter if the file ends earlier."""
        where = f"{self.url}/{name}, bytes from {start}"
        try:
            content = self._persist(where, name, start, stop)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{where}: not found; copy or build the data set again") from error
        except ConnectionError:
            raise
        except Exception as error:
            if getattr(error, "status", None) == RANGE_NOT_SATISFIABLE:
                return b""  # the file ends earlier
            raise ValueError(f"{where}: cannot be read ({type(error).__name__}: {str(error)[:200]})") from error
        if len(content) > stop - start:
            raise ValueError(
                f"{where}: the server ignores byte ranges (asked for {stop - start} bytes, it sent more). "
                "Serve the data set with a server that supports them, or copy it to a local disk."
            )
        return content

    def _persist(self, where: str, name: str, start: int, stop: int) -> bytes:
        """Make a request; repeat it after errors that may pass."""
        for attempt in itertools.count(1):
            try:
                filesystem, root = self._filesystem()
                return filesystem.cat_file(f"{root}/{name}", start=start, end=stop)
            except Exception as error:
                if not _passing(error):
                    raise
                if attempt == TRIES:
                    problem = f"{type(error).__name__}: {str(error)[:200]}"
                    raise ConnectionError(f"{where}: cannot be read, tried {TRIES} times ({problem})") from error
                time.sleep(FIRST_PAUSE * 2 ** (attempt - 1))
        raise AssertionError

    def _filesystem(self) -> tuple[Any, str]:
        """Return fsspec's file system and the folder in it, opened in this process: its event loop survives no fork."""
        if self._opened is None or self._opened[0] != os.getpid():
            options = {"client_kwargs": _client()} if self.url.startswith(("http:", "https:")) else {}
            filesystem, root = fsspec.core.url_to_fs(self.url, skip_instance_cache=True, **options)
            self._opened = (os.getpid(), filesystem, root.rstrip("/"))
        return self._opened[1:]


class _BoundedAnswer(aiohttp.ClientResponse):
    """HTTP response of which no more is read than requested, and only if it does not come too slowly."""

    async def start(self, connection: Any) -> aiohttp.ClientResponse:
        """Wait for the head, which may also come too slowly."""
        async with asyncio.timeout(PATIENCE):
            return await super().start(connection)

    async def read(self) -> bytes:
        """Return the body, cut one byte after the requested range if it is longer."""
        first, last = self.request_info.headers["Range"].removeprefix("bytes=").split("-")
        most, content, pace = int(last) - int(first) + 1, bytearray(), Pace(PATIENCE)
        async for chunk in self.content.iter_any():
            content += chunk
            if len(content) > most:
                self.close()
                break
            pace.check(len(content))
        return bytes(content[: most + 1])


def _client() -> dict[str, Any]:
    """Return the settings of the HTTP client: nothing is decompressed, so bounds on the transfer hold."""
    return {
        "response_class": _BoundedAnswer,
        "timeout": aiohttp.ClientTimeout(total=None, sock_connect=PATIENCE, sock_read=PATIENCE),
        "auto_decompress": False,
        "headers": {"Accept-Encoding": "identity"},
    }


def _passing(error: Exception) -> bool:
    """Return whether a failed request is worth repeating: not if the server refused it as wrong."""
    status = getattr(error, "status", None)
    if isinstance(status, int) and 400 <= status < 500:
        return status in (408, 425, 429)
    final = (FileNotFoundError, PermissionError, ImportError, ValueError, TypeError, NotImplementedError)
    return not isinstance(error, (*final, aiohttp.NonHttpUrlClientError, aiohttp.TooManyRedirects))


def put_files(folder: Path, names: Sequence[str], url: str) -> None:
    """Copy files of a folder to a URL, in their order.

    Args:
        folder: The folder.
        names: Names of the files in it.
        url: Address of the folder to write, of any protocol of fsspec that writes.

    Raises:
        ValueError: the protocol is unknown, or its package is not installed.
        OSError: the place cannot be written.
    """
    try:
        filesystem, root = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise ValueError(f"{url}: {error}") from error
    for name in names:
        target = f"{root.rstrip('/')}/{name}"
        filesystem.makedirs(target.rpartition("/")[0], exist_ok=True)
        filesystem.put_file(str(folder / name), target)
