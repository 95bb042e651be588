"""Index of a split: the places of its blocks and the costs of its frames, which is all that planning needs.

Per block it holds sums, some fifty bytes in memory, so that a corpus of 10⁸ frames is planned from 20 MB; per frame it
holds atoms and edges, which stay on disk until a window of frames is packed.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np
import safetensors.numpy
from jaxtyping import Int, Int32, Int64, UInt32
from safetensors import SafetensorError, safe_open

from data_pipeline.store import durable
from data_pipeline.store.block import CorruptShard

Counts = tuple[Int32[np.ndarray, " frames"], Int32[np.ndarray, "frames cutoffs"]]
"""Number of atoms of each frame, and of its directed edges at each planning cutoff."""
MAX_BYTES = 2**50
"""Largest shard [bytes]: above, sums of offsets and sizes could overflow."""
FRAME_BYTES, ATOM_BYTES = 100, 25
"""Minimum size of a frame and of an atom in a block [bytes]: cell, energy and stress; number, positions and forces."""
READ_FRAMES = 65536
"""Number of frames whose counts are read at once."""


@dataclass(frozen=True, kw_only=True, eq=False)
class BlockIndex:
    """Places and costs of blocks, one entry per block in reading order."""

    shard: Int32[np.ndarray, " blocks"]
    """Index of the shard of each block."""
    offset: Int64[np.ndarray, " blocks"]
    """First byte of each block's buffer in its shard."""
    size: Int64[np.ndarray, " blocks"]
    """Size of each block's buffer [bytes]."""
    checksum: UInt32[np.ndarray, " blocks"]
    """CRC-32 of each block's buffer."""
    num_frames: Int32[np.ndarray, " blocks"]
    """Number of frames of each block."""
    num_atoms: Int64[np.ndarray, " blocks"]
    """Number of atoms of all frames of each block."""
    max_atoms: Int32[np.ndarray, " blocks"]
    """Number of atoms of the largest frame of each block."""
    cost: Int64[np.ndarray, "blocks cutoffs"]
    """Number of directed edges of all frames of each block; a frame without edges counts as one."""
    max_edges: Int32[np.ndarray, "blocks cutoffs"]
    """Number of directed edges of the largest frame of each block."""

    @staticmethod
    def empty(num_cutoffs: int) -> "BlockIndex":
        """Return an index without blocks."""
        one, two = (0,), (0, num_cutoffs)
        shapes = {name: (two if name in ("cost", "max_edges") else one, _DTYPES[name]) for name in _DTYPES}
        return BlockIndex(**{name: np.zeros(shape, dtype) for name, (shape, dtype) in shapes.items()})

    @staticmethod
    def joined(parts: "Sequence[BlockIndex]", num_cutoffs: int) -> "BlockIndex":
        """Return the blocks of several shards, each given as shard 0, one after another."""
        if not parts:
            return BlockIndex.empty(num_cutoffs)
        arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _DTYPES}
        arrays["shard"] = np.repeat(np.arange(len(parts), dtype=np.int32), [len(part.size) for part in parts])
        return BlockIndex(**arrays)

    def save(self, path: Path) -> None:
        """Write the index as safetensors."""
        durable.write_whole(path, safetensors.numpy.save({name: getattr(self, name) for name in _DTYPES}))

    @staticmethod
    def load(path: Path) -> "BlockIndex":
        """Read an index written by save().

        Raises:
            FileNotFoundError: the file is missing.
            CorruptShard: the file cannot be read.
        """
        return BlockIndex.parse(path.read_bytes(), str(path))

    @staticmethod
    def parse(content: bytes, where: str) -> "BlockIndex":
        """Return the blocks in the content of an index file; `where` names the file in messages.

        Raises:
            CorruptShard: it is not an index, or its numbers are impossible.
        """
        arrays = _arrays(content, where)
        blocks = BlockIndex(**{name: arrays[name] for name in _DTYPES})
        for problem in blocks._contradictions():
            raise _unreadable(where, problem)
        return blocks

    def of_shard(self, number: int) -> "BlockIndex":
        """Return the blocks of a shard."""
        first, last = np.searchsorted(self.shard, [number, number + 1])
        return BlockIndex(**{name: getattr(self, name)[first:last] for name in _DTYPES})

    def _contradictions(self) -> Iterator[str]:
        """Yield numbers that no blocks can have: sums and maxima are over at least one frame of at least one atom.

        The bytes bound frames and atoms, so that all allocations are bounded by the size on disk.
        """
        frames, atoms = self.num_frames.astype(np.int64), self.num_atoms
        if (self.shard < 0).any() or (np.diff(self.shard) < 0).any():
            yield "shard is not ascending"
        if (
            (self.offset < 0).any()
            or (self.size < 1).any()
            or np.maximum(self.offset, self.size).max(initial=0) > MAX_BYTES
        ):
            yield f"an offset or a size is not within {MAX_BYTES} bytes"
        elif ((self.offset + self.size)[:-1] > self.offset[1:])[np.diff(self.shard) == 0].any():
            yield "blocks are not in order, or overlap"
        if (frames < 1).any() or (FRAME_BYTES * frames > self.size).any():
            yield "num_frames is not a number of frames that the block has room for"
        if (self.max_atoms < 1).any() or (atoms < frames).any() or (ATOM_BYTES * atoms > self.size).any():
            yield "num_atoms is not a number of atoms that the block has room for"
        elif (atoms < self.max_atoms + frames - 1).any() or (atoms > self.max_atoms * frames).any():
            yield "num_atoms and max_atoms cannot both be"
        cost, most, least = self.cost, self.max_edges.astype(np.int64), frames[:, None]
        if (most < 0).any() or (cost < np.maximum(most, 1) + least - 1).any() or (cost > least * most.clip(1)).any():
            yield "cost and max_edges cannot both be"


_DTYPES: dict[str, type] = {field.name: np.int64 for field in fields(BlockIndex)} | {
    "shard": np.int32,
    "checksum": np.uint32,
    "num_frames": np.int32,
    "max_atoms": np.int32,
    "max_edges": np.int32,
}


class SplitIndex:
    """Blocks of a split, with the counts of its frames on demand."""

    def __init__(self, blocks: BlockIndex, counts: Callable[[int, int], Counts]) -> None:
        """Join blocks with a function that returns the counts of frames first to last - 1."""
        self.blocks, self.counts = blocks, counts

    @cached_property
    def first_frame(self) -> Int64[np.ndarray, " blocks_plus_one"]:
        """Number of the first frame of each block, and the number of frames at the end."""
        return np.concatenate([[0], np.cumsum(self.blocks.num_frames, dtype=np.int64)])

    @property
    def num_frames(self) -> int:
        """Number of frames."""
        return int(self.first_frame[-1])

    def block_of(self, frames: Int[np.ndarray, " frames"]) -> Int64[np.ndarray, " frames"]:
        """Return the number of the block that holds each frame."""
        return np.searchsorted(self.first_frame, frames, side="right") - 1

    def chosen(self, numbers: Int64[np.ndarray, " chosen"]) -> "SplitIndex":
        """Return the index of some frames, in order, numbered from 0; blocks without any of them are left out.

        The costs of the frames are read once and kept.
        """
        present, block_frames = np.unique(self.block_of(numbers), return_counts=True)
        parts = []
        for some in np.split(numbers, np.flatnonzero(np.diff(numbers // READ_FRAMES)) + 1):
            atoms, edges = self.counts(int(some[0]), int(some[-1]) + 1)
            parts.append((atoms[some - some[0]], edges[some - some[0]]))
        atoms, edges = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        blocks = BlockIndex(
            **{name: getattr(self.blocks, name)[present] for name in ("shard", "offset", "size", "checksum")},
            num_frames=block_frames.astype(np.int32),
            **summed(block_frames, atoms, edges),
        )
        return SplitIndex(blocks, HeldCounts((atoms, edges)))

    @staticmethod
    def in_memory(
        block_frames: Int[np.ndarray, " blocks"],
        num_atoms: Int32[np.ndarray, " frames"],
        num_edges: Int32[np.ndarray, "frames cutoffs"],
    ) -> "SplitIndex":
        """Return the index of frames in one shard that is never read."""
        zeros = np.zeros(len(block_frames), dtype=np.int64)
        blocks = BlockIndex(
            shard=zeros.astype(np.int32),
            offset=zeros,
            size=zeros,
            checksum=zeros.astype(np.uint32),
            num_frames=np.asarray(block_frames, dtype=np.int32),
            **summed(block_frames, num_atoms, num_edges),
        )
        return SplitIndex(blocks, HeldCounts((num_atoms, num_edges)))


FEW = 2**17
"""Number of frames up to which counts of stored frames are held in memory once they are read."""


class HeldCounts:
    """Counts of frames held in memory."""

    def __init__(self, counts: Counts) -> None:
        self._atoms, self._edges = counts

    def __call__(self, first: int, last: int) -> Counts:
        """Return the counts of frames first to last - 1."""
        return self._atoms[first:last], self._edges[first:last]


def summed(
    block_frames: Int[np.ndarray, " blocks"],
    num_atoms: Int32[np.ndarray, " frames"],
    num_edges: Int32[np.ndarray, "frames cutoffs"],
) -> dict[str, np.ndarray]:
    """Return the arrays of BlockIndex that follow from the counts of each block's frames."""
    if len(block_frames) == 0:
        empty = BlockIndex.empty(num_edges.shape[1])
        return {name: getattr(empty, name) for name in ("num_atoms", "max_atoms", "cost", "max_edges")}
    starts = np.concatenate([[0], np.cumsum(block_frames)[:-1]]).astype(np.int64)
    return {
        "num_atoms": np.add.reduceat(num_atoms.astype(np.int64), starts),
        "max_atoms": np.maximum.reduceat(num_atoms, starts),
        "cost": np.add.reduceat(np.maximum(num_edges, 1).astype(np.int64), starts),
        "max_edges": np.maximum.reduceat(num_edges, starts),
    }


class StoredCounts:
    """Counts of the frames of several shards, read from their index files on demand; those of few frames are held."""

    def __init__(self, path_of: Callable[[int], Path], shard_frames: Sequence[int], num_cutoffs: int) -> None:
        self._path_of, self._num_cutoffs = path_of, num_cutoffs
        self._held: dict[int, Counts] = {}
        self._first_frame = np.concatenate([[0], np.cumsum(shard_frames, dtype=np.int64)]).astype(np.int64)

    def __call__(self, first: int, last: int) -> Counts:
        """Return the counts of frames first to last - 1.

        Raises:
            FileNotFoundError: an index file is missing.
            CorruptShard: an index file cannot be read.
        """
        atoms, edges = [np.zeros(0, np.int32)], [np.zeros((0, self._num_cutoffs), np.int32)]
        shard = int(np.searchsorted(self._first_frame, first, side="right")) - 1
        while shard < len(self._first_frame) - 1 and self._first_frame[shard] < last:
            start, stop = (int(bound - self._first_frame[shard]) for bound in (first, last))
            rows = slice(max(start, 0), min(stop, int(self._first_frame[shard + 1] - self._first_frame[shard])))
            for found, part in zip((atoms, edges), self._read(shard, rows), strict=True):
                found.append(part)
            shard += 1
        return np.concatenate(atoms), np.concatenate(edges)

    def _read(self, shard: int, rows: slice) -> Counts:
        """Return the counts of some frames of a shard."""
        path = self._path_of(shard)
        if shard in self._held:
            return self._held[shard][0][rows], self._held[shard][1][rows]
        try:
            with safe_open(path, framework="numpy") as file:
                atoms, edges = file.get_slice("frame_atoms"), file.get_slice("frame_edges")
                if self._first_frame[-1] > FEW:
                    return atoms[rows], edges[rows]
                self._held[shard] = atoms[:], edges[:]
        except SafetensorError as error:
            raise _unreadable(str(path), error) from error
        return self._held[shard][0][rows], self._held[shard][1][rows]


def save_shard_index(path: Path, blocks: BlockIndex, counts: Counts) -> None:
    """Write the index of one shard: its blocks and the counts of its frames."""
    arrays = {name: getattr(blocks, name) for name in _DTYPES}
    arrays |= {"frame_atoms": counts[0], "frame_edges": counts[1]}
    durable.write_whole(path, safetensors.numpy.save(arrays))


def index_path(shard: Path) -> Path:
    """Return the path of a shard's index."""
    return shard.with_suffix(".index.safetensors")


def parse_counts(content: bytes, num_frames: int, where: str) -> Counts:
    """Return the counts of the frames in the content of a shard's index; `where` names the file in messages.

    Raises:
        CorruptShard: they are missing, or not for num_frames frames.
    """
    arrays = _arrays(content, where)
    atoms, edges = (arrays.get(name, np.zeros(0)) for name in ("frame_atoms", "frame_edges"))
    if (atoms.shape, atoms.dtype) != ((num_frames,), np.int32):
        raise _unreadable(where, f"frame_atoms is not one int32 for each of {num_frames} frames")
    if (edges.shape, edges.dtype) != ((num_frames, arrays["cost"].shape[1]), np.int32) or (edges < 0).any():
        raise _unreadable(where, "frame_edges is not one int32 for each frame and cutoff, none negative")
    return atoms, edges


def _arrays(content: bytes, where: str) -> dict[str, np.ndarray]:
    """Return the arrays of an index file, those of the blocks with the right types and shapes."""
    try:
        arrays = safetensors.numpy.load(content)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise _unreadable(where, error) from error
    num_blocks = arrays["size"].shape[:1] if "size" in arrays else ()
    for name, dtype in _DTYPES.items():
        array = arrays.get(name)
        if array is None or array.dtype != dtype or array.shape[:1] != num_blocks or not num_blocks:
            raise _unreadable(where, f"{name} is not one {np.dtype(dtype)} or more for each block")
        tables = name in ("cost", "max_edges")
        if array.ndim != 1 + tables or (tables and array.shape != arrays["cost"].shape):
            raise _unreadable(where, f"{name} has shape {array.shape}")
    return arrays


def _unreadable(where: str, problem: object) -> CorruptShard:
    return CorruptShard(f"{where}: cannot be read ({problem}); copy it again or build the data again")
