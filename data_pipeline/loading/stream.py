"""Plan to GraphBatches: blocks are read by byte range, graphs are built in worker processes, steps arrive in order.

The state is the step. Which worker prepares a micro-batch follows from its step and its lane, so neither the number of
workers nor the number of ranks changes what is in a step; a worker keeps to its lanes where the numbers allow, because
the lanes are what is read in order. Neighbour lists take four fifths of a worker's time, reading and decoding blocks
a twelfth.
"""

import contextlib
import itertools
import logging
import math
import mmap
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Int

from data_pipeline.graphs.batch import BatchLayout, GraphBatch, Graphs
from data_pipeline.loading.datasets import Corrupt, Dataset, LostBlock, Mixture
from data_pipeline.loading.plan import Oversize, Plan, PlannedSet, full_pass_batches
from data_pipeline.loading.ring import Job, Tally, deliver
from data_pipeline.loading.subset import Subset
from data_pipeline.store.manifest import Manifest

log = logging.getLogger(__name__)

SLOT_MARGIN = 1.5
"""Size of a slot over that of a mean micro-batch of full budget; what of it is not used takes no memory."""

ID_BYTES = 64
"""Bytes of the name of a frame in a slot."""


class Batches:
    """Numbered batches in order: what the steps of a stream and a full pass have in common.

    Worker processes start with each iteration and end with it; the counts are those of all iterations.
    """

    def __init__(self, job: Job) -> None:
        self._job, self._tally = job, Tally()
        self._lost: dict[tuple[int, int], LostBlock] = {}

    @property
    def waited(self) -> float:
        """Time that the training process spent waiting for batches [s]; without workers, preparing them."""
        return self._tally.waited

    @property
    def num_large(self) -> int:
        """Batches that did not fit the ring and came more slowly."""
        return self._tally.num_large

    @property
    def num_quarantined_blocks(self) -> int:
        """Blocks that could not be read."""
        return len(self._lost)

    @property
    def num_quarantined_frames(self) -> int:
        """Frames of the blocks that could not be read, which are left out."""
        return sum(block.num_frames for block in self._lost.values())

    def _batches(self) -> Generator[GraphBatch, None, None]:
        with contextlib.closing(deliver(self._job, self._tally)) as delivered:
            for batch, lost in delivered:
                for block in lost:
                    self._quarantine(block)
                yield batch

    def _quarantine(self, block: LostBlock) -> None:
        key = (block.dataset, block.number)
        if key not in self._lost:  # several workers may come upon the same one
            self._lost[key] = block
            log.warning("%s. Its %d frames are left out.", block.reason, block.num_frames)


class Steps(Batches):
    """Optimizer steps, each the list of the micro-batches of a rank."""

    def __init__(self, job: Job, share: int) -> None:
        """Group the batches of a job by `share`."""
        super().__init__(job)
        self._share = share

    def __iter__(self) -> Generator[list[GraphBatch], None, None]:
        with contextlib.closing(self._batches()) as batches:
            while step := list(itertools.islice(batches, self._share)):
                yield step


class FullPass(Batches):
    """A rank's share of batches that hold every frame of a split once over all ranks."""

    def __len__(self) -> int:
        assert self._job.last is not None
        return self._job.last

    def __iter__(self) -> Iterator[GraphBatch]:
        return self._batches()


class Stream:
    """An endless, resumable stream of optimizer steps; each is the list of micro-batches that a rank serves."""

    def __init__(
        self,
        datasets: Sequence[Dataset],
        *,
        cutoff: float,
        lanes: int,
        edge_budget: int,
        atom_budget: int | None = None,
        seed: int = 0,
        oversize: Oversize = "error",
        corrupt: Corrupt = "error",
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        pin_memory: bool = False,
    ) -> None:
        """Prepare a stream.

        Args:
            datasets: What to train on.
            cutoff: Length of the longest edge [Å]; one of those that the data sets were built for.
            lanes: Micro-batches per step, over all ranks.
            edge_budget: Directed edges of a full micro-batch; see Plan.
            atom_budget: Atoms of a full micro-batch; see Plan.
            seed: Seed of the order.
            oversize: What happens to a frame larger than the budget; see Plan.
            corrupt: What happens when a block cannot be read: an error, or its frames are left out and counted.
            rank: Number of this process.
            world_size: Number of processes.
            num_workers: Processes that prepare batches for this one; with 0 it does it itself.
            pin_memory: Put batches in page-locked memory if there is an accelerator.

        Raises:
            ValueError: no data sets, the world size does not divide the lanes, the cutoff was not among those of a
                manifest, data sets of different levels of theory are not told apart, or what Plan refuses.
        """
        _check_rank(rank, world_size)
        if lanes % world_size:
            sizes = [size for size in range(1, lanes + 1) if lanes % size == 0]
            raise ValueError(f"{lanes} lanes cannot be shared by {world_size} processes; use one of {sizes}")
        _check_theories(datasets)
        self.datasets, self.cutoff = tuple(datasets), cutoff
        self.corrupt: Corrupt = corrupt
        sets = [_planned(dataset, cutoff) for dataset in datasets]
        self.plan = Plan(
            sets, lanes=lanes, edge_budget=edge_budget, atom_budget=atom_budget, seed=seed, oversize=oversize
        )
        self._slot_bytes = _slot_bytes(sets, edge_budget)
        share = lanes // world_size
        self.rank_lanes = tuple(range(rank * share, (rank + 1) * share))
        self._num_workers, self._pin_memory = num_workers, pin_memory

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Everything that decides what is in a step, by name, as JSON; see differences()."""
        parts: dict[str, Any] = {"number of data sets": len(self.datasets), "cutoff": self.cutoff}
        for number, dataset in enumerate(self.datasets, start=1):
            parts |= {
                f"manifest of data set {number}": dataset.manifest.fingerprint,
                f"split of data set {number}": dataset.split,
                f"theory of data set {number}": dataset.theory_number,
                f"weight of data set {number}": dataset.weight,
            }
            if dataset.subset is not None:  # absent otherwise, as in checkpoints of before there were subsets
                parts[f"subset of data set {number}"] = dataset.subset.fingerprint
        return parts | self.plan.settings

    def from_step(self, first: int, last: int | None = None) -> Steps:
        """Return the steps from first on, up to but without last; endless without one."""
        share = len(self.rank_lanes)
        job = Job(
            prepare=_Preparation(Mixture(self.datasets, self.corrupt), self._frames_of, self.cutoff),
            first=first * share,
            last=None if last is None else last * share,
            name=lambda task: f"step {task // share}",
            num_workers=self._num_workers,
            # a step is taken out of the ring at once, so the next one has to fit beside it
            num_slots=max(4, 2 * -(-share // max(self._num_workers, 1))),
            slot_bytes=self._slot_bytes,
            pin_memory=self._pin_memory and torch.cuda.is_available(),
        )
        return Steps(job, share)

    def prepare(self, frames: Int[np.ndarray, " frames"]) -> GraphBatch:
        """Return a batch of frames by number, made as those of the steps are.

        Raises:
            CorruptShard: a block is not what was written, and losing it was not allowed.
            FileNotFoundError: the same of a shard that is missing.
        """
        graphs, _ = _Preparation(self._mixture, lambda _: frames, self.cutoff)(0)
        buffer = torch.empty(graphs.layout.num_bytes, dtype=torch.uint8)
        graphs.write(buffer.numpy())
        return graphs.layout.batch(buffer)

    @cached_property
    def _mixture(self) -> Mixture:
        return Mixture(self.datasets, self.corrupt)

    def _frames_of(self, task: int) -> Int[np.ndarray, " frames"]:
        step, place = divmod(task, len(self.rank_lanes))
        return self.plan.micro_batch(step, self.rank_lanes[place])

    def __iter__(self) -> Iterator[list[GraphBatch]]:
        return iter(self.from_step(0))


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Return what differs between the fingerprint of a stream and that of a checkpoint, one phrase for each part."""
    absent = "absent"
    pairs = [(name, theirs.get(name, absent), ours.get(name, absent)) for name in {**theirs, **ours}]
    return [f"{name}: {_shown(old)} in the checkpoint, {_shown(new)} now" for name, old, new in pairs if old != new]


def _shown(value: Any) -> str:
    """Return a value, of a checksum only the beginning."""
    return f"{value[:12]}…" if isinstance(value, str) and len(value) == 64 else str(value)


def full_pass(
    manifest: Manifest,
    split: str,
    *,
    cutoff: float,
    edge_budget: int,
    elements: Sequence[int] | None = None,
    theory: int = 0,
    subset: Subset | None = None,
    corrupt: Corrupt = "error",
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> FullPass:
    """Return batches that hold every frame of a split, or of a subset of it, exactly once over all ranks.

    With elements given, frames with any other element are left out: the caller sees how many from the count. A batch
    may then be empty; so is that of a rank for which there is nothing left, because all ranks have to come to the end
    of a loop together.

    Raises:
        ValueError: no such split, frame, rank, or cutoff.
    """
    _check_rank(rank, world_size)
    dataset = Dataset(manifest=manifest, split=split, theory=theory, subset=subset)
    planned = _planned(dataset, cutoff)
    batches = full_pass_batches(
        planned.index,
        cutoff_number=planned.cutoff_number,
        edge_budget=edge_budget,
        world_size=world_size,
        rank=rank,
    )
    if planned.index.num_frames and not batches:
        batches = [np.zeros(0, dtype=np.int64)]
    job = Job(
        prepare=_Preparation(Mixture([dataset], corrupt), batches.__getitem__, cutoff, elements),
        first=0,
        last=len(batches),
        name=lambda task: f"batch {task} of split {split!r}",
        num_workers=num_workers,
        num_slots=4,
        slot_bytes=_slot_bytes([planned], edge_budget),
        pin_memory=pin_memory and torch.cuda.is_available(),
    )
    return FullPass(job)


class _Preparation:
    """What a worker does for a task: read its frames and find their neighbours."""

    def __init__(
        self,
        mixture: Mixture,
        frames_of: Callable[[int], Int[np.ndarray, " frames"]],
        cutoff: float,
        elements: Sequence[int] | None = None,
    ) -> None:
        self._mixture, self._frames_of, self._cutoff = mixture, frames_of, cutoff
        self._elements = None if elements is None else np.array(elements)

    def __call__(self, task: int) -> tuple[Graphs, list[LostBlock]]:
        structures, datasets, lost = self._mixture.take(self._frames_of(task))
        if self._elements is not None:
            known = [bool(np.isin(s.numbers, self._elements).all()) for s in structures]
            structures = list(itertools.compress(structures, known))
            datasets = list(itertools.compress(datasets, known))
        theories, weights = [item.theory_number for item in datasets], [item.weight for item in datasets]
        return Graphs(structures, self._cutoff, theories, weights=weights), lost


def _slot_bytes(sets: Sequence[PlannedSet], edge_budget: int) -> int:
    """Return the bytes of a slot that all but unusual micro-batches fit."""
    num_frames, num_atoms, num_edges = 0.0, 0.0, 1.0
    for planned in sets:
        blocks, repeat = planned.index.blocks, planned.repeat
        num_frames += repeat * int(blocks.num_frames.sum())
        num_atoms += repeat * int(blocks.num_atoms.sum())
        num_edges += repeat * int(blocks.cost[:, planned.cutoff_number].sum())
    filled = SLOT_MARGIN * edge_budget / num_edges
    layout = BatchLayout(
        num_atoms=math.ceil(filled * num_atoms),
        num_pairs=math.ceil(SLOT_MARGIN * edge_budget / 2),
        num_graphs=math.ceil(filled * num_frames),
        id_bytes=math.ceil(filled * num_frames) * ID_BYTES,
        float_type="float32",
    )
    return -(-layout.num_bytes // mmap.PAGESIZE) * mmap.PAGESIZE


def _check_theories(datasets: Sequence[Dataset]) -> None:
    """Refuse to mix levels of theory without being told so."""
    if not datasets:
        raise ValueError("there is nothing to train on: give at least one data set")
    untold = [dataset.manifest.provenance for dataset in datasets if dataset.theory is None]
    for other, provenance in itertools.pairwise(untold):
        if other.level_of_theory != provenance.level_of_theory:
            raise ValueError(
                f"{other.name!r} is of level of theory {other.level_of_theory!r} and {provenance.name!r} of "
                f"{provenance.level_of_theory!r}: their energies cannot be learned as one. Give each data set its own "
                "`theory`, or the same one if they are compatible after all."
            )


def _check_rank(rank: int, world_size: int) -> None:
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} is not one of {world_size} processes (0 to {world_size - 1})")


def _planned(dataset: Dataset, cutoff: float) -> PlannedSet:
    """Return what the plan has to know of a data set."""
    cutoff_number = dataset.manifest.split(dataset.split).statistics.cutoff_number(cutoff)
    return PlannedSet(dataset.index(), cutoff_number, dataset.repeat)
