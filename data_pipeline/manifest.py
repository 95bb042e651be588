"""Manifest: what a data set is, in one JSON file: shards, checksums, splits, licence, level of theory, statistics."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from data_pipeline.index import BlockIndex, SplitIndex, StoredCounts, index_path
from data_pipeline.shards import sha256
from data_pipeline.statistics import Statistics

SCHEMA_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a data set comes from; a model trained on it quotes this in its card."""

    name: str
    """Short name of the data set."""
    licence: str
    """Licence of the data (SPDX identifier where there is one)."""
    level_of_theory: str
    """How the labels were computed: functional, code, pseudopotentials."""
    energy_convention: str
    """What the energies are: total energies of which code, with or without corrections."""
    citation: str
    """How to cite the data."""
    source: str
    """Where the data can be had."""


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
    root: Path = field(default=Path(), compare=False)
    """Folder of the manifest and its shards."""

    def split(self, name: str) -> Split:
        """Return a split by name.

        Raises:
            ValueError: there is no such split.
        """
        if name not in self.splits:
            raise ValueError(f"{self.root}: there is no split {name!r}; there are {', '.join(sorted(self.splits))}")
        return self.splits[name]

    def index(self, split: str) -> SplitIndex:
        """Read the blocks of a split; the counts of its frames stay on disk until they are asked for.

        Raises:
            FileNotFoundError: the index file is missing.
            CorruptShard: the index file cannot be read.
        """
        shards, statistics = self.split(split).shards, self.split(split).statistics
        paths = [index_path(path) for path in self.shard_paths(split)]
        counts = StoredCounts(paths, [shard.num_frames for shard in shards], len(statistics.cutoffs))
        return SplitIndex(BlockIndex.load(split_index_path(self.root, split)), counts)

    def shard_paths(self, split: str) -> list[Path]:
        """Return the paths of a split's shards, in order."""
        return [self.root / shard.name for shard in self.split(split).shards]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything but the folder: two manifests with the same fingerprint hold the same data."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()

    def verify(self) -> None:
        """Compare every file with its checksum.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: a file differs.
        """
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
        }


def split_index_path(root: Path, split: str) -> Path:
    """Return the path of the index of a split: the blocks of all its shards."""
    return root / f"{split}.index.safetensors"


def open_manifest(path: Path | str) -> Manifest:
    """Read a manifest from its file or its folder.

    Raises:
        FileNotFoundError: there is no manifest.
        ValueError: it is not a manifest, or one of a newer schema.
    """
    path = Path(path)
    file = path / "manifest.json" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no manifest there; make one with `foundation build --config ...`")
    try:
        values = json.loads(file.read_text())
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
            root=file.parent,
        )
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file}: not a manifest ({type(error).__name__}: {error})") from error
