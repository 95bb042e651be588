"""Work units: the pieces that a plan assigns, their costs and their number of reads per pass.

A unit is a block or, in a set too small to give every lane enough of them, a part of one. Everything here is per unit,
some hundred bytes; frames are read from the index only if a sum over a block is not enough: when a frame exceeds the
budget, and when blocks are divided.

Repeats are exact over passes: unit i has floor((p + 1) r + u_i) - floor(p r + u_i) copies in pass p, the u_i evenly
spaced in a fixed random order, and r is the decimal as written, so nothing is rounded in any number of passes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
from jaxtyping import Bool, Int, Int64

from data_pipeline.store.index import READ_FRAMES, SplitIndex

Oversize = Literal["error", "alone", "skip"]


@dataclass(frozen=True)
class PlannedSet:
    """A data set of a plan, and its reads per pass."""

    index: SplitIndex
    """Index of its split."""
    cutoff_number: int
    """Index of the model's cutoff among those of the index."""
    repeat: float = 1.0
    """Number of times that a pass reads each frame; 2.5 is twice and three times in turn, 0.1 once in ten passes."""


@dataclass(frozen=True)
class Budgets:
    """Capacity of a micro-batch, and treatment of a frame that exceeds it alone."""

    edges: int
    """Number of directed edges of a full micro-batch."""
    atoms: int | None
    """Number of atoms of a full micro-batch; None sets no limit."""
    oversize: Oversize
    """Treatment of a larger frame: an error, a micro-batch of its own, or left out."""

    def exceeded(self, edges: Int[np.ndarray, " any"], atoms: Int[np.ndarray, " any"]) -> Bool[np.ndarray, " any"]:
        """Return a mask of the numbers of edges or atoms above the budget."""
        over = edges > self.edges
        return over if self.atoms is None else over | (atoms > self.atoms)


@dataclass(frozen=True, eq=False)
class FrameCosts:
    """Costs of frames in a plan; a frame that is left out costs nothing."""

    edges: Int64[np.ndarray, " frames"]
    """Number of directed edges, at least one; a frame that is too large fills the budget."""
    atoms: Int64[np.ndarray, " frames"]
    """Number of atoms; a frame that is too large fills the budget, if there is one."""
    too_large: Bool[np.ndarray, " frames"]
    """Frames that exceed a budget by themselves."""

    def __getitem__(self, chosen: Bool[np.ndarray, " frames"]) -> "FrameCosts":
        return FrameCosts(self.edges[chosen], self.atoms[chosen], self.too_large[chosen])

    @staticmethod
    def joined(parts: "Sequence[FrameCosts]") -> "FrameCosts":
        """Return the costs of all frames, part after part."""
        empty = np.zeros(0, dtype=np.int64)
        return FrameCosts(
            edges=np.concatenate([empty, *(part.edges for part in parts)]),
            atoms=np.concatenate([empty, *(part.atoms for part in parts)]),
            too_large=np.concatenate([empty > 0, *(part.too_large for part in parts)]),
        )


def frame_costs(planned: PlannedSet, first: int, last: int, budgets: Budgets) -> FrameCosts:
    """Return the costs of frames first to last - 1 of a set."""
    atoms, edges = planned.index.counts(first, last)
    edges = edges[:, planned.cutoff_number]
    too_large = budgets.exceeded(edges, atoms)
    filled = (budgets.edges, budgets.atoms)
    if budgets.oversize == "skip":
        filled = (0, 0)
    return FrameCosts(
        edges=np.where(too_large, filled[0], np.maximum(edges, 1)).astype(np.int64),
        atoms=(atoms if filled[1] is None else np.where(too_large, filled[1], atoms)).astype(np.int64),
        too_large=too_large,
    )


class Units:
    """Units of a set: their frames, costs and copies per pass."""

    def __init__(self, planned: PlannedSet, budgets: Budgets, at_least: int, rng: np.random.Generator) -> None:
        """Split a set so that a pass reads at least `at_least` units, or single frames if there are fewer."""
        # the decimal as written: 0.1 is once in ten passes, not once in 9.999...
        self.repeat = Fraction(str(planned.repeat))
        bounds = _bounds(planned.index.first_frame, at_least / self.repeat)
        sums, self.num_too_large = _sums(planned, budgets, bounds)
        # a unit without frames would take a place in the rotation of a fractional repeat
        kept = np.flatnonzero(sums[0])
        self.first: Int64[np.ndarray, " units"] = bounds[:-1][kept]
        self.last: Int64[np.ndarray, " units"] = bounds[1:][kept]
        self.sums: Int64[np.ndarray, "3 units"] = sums[:, kept]
        """Numbers of frames, edges and atoms of each unit, as counted in a plan."""
        self._place = rng.permutation(len(kept))
        ordered = np.zeros((3, len(kept)), dtype=np.int64)
        ordered[:, self._place] = self.sums
        self._sums_before = np.concatenate([np.zeros((3, 1), np.int64), np.cumsum(ordered, axis=1)], axis=1)

    def copies(self, number: int) -> Int64[np.ndarray, " units"]:
        """Return the number of times that a pass reads each unit."""
        (whole, start), (whole_next, start_next) = self._rotation(number), self._rotation(number + 1)
        return whole_next - whole + (self._place >= start_next).astype(np.int64) - (self._place >= start)

    def totals(self, number: int) -> Int64[np.ndarray, " 3"]:
        """Return the numbers of frames, edges and atoms that a pass reads, without looking at its units."""
        (whole, start), (whole_next, start_next) = self._rotation(number), self._rotation(number + 1)
        return (whole_next - whole) * self._sums_before[:, -1] + (
            self._sums_before[:, start] - self._sums_before[:, start_next]
        )

    def _rotation(self, number: int) -> tuple[int, int]:
        """Return the number of reads of every unit before a pass, and the first place in the rotation with one more."""
        reads = number * self.repeat
        whole = reads.numerator // reads.denominator
        # floor(reads + place / units) is one more than floor(reads) from this place on
        return whole, len(self._place) - int((reads - whole) * len(self._place))


def _bounds(first_frame: Int64[np.ndarray, " bounds"], at_least: Fraction) -> Int64[np.ndarray, " more_bounds"]:
    """Return the first frames of units: blocks, halved down to single frames until there are at least at_least."""
    sizes = np.diff(first_frame)
    parts, largest = np.ones_like(sizes), int(sizes.max(initial=0))
    while parts.sum() < at_least and largest > 1:
        largest = -(-largest // 2)
        parts = np.maximum(1, -(-sizes // largest))
    part = np.arange(parts.sum()) - np.repeat(np.cumsum(parts) - parts, parts)
    bounds = np.repeat(first_frame[:-1], parts) + part * np.repeat(sizes, parts) // np.repeat(parts, parts)
    return np.append(bounds, first_frame[-1])


def _sums(
    planned: PlannedSet, budgets: Budgets, bounds: Int64[np.ndarray, " bounds"]
) -> tuple[Int64[np.ndarray, "3 units"], int]:
    """Return the numbers of frames, edges and atoms of each unit, and the number of frames above a budget."""
    blocks, cutoff = planned.index.blocks, planned.cutoff_number
    if len(bounds) - 1 == len(blocks.num_frames):
        sums = np.stack([blocks.num_frames.astype(np.int64), blocks.cost[:, cutoff], blocks.num_atoms])
        to_read = budgets.exceeded(blocks.max_edges[:, cutoff], blocks.max_atoms)
    else:
        sums = np.zeros((3, len(bounds) - 1), dtype=np.int64)
        to_read = np.diff(bounds) > 0
    num_too_large = 0
    for first, last in _spans(to_read, bounds):
        costs = frame_costs(planned, int(bounds[first]), int(bounds[last]), budgets)
        ends = bounds[first : last + 1] - bounds[first]
        for row, values in enumerate((costs.edges > 0, costs.edges, costs.atoms)):
            sums[row, first:last] = np.diff(np.concatenate([[0], np.cumsum(values)])[ends])
        num_too_large += int(costs.too_large.sum())
    return sums, num_too_large


def _spans(chosen: Bool[np.ndarray, " units"], bounds: Int64[np.ndarray, " bounds"]) -> Iterator[tuple[int, int]]:
    """Yield spans of units that hold every chosen one, each read at once and of about READ_FRAMES at most."""
    numbers = np.flatnonzero(chosen)
    for same in np.split(numbers, np.flatnonzero(np.diff(bounds[numbers] // READ_FRAMES)) + 1):
        if len(same):
            yield int(same[0]), int(same[-1]) + 1
