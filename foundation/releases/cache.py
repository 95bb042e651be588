"""Cache of downloaded potentials: one folder for each release, named by the checksum of its SHA256SUMS.

So a copy can only be the right one, whatever name or address led to it, and a name that moves to other bytes finds
another folder. Files are compared with the checksums before anything in them is read; the folder gets its name when all
are there. Any number of processes may ask at the same time: one downloads, the others wait.

$FOUNDATION_CACHE names the folder; several, with colons between them, are searched in order and the first is written
to, so that shared ones may be read-only. Without it, it is foundation/ in the user's cache folder.
"""

import hashlib
import logging
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.corpora.download import DownloadError, download
from data_pipeline.store import durable, lock
from data_pipeline.store.shards import sha256
from foundation.checkpoint import (
    CHECKSUMS,
    CONFIG,
    MAX_SUMS,
    WEIGHTS,
    CorruptCheckpoint,
    checksums_in,
    verify_checksums,
)
from foundation.releases.addresses import Address, parse_address
from foundation.releases.registry import Release

log = logging.getLogger(__name__)

OFFLINE = "HF_HUB_OFFLINE"
"""Variable of the environment that forbids downloads, the hub's own; --offline sets it."""
TRUE = ("1", "ON", "YES", "TRUE")


class Offline(FileNotFoundError):
    """A potential that is not in the cache, when nothing may be downloaded."""


class NotDownloaded(OSError):
    """A potential that no address gave; the message has the reason of each."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Patience with servers; see download()."""

    tries: int = 3
    """Number of consecutive attempts without progress before the next address."""
    backoff: float = 1.0
    """Pause after the first of those [s]."""
    timeout: float = 30.0
    """Time of silence, or of less than 1 kB/s, after which a connection counts as broken [s]."""
    total: float = 3600.0
    """Time for all files of a potential from one address, and for another process that downloads it [s]."""


LIMITS = Limits()


def offline() -> bool:
    """Return whether nothing may be downloaded."""
    return os.environ.get(OFFLINE, "").upper() in TRUE


def caches() -> tuple[Path, ...]:
    """Return the folders of the cache, the one to write to first."""
    given = [Path(each).expanduser() for each in os.environ.get("FOUNDATION_CACHE", "").split(os.pathsep) if each]
    return tuple(given) or (Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "foundation",)


def cached(digest: str) -> Path | None:
    """Return the whole and right copy of a release in the caches, or None; damaged ones are logged."""
    for folder in (cache / "models" / digest for cache in caches()):
        try:
            if folder.is_dir():
                verify(folder, digest)
                return folder
        except (CorruptCheckpoint, OSError) as error:
            log.warning("%s; this copy is not used", error)
    return None


def verify(folder: Path, digest: str) -> None:
    """Compare every file of a release with the registry, by the checksum of SHA256SUMS.

    Raises:
        CorruptCheckpoint: a file is missing or altered.
    """
    sums = folder / CHECKSUMS
    if not sums.is_file() or sha256(sums) != digest:
        raise CorruptCheckpoint(f"{sums}: missing, or not that of this release; copy or download the folder again")
    verify_checksums(folder)


def folder_of(release: Release) -> Path:
    """Return the folder of a release, verified: the package's, a cache's, or downloaded now.

    Raises:
        CorruptCheckpoint: the package's copy is damaged.
        Offline: it would have to be downloaded.
        NotDownloaded: no address gave it.
    """
    if release.shipped is not None:
        verify(release.shipped, release.sha256)
        return release.shipped
    return fetched(release.title, release.sha256, [parse_address(each) for each in release.addresses])


def folder_at(word: str, *, anew: bool = False) -> Path:
    """Return the folder of a release at an address, verified: a cache's, or downloaded now.

    What an address holds is asked once, and then known: a branch that moves on is followed only if asked anew.

    Args:
        word: hf:org/name@revision or https://..., perhaps with #sha256= and the checksum of its SHA256SUMS.
        anew: Whether to ask again.

    Raises:
        ValueError: it is no address.
        Offline: it would have to be downloaded.
        NotDownloaded: the address does not give it.
    """
    address = parse_address(word)
    digest = address.sha256 or (None if anew else _known(address))
    if digest is None:
        _refuse_offline(word)
        digest = _asked(address)
    return fetched(word, digest, [address])


def fetched(title: str, digest: str, addresses: Sequence[Address]) -> Path:
    """Return the folder of a release in a cache, downloaded if no cache has it.

    Args:
        title: Its name, for messages.
        digest: Checksum of its SHA256SUMS.
        addresses: Addresses, tried in order.

    Raises:
        Offline: no cache has it, and nothing may be downloaded.
        NotDownloaded: no address gave it, or the cache cannot be written.
    """
    if found := cached(digest):
        return found
    _refuse_offline(title)
    target = caches()[0] / "models" / digest
    with _writable(target), _alone(target):
        # another process may have brought it meanwhile
        if not (found := cached(digest)):
            _download(title, digest, addresses, target)
    return found or target


def _refuse_offline(title: str) -> None:
    if offline():
        folders = ", ".join(map(str, caches()))
        raise Offline(
            f"{title}: not in the cache ({folders}), and nothing may be downloaded (--offline or {OFFLINE}): run "
            f"`foundation models download {title}` where there is a network, with FOUNDATION_CACHE on a shared disk"
        )


def _download(title: str, digest: str, addresses: Sequence[Address], target: Path) -> None:
    """Download a release beside its folder, resuming what an earlier call left, and put it in place."""
    partial, refusals = durable.partial_of(target), []
    for address in addresses:
        log.info("%s: downloading from %s", title, address.base)
        try:
            _download_from(address, partial, digest)
        except (DownloadError, CorruptCheckpoint) as error:
            refusals.append(str(error))
            log.warning("%s", error)
            continue
        durable.put_in_place(partial, target)
        return
    raise NotDownloaded(f"{title}: no address gave it. {' '.join(refusals)}")


def _download_from(address: Address, partial: Path, digest: str) -> None:
    """Download the files of a release from one address.

    Raises:
        DownloadError: a file cannot be had or is another than that of the release.
        CorruptCheckpoint: SHA256SUMS is not that of a potential.
    """
    began = time.monotonic()
    expected = {CHECKSUMS: digest}
    _download_file(address, partial, CHECKSUMS, digest, began)
    listed = checksums_in(partial)
    if not {WEIGHTS, CONFIG} <= listed.keys():
        raise CorruptCheckpoint(f"{address.base}/{CHECKSUMS}: it lists no {WEIGHTS} or {CONFIG}: no potential is there")
    for name, checksum in listed.items():
        _download_file(address, partial, name, checksum, began)
    expected |= listed
    for path in list(partial.rglob("*")):
        # what another list of files left
        if path.is_file() and path.relative_to(partial).as_posix() not in expected:
            path.unlink()


def _download_file(address: Address, partial: Path, name: str, checksum: str, began: float) -> None:
    path = partial / name
    if path.is_file() and sha256(path) != checksum:
        path.unlink()  # of another list, or damaged since
    left = max(0.0, LIMITS.total - (time.monotonic() - began))
    download(
        f"{address.base}/{name}",
        path,
        checksum=f"sha256:{checksum}",
        tries=LIMITS.tries,
        backoff=LIMITS.backoff,
        timeout=LIMITS.timeout,
        total=left,
        headers=address.headers,
    )


def _known(address: Address) -> str | None:
    """Return the checksum that an address was found to have, if a cache has its files."""
    for cache in caches():
        try:
            digest = _note(cache, address).read_text().split()[0]
        except (OSError, IndexError):
            continue
        if any((each / "models" / digest / CHECKSUMS).is_file() for each in caches()):
            return digest
    return None


def _asked(address: Address) -> str:
    """Return the checksum of SHA256SUMS at an address, and note it.

    Raises:
        NotDownloaded: there is none.
    """
    note = _note(caches()[0], address)
    with _writable(note):
        note.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=note.parent) as folder:
            file = Path(folder) / CHECKSUMS
            try:
                download(
                    f"{address.base}/{CHECKSUMS}",
                    file,
                    tries=LIMITS.tries,
                    backoff=LIMITS.backoff,
                    timeout=LIMITS.timeout,
                    total=LIMITS.total,
                    most=MAX_SUMS,
                    headers=address.headers,
                )
                checksums_in(file.parent)
            except (DownloadError, CorruptCheckpoint) as error:
                raise NotDownloaded(f"{address.word}: no release there. {error}") from error
            digest = sha256(file)
        durable.write_whole(note, f"{digest}  {address.base}\n", shared=True)
    return digest


def _note(cache: Path, address: Address) -> Path:
    return cache / "addresses" / hashlib.sha256(address.base.encode()).hexdigest()[:32]


@contextmanager
def _writable(path: Path) -> Iterator[None]:
    """Turn errors of writing to the cache into one that says how to choose another.

    Raises:
        NotDownloaded: the cache cannot be written.
    """
    try:
        yield
    except (NotDownloaded, lock.InUse):
        raise
    except OSError as error:
        raise NotDownloaded(
            f"{path}: the cache cannot be written ({error.strerror or error}): set FOUNDATION_CACHE to a folder of "
            "yours; folders behind a colon are only read"
        ) from error


_THREADS = threading.Lock()
"""Lock of the threads of this process, which locks of files do not keep apart."""


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Hold the lock of a folder of the cache; wait for a process that downloads it.

    Raises:
        InUse: that process takes longer than the total time.
    """
    began = time.monotonic()
    with _THREADS, ExitStack() as held:
        while True:
            try:
                held.enter_context(lock.hold(lock.beside(target), target))
                break
            except lock.InUse:
                if time.monotonic() - began > LIMITS.total:
                    raise
        yield
