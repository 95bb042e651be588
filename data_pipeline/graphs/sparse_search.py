"""Neighbour search for atoms far apart and thin cells, which usual searches cannot handle.

Images are those of the shortest lattice vectors, so that a sheared cell has no more of them than a straight one. Bins
are as wide as the cutoff, empty ones are not stored, and a gap of any width counts as one empty bin. Work and memory
grow with the number of pairs only. Pure numpy: about a millisecond for a small frame, five times vesin's.
"""

import itertools
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float64, Int, Int32, Int64

from data_pipeline.structure import MAX_DENSITY, MIN_DISTANCE, InvalidStructure

MAX_IMAGES = 1_000_000
"""Largest number of images of atoms, beyond those of a cell as wide as the cutoff."""
MANY_CANDIDATES = 10_000_000
"""Number of candidates below which the density is not checked."""
CHUNK = 300_000
"""Number of candidates whose distances are computed at a time."""
MARGIN = 1.001
"""Factor of the cutoff within which images are made and pairs are candidates; the distances decide."""
MAX_SHIFT = 2**24
"""Largest number of lattice vectors between two neighbours, above which float32 would round it."""


def sparse_pairs(
    positions: Float64[np.ndarray, "atoms 3"],
    cell: Float64[np.ndarray, "3 3"],
    pbc: Bool[np.ndarray, " 3"],
    cutoff: float,
) -> tuple[Int64[np.ndarray, "pairs 2"], Int32[np.ndarray, "pairs 3"], Float64[np.ndarray, " pairs"]]:
    """Return both atoms of every pair closer than the cutoff [Å], the shift of the second, and the distances [Å].

    The vector of a pair is positions[second] + shift·cell - positions[first]; each pair occurs once. The search ends
    early with atoms closer than MIN_DISTANCE. The vectors of directions that do not repeat must be unit vectors
    orthogonal to the others.

    Raises:
        InvalidStructure: more pairs than in any material, or neighbours more than MAX_SHIFT cells apart.
    """
    steps = shortest_lattice(cell, pbc)
    basis = steps @ cell
    inverse = np.linalg.inv(basis)
    fractions = positions @ inverse
    home = np.floor(fractions) * pbc
    atoms, turns = _images(fractions - home, pbc, MARGIN * cutoff * np.linalg.norm(inverse, axis=0))
    images = (fractions - home)[atoms] + turns
    found = []
    for first, image in _candidates(images @ basis, len(positions), cutoff):
        second = atoms[image]
        shifts = (turns[image] - home[second] + home[first]) @ steps
        # each pair once: from its lower atom, and between an atom and its own image in one of both directions
        ahead = (second > first) | ((second == first) & (shifts @ _LEADING > 0))
        first, second, shifts = first[ahead], second[ahead], shifts[ahead]
        vectors = positions[second] - positions[first]
        for axis in range(3):  # in vesin's order, so that rounding decides a tie in the same way
            vectors += shifts[:, axis : axis + 1] * cell[axis]
        squares = np.square(vectors).sum(axis=1)
        near = squares < cutoff**2
        found.append((np.stack([first[near], second[near]], axis=1), shifts[near], np.sqrt(squares[near])))
        if squares.min(initial=np.inf) < MIN_DISTANCE**2:
            break  # one pair at the same place is enough to refuse the structure, and there are often many
    ends, shifts, distances = (np.concatenate(parts) for parts in zip(*found, strict=True))
    if np.abs(shifts).max(initial=0.0) > MAX_SHIFT:
        first, second = ends[np.abs(shifts).max(axis=1).argmax()].tolist()
        raise InvalidStructure(
            f"atoms {first} and {second} are neighbours more than {MAX_SHIFT:,} cells apart; wrap them into the cell"
        )
    return ends, shifts.astype(np.int32), distances


_LEADING = np.array([2.0**50, 2.0**25, 1.0])
"""Weights whose product with a shift has the sign of its first nonzero component."""


def shortest_lattice(cell: Float64[np.ndarray, "3 3"], pbc: Bool[np.ndarray, " 3"]) -> Float64[np.ndarray, "3 3"]:
    """Return integers whose product with a cell has the shortest vectors in the directions that repeat.

    Vectors are shortened by one another until no two or three of them make a shorter one (Minkowski's conditions in
    three dimensions; Nguyen and Stehlé, ACM Trans. Algorithms 5, 46 (2009)).
    """
    steps = np.eye(3)
    repeated = np.flatnonzero(pbc).tolist()
    changed = len(repeated) > 1
    while changed:
        changed = False
        for one in repeated:
            others = [other for other in repeated if other != one]
            vectors = steps @ cell
            square = vectors[one] @ vectors[one]
            rounds = [np.rint(vectors[one] @ vectors[o] / (vectors[o] @ vectors[o])) * steps[o] for o in others]
            signed = itertools.product(*([-steps[o], steps[o]] for o in others))
            for change in [*(-r for r in rounds), *(sum(signs) for signs in signed)]:
                shorter = (steps[one] + change) @ cell
                if shorter @ shorter < square * (1 - 1e-9):
                    steps[one] += change
                    changed = True
                    break
    return steps


def _images(
    fractions: Float64[np.ndarray, "atoms 3"], pbc: Bool[np.ndarray, " 3"], reach: Float64[np.ndarray, " 3"]
) -> tuple[Int64[np.ndarray, " images"], Float64[np.ndarray, "images 3"]]:
    """Return atom and shift of every image within reach of the cell, in lattice vectors; first the atoms themselves."""
    atoms, turns = np.arange(len(fractions)), np.zeros((len(fractions), 3))
    for axis in np.flatnonzero(pbc).tolist():
        expected = len(atoms) * (1 + 2 * reach[axis])
        if expected > max(MAX_IMAGES, 30 * len(fractions)):
            raise _too_dense(f"within the cutoff of a cell are over {expected:.0e} images of its atoms")
        moved = [(atoms, turns)]
        for turn in range(1, int(reach[axis]) + 2):
            for signed in (-turn, turn):
                place = fractions[atoms, axis] + signed
                inside = (place >= -reach[axis]) & (place < 1 + reach[axis])
                moved.append((atoms[inside], turns[inside] + signed * np.eye(3)[axis]))
        atoms, turns = (np.concatenate(parts) for parts in zip(*moved, strict=True))
    return atoms, turns


def _candidates(
    points: Float64[np.ndarray, "images 3"], num_atoms: int, cutoff: float
) -> Iterator[tuple[Int64[np.ndarray, " pairs"], Int64[np.ndarray, " pairs"]]]:
    """Yield, in chunks, an atom and an image in the same bin or in bins that touch; the first points are the atoms."""
    bins = [_ranks(np.floor(column / (MARGIN * cutoff))) for column in points.T]
    sizes = [int(column.max()) + 2 for column in bins]
    keys = (bins[0] * sizes[1] + bins[1]) * sizes[2] + bins[2]
    order = np.argsort(keys, kind="stable")
    around = [(x * sizes[1] + y) * sizes[2] for x, y in itertools.product((-1, 0, 1), repeat=2)]
    # the three bins along the last axis are neighbours in order as well
    places = keys[:num_atoms, None] + np.array(around)
    starts = np.searchsorted(keys[order], places - 1, side="left")
    counts = np.searchsorted(keys[order], places + 1, side="right") - starts
    each = counts.sum(axis=1)
    if each.sum() > MANY_CANDIDATES:
        fullest = int(np.unique(keys, return_counts=True)[1].max())
        if fullest > MAX_DENSITY * (MARGIN * cutoff) ** 3:
            raise _too_dense(f"{fullest:,} of them and their images are in one cube of {MARGIN * cutoff:.3g} Å")
    cuts = np.searchsorted(np.cumsum(each), np.arange(CHUNK, int(each.sum()), CHUNK))
    for some in np.split(np.arange(num_atoms), cuts):
        begin, number = starts[some].reshape(-1), counts[some].reshape(-1)
        places = np.arange(number.sum()) + np.repeat(begin - (np.cumsum(number) - number), number)
        yield np.repeat(some, each[some]), order[places]


def _ranks(values: Float64[np.ndarray, " images"]) -> Int[np.ndarray, " images"]:
    """Return integers in the same order, from one, with longer gaps closed to one empty place."""
    unique, inverse = np.unique(values, return_inverse=True)
    return np.cumsum([1, *np.minimum(np.diff(unique), 2)]).astype(np.int64)[inverse]


def _too_dense(measured: str) -> InvalidStructure:
    return InvalidStructure(
        f"atoms or lattice vectors closer than in any material: {measured}; check the cell and its unit"
    )
