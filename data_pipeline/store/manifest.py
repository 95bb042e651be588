"""Manifest of a data set, one JSON file: shards, checksums, splits, licence, level of theory, statistics."""

import contextlib
import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from data_pipeline.quoting import abbreviated
from data_pipeline.statistics.sums import Statistics
from data_pipeline.store.block import Block, CorruptShard
from data_pipeline.store.index import BlockIndex, SplitIndex, StoredCounts, index_path, parse_counts
from data_pipeline.store.index_check import check_shard, check_split
from data_pipeline.store.json_record import InvalidRecord, Record, parse_json
from data_pipeline.store.remote import CACHE_BYTES, DiskCache, RemoteFolder
from data_pipeline.store.shards import read_block, sha256

SCHEMA_VERSION = 2
_OLD = f"older than {SCHEMA_VERSION}; build the data again"
MANIFEST_BYTES = 32 * 2**20
"""Largest manifest.json [bytes]: that of 10⁹ frames in 15,000 shards has 4 MB, and parsing takes up to twenty times its
size in memory."""
INDEX_HEADER_BYTES, INDEX_FRAME_BYTES, INDEX_CUTOFF_BYTES = 65536, 60, 16
"""Bounds of the parts of an index file [bytes]: names of its arrays, and per frame its block, itself and each
cutoff."""
SPLIT = r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}"
SHARD = r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}\.tar"
"""Pattern of shard names: plain, the same file on every system and in every URL; nothing else is joined to a folder or
URL."""
MERGED_SHARD = rf"(?![/\\])([^/\x00-\x1f]{{1,255}}/){{0,100}}{SHARD}"
"""Pattern of the shards of a merged data set: paths from the manifest's folder to other folders of the same disk."""
SHA256 = r"[0-9a-f]{64}"
NOT_STATED = "not stated"
"""Text of a fact that nobody stated; without a licence, data are not passed on."""
NO_LICENCE = ("none", "noassertion", "no licence", "no license", NOT_STATED, "unknown")
"""Beginnings of texts that mean no licence; the first two are SPDX's words."""


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Origin of a data set, quoted in the card of a model trained on it."""

    name: str
    """Short name of the data set."""
    licence: str
    """Licence of the data (SPDX identifier if it has one; none or NOASSERTION if they must not be passed on)."""
    level_of_theory: str
    """Functional, code and pseudopotentials of the labels."""
    energy_convention: str
    """Meaning of the energies: total energies of which code, with or without corrections."""
    citation: str
    """Citation of the data."""
    source: str
    """Place to get the data."""

    @property
    def redistributable(self) -> bool:
        """True if frames may be published, judging by the text of the licence.

        False without a licence: an empty text, one that begins with "no" in some form (none, NOASSERTION, not stated)
        or with "unknown", or one that contains "not for redistribution".
        """
        licence = self.licence.strip().casefold()
        return bool(licence) and not licence.startswith(NO_LICENCE) and "not for redistribution" not in licence


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One shard of a split."""

    name: str
    """File name, beside the manifest."""
    sha256: str
    """Checksum of the file."""
    num_bytes: int
    """Size of the file [bytes]."""
    num_frames: int
    """Number of frames in the shard."""
    index_sha256: str
    """Checksum of the shard's index file."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """Part of a data set for one purpose: train, val or test."""

    shards: tuple[Shard, ...]
    """Shards, in order."""
    statistics: Statistics
    """Sums over the frames of the split."""
    index_sha256: str
    """Checksum of the split's index file: the blocks of all its shards."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A data set on disk."""

    provenance: Provenance
    """Origin of the data."""
    splits: dict[str, Split]
    """The splits by name."""
    build_config: dict
    """The resolved configuration that built it."""
    rejected: dict[str, int] = field(default_factory=dict)
    """Number of frames that the build left out, by reason; rejects.jsonl names each."""
    root: Path = field(default=Path(), compare=False)
    """Folder of the manifest and its shards; of a remote data set, the folder of the local copies."""
    remote: RemoteFolder | None = field(default=None, compare=False)
    """Address of a remote data set, else None."""

    @property
    def labelled(self) -> bool:
        """True if its frames have labels, read from its source or from those of all merged parts."""
        return _labelled(self.build_config)

    def split(self, name: str) -> Split:
        """Return a split by name.

        Raises:
            InvalidRecord: no such split.
        """
        if name not in self.splits:
            names = ", ".join(sorted(self.splits))
            place = self.remote.url if self.remote else self.root
            raise InvalidRecord(f"{place}: no split {name!r}; it has {names}")
        return self.splits[name]

    def index(self, split: str) -> SplitIndex:
        """Read the blocks of a split; the counts of its frames stay on disk until they are needed.

        Raises:
            FileNotFoundError: the index file is missing.
            CorruptShard: the index file does not match the manifest.
            InvalidRecord: the index contradicts the manifest.
        """
        part, statistics = self.split(split), self.split(split).statistics
        name = split_index_path(self.root, split).name
        path, content = self.read_file(name, part.index_sha256)
        blocks, frames = BlockIndex.parse(content, str(path)), [shard.num_frames for shard in part.shards]
        check_split(blocks, frames, [s.num_bytes for s in part.shards], statistics, f"{self.place}: splits.{split}")
        indexes = _ShardIndexes(self, part.shards, blocks)
        return SplitIndex(blocks, StoredCounts(indexes, frames, len(statistics.cutoffs)))

    @property
    def place(self) -> str:
        """Name of the manifest in messages: its URL or path."""
        return f"{self.remote.url if self.remote else self.root}/manifest.json"

    def read_file(self, name: str, sha256: str) -> tuple[Path, bytes]:
        """Return path and content of a file of the data set, after checking its checksum.

        Raises:
            CorruptShard: the file is not the one of the manifest.
            FileNotFoundError: it is missing.
            OSError: it cannot be read or reached.
        """
        if self.remote is not None:
            return self.remote.fetch(name, sha256, self._largest_index())
        path = self.root / name
        content = path.read_bytes() if path.stat().st_size <= self._largest_index() else b""
        if hashlib.sha256(content).hexdigest() != sha256:
            raise CorruptShard(f"{path}: the checksum differs from the manifest's; copy or build it again")
        return path, content

    def _largest_index(self) -> int:
        """Return an upper bound of the bytes of an index file: blocks of one frame each, and their counts."""
        frames = max((split.statistics.num_frames for split in self.splits.values()), default=0)
        cutoffs = max((len(split.statistics.cutoffs) for split in self.splits.values()), default=0)
        return INDEX_HEADER_BYTES + frames * (INDEX_FRAME_BYTES + INDEX_CUTOFF_BYTES * cutoffs)

    def shard_paths(self, split: str) -> list[Path]:
        """Return the paths of a split's shards, in order."""
        return [self.root / shard.name for shard in self.split(split).shards]

    def read_block(self, split: str, blocks: BlockIndex, number: int) -> Block:
        """Read a block of a split by its number; `blocks` is its index.

        Raises:
            CorruptShard: the bytes are not those that were written, or the shard ends early.
            FileNotFoundError: the shard is missing.
        """
        name = self.split(split).shards[int(blocks.shard[number])].name
        if self.remote is not None:
            return self.remote.read_block(name, blocks, number)
        return read_block(self.root / name, blocks, number)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything but the folder: manifests with the same fingerprint hold the same data."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def verify(self) -> None:
        """Compare every file with its checksum.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file differs, or the data set is remote.
        """
        if self.remote is not None:
            raise ValueError(f"{self.remote.url}: blocks are checked as they are read; copy the data set to verify it")
        for name, split in self.splits.items():
            expected = {split_index_path(self.root, name): split.index_sha256}
            for shard in split.shards:
                path = self.root / shard.name
                expected |= {path: shard.sha256, index_path(path): shard.index_sha256}
            for file, checksum in expected.items():
                if sha256(file) != checksum:
                    raise ValueError(f"{file}: the checksum differs from the manifest's; copy or build it again")

    def to_json(self) -> dict:
        """Return the manifest as JSON."""
        splits = {
            name: {
                "shards": [asdict(shard) for shard in split.shards],
                "statistics": split.statistics.to_json(),
                "index_sha256": split.index_sha256,
            }
            for name, split in self.splits.items()
        }
        return {
            "schema_version": SCHEMA_VERSION,
            "provenance": asdict(self.provenance),
            "splits": splits,
            "build_config": self.build_config,
            "rejected": self.rejected,
        }

    def to_text(self) -> str:
        """Return the content of manifest.json: one line for each top-level entry, as sums are not read by people."""
        lines = [f"{json.dumps(name)}: {json.dumps(value, sort_keys=True)}" for name, value in self.to_json().items()]
        return "{\n" + ",\n".join(lines) + "\n}\n"


def _labelled(build_config: dict) -> bool:
    parts = build_config.get("merged", [])
    own = build_config.get("source", {}).get("labels", "file") != "none"
    return own and all(_labelled(part["build_config"]) for part in parts)


def split_index_path(root: Path, split: str) -> Path:
    """Return the path of the index of a split: the blocks of all its shards."""
    return root / f"{split}.index.safetensors"


class _ShardIndexes:
    """Index files of the shards of a split, each compared with checksum and split at first use."""

    def __init__(self, manifest: Manifest, shards: tuple[Shard, ...], blocks: BlockIndex) -> None:
        self._manifest, self._shards, self._blocks = manifest, shards, blocks
        self._checked: dict[int, tuple[int, int]] = {}

    def __call__(self, number: int) -> Path:
        """Return the path of the index file of a shard."""
        shard = self._shards[number]
        name = index_path(Path(shard.name)).as_posix()
        path = self._manifest.root / name
        if number not in self._checked or self._checked[number] != _identity(path):
            path, content = self._manifest.read_file(name, shard.index_sha256)
            counts = parse_counts(content, shard.num_frames, str(path))
            check_shard(BlockIndex.parse(content, str(path)), counts, self._blocks.of_shard(number), str(path))
            self._checked[number] = _identity(path)
        elif self._manifest.remote is not None:
            with contextlib.suppress(FileNotFoundError):
                os.utime(path)  # recently used copies stay when room is made
        return path


def _identity(path: Path) -> tuple[int, int]:
    """Return what identifies a file; a copy of a remote file is touched at every use."""
    try:
        status = path.stat()
    except FileNotFoundError:  # a copy that was removed to make room
        return (0, 0)
    return status.st_ino, status.st_size


def open_manifest(path: Path | str, *, cache: Path | None = None, cache_bytes: int = CACHE_BYTES) -> Manifest:
    """Read a manifest from its file or folder, on disk or at a URL such as https://host/folder or s3://bucket/folder.

    Args:
        path: The file or the folder.
        cache: Folder for copies of a remote data set, by default in the user's cache folder.
        cache_bytes: Largest total size of copies of all remote data sets [bytes].

    Raises:
        FileNotFoundError: no manifest there.
        OSError: the URL cannot be reached.
        ValueError: it is not a manifest, or its schema is newer.
    """
    # a Path has one slash where the URL had two
    url = re.fullmatch(r"([a-z][a-z0-9+]+):/{1,2}([^/].*)", str(path))
    if url is not None:
        folder, name = f"{url[1]}://{url[2]}".rstrip("/"), "manifest.json"
        if folder.endswith(".json"):
            folder, name = folder.rsplit("/", 1)
        remote = RemoteFolder(folder, DiskCache(cache, cache_bytes))
        content = remote.manifest(name, MANIFEST_BYTES)
        if len(content) > MANIFEST_BYTES:
            raise InvalidRecord(f"{folder}/{name}: not a manifest (more than {MANIFEST_BYTES:,} bytes)")
        return _parsed(f"{folder}/{name}", content, root=remote.copies, remote=remote)
    path = Path(path)
    file = path / "manifest.json" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no manifest there; make one with `foundation build --config ...`")
    return _parsed(str(file), _read(file), root=file.parent)


def _read(file: Path) -> bytes:
    size = file.stat().st_size
    if size > MANIFEST_BYTES:
        raise InvalidRecord(f"{file}: not a manifest ({size:,} bytes, more than {MANIFEST_BYTES:,})")
    return file.read_bytes()


def _parsed(file: str, content: bytes, root: Path, remote: RemoteFolder | None = None) -> Manifest:
    where = f"{file}: not a manifest"
    try:
        value = parse_json(content)
    except ValueError as error:
        raise InvalidRecord(f"{where} ({error})") from error
    record = Record(value, where)
    version = record.count("schema_version")
    if version != SCHEMA_VERSION:
        newer = version > SCHEMA_VERSION
        problem = f"newer than this program's {SCHEMA_VERSION}; update it" if newer else _OLD
        raise InvalidRecord(f"{file}: schema {version} is {problem}")
    record.only("schema_version", "provenance", "splits", "build_config", "rejected")
    facts = [field.name for field in fields(Provenance)]
    provenance = record.record("provenance").only(*facts)
    rejected = record.record("rejected")
    merged = _check_build_config(record.record("build_config"))
    if merged and remote is not None:
        raise InvalidRecord(f"{file}: a merged data set with shards on another disk; open its parts instead")
    shard_name = (MERGED_SHARD, "the path of a shard from here") if merged else (SHARD, "the file name of a shard")
    return Manifest(
        provenance=Provenance(**{name: provenance.text(name) for name in facts}),
        splits=_splits(record.record("splits"), shard_name),
        build_config=record.raw("build_config"),
        rejected={reason: rejected.count(reason) for reason in rejected.names()},
        root=root,
        remote=remote,
    )


def _check_build_config(record: Record) -> bool:
    """Check the entries of a build's configuration that are read, and return whether the data set is merged."""
    if "source" in record.names():
        record.record("source")
    if "merged" not in record.names():
        return False
    for part in record.records("merged"):
        part.only("name", "fingerprint", "build_config")
        _check_build_config(part.record("build_config"))
    return True


def _splits(record: Record, shard_name: tuple[str, str]) -> dict[str, Split]:
    splits, names = {}, set[str]()
    for name, values in record.members().items():
        if not re.fullmatch(SPLIT, name):
            raise record.refuse(name, "is not the name of a split: letters, digits, - and _")
        values.only("shards", "statistics", "index_sha256")
        split = Split(
            shards=tuple(_shard(shard, shard_name) for shard in values.records("shards")),
            statistics=Statistics.from_record(values.record("statistics")),
            index_sha256=values.text("index_sha256", SHA256, "a SHA-256 in hexadecimal"),
        )
        for number, shard in enumerate(split.shards):
            if shard.name in names:
                raise values.refuse(f"shards[{number}].name", f"is {abbreviated(shard.name)}, which occurs twice")
            names.add(shard.name)
        total = sum(shard.num_frames for shard in split.shards)
        if total != split.statistics.num_frames:
            raise values.refuse("statistics.num_frames", f"is {split.statistics.num_frames}; the shards have {total}")
        splits[name] = split
    return splits


def _shard(record: Record, name: tuple[str, str]) -> Shard:
    record.only(*(field.name for field in fields(Shard)))
    return Shard(
        name=record.text("name", *name),
        sha256=record.text("sha256", SHA256, "a SHA-256 in hexadecimal"),
        num_bytes=record.count("num_bytes", 1),
        num_frames=record.count("num_frames", 1),
        index_sha256=record.text("index_sha256", SHA256, "a SHA-256 in hexadecimal"),
    )
