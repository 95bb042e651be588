"""Agreement of an index with its manifest, for files with valid checksums that do not belong together."""

from collections.abc import Sequence

import numpy as np

from data_pipeline.statistics.sums import Statistics
from data_pipeline.store.index import BlockIndex, Counts, summed
from data_pipeline.store.json_record import InvalidRecord


def check_split(
    blocks: BlockIndex, frames: Sequence[int], sizes: Sequence[int], statistics: Statistics, where: str
) -> None:
    """Compare the blocks of a split with the frames and bytes of its shards and with its sums.

    Args:
        blocks: Blocks of the split.
        frames: Number of frames of each shard.
        sizes: Size of each shard [bytes].
        statistics: Sums of the split.
        where: Path of the split in the manifest, for messages.

    Raises:
        InvalidRecord: they disagree; the message names the entry of the manifest.
    """
    if len(blocks.shard) and blocks.shard[-1] >= len(frames):
        raise InvalidRecord(f"{where}.shards are {len(frames)}, but its index has blocks in {blocks.shard[-1] + 1}")
    counted = np.bincount(blocks.shard, weights=blocks.num_frames, minlength=len(frames))
    ends = np.zeros(len(frames), dtype=np.int64)
    np.maximum.at(ends, blocks.shard, blocks.offset + blocks.size)
    for number, (size, expected) in enumerate(zip(sizes, frames, strict=True)):
        shard = f"{where}.shards[{number}]"
        if counted[number] != expected:
            raise InvalidRecord(f"{shard}.num_frames is {expected}, but its index has {int(counted[number])} frames")
        if ends[number] > size:
            raise InvalidRecord(f"{shard}.num_bytes is {size}, but its index has a block up to byte {ends[number]}")
    atoms, edges = int(blocks.num_atoms.sum()), blocks.cost.sum(axis=0).tolist()
    sums = f"{where}.statistics"
    if blocks.cost.shape[1] != len(statistics.cutoffs):
        raise InvalidRecord(f"{sums}.cutoffs are {len(statistics.cutoffs)}, but its index has {blocks.cost.shape[1]}")
    if atoms != statistics.num_atoms:
        raise InvalidRecord(f"{sums}.num_atoms is {statistics.num_atoms}, but its index has {atoms} atoms")
    for number, (cost, total) in enumerate(zip(edges, statistics.num_edges, strict=True)):
        # a frame without edges costs one
        if not total <= cost <= total + statistics.num_frames:
            raise InvalidRecord(f"{sums}.num_edges[{number}] is {total}, but its index has a cost of {cost}")


def check_shard(blocks: BlockIndex, counts: Counts, expected: BlockIndex, where: str) -> None:
    """Compare a shard's own index with the shard's entries in the index of its split.

    Args:
        blocks: Blocks of the shard's index.
        counts: Atoms and edges of the shard's frames.
        expected: Blocks of the shard in the index of the split.
        where: File name of the shard's index, for messages.

    Raises:
        InvalidRecord: they disagree; the message names file and entry.
    """
    sums = summed(expected.num_frames, *counts)
    for name, ours in (*vars(blocks).items(), *sums.items()):
        theirs = getattr(expected, name)
        if name != "shard" and not np.array_equal(ours, theirs):
            raise InvalidRecord(f"{where}: {name} differs from the index of the split; build the data again")
