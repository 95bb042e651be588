"""Duplicates: frames with the same atoms, cell and positions modulo the lattice, to a tolerance, found exactly.

Rounding and hashing would miss a pair that straddles a rounding boundary. Instead each frame gets a few numbers that
are continuous in its cell and positions and periodic in the lattice; they cannot differ by more than a known window
between two frames within the tolerance. So sorting by one of them and comparing each frame with those in its window
finds every pair, and the other numbers leave few of them to compare atom by atom.
"""

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64, UInt64

from data_pipeline.loading.datasets import Frames
from data_pipeline.structure import Structure

NUM_PROJECTIONS = 4
SAME_FRAME = 1e-4
"""Largest change of a position or a cell element of a frame written to another file [Å]: OUTCAR has five decimals."""
GRID = 1e-5
"""Cell of the projections in a content key: far above the change by a position in float32, far below the difference of
two frames of molecular dynamics."""
PAIRS_AT_ONCE = 4_000_000
"""Number of pairs held at once, which bounds memory when many frames are alike."""
_SLACK = 1e-9
"""Allowance for rounding of the projections: far above rounding, far below any sensible tolerance."""


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """Properties that two duplicates share, exactly or nearly."""

    key: int
    """Hash of what must be equal: atomic numbers in order, and the directions that repeat."""
    projections: Float64[np.ndarray, " projections"]
    """Numbers that are nearly equal in nearly equal frames."""
    steepness: float
    """Largest change of a projection per length of a displacement or of a change of the cell [1/Å]."""


def fingerprint(structure: Structure) -> Fingerprint:
    """Return the fingerprint of a frame."""
    lattice, fractions, offsets = _coordinates(structure)
    atom = np.arange(structure.num_atoms)[:, None, None]
    # phases that no symmetry of a crystal shares: multiples of an irrational number
    phases = 2.399963 * atom * np.arange(1, NUM_PROJECTIONS + 1) + 1.1 * np.arange(3)[:, None]
    periodic = np.cos(2 * np.pi * fractions[:, :, None] + phases[:, : len(lattice)]).sum(axis=1)
    free = np.sin(offsets[:, :, None] + phases).sum(axis=1)
    weights = np.cos(1.7 * np.arange(1, lattice.size + 1)[:, None] * np.arange(1, NUM_PROJECTIONS + 1))
    reach = np.linalg.norm(np.linalg.pinv(lattice), axis=0).sum() if len(lattice) else 0.0
    return Fingerprint(
        key=_kind(structure),
        projections=(periodic + free).mean(axis=0) + lattice.ravel() @ weights,
        # a fraction changes by at most `reach` per length of a displacement, an offset by 1 in each of three directions
        # (√3 in all), a cell element by its weight of at most 1
        steepness=float(2 * np.pi * reach + np.sqrt(3.0) + lattice.size),
    )


def _kind(structure: Structure) -> int:
    """Return a hash of what is equal in duplicates: atomic numbers in order, and the directions that repeat."""
    content = structure.numbers.tobytes() + structure.pbc.tobytes()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def content_key(structure: Structure) -> int:
    """Return 64 bits that identify a frame by its atoms, cell and positions modulo the lattice, as nonzero int64."""
    found = fingerprint(structure)
    return _key_of_cell(found.key, np.floor(found.projections / GRID))


def content_keys(structure: Structure) -> set[int]:
    """Return the content keys that a frame may have elsewhere, where its positions are rounded otherwise."""
    found = fingerprint(structure)
    cells = [sorted({*np.floor(each / GRID + np.array([-0.25, 0.25]))}) for each in found.projections]
    return {_key_of_cell(found.key, np.array(cell)) for cell in itertools.product(*cells)}


def _key_of_cell(kind: int, cell: Float64[np.ndarray, " projections"]) -> int:
    content = kind.to_bytes(8, "little") + cell.astype("<i8").tobytes()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little", signed=True) or 1


def frames_in_both(
    first: Sequence[Structure] | Frames, second: Sequence[Structure] | Frames, tolerance: float = SAME_FRAME
) -> list[tuple[int, int]]:
    """Return the places (in first, in second) of each frame of `second` that is in `first`, whatever their names.

    Args:
        first: Frames, the fewer ones.
        second: Other frames; each is read once, and again if it is compared atom by atom.
        tolerance: Largest change of a cell element or of a position [Å].
    """
    prints = [fingerprint(structure) for structure in first]
    kinds, places = {each.key for each in prints}, list[int]()
    for place, structure in enumerate(second):
        if _kind(structure) in kinds:
            prints.append(fingerprint(structure))
            places.append(place)
    if not places:
        return []
    repeats = find_duplicates(
        np.array([each.key for each in prints], dtype=np.uint64),
        np.array([each.projections for each in prints]),
        np.array([each.steepness for each in prints]),
        tolerance,
        lambda number: first[number] if number < len(first) else second[places[number - len(first)]],
    )
    pairs = ((repeats.get(len(first) + number), place) for number, place in enumerate(places))
    return [(found, place) for found, place in pairs if found is not None and found < len(first)]


def same(first: Structure, second: Structure, tolerance: float) -> bool:
    """Return whether two frames have the same atoms, cell and positions modulo the lattice, to a tolerance [Å].

    Positions are compared as fractions of each frame's own cell, so that a strained crystal differs by its cell alone.
    """
    if not np.array_equal(first.numbers, second.numbers) or not np.array_equal(first.pbc, second.pbc):
        return False
    (lattice, fractions, offsets), (other, others, other_offsets) = _coordinates(first), _coordinates(second)
    if lattice.size and np.abs(lattice - other).max() > tolerance:
        return False
    change = fractions - others
    inside = (change - np.rint(change)) @ lattice
    squares = np.square(inside).sum(axis=1) + np.square(offsets - other_offsets).sum(axis=1)
    return bool(squares.max() <= tolerance**2)


def _coordinates(structure: Structure) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the periodic lattice vectors, positions as their multiples, and the remainder in the other directions."""
    lattice = structure.cell[structure.pbc]
    if len(lattice) == 0:
        return lattice, np.zeros((structure.num_atoms, 0)), structure.positions
    fractions = structure.positions @ np.linalg.pinv(lattice)
    offsets = structure.positions - fractions @ lattice if len(lattice) < 3 else np.zeros_like(structure.positions)
    return lattice, fractions, offsets


def find_duplicates(
    keys: UInt64[np.ndarray, " frames"],
    projections: Float64[np.ndarray, "frames projections"],
    steepness: Float64[np.ndarray, " frames"],
    tolerance: float,
    structure: Callable[[int], Structure],
) -> dict[int, int]:
    """Return, for each frame that duplicates an earlier kept one, the earlier one; the first of its kind is kept.

    Frames are in source order; structure(number) reads one. Memory is some 100 bytes per frame.
    """
    pairs = [_repeated(group, projections) for group in _groups(keys)]
    # exact copies first: a thousand of them take a thousand comparisons, not half a million
    copies = _decide(pairs, tolerance, structure)
    rest = np.ones(len(keys), dtype=bool)
    rest[list(copies)] = False
    pairs = []
    for group in _groups(keys):
        remaining = group[rest[group]]
        window = float(steepness[group].max()) * tolerance + _SLACK
        pairs += [remaining[near] for near in _near(projections[remaining], window)]
    repeats = _decide(pairs, tolerance, structure)
    return repeats | {second: repeats.get(first, first) for second, first in copies.items()}


def _groups(keys: UInt64[np.ndarray, " frames"]) -> Iterator[Int64[np.ndarray, " members"]]:
    """Yield the frames of each key that occurs more than once, ascending."""
    order = np.argsort(keys, kind="stable")
    bounds = np.flatnonzero(np.concatenate([[True], keys[order[1:]] != keys[order[:-1]], [True]]))
    for group in np.flatnonzero(np.diff(bounds) > 1).tolist():
        yield order[bounds[group] : bounds[group + 1]]


def _repeated(
    group: Int64[np.ndarray, " members"], projections: Float64[np.ndarray, "frames projections"]
) -> Int64[np.ndarray, "pairs 2"]:
    """Return pairs (first frame with the same projections, frame) for projections that repeat in the group."""
    _, first, kind = np.unique(projections[group], axis=0, return_index=True, return_inverse=True)
    firsts = first[kind.reshape(-1)]
    pairs = np.stack([group[firsts], group], axis=1)
    return pairs[firsts != np.arange(len(group))]


def _near(values: Float64[np.ndarray, "frames projections"], window: float) -> Iterator[Int64[np.ndarray, "pairs 2"]]:
    """Yield every pair of rows that differ by no more than the window in any column."""
    order = np.argsort(values[:, 0], kind="stable")
    ordered = values[order]
    ends = np.searchsorted(ordered[:, 0], ordered[:, 0] + window, side="right")
    counts = ends - np.arange(len(order)) - 1
    first = 0
    while first < len(order):
        # rows with up to PAIRS_AT_ONCE pairs, but at least one row
        total = np.cumsum(counts[first : first + PAIRS_AT_ONCE])
        last = first + max(1, int(np.searchsorted(total, PAIRS_AT_ONCE, side="right")))
        size = counts[first:last]
        left = np.repeat(np.arange(first, first + len(size)), size)
        right = left + 1 + np.arange(len(left)) - np.repeat(np.cumsum(size) - size, size)
        near = (np.abs(ordered[left] - ordered[right]) <= window).all(axis=1)
        if near.any():
            yield np.sort(np.stack([order[left[near]], order[right[near]]], axis=1), axis=1)
        first = last


def _decide(pairs: Sequence[np.ndarray], tolerance: float, structure: Callable[[int], Structure]) -> dict[int, int]:
    """Compare pairs, the earlier frame first; return each frame that duplicates one that is not itself a duplicate."""
    repeats: dict[int, int] = {}
    joined = np.concatenate([np.zeros((0, 2), dtype=np.int64), *pairs])
    for first, second in joined[np.lexsort((joined[:, 0], joined[:, 1]))].tolist():
        known = second in repeats or first in repeats
        if not known and same(structure(first), structure(second), tolerance):
            repeats[second] = first
    return repeats
