"""Assembly: staged frames become shards. The frames of a shard follow from arithmetic, so any process can write any.

Shard k of a split holds the frames k·shard_frames and following of the split, in source order. A shard is complete when
its receipt exists: checksums, size and the sums of its statistics, from which the manifest is made. Sums over shards
are taken in order, so the bytes do not depend on the process that wrote a shard. A writing process holds a block of
frames and some 150 bytes per frame of its shard.
"""

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int8, Int64

from data_pipeline.building.splits import SPLITS
from data_pipeline.building.staging import StagedFrames, batched, selected_frames
from data_pipeline.statistics.sums import Statistics
from data_pipeline.store import durable
from data_pipeline.store.block import Precision
from data_pipeline.store.index import BlockIndex, index_path
from data_pipeline.store.json_record import Record, parse_json
from data_pipeline.store.manifest import Shard, Split, split_index_path
from data_pipeline.store.shards import sha256, shard_writer
from data_pipeline.structure import Structure


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Division of frames into blocks and shards."""

    cutoffs: tuple[float, ...]
    """Cutoffs at which edges were counted [Å]."""
    block_frames: int
    """Number of frames per block."""
    shard_frames: int
    """Number of frames per shard."""
    positions: Precision
    """Precision of the positions."""


@dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """A shard to write: ranges of chunks, and the frames to take from them."""

    name: str
    """File name."""
    split: int
    """Index of its split in SPLITS."""
    chunks: tuple[tuple[Path, int, int], ...]
    """The chunks that hold its frames, each with the numbers of its first frame and of the one after its last."""
    skip: int
    """Frames of the split in the first chunk that belong to the previous shard."""
    num_frames: int
    """Number of frames of the shard."""


def plan_shards(frames: StagedFrames, splits: Int8[np.ndarray, " frames"], shard_frames: int) -> list[ShardPlan]:
    """Return the shards of all splits, in order."""
    plans = []
    bounds = frames.first_frame
    for split, split_name in enumerate(SPLITS):
        in_chunk = [int((splits[a:b] == split).sum()) for a, b in itertools.pairwise(bounds)]
        before = np.concatenate([[0], np.cumsum(in_chunk)]).astype(np.int64)
        for number, first in enumerate(range(0, int(before[-1]), shard_frames)):
            last = min(first + shard_frames, int(before[-1]))
            start = int(np.searchsorted(before, first, side="right")) - 1
            stop = int(np.searchsorted(before, last, side="left"))
            chunks = [(frames.chunks[c], int(bounds[c]), int(bounds[c + 1])) for c in range(start, stop)]
            plans.append(
                ShardPlan(
                    name=f"{split_name}-{number:06d}.tar",
                    split=split,
                    chunks=tuple(chunks),
                    skip=first - int(before[start]),
                    num_frames=last - first,
                )
            )
    return plans


def receipt_path(receipts: Path, name: str) -> Path:
    """Return the path of a shard's receipt, which exists once the shard is complete."""
    return receipts / f"{name}.json"


def write_shard(data: Path, receipts: Path, splits_file: Path, plan: ShardPlan, layout: Layout) -> None:
    """Write one shard with its index into the folder of the data, and its receipt beside the other receipts."""
    path, statistics = data / plan.name, Statistics(cutoffs=layout.cutoffs)
    splits = np.load(splits_file, mmap_mode="r")
    with shard_writer(path, len(layout.cutoffs), layout.positions) as writer:
        for block in batched(_frames(plan, splits), layout.block_frames):
            structures, edges = [frame for frame, _ in block], np.stack([edges for _, edges in block])
            writer.write(structures, edges.tolist())
            statistics.add(structures, edges)
    shard = Shard(
        name=plan.name,
        sha256=sha256(path),
        num_bytes=path.stat().st_size,
        num_frames=plan.num_frames,
        index_sha256=sha256(index_path(path)),
    )
    durable.write_whole(receipt_path(receipts, plan.name), _receipt_text(shard, statistics))


def _receipt_text(shard: Shard, statistics: Statistics) -> str:
    """Return a receipt with its content as a string, so that the checksum does not depend on JSON formatting."""
    content = json.dumps({"shard": asdict(shard), "statistics": statistics.to_json()})
    return json.dumps({"content": content, "sha256": hashlib.sha256(content.encode()).hexdigest()})


def _receipt(receipts: Path, plan: ShardPlan) -> tuple[Shard, Statistics]:
    """Read the receipt of a shard.

    Raises:
        FileNotFoundError: it is missing.
        ValueError: it is damaged or belongs to another shard.
    """
    path = receipt_path(receipts, plan.name)
    receipt = Record(parse_json(path.read_bytes()), str(path))
    content = receipt.text("content")
    if hashlib.sha256(content.encode()).hexdigest() != receipt.raw("sha256"):
        raise receipt.refuse("sha256", "is not the checksum of the content")
    values = Record(parse_json(content.encode()), str(path))
    shard = Shard(**values.raw("shard"))
    if (shard.name, shard.num_frames) != (plan.name, plan.num_frames):
        raise values.refuse("shard", f"is {shard.name} of {shard.num_frames} frames")
    return shard, Statistics.from_record(values.record("statistics"))


def is_written(data: Path, receipts: Path, plan: ShardPlan) -> bool:
    """Return whether an earlier call wrote a shard and its files still match the receipt."""
    try:
        shard, _ = _receipt(receipts, plan)
        path = data / plan.name
        return (sha256(path), sha256(index_path(path))) == (shard.sha256, shard.index_sha256)
    except (OSError, ValueError):
        return False


def _frames(
    plan: ShardPlan, splits: Int8[np.ndarray, " frames"]
) -> Iterator[tuple[Structure, Int64[np.ndarray, " cutoffs"]]]:
    skip, left = plan.skip, plan.num_frames
    for path, first, last in plan.chunks:
        places = np.flatnonzero(splits[first:last] == plan.split)[skip : skip + left]
        skip, left = 0, left - len(places)
        yield from selected_frames(path, places)


def assembled(data: Path, receipts: Path, plans: Sequence[ShardPlan], cutoffs: tuple[float, ...]) -> dict[str, Split]:
    """Write the index of every split and return the splits, from the receipts of their shards."""
    splits = {}
    for number, name in enumerate(SPLITS):
        shards, statistics, indexes = [], Statistics(cutoffs=cutoffs), []
        for plan in plans:
            if plan.split == number:
                shard, sums = _receipt(receipts, plan)
                shards.append(shard)
                statistics += sums
                indexes.append(BlockIndex.load(index_path(data / plan.name)))
        path = split_index_path(data, name)
        BlockIndex.joined(indexes, len(cutoffs)).save(path)
        splits[name] = Split(shards=tuple(shards), statistics=statistics, index_sha256=sha256(path))
    return splits
