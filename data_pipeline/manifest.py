"""Manifest: what a data set is, in one JSON file: shards, checksums, splits, licence, level of theory, statistics."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from data_pipeline.block import Block
from data_pipeline.index import BlockIndex, SplitIndex, StoredCounts, index_path
from data_pipeline.remote import CACHE_BYTES, DiskCache, RemoteFolder
from data_pipeline.shards import read_block, sha256
from data_pipeline.statistics import Statistics

SCHEMA_VERSION = 2
NO_LICENCE = ("none", "noassertion", "no licence", "no license", "not stated", "unknown")
"""How the text begins that says of data that they have no licence; the first two are SPDX's words."""


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a data set comes from; a model trained on it quotes this in its card."""

    name: str
    """Short name of the data set."""
    licence: str
    """Licence of the data (SPDX identifier where there is one; none or NOASSERTION if nobody may pass them on)."""
    level_of_theory: str
    """How the labels were computed: functional, code, pseudopotentials."""
    energy_convention: str
    """What the energies are: total energies of which code, with or without corrections."""
    citation: str
    """How to cite the data."""
    source: str
    """Where the data can be had."""

    @property
    def redistributable(self) -> bool:
        """Whether frames may be copied into what is published, as far as the text of the licence tells.

        Not if there is none: it begins with "no" in some form (none, NOASSERTION, not stated) or with "unknown", or
        says "not for redistribution".
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
    """Size of the file."""
    num_frames: int
    """Frames in the shard."""
    index_sha256: str
    """Checksum of the shard's index file."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """A part of a data set that is used for one purpose: train, val or test."""

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
    """Where it comes from."""
    splits: dict[str, Split]
    """The splits by name."""
    build_config: dict
    """The resolved configuration that built it."""
    rejected: dict[str, int] = field(default_factory=dict)
    """Frames that the build left out, by reason; rejects.jsonl names each."""
    root: Path = field(default=Path(), compare=False)
    """Folder of the manifest and its shards; of a remote data set, the folder of the local copies."""
    remote: RemoteFolder | None = field(default=None, compare=False)
    """Where a remote data set comes from."""

    @property
    def labelled(self) -> bool:
        """Whether its frames have labels: its source, or that of every part of a merged one, was read for them."""
        return _labelled(self.build_config)

    def split(self, name: str) -> Split:
        """Return a split by name.

        Raises:
            ValueError: there is no such split.
        """
        if name not in self.splits:
            place = self.remote.url if self.remote else self.root
            raise ValueError(f"{place}: there is no split {name!r}; there are {', '.join(sorted(self.splits))}")
        return self.splits[name]

    def index(self, split: str) -> SplitIndex:
        """Read the blocks of a split; the counts of its frames stay on disk until they are asked for.

        Raises:
            FileNotFoundError: the index file is missing.
            CorruptShard: the index file cannot be read.
        """
        parts, statistics = self.split(split), self.split(split).statistics
        path = self._file(split_index_path(self.root, split), parts.index_sha256)
        counts = StoredCounts(
            _IndexFiles(self, parts.shards), [shard.num_frames for shard in parts.shards], len(statistics.cutoffs)
        )
        return SplitIndex(BlockIndex.load(path), counts)

    def _file(self, path: Path, sha256: str) -> Path:
        """Return the path of a file of the data set, which of a remote one is fetched if need be."""
        return path if self.remote is None else self.remote.fetch(path.name, sha256)

    def shard_paths(self, split: str) -> list[Path]:
        """Return the paths of a split's shards, in order."""
        return [self.root / shard.name for shard in self.split(split).shards]

    def read_block(self, split: str, blocks: BlockIndex, number: int) -> Block:
        """Read a block of a split by its number; `blocks` are those of its index.

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
        """SHA-256 of everything but the folder: two manifests with the same fingerprint hold the same data."""
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
        """Return the content of manifest.json: one line for each top-level entry, since sums are no prose."""
        lines = [f"{json.dumps(name)}: {json.dumps(value, sort_keys=True)}" for name, value in self.to_json().items()]
        return "{\n" + ",\n".join(lines) + "\n}\n"


def _labelled(build_config: dict) -> bool:
    parts = build_config.get("merged", [])
    own = build_config.get("source", {}).get("labels", "file") != "none"
    return own and all(_labelled(part["build_config"]) for part in parts)


def split_index_path(root: Path, split: str) -> Path:
    """Return the path of the index of a split: the blocks of all its shards."""
    return root / f"{split}.index.safetensors"


class _IndexFiles(Sequence[Path]):
    """Paths of the index files of some shards; those of a remote data set are fetched when they are asked for."""

    def __init__(self, manifest: Manifest, shards: tuple[Shard, ...]) -> None:
        self._manifest, self._shards = manifest, shards

    def __len__(self) -> int:
        return len(self._shards)

    def __getitem__(self, number: int) -> Path:  # pyright: ignore[reportIncompatibleMethodOverride] (no slices)
        shard = self._shards[number]
        return self._manifest._file(index_path(self._manifest.root / shard.name), shard.index_sha256)


def open_manifest(path: Path | str, *, cache: Path | None = None, cache_bytes: int = CACHE_BYTES) -> Manifest:
    """Read a manifest from its file or its folder, on disk or at a URL such as https://host/folder or s3://bucket/folder.

    Args:
        path: The file or the folder.
        cache: Where copies of a remote data set are kept, by default in the user's cache folder.
        cache_bytes: How much is kept there at most, of all remote data sets together [bytes].

    Raises:
        FileNotFoundError: there is no manifest.
        OSError: it cannot be reached.
        ValueError: it is not a manifest, or one of a newer schema.
    """
    # a Path has one slash where the URL had two
    url = re.fullmatch(r"([a-z][a-z0-9+]+):/{1,2}([^/].*)", str(path))
    if url is not None:
        folder, name = f"{url[1]}://{url[2]}".rstrip("/"), "manifest.json"
        if folder.endswith(".json"):
            folder, name = folder.rsplit("/", 1)
        remote = RemoteFolder(folder, DiskCache(cache, cache_bytes))
        content = remote.manifest(name)
        return _parsed(f"{folder}/{name}", content, root=remote.copies, remote=remote)
    path = Path(path)
    file = path / "manifest.json" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no manifest there; make one with `foundation build --config ...`")
    return _parsed(str(file), file.read_bytes(), root=file.parent)


def _parsed(file: str, content: bytes, root: Path, remote: RemoteFolder | None = None) -> Manifest:
    try:
        values = json.loads(content)
        version = values["schema_version"]
        if version > SCHEMA_VERSION:
            raise ValueError(f"{file}: schema {version} is newer than this program's {SCHEMA_VERSION}; update it")
        if version < SCHEMA_VERSION:
            raise ValueError(f"{file}: schema {version} is older than {SCHEMA_VERSION}; build the data again")
        splits = {
            name: Split(
                shards=tuple(Shard(**shard) for shard in split["shards"]),
                statistics=Statistics.from_json(split["statistics"]),
                index_sha256=split["index_sha256"],
            )
            for name, split in values["splits"].items()
        }
        return Manifest(
            provenance=Provenance(**values["provenance"]),
            splits=splits,
            build_config=values["build_config"],
            rejected=values["rejected"],
            root=root,
            remote=remote,
        )
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file}: not a manifest ({type(error).__name__}: {error})") from error
