"""The data sets of a run, and random access to their frames through decoded blocks."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from jaxtyping import Int

from data_pipeline.loading.subset import Subset
from data_pipeline.store.block import Block, CorruptShard
from data_pipeline.store.index import SplitIndex
from data_pipeline.store.manifest import Manifest
from data_pipeline.structure import Structure

CACHE_BYTES = 256 * 2**20
"""Size of the decoded blocks that a worker keeps [bytes]. A window of micro-batches draws on 4 MB of blocks, or on up
to 128 MB for a small data set split over many lanes in fractions of blocks."""

Corrupt = Literal["error", "quarantine"]
"""Treatment of a block that cannot be read: an error, or leaving out its frames."""


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """A split of a data set as part of the training data."""

    manifest: Manifest
    """The data set."""
    split: str = "train"
    """Name of one of its splits."""
    repeat: float = 1.0
    """Number of times that a pass reads each frame; below one, the fraction of frames read."""
    theory: int | None = None
    """Number of the level of theory of its labels. None is the first, and all data sets with None must state the same
    level in their provenance; data sets given the same number are declared compatible."""
    weight: float = 1.0
    """Weight of its frames in the loss."""
    subset: Subset | None = None
    """Frames of the split to read; None reads all. The statistics remain those of the whole split."""

    def __post_init__(self) -> None:
        if self.subset is not None:
            place = f"{self.manifest.provenance.name}, split {self.split!r}"
            self.subset.check(self.manifest.split(self.split).statistics.num_frames, place)

    @property
    def theory_number(self) -> int:
        """Number of the level of theory of the labels."""
        return self.theory or 0

    def index(self) -> SplitIndex:
        """Read the index of its frames; those of a subset are numbered from 0.

        Raises:
            FileNotFoundError: an index file is missing.
            CorruptShard: an index file cannot be read.
        """
        whole = self.manifest.index(self.split)
        return whole if self.subset is None else whole.chosen(self.subset.numbers)

    def frames(self, cache: "BlockCache | None" = None) -> "Frames":
        """Open its frames; several data sets may share a cache."""
        return Frames(self.manifest, self.split, cache, self.subset)


class BlockCache:
    """Cache of recently read blocks, up to a number of bytes."""

    def __init__(self, num_bytes: int = CACHE_BYTES) -> None:
        self._room, self._blocks = num_bytes, OrderedDict[Any, Block]()

    def get(self, key: Any, read: Callable[[], Block]) -> Block:
        """Return a block, read if it is not cached; the least recently used are dropped."""
        if key not in self._blocks:
            self._blocks[key] = read()
            self._room -= self._blocks[key].num_bytes
            while self._room < 0 and len(self._blocks) > 1:
                self._room += self._blocks.popitem(last=False)[1].num_bytes
        self._blocks.move_to_end(key)
        return self._blocks[key]


class Frames:
    """Random access to the frames of a split, or to some of them, through blocks."""

    def __init__(
        self, manifest: Manifest, split: str, cache: BlockCache | None = None, subset: Subset | None = None
    ) -> None:
        """Open a split; several may share a cache. The frames of a subset are numbered from 0."""
        whole = manifest.index(split)
        self.index = whole if subset is None else whole.chosen(subset.numbers)
        self._manifest, self._split = manifest, split
        self._cache = BlockCache() if cache is None else cache
        self._blocks = whole.blocks
        self._places: Int[np.ndarray, " chosen"] | None = None
        self._numbers: Sequence[int] | Int[np.ndarray, " blocks"] = range(len(whole.blocks.size))
        if subset is not None:
            block = whole.block_of(subset.numbers)
            self._places, self._numbers = subset.numbers - whole.first_frame[block], np.unique(block)

    def __len__(self) -> int:
        return self.index.num_frames

    def block_of(self, frame: int) -> int:
        """Return the number of the block that holds a frame, among the blocks of the index."""
        return int(np.searchsorted(self.index.first_frame, frame, side="right")) - 1

    def __getitem__(self, frame: int) -> Structure:
        if not 0 <= frame < len(self):
            raise IndexError(f"frame {frame} of {len(self)}")
        number = self.block_of(frame)
        place = frame - int(self.index.first_frame[number]) if self._places is None else int(self._places[frame])
        read = partial(self._manifest.read_block, self._split, self._blocks, int(self._numbers[number]))
        return self._cache.get((self, number), read)[place]

    def __iter__(self) -> Iterator[Structure]:
        return (self[frame] for frame in range(len(self)))


@dataclass(frozen=True, kw_only=True)
class LostBlock:
    """An unreadable block whose frames were left out."""

    dataset: int
    """Number of the data set in the mixture."""
    number: int
    """Number of the block among those read of its split."""
    num_frames: int
    """Number of frames left out."""
    reason: str
    """The error, which names the file."""


class Mixture:
    """The frames of several data sets, numbered one set after another."""

    def __init__(self, datasets: Sequence[Dataset], corrupt: Corrupt) -> None:
        cache = BlockCache()
        self._sets = [dataset.frames(cache) for dataset in datasets]
        self._first = np.cumsum([0, *map(len, self._sets)])
        self._datasets, self._corrupt = tuple(datasets), corrupt
        self._lost: set[tuple[int, int]] = set()

    def take(self, numbers: Int[np.ndarray, " frames"]) -> tuple[list[Structure], list[Dataset], list[LostBlock]]:
        """Return frames by number, the data set of each, and newly found lost blocks.

        Raises:
            CorruptShard: a block is damaged, and corrupt is 'error'.
            FileNotFoundError: a shard is missing, and corrupt is 'error'.
        """
        structures, datasets, lost = [], [], []
        for number in numbers.tolist():
            dataset = int(np.searchsorted(self._first, number, side="right")) - 1
            frames, frame = self._sets[dataset], number - int(self._first[dataset])
            block = frames.block_of(frame)
            if (dataset, block) in self._lost:
                continue
            try:
                structures.append(frames[frame])
                datasets.append(self._datasets[dataset])
            except (CorruptShard, FileNotFoundError) as error:
                if self._corrupt == "error":
                    raise
                self._lost.add((dataset, block))
                count = int(frames.index.blocks.num_frames[block])
                lost.append(LostBlock(dataset=dataset, number=block, num_frames=count, reason=str(error)))
        return structures, datasets, lost
