"""Plan of the data stream: a pure function of (indexes, seed, step), so that processes never have to communicate.

A run has a fixed number of lanes; an optimizer step is one micro-batch from each lane, for any number of processes.
Every lane has the same number of steps in a pass, so the step alone gives the pass and the place in it, every frame is
read exactly as often per pass as requested, and the whole state of the stream is one integer.

A pass assigns units of frames to the lanes; single frames are considered only when their window is packed. So any step
of 10⁸ frames on 1,024 lanes is planned in a second and some hundred bytes per block.

The price of a common number of steps is a headroom in the edge budget: 1 %, and more where frames are so large that
they do not fit together so tightly; some passes are packed to find it. Packing longest-first into a fixed number of
bins was chosen over tighter packers because those separate batches of large frames from batches of small ones.
"""

import heapq
import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int, Int32, Int64

from data_pipeline.loading.work_units import Budgets, FrameCosts, Oversize, PlannedSet, Units, frame_costs
from data_pipeline.store.index import SplitIndex

PLAN_VERSION = 3
HEADROOM = 0.99
"""Largest share of the budget that the mean micro-batch fills; with 100 steps in a pass the least is 0.98."""
TRIALS, MAX_TRIALS = 3, 10
"""Smallest and largest number of passes that are packed to find the headroom; all of a fractional repeat, if there are
no more."""
CHECKED_FRAMES = 2**17
"""Number of frames of a pass up to which all of its micro-batches are packed before the first is used: 0.1 s."""
SAMPLED_WINDOWS = 4
"""Number of windows packed of a larger pass."""
SAMPLE_SHARE = 0.996
"""Largest share of a budget in the windows that are packed of a larger pass: others may be a little fuller."""
ARRANGEMENTS = 64
"""Number of arrangements of a pass that are tried; one in three fits at least, or there would be more headroom."""
UNITS_PER_LANE = 64
"""Number of units per lane and pass up to which blocks of a set are halved, so that lanes get equal loads."""
CHAPTER_UNITS = 8
"""Number of units per lane that are assigned together, longest first."""
STRATUM_UNITS = 64
"""Number of neighbouring units that are spread evenly over a pass, so that it does not follow the order of the
corpus."""
GROWTH = 1.02
"""Factor by which the headroom grows until the frames fit; at least by a step of a pass."""
WINDOW_FRAMES = 4096
"""Number of frames that are packed into micro-batches together."""
LISTED_ITEMS = 65536
"""Number of units or frames held as Python integers at a time."""
ATOM_SLACK = 1.1
"""Factor by which the atom budget may be exceeded: two equally strict budgets would both be filled less well."""
_ROTATION, _ORDER, _LANES, _BINS = range(4)
"""First words of the seeds of the random draws."""


class Plan:
    """Micro-batches of a training run: the frames of each lane at each step."""

    def __init__(
        self,
        sets: Sequence[PlannedSet],
        *,
        lanes: int,
        edge_budget: int,
        atom_budget: int | None = None,
        seed: int = 0,
        oversize: Oversize = "error",
    ) -> None:
        """Prepare a plan.

        Args:
            sets: Data sets, mixed evenly over a pass.
            lanes: Micro-batches per optimizer step.
            edge_budget: Largest number of directed edges of a micro-batch, except for a structure that is larger by
                itself. It holds for every micro-batch of passes up to CHECKED_FRAMES; of larger passes a sample is
                packed, and in the others hardly any exceeds it.
            atom_budget: Number of atoms of a full micro-batch, exceeded by up to a tenth; None sets no limit.
            seed: Seed of the order.
            oversize: Treatment of a frame larger than a budget: an error, a micro-batch of its own, or left out (and
                counted in num_skipped).

        Raises:
            ValueError: fewer frames than lanes, a frame larger than a budget, or a number that is not positive.
        """
        if lanes < 1 or edge_budget < 1 or (atom_budget is not None and atom_budget < 1):
            raise ValueError("lanes, edge_budget and atom_budget must be at least 1")
        if not all(0 < planned.repeat < math.inf for planned in sets):
            raise ValueError(f"repeats must be positive, not {[planned.repeat for planned in sets]}")
        self.lanes, self.seed = lanes, seed
        self._sets, self._budgets = tuple(sets), Budgets(edge_budget, atom_budget, oversize)
        self._units = [
            Units(planned, self._budgets, UNITS_PER_LANE * lanes, np.random.default_rng([_ROTATION, seed, place]))
            for place, planned in enumerate(sets)
        ]
        self.num_too_large = sum(units.num_too_large for units in self._units)
        if oversize == "error" and self.num_too_large:
            raise ValueError(self._too_large_message(self.num_too_large))
        self.num_skipped = self.num_too_large if oversize == "skip" else 0
        frames = sum(units.repeat * int(units.sums[0].sum()) for units in self._units)
        if frames < lanes:
            found = f"{float(frames):g} frames per pass ({self.num_skipped} skipped)"
            raise ValueError(f"{found} cannot fill {lanes} lanes; use fewer lanes")
        # lanes and windows get equal shares of the edges, which take the time of a step; atoms follow
        self._load = np.concatenate([units.sums[1] for units in self._units])
        self._first_frame = np.cumsum([0, *(planned.index.num_frames for planned in sets)])
        self._first_unit = np.cumsum([0, *(len(units.first) for units in self._units)])
        # copies repeat after this number of passes, so a late step is found without counting up to it
        self._period = math.lcm(*(units.repeat.denominator for units in self._units))
        self._first_step = [0]
        # latest results
        self._dealt: _Dealt | None = None
        self._windows: dict[int, _Window] = {}
        self.fill = HEADROOM
        """Largest share of a budget that the mean micro-batch fills, so that none exceeds it."""
        self._find_fill()

    @property
    def settings(self) -> dict[str, int | str | None]:
        """Settings that decide the order, apart from the data: with another value a step has other frames."""
        return {
            "plan_version": PLAN_VERSION,
            "lanes": self.lanes,
            "edge_budget": self._budgets.edges,
            "atom_budget": self._budgets.atoms,
            "oversize": self._budgets.oversize,
            "repeats": ", ".join(str(units.repeat) for units in self._units),
            "seed": self.seed,
        }

    def steps_of_pass(self, number: int) -> int:
        """Return the number of steps of a pass; it is the same for all passes if every repeat is an integer."""
        _, edges, atoms = self._totals(number)
        full = max(edges / self._budgets.edges, 0 if self._budgets.atoms is None else atoms / self._budgets.atoms)
        return max(1, math.ceil(full / (self.fill * self.lanes)))

    def locate(self, step: int) -> tuple[int, int]:
        """Return the pass of a step, and the step's number in the pass."""
        first = self._first_step
        while first[-1] <= step and len(first) <= self._period:
            first.append(first[-1] + self.steps_of_pass(len(first) - 1))
        periods, step = divmod(step, first[-1]) if len(first) > self._period else (0, step)
        number = bisect_right(first, step) - 1
        return periods * self._period + number, step - first[number]

    def micro_batch(self, step: int, lane: int) -> Int64[np.ndarray, " frames"]:
        """Return the frames of a lane at a step; rarely, in a tiny set, none.

        The frames of each set are numbered on from those of the previous set.
        """
        number, place = self.locate(step)
        window = self._windows.get(lane)
        if window is None or window.number != number or not window.first <= place < window.last:
            window = self._windows[lane] = self._window(number, lane, place)
        start, end = window.bounds[place - window.first : place - window.first + 2]
        return window.frames[start:end]

    def _totals(self, number: int) -> tuple[int, int, int]:
        """Return the numbers of frames, edges and atoms that a pass reads."""
        frames, edges, atoms = np.sum([units.totals(number) for units in self._units], axis=0).tolist()
        return frames, edges, atoms

    def _is_checked(self, number: int) -> bool:
        """Return whether all micro-batches of a pass are packed before the first is used."""
        return self._totals(number)[0] <= CHECKED_FRAMES

    def _find_fill(self) -> None:
        """Lower the fill until passes fit."""
        while not self._mostly_fits():
            steps = self.steps_of_pass(0)
            self.fill = min(self.fill / GROWTH, self.fill * steps / (steps + 1))
        if self.fill < HEADROOM and not self._is_checked(0):
            self.fill /= GROWTH  # the windows that were not packed may need a little more

    def _mostly_fits(self) -> bool:
        """Return whether two of three passes need no other arrangement, so that a few tries find one for the others."""
        trials = range(min(max(self._period, TRIALS), MAX_TRIALS) if self._is_checked(0) else 1)
        left = len(trials) // 3
        for number in trials:
            left -= not self._fits(self._arranged(number, 0))
            if left < 0:
                return False
        return True

    def _fits(self, dealt: "_Dealt") -> bool:
        """Return whether no micro-batch of a pass exceeds a budget, by some windows if it has many frames."""
        bounds = self._window_bounds(dealt.number)
        windows, share = np.arange(len(dealt.cuts) - 1), 1.0
        if not self._is_checked(dealt.number):
            windows, share = windows[:: -(-len(windows) // SAMPLED_WINDOWS)], SAMPLE_SHARE
        for window in windows.tolist():
            place = window % (len(bounds) - 1)
            num_bins = bounds[place + 1] - bounds[place]
            _, costs = self._frames(dealt, window)
            if _exceeds(costs, _packed(costs, num_bins, self._budgets), num_bins, self._budgets, share):
                return False
        return True

    def _deal(self, number: int) -> "_Dealt":
        """Assign the units of a pass to lanes, in the first arrangement in which no micro-batch exceeds a budget."""
        dealt = self._arranged(number, 0)
        for arrangement in range(1, ARRANGEMENTS if self._is_checked(number) else 1):
            if self._fits(dealt):
                break
            dealt = self._arranged(number, arrangement)
        return dealt

    def _arranged(self, number: int, arrangement: int) -> "_Dealt":
        """Assign the units of a pass to lanes, every copy at its own place in the pass."""
        again = [arrangement] if arrangement else []
        units, keys = [], []
        for place, (first, own) in enumerate(zip(self._first_unit, self._units, strict=False)):
            copies = own.copies(number)
            present = np.flatnonzero(copies)
            copies = copies[present]
            position = _stratified_positions(len(present), self._random(_ORDER, number, place, *again))
            copy = np.arange(copies.sum()) - np.repeat(np.cumsum(copies) - copies, copies)
            keys.append((copy + np.repeat(position, copies)) / np.repeat(copies, copies))
            units.append(np.repeat((first + present).astype(np.int32), copies))
        order = np.concatenate(units)[np.argsort(np.concatenate(keys), kind="stable")]
        lane = _lane_of_each(self._load[order], self.lanes)
        # otherwise the longest units of a pass would always go to the same lanes
        lane = self._random(_LANES, number, *again).permutation(self.lanes)[lane]
        line = order[np.argsort(lane, kind="stable")]
        ends = np.concatenate([[0], np.cumsum(self._load[line])])
        bounds, num_steps = self._window_bounds(number), self.steps_of_pass(number)
        steps = [lane * num_steps + bound for lane in range(self.lanes) for bound in bounds[:-1]]
        cuts = [int(ends[-1]) * step // (self.lanes * num_steps) for step in [*steps, self.lanes * num_steps]]
        return _Dealt(number, line, ends, np.array(cuts, dtype=np.int64))

    def _random(self, what: int, *numbers: int) -> np.random.Generator:
        return np.random.default_rng([what, self.seed, *numbers])

    def _window_bounds(self, number: int) -> list[int]:
        """Return the first steps of the windows of a pass, the same for all lanes, and the number of steps."""
        num_steps = self.steps_of_pass(number)
        num_windows = min(max(1, self._totals(number)[0] // (self.lanes * WINDOW_FRAMES)), num_steps)
        return [window * num_steps // num_windows for window in range(num_windows + 1)]

    def _window(self, number: int, lane: int, place: int) -> "_Window":
        """Return the window of a lane that holds a step of a pass, packed."""
        if self._dealt is None or self._dealt.number != number:
            self._dealt = self._deal(number)
        bounds = self._window_bounds(number)
        window = bisect_right(bounds, place) - 1
        first, last = bounds[window : window + 2]
        frames, costs = self._frames(self._dealt, lane * (len(bounds) - 1) + window)
        bins = _packed(costs, last - first, self._budgets)
        bins = self._random(_BINS, number, lane, window).permutation(last - first)[bins]
        ends = np.concatenate([[0], np.cumsum(np.bincount(bins, minlength=last - first))])
        return _Window(number, first, last, frames[np.argsort(bins, kind="stable")], ends)

    def _frames(self, dealt: "_Dealt", window: int) -> tuple[Int64[np.ndarray, " frames"], FrameCosts]:
        """Return the frames of a window and their costs."""
        start, end = dealt.cuts[window : window + 2]
        frames, costs = [np.zeros(0, np.int64)], []
        for place in range(int(np.searchsorted(dealt.ends, start, side="right")) - 1, len(dealt.units)):
            low, high = dealt.ends[place : place + 2]
            if low >= end:
                break
            unit = int(dealt.units[place])
            owner = bisect_right(self._first_unit, unit) - 1
            own, number = self._units[owner], unit - self._first_unit[owner]
            first, last = int(own.first[number]), int(own.last[number])
            some = frame_costs(self._sets[owner], first, last, self._budgets)
            chosen = some.edges > 0
            cuts = slice(*np.searchsorted(dealt.cuts, [low + 1, high]))
            if cuts.start < cuts.stop:
                rooms = np.diff([low, *dealt.cuts[cuts], high])
                chosen &= _divided(some.edges, rooms) == window + 1 - cuts.start
            frames.append(np.arange(first, last)[chosen] + self._first_frame[owner])
            costs.append(some[chosen])
        return np.concatenate(frames), FrameCosts.joined(costs)

    def _too_large_message(self, num_too_large: int) -> str:
        sets = [(planned.index.blocks, planned.cutoff_number) for planned in self._sets]
        edges = max(int(blocks.max_edges[:, cutoff].max(initial=0)) for blocks, cutoff in sets)
        atoms = max(int(blocks.max_atoms.max(initial=0)) for blocks, _ in sets)
        return (
            f"{num_too_large} of {sum(planned.index.num_frames for planned in self._sets)} structures are larger than "
            f"the budget (the largest has {edges} edges and {atoms} atoms; edge_budget is {self._budgets.edges}, "
            f"atom_budget {self._budgets.atoms}). Raise the budget, or choose oversize: alone or skip."
        )


@dataclass(frozen=True, eq=False)
class _Dealt:
    """Units of a pass in one sequence, lane after lane, and its cuts.

    Lanes and windows are cut where their shares of the cost end, inside a unit, near the end of the lane's own units.
    With whole units some lanes and windows would be fuller than others: by a 64th in a set of equal frames, more than
    the headroom.
    """

    number: int
    units: Int32[np.ndarray, " units"]
    ends: Int64[np.ndarray, " units_plus_one"]
    """Cumulative cost before each unit, and of all units."""
    cuts: Int64[np.ndarray, " windows_plus_one"]
    """Beginning of each window on the same scale, lane after lane, and the end of the last one."""


@dataclass(frozen=True, eq=False)
class _Window:
    """Frames of a lane between two steps of a pass, micro-batch after micro-batch."""

    number: int
    first: int
    last: int
    frames: Int64[np.ndarray, " frames"]
    bounds: Int64[np.ndarray, " bins_plus_one"]


def full_pass_batches(
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


def _stratified_positions(num_units: int, rng: np.random.Generator) -> Float64[np.ndarray, " units"]:
    """Return a position in [0, 1) for each unit: every stretch of neighbouring units is spread evenly."""
    num_runs = -(-num_units // STRATUM_UNITS)
    strata = rng.permuted(np.tile(np.arange(STRATUM_UNITS), (num_runs, 1)), axis=1)
    return ((strata + rng.random(strata.shape)) / STRATUM_UNITS).reshape(-1)[:num_units]


def _lane_of_each(load: Int64[np.ndarray, " units"], lanes: int) -> Int64[np.ndarray, " units"]:
    """Return the lane of each unit: chapter by chapter, the longest unit first, to the lane with the least load."""
    num_chapters = max(1, len(load) // (CHAPTER_UNITS * lanes))
    chapter = np.arange(len(load)) * num_chapters // max(1, len(load))
    return _to_emptiest(load, np.lexsort((-load, chapter)), lanes)


def _divided(load: Int64[np.ndarray, " frames"], rooms: Int64[np.ndarray, " parts"]) -> Int64[np.ndarray, " frames"]:
    """Return the part of each frame of a cut unit: the longest first, to the part with most room."""
    left, parts = rooms.tolist(), np.zeros(len(load), dtype=np.int64)
    for frame in np.argsort(-load, kind="stable").tolist():
        parts[frame] = place = left.index(max(left))
        left[place] -= int(load[frame])
    return parts


def _packed(costs: FrameCosts, num_bins: int, budgets: Budgets) -> Int64[np.ndarray, " frames"]:
    """Return the bin of each frame: the longest first, to the emptiest bin; a frame above the budget is alone."""
    if budgets.atoms is None:
        load = np.where(costs.too_large, costs.edges.sum() + 1, costs.edges)
        return _to_emptiest(load, np.argsort(-load, kind="stable"), num_bins)
    edges = np.where(costs.too_large, math.inf, costs.edges / budgets.edges)
    atoms = costs.atoms / (ATOM_SLACK * budgets.atoms)
    order = np.argsort(-np.maximum(edges, atoms), kind="stable")
    heap = [(0.0, place) for place in range(num_bins)]
    edge_fill, atom_fill = [0.0] * num_bins, [0.0] * num_bins
    places = []
    for more_edges, more_atoms in zip(edges[order].tolist(), atoms[order].tolist(), strict=True):
        place = heap[0][1]
        edge_fill[place] += more_edges
        atom_fill[place] += more_atoms
        heapq.heapreplace(heap, (max(edge_fill[place], atom_fill[place]), place))
        places.append(place)
    packed = np.zeros(len(order), dtype=np.int64)
    packed[order] = places
    return packed


def _exceeds(
    costs: FrameCosts, bins: Int64[np.ndarray, " frames"], num_bins: int, budgets: Budgets, share: float
) -> bool:
    """Return whether a bin of several frames holds more than a share of a budget."""
    several = np.bincount(bins, minlength=num_bins) > 1
    edges = np.bincount(bins, weights=costs.edges, minlength=num_bins)[several].max(initial=0)
    if budgets.atoms is None:
        return bool(edges > share * budgets.edges)
    atoms = np.bincount(bins, weights=costs.atoms, minlength=num_bins)[several].max(initial=0)
    return bool(edges > share * budgets.edges or atoms > ATOM_SLACK * share * budgets.atoms)


def _to_emptiest(
    load: Int64[np.ndarray, " items"], order: Int64[np.ndarray, " items"], num_places: int
) -> Int64[np.ndarray, " items"]:
    """Return the place of each item: in turn, each goes to the place with the least load."""
    # one integer holds load and number of a place, which takes half the time of pairs
    heap = list(range(num_places))
    found = np.zeros(len(load), dtype=np.int64)
    for some in np.array_split(order, 1 + len(order) // LISTED_ITEMS):
        tops = [heapq.heapreplace(heap, heap[0] + more) for more in (load[some] * num_places).tolist()]
        found[some] = np.array(tops, dtype=np.int64) % num_places
    return found
