"""Sources to shards and a manifest. Nothing appears under the target's name until everything is written."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from data_pipeline.graph import neighbor_list
from data_pipeline.index import BlockIndex, index_path
from data_pipeline.manifest import Manifest, Provenance, Shard, Split, split_index_path
from data_pipeline.shards import ShardWriter, sha256
from data_pipeline.sources import SourceConfig
from data_pipeline.statistics import Statistics
from data_pipeline.structure import InvalidStructure, Structure


@dataclass(frozen=True, kw_only=True)
class BuildConfig:
    """How to build a data set from a source."""

    source: SourceConfig
    """Where the frames come from."""
    provenance: Provenance
    """What a model trained on the data must be able to say about it."""
    out: Path
    """Folder to write."""
    cutoffs: tuple[float, ...] = (5.0,)
    """Cutoffs of the models to train [Å]: edges are counted at these, for planning and for the mean of neighbours."""
    val_fraction: float = 0.1
    """Fraction of the groups for validation."""
    test_fraction: float = 0.1
    """Fraction of the groups for the final evaluation."""
    split_seed: int = 0
    """A group's split is a function of this and of the group's name alone."""
    block_frames: int = 256
    """Frames per block: the unit of reading."""
    shard_frames: int = 65536
    """Frames per shard."""
    overwrite: bool = False
    """Replace a data set that is already there."""

    def __post_init__(self) -> None:
        if not self.cutoffs or min(self.cutoffs) <= 0:
            raise ValueError(f"cutoffs must be positive lengths [Å], not {self.cutoffs}")
        if min(self.val_fraction, self.test_fraction) < 0 or self.val_fraction + self.test_fraction >= 1:
            raise ValueError("val_fraction and test_fraction must not be negative and must leave some for training")
        if self.block_frames < 1 or self.shard_frames < self.block_frames:
            raise ValueError("block_frames must be at least 1 and shard_frames at least block_frames")


def build(config: BuildConfig) -> Manifest:
    """Build a data set and return its manifest.

    Raises:
        FileExistsError: the target is there and overwrite is False, or it is not a data set.
        InvalidStructure: a frame is refused; nothing is left behind.
    """
    if config.out.exists() and not config.overwrite:
        raise FileExistsError(f"{config.out} already exists; choose another --out or say --overwrite true")
    if config.out.exists() and not (config.out / "manifest.json").is_file():
        raise FileExistsError(
            f"{config.out} has no manifest.json, so it is no data set and stays as it is; choose another --out"
        )
    partial = config.out.with_name(config.out.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        splits = _write_splits(config, partial)
        if not splits["train"].shards:
            raise InvalidStructure("no frame fell into the training split; the source has too few groups")
        build_config = json.loads(json.dumps(asdict(config), default=str))
        del build_config["out"], build_config["overwrite"]  # where it lies is no property of the data
        manifest = Manifest(provenance=config.provenance, splits=splits, build_config=build_config, root=config.out)
        text = json.dumps(manifest.to_json(), indent=1, sort_keys=True)
        (partial / "manifest.json").write_text(text + "\n")
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(config.out, ignore_errors=True)
    os.replace(partial, config.out)
    return manifest


def split_of(group: str, config: BuildConfig) -> str:
    """Return the split of a group: a stable hash, so that adding data never moves a group."""
    digest = hashlib.sha256(f"{config.split_seed}:{group}".encode()).digest()
    position = int.from_bytes(digest[:8], "little") / 2**64
    if position < config.test_fraction:
        return "test"
    return "val" if position < config.test_fraction + config.val_fraction else "train"


class _SplitWriter:
    """Collects the frames of one split into blocks and shards."""

    def __init__(self, name: str, config: BuildConfig, folder: Path) -> None:
        self.name, self.config, self.folder = name, config, folder
        self.statistics = Statistics(cutoffs=config.cutoffs)
        self.shards: list[Shard] = []
        self._pending: list[tuple[Structure, tuple[int, ...]]] = []

    def add(self, structure: Structure, num_edges: tuple[int, ...]) -> None:
        self._pending.append((structure, num_edges))
        if len(self._pending) == self.config.shard_frames:
            self.flush()

    def flush(self) -> None:
        if not self._pending:
            return
        path = self.folder / f"{self.name}-{len(self.shards):06d}.tar"
        with ShardWriter(path, len(self.config.cutoffs)) as writer:
            for block in _batched(self._pending, self.config.block_frames):
                structures, edges = [structure for structure, _ in block], [edges for _, edges in block]
                self.statistics.add(structures, np.array(edges))
                writer.write(structures, edges)
        self.shards.append(
            Shard(
                name=path.name,
                sha256=sha256(path),
                num_bytes=path.stat().st_size,
                num_frames=len(self._pending),
                index_sha256=sha256(index_path(path)),
            )
        )
        self._pending.clear()

    def split(self) -> Split:
        """Write the index of the split and return the split."""
        parts = [BlockIndex.load(index_path(self.folder / shard.name)) for shard in self.shards]
        path = split_index_path(self.folder, self.name)
        BlockIndex.joined(parts, len(self.config.cutoffs)).save(path)
        return Split(shards=tuple(self.shards), statistics=self.statistics, index_sha256=sha256(path))


def _write_splits(config: BuildConfig, folder: Path) -> dict[str, Split]:
    writers = {name: _SplitWriter(name, config, folder) for name in ("train", "val", "test")}
    ids: set[str] = set()
    for structure in config.source:
        if structure.id in ids:
            raise InvalidStructure(f"two frames are called {structure.id!r}; give the source an id_key that is unique")
        ids.add(structure.id)
        writers[split_of(structure.group, config)].add(structure, _count_edges(structure, config.cutoffs))
    for writer in writers.values():
        writer.flush()
    return {name: writer.split() for name, writer in writers.items()}


def _count_edges(structure: Structure, cutoffs: tuple[float, ...]) -> tuple[int, ...]:
    try:
        distances = neighbor_list(structure, max(cutoffs)).distances
    except InvalidStructure as error:
        raise InvalidStructure(
            f"frame {structure.id!r}: {error}. Correct the frame or remove it from the source."
        ) from error
    return tuple(int((distances < cutoff).sum()) for cutoff in cutoffs)


def _batched(items: list, size: int) -> Iterator[list]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
