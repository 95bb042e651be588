"""Who reads what, when: a pure function of (index, seed, step), so that no two processes ever have to agree.

A run has a fixed number of lanes; an optimizer step is one micro-batch from each lane, whatever the number of
processes. Every lane has the same number of steps per pass, so pass and offset are divmod(step, steps_per_pass), every
frame is read exactly once per pass over all lanes, and the whole state of the stream is one integer: the step.

The price of a common number of steps is a headroom of 1.5 % in the edge budget. Packing longest-first into a fixed
number of bins is chosen over tighter packers because those make batches of giants and batches of dwarfs.
"""

import hashlib
import heapq
import math
from collections.abc import Callable
from typing import Any, Literal, TypeVar

import numpy as np
from jaxtyping import Bool, Float64, Int

from data_pipeline.index import SplitIndex

PLAN_VERSION = 1
HEADROOM = 0.985
"""Fraction of the edge budget that the mean micro-batch fills."""
UNITS_PER_LANE = 64
"""Blocks are halved until there are as many units per lane, so that lanes get equal loads."""
CHAPTER_UNITS = 8
"""Units per lane that are dealt together, longest first."""
STRATUM_UNITS = 64
"""Neighbouring units that are spread evenly over a pass, so that a pass does not follow the order of the corpus."""
WINDOW_FRAMES = 4096
"""Frames that are packed into micro-batches together."""

Oversize = Literal["error", "alone", "skip"]
Value = TypeVar("Value")


class Plan:
    """The micro-batches of a training run: which frames each lane takes at each step."""

    def __init__(
        self,
        index: SplitIndex,
        *,
        cutoff_number: int,
        lanes: int,
        edge_budget: int,
        atom_budget: int | None = None,
        seed: int = 0,
        oversize: Oversize = "error",
    ) -> None:
        """Prepare a plan.

        Args:
            index: Index of the split.
            cutoff_number: Which of the index's cutoffs is the model's.
            lanes: Micro-batches per optimizer step.
            edge_budget: Directed edges of a full micro-batch. The mean is 1.5 % below; with eight structures or more
                in a micro-batch hardly any is above, with one or two it can be, since their number is fixed.
            atom_budget: Atoms of a full micro-batch, exceeded by up to a tenth; not looked at when absent.
            seed: Seed of the order.
            oversize: What happens to a frame with more edges than the budget: an error, a micro-batch of its own, or
                it is left out (and counted in num_skipped).

        Raises:
            ValueError: no frames, fewer frames than lanes, or a frame larger than the budget.
        """
        if lanes < 1 or edge_budget < 1 or (atom_budget is not None and atom_budget < 1):
            raise ValueError("lanes, edge_budget and atom_budget must be at least 1")
        atoms, all_edges = index.counts(0, index.num_frames)
        edges = all_edges[:, cutoff_number].astype(np.int64)
        too_large = _too_large(edges, atoms, edge_budget, atom_budget)
        if oversize == "error" and too_large.any():
            raise ValueError(
                f"{int(too_large.sum())} of {len(edges)} structures are larger than the budget (the largest has "
                f"{int(edges.max())} edges and {int(atoms.max())} atoms; edge_budget is {edge_budget}, "
                f"atom_budget {atom_budget}). Raise the budget, or choose oversize: alone or skip."
            )
        self.lanes, self.edge_budget, self.atom_budget, self.seed = lanes, edge_budget, atom_budget, seed
        self.num_skipped = int(too_large.sum()) if oversize == "skip" else 0
        self._kept = ~too_large if oversize == "skip" else np.ones(len(edges), dtype=bool)
        if int(self._kept.sum()) < lanes:
            kept = f"{int(self._kept.sum())} frames ({self.num_skipped} skipped)"
            raise ValueError(f"{kept} cannot fill {lanes} lanes; use fewer lanes")
        self._oversize = oversize
        # a frame without edges still costs something, and an oversize one fills its micro-batch
        self._too_large = too_large
        self._cost = np.where(too_large, edge_budget, np.maximum(edges, 1)) * self._kept
        self._atoms = atoms.astype(np.int64)
        self._units = _units(index.first_frame, UNITS_PER_LANE * lanes)
        totals = np.concatenate([[0], np.cumsum(self._cost)])
        self._unit_cost = totals[self._units[:, 1]] - totals[self._units[:, 0]]
        self.steps_per_pass = math.ceil(int(totals[-1]) / (HEADROOM * lanes * edge_budget))
        if atom_budget is not None:
            all_atoms = int(self._atoms[self._kept].sum())
            self.steps_per_pass = max(self.steps_per_pass, math.ceil(all_atoms / (HEADROOM * lanes * atom_budget)))
        # what was computed last, by arguments; plain dictionaries, because a plan travels to worker processes
        self._hands: dict[int, list[np.ndarray]] = {}
        self._lane_windows: dict[tuple[int, int], list[tuple[int, int, np.ndarray]]] = {}
        self._bins: dict[tuple[int, int, int], list[np.ndarray]] = {}

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that decides the order except the data: resuming with another one is an error."""
        parts = (PLAN_VERSION, self.lanes, self.edge_budget, self.atom_budget, self.seed, self._oversize)
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    def micro_batch(self, step: int, lane: int) -> Int[np.ndarray, " frames"]:
        """Return the numbers of the frames that a lane takes at a step; rarely, in a tiny set, none."""
        number, offset = divmod(step, self.steps_per_pass)
        for window, (first_bin, num_bins, _) in enumerate(self._windows_of(number, lane)):
            if offset < first_bin + num_bins:
                bins = _remembered(self._bins, (number, lane, window), self._pack, 2 * self.lanes)
                return bins[offset - first_bin]
        raise AssertionError("the windows of a lane hold steps_per_pass bins")

    def _windows_of(self, number: int, lane: int) -> list[tuple[int, int, np.ndarray]]:
        return _remembered(self._lane_windows, (number, lane), self._windows, 2 * self.lanes)

    def _deal(self, number: int) -> list[Int[np.ndarray, " units"]]:
        """Return each lane's units of a pass, in reading order."""
        rng = np.random.default_rng([self.seed, number])
        order = np.argsort(_stratified_positions(len(self._units), rng), kind="stable")
        loads = [(0, lane) for lane in range(self.lanes)]
        hands: list[list[int]] = [[] for _ in range(self.lanes)]
        chapter = CHAPTER_UNITS * self.lanes
        for start in range(0, len(order), chapter):
            places = np.arange(start, min(start + chapter, len(order)))
            for place in places[np.argsort(-self._unit_cost[order[places]], kind="stable")]:
                load, lane = loads[0]
                heapq.heapreplace(loads, (load + int(self._unit_cost[order[place]]), lane))
                hands[lane].append(int(place))
        relabelled = rng.permutation(self.lanes)
        return [order[np.sort(np.array(hands[lane], dtype=np.int64))] for lane in relabelled]

    def _windows(self, number: int, lane: int) -> list[tuple[int, int, Int[np.ndarray, " units"]]]:
        """Return (first bin, number of bins, units) of each window of a lane in a pass."""
        units = _remembered(self._hands, number, self._deal, 2)[lane]
        ends = np.cumsum(self._units[units, 1] - self._units[units, 0])
        num_windows = max(1, int(ends[-1]) // WINDOW_FRAMES) if len(units) else 1
        breaks = np.searchsorted(ends, np.arange(1, num_windows) * WINDOW_FRAMES)
        parts = np.split(units, breaks)
        cost = np.cumsum([self._unit_cost[part].sum() for part in parts])
        # rounding the cumulative cost makes the numbers of bins add up to the steps of the pass
        bounds = [0, *np.rint(cost / max(int(cost[-1]), 1) * self.steps_per_pass).astype(int).tolist()]
        bounds[-1] = self.steps_per_pass
        return [(first, last - first, part) for first, last, part in zip(bounds, bounds[1:], parts, strict=False)]

    def _pack(self, number: int, lane: int, window: int) -> list[Int[np.ndarray, " frames"]]:
        """Pack a window longest-first into the emptiest bin, exactly as many bins as planned, in random order."""
        _, num_bins, units = self._windows_of(number, lane)[window]
        if num_bins == 0:
            return []
        frames = np.concatenate([np.arange(*self._units[unit]) for unit in units]) if len(units) else np.zeros(0, int)
        frames = frames[self._kept[frames]]
        bins: list[list[int]] = [[] for _ in range(num_bins)]
        edge_loads, atom_loads = [0] * num_bins, [0] * num_bins
        heap = [(0.0, place) for place in range(num_bins)]
        for frame in frames[np.argsort(-self._cost[frames], kind="stable")]:
            place = heap[0][1]
            bins[place].append(int(frame))
            edge_loads[place] += int(self._cost[frame])
            atom_loads[place] += int(self._atoms[frame])
            fill = math.inf if self._too_large[frame] else edge_loads[place] / self.edge_budget
            if self.atom_budget is not None:
                fill = max(fill, atom_loads[place] / (1.1 * self.atom_budget))
            heapq.heapreplace(heap, (fill, place))
        rng = np.random.default_rng([self.seed, number, lane, window])
        return [np.array(bins[place], dtype=np.int64) for place in rng.permutation(num_bins)]


def sweep_batches(
    index: SplitIndex, *, cutoff_number: int, edge_budget: int, world_size: int, rank: int
) -> list[Int[np.ndarray, " frames"]]:
    """Return a rank's share of batches that together hold every frame exactly once, in the order of the data.

    A frame larger than the budget is a batch of its own.
    """
    batches: list[list[int]] = []
    load = edge_budget + 1
    for frame, edges in enumerate(index.counts(0, index.num_frames)[1][:, cutoff_number].tolist()):
        if load + edges > edge_budget:
            batches.append([])
            load = 0
        batches[-1].append(frame)
        load += edges
    return [np.array(batch, dtype=np.int64) for batch in batches[rank::world_size]]


def _remembered(memory: dict[Any, Value], key: Any, compute: Callable[..., Value], size: int) -> Value:
    """Return compute(*key), remembered; the oldest of more than `size` results is forgotten."""
    if key not in memory:
        if len(memory) >= size:
            del memory[next(iter(memory))]
        memory[key] = compute(*key) if isinstance(key, tuple) else compute(key)
    return memory[key]


def _too_large(
    edges: Int[np.ndarray, " frames"], atoms: Int[np.ndarray, " frames"], edge_budget: int, atom_budget: int | None
) -> Bool[np.ndarray, " frames"]:
    """Return which frames exceed a budget by themselves."""
    return (edges > edge_budget) | (atoms > (atoms.max(initial=0) if atom_budget is None else atom_budget))


def _units(first_frame: Int[np.ndarray, " bounds"], at_least: int) -> Int[np.ndarray, "units 2"]:
    """Halve blocks until there are at least so many units, down to single frames; return (first, last + 1) frames."""
    bounds = first_frame.astype(np.int64)
    while len(bounds) - 1 < at_least and np.diff(bounds).max(initial=0) > 1:
        bounds = np.unique(np.concatenate([bounds, (bounds[:-1] + bounds[1:]) // 2]))
    return np.stack([bounds[:-1], bounds[1:]], axis=1)


def _stratified_positions(num_units: int, rng: np.random.Generator) -> Float64[np.ndarray, " units"]:
    """Return a position in [0, 1) for each unit: every run of neighbouring units is spread evenly."""
    num_runs = -(-num_units // STRATUM_UNITS)
    strata = rng.permuted(np.tile(np.arange(STRATUM_UNITS), (num_runs, 1)), axis=1)
    return ((strata + rng.random(strata.shape)) / STRATUM_UNITS).reshape(-1)[:num_units]
