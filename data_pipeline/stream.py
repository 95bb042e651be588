"""Plan to GraphBatches: blocks are read by byte range, graphs are built in worker processes, steps arrive in order.

The state is the step. A worker takes every num_workers-th step and the loader collects them in turn, so neither the
number of workers nor the number of ranks changes what is in a step.
"""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from data_pipeline.block import Block
from data_pipeline.graph import GraphBatch, collate
from data_pipeline.manifest import Manifest
from data_pipeline.plan import Oversize, Plan, PlannedSet, sweep_batches
from data_pipeline.shards import read_block
from data_pipeline.structure import Structure

CACHED_BLOCKS = 64
"""Decoded blocks that a worker keeps: a window of micro-batches draws on sixteen of the default size."""


class Frames:
    """Random access to the frames of a split, through blocks."""

    def __init__(self, manifest: Manifest, split: str) -> None:
        self.index = manifest.index(split)
        self._paths = manifest.shard_paths(split)
        self._first_frame = self.index.first_frame
        self._blocks: OrderedDict[int, Block] = OrderedDict()

    def _block(self, block: int) -> Block:
        """Return a block, decoded; the least recently used of more than CACHED_BLOCKS is forgotten."""
        if block not in self._blocks:
            path = self._paths[int(self.index.blocks.shard[block])]
            self._blocks[block] = read_block(path, self.index.blocks, block)
            if len(self._blocks) > CACHED_BLOCKS:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(block)
        return self._blocks[block]

    def __len__(self) -> int:
        return self.index.num_frames

    def __getitem__(self, frame: int) -> Structure:
        if not 0 <= frame < len(self):
            raise IndexError(f"frame {frame} of {len(self)}")
        block = int(np.searchsorted(self._first_frame, frame, side="right")) - 1
        return self._block(block)[frame - int(self._first_frame[block])]

    def __iter__(self) -> Iterator[Structure]:
        return (self[frame] for frame in range(len(self)))


class Stream:
    """An endless, resumable stream of optimizer steps; each is the list of micro-batches that a rank serves."""

    def __init__(
        self,
        manifest: Manifest,
        *,
        cutoff: float,
        lanes: int,
        edge_budget: int,
        split: str = "train",
        atom_budget: int | None = None,
        seed: int = 0,
        oversize: Oversize = "error",
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        """Prepare a stream; see Plan for the budgets and the oversize policy.

        Raises:
            ValueError: the world size does not divide the lanes, the cutoff was not among the manifest's, or what
                Plan refuses.
        """
        _check_rank(rank, world_size)
        if lanes % world_size:
            sizes = [size for size in range(1, lanes + 1) if lanes % size == 0]
            raise ValueError(f"{lanes} lanes cannot be shared by {world_size} processes; use one of {sizes}")
        self.manifest, self.split, self.cutoff = manifest, split, cutoff
        self.plan = Plan(
            [PlannedSet(manifest.index(split), manifest.split(split).statistics.cutoff_number(cutoff))],
            lanes=lanes,
            edge_budget=edge_budget,
            atom_budget=atom_budget,
            seed=seed,
            oversize=oversize,
        )
        share = lanes // world_size
        self.rank_lanes = tuple(range(rank * share, (rank + 1) * share))
        self._num_workers, self._pin_memory = num_workers, pin_memory

    @property
    def fingerprint(self) -> str:
        """Fingerprint of data and plan: with the same one, the same step has the same micro-batches."""
        plan = hashlib.sha256(json.dumps(self.plan.settings).encode()).hexdigest()
        return f"{self.manifest.fingerprint}:{self.split}:{self.cutoff}:{plan}"

    def from_step(self, first_step: int, last_step: int | None = None) -> DataLoader:
        """Return the steps from first_step on, up to but without last_step; endless without one."""
        return _loader(_Steps(self, first_step, last_step), self._num_workers, self._pin_memory)

    def __iter__(self) -> Iterator[list[GraphBatch]]:
        return iter(self.from_step(0))


def sweep(
    manifest: Manifest,
    split: str,
    *,
    cutoff: float,
    edge_budget: int,
    elements: Sequence[int] | None = None,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader:
    """Return batches that hold every frame of a split exactly once over all ranks.

    With elements given, frames with any other element are left out: the caller sees how many from the count. A batch
    may then be empty.

    Raises:
        ValueError: no such split, rank, or cutoff.
    """
    _check_rank(rank, world_size)
    frames = Frames(manifest, split)
    batches = sweep_batches(
        frames.index,
        cutoff_number=manifest.split(split).statistics.cutoff_number(cutoff),
        edge_budget=edge_budget,
        world_size=world_size,
        rank=rank,
    )
    return _loader(_Sweep(frames, batches, cutoff, elements), num_workers, pin_memory)


class _Steps(IterableDataset):
    """Steps of a stream; a worker yields every num_workers-th."""

    def __init__(self, stream: Stream, first_step: int, last_step: int | None) -> None:
        self.stream, self.first_step, self.last_step = stream, first_step, last_step

    def __iter__(self) -> Iterator[list[GraphBatch]]:
        stream, frames = self.stream, Frames(self.stream.manifest, self.stream.split)
        step, stride = _worker(self.first_step)
        while self.last_step is None or step < self.last_step:
            numbers = [stream.plan.micro_batch(step, lane) for lane in stream.rank_lanes]
            yield [collate([frames[int(number)] for number in batch], stream.cutoff) for batch in numbers]
            step += stride


class _Sweep(IterableDataset):
    """Batches of a sweep; a worker yields every num_workers-th."""

    def __init__(
        self, frames: Frames, batches: list[np.ndarray], cutoff: float, elements: Sequence[int] | None
    ) -> None:
        self.frames, self.batches, self.cutoff = frames, batches, cutoff
        self.elements = None if elements is None else np.array(elements)

    def __iter__(self) -> Iterator[GraphBatch]:
        start, stride = _worker(0)
        for batch in self.batches[start::stride]:
            structures = [self.frames[int(number)] for number in batch]
            if self.elements is not None:
                structures = [s for s in structures if np.isin(s.numbers, self.elements).all()]
            yield collate(structures, self.cutoff)


def _worker(first: int) -> tuple[int, int]:
    info = get_worker_info()
    return (first, 1) if info is None else (first + info.id, info.num_workers)


def _loader(dataset: IterableDataset, num_workers: int, pin_memory: bool) -> DataLoader:
    return DataLoader(
        dataset,
        batch_size=None,
        num_workers=num_workers,
        pin_memory=pin_memory and torch.cuda.is_available(),
        prefetch_factor=4 if num_workers else None,
    )


def _check_rank(rank: int, world_size: int) -> None:
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} is not one of {world_size} processes (0 to {world_size - 1})")
