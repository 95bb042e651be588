"""Stream of GraphBatches from a plan: blocks are read by byte range, workers build graphs, steps arrive in order.

The state is the step. The worker of a micro-batch follows from its step and lane, so neither the number of workers nor
that of ranks changes the content of a step; a worker keeps its lanes if the numbers allow, because lanes are read in
order. Neighbour lists take four fifths of a worker's time, reading and decoding blocks a twelfth.
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
from data_pipeline.graphs.molecules import MoleculeCutoff, as_json
from data_pipeline.loading.datasets import Corrupt, Dataset, LostBlock, Mixture
from data_pipeline.loading.plan import Oversize, Plan, PlannedSet, full_pass_batches
from data_pipeline.loading.ring import Job, Tally, deliver
from data_pipeline.loading.subset import Subset
from data_pipeline.store.manifest import Manifest

log = logging.getLogger(__name__)

SLOT_MARGIN = 1.5
"""Size of a slot over that of a mean full micro-batch; its unused part takes no memory."""

ID_BYTES = 64
"""Size of a frame's name in a slot [bytes]."""


class Batches:
    """Numbered batches in order: common part of the steps of a stream and a full pass.

    Worker processes start and end with each iteration; the counts add up over all iterations.
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
        """Number of batches that did not fit the ring and came more slowly."""
        return self._tally.num_large

    @property
    def num_quarantined_blocks(self) -> int:
        """Number of unreadable blocks."""
        return len(self._lost)

    @property
    def num_quarantined_frames(self) -> int:
        """Number of frames left out because their blocks could not be read."""
        return sum(block.num_frames for block in self._lost.values())

    def _batches(self) -> Generator[GraphBatch, None, None]:
        with contextlib.closing(deliver(self._job, self._tally)) as delivered:
            for batch, lost in delivered:
                for block in lost:
                    self._quarantine(block)
                yield batch

    def _quarantine(self, block: LostBlock) -> None:
        key = (block.dataset, block.number)
        if key not in self._lost:  # several workers may find the same one
            self._lost[key] = block
            log.warning("%s. Its %d frames are left out.", block.reason, block.num_frames)


class Steps(Batches):
    """Optimizer steps, each a list of the micro-batches of a rank."""

    def __init__(self, job: Job, share: int) -> None:
        """Group the batches of a job by `share`."""
        super().__init__(job)
        self._share = share

    def __iter__(self) -> Generator[list[GraphBatch], None, None]:
        with contextlib.closing(self._batches()) as batches:
            while step := list(itertools.islice(batches, self._share)):
                yield step


class FullPass(Batches):
    """A rank's share of batches that together hold every frame of a split once."""

    def __len__(self) -> int:
        assert self._job.last is not None
        return self._job.last

    def __iter__(self) -> Iterator[GraphBatch]:
        return self._batches()


class Stream:
    """An endless, resumable stream of optimizer steps; each is a list of a rank's micro-batches."""

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
            datasets: Training data.
            cutoff: Length of the longest edge [Å]; one of the cutoffs that the data sets were built for.
            lanes: Number of micro-batches per step, over all ranks.
            edge_budget: Number of directed edges of a full micro-batch; see Plan.
            atom_budget: Number of atoms of a full micro-batch; see Plan.
            seed: Seed of the order.
            oversize: Treatment of a frame larger than the budget; see Plan.
            corrupt: Treatment of an unreadable block: an error, or its frames are left out and counted.
            rank: Number of this process.
            world_size: Number of processes.
            num_workers: Number of processes that prepare batches for this one; with 0 it prepares them itself.
            pin_memory: Put batches in page-locked memory if there is an accelerator.

        Raises:
            ValueError: no data sets, the world size does not divide the lanes, a manifest lacks the cutoff, data sets
                of different levels of theory have no theory numbers, or Plan refuses.
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
        self._slot_bytes = _slot_bytes(sets, cutoff, edge_budget)
        share = lanes // world_size
        self.rank_lanes = tuple(range(rank * share, (rank + 1) * share))
        self._num_workers, self._pin_memory = num_workers, pin_memory

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Settings and data that decide the content of a step, by name, as JSON; see differences()."""
        parts: dict[str, Any] = {"number of data sets": len(self.datasets), "cutoff": as_json(self.cutoff)}
        for number, dataset in enumerate(self.datasets, start=1):
            parts |= {
                f"manifest of data set {number}": dataset.manifest.fingerprint,
                f"split of data set {number}": dataset.split,
                f"theory of data set {number}": dataset.theory_number,
                f"weight of data set {number}": dataset.weight,
            }
            if dataset.subset is not None:  # missing otherwise, as in checkpoints older than subsets
                parts[f"subset of data set {number}"] = dataset.subset.fingerprint
        return parts | self.plan.settings

    def from_step(self, first: int, last: int | None = None) -> Steps:
        """Return the steps from first up to last - 1; endless if last is None."""
        share = len(self.rank_lanes)
        job = Job(
            prepare=_Preparation(Mixture(self.datasets, self.corrupt), self._frames_of, self.cutoff),
            first=first * share,
            last=None if last is None else last * share,
            name=lambda task: f"step {task // share}",
            num_workers=self._num_workers,
            # a whole step is taken out of the ring at once, so the next one has to fit beside it
            num_slots=max(4, 2 * -(-share // max(self._num_workers, 1))),
            slot_bytes=self._slot_bytes,
            pin_memory=self._pin_memory and torch.cuda.is_available(),
        )
        return Steps(job, share)

    def prepare(self, frames: Int[np.ndarray, " frames"]) -> GraphBatch:
        """Return a batch of frames by number, made like those of the steps.

        Raises:
            CorruptShard: a block is damaged, and corrupt is 'error'.
            FileNotFoundError: a shard is missing, and corrupt is 'error'.
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
    """Return the differences between the fingerprints of a stream and of a checkpoint, one phrase each."""
    absent = "absent"
    pairs = [(name, theirs.get(name, absent), ours.get(name, absent)) for name in {**theirs, **ours}]
    return [f"{name}: {_shown(old)} in the checkpoint, {_shown(new)} now" for name, old, new in pairs if old != new]


def _shown(value: Any) -> str:
    """Return a value, shortened if it is a checksum."""
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

    With elements given, frames with any other element are left out; the caller sees this from the number of frames. A
    batch may then be empty; so may be the batches of a rank without frames, because all ranks must finish a loop
    together.

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
        slot_bytes=_slot_bytes([planned], cutoff, edge_budget),
        pin_memory=pin_memory and torch.cuda.is_available(),
    )
    return FullPass(job)


class _Preparation:
    """Work of a worker for a task: read its frames and find their neighbours."""

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


def _slot_bytes(sets: Sequence[PlannedSet], cutoff: float, edge_budget: int) -> int:
    """Return the size of a slot that fits all but unusual micro-batches [bytes]."""
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
        # at most one for each atom
        num_molecules=math.ceil(filled * num_atoms) if isinstance(cutoff, MoleculeCutoff) else None,
    )
    return -(-layout.num_bytes // mmap.PAGESIZE) * mmap.PAGESIZE


def _check_theories(datasets: Sequence[Dataset]) -> None:
    """Refuse to mix levels of theory without theory numbers."""
    if not datasets:
        raise ValueError("no training data: give at least one data set")
    untold = [dataset.manifest.provenance for dataset in datasets if dataset.theory is None]
    for other, provenance in itertools.pairwise(untold):
        if other.level_of_theory != provenance.level_of_theory:
            raise ValueError(
                f"{other.name!r} has the level of theory {other.level_of_theory!r} and {provenance.name!r} has "
                f"{provenance.level_of_theory!r}: their energies cannot be learned as one. Give each data set its own "
                "`theory`, or the same one if they are compatible after all."
            )


def _check_rank(rank: int, world_size: int) -> None:
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} is not one of {world_size} processes (0 to {world_size - 1})")


def _planned(dataset: Dataset, cutoff: float) -> PlannedSet:
    """Return the plan's view of a data set."""
    cutoff_number = dataset.manifest.split(dataset.split).statistics.cutoff_number(cutoff)
    return PlannedSet(dataset.index(), cutoff_number, dataset.repeat)
