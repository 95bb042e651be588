"""Neighbour search: vesin for usual geometries, and a robust search for all others.

vesin divides the cell into bins. Its bins overflow if a cell or a gap is thousands of cutoffs long, and its images take
minutes if a cell is thin. A few products per batch find such frames. They are searched over non-empty bins in the
shortest lattice vectors, or refused with InvalidStructure if denser than any material.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import vesin
from jaxtyping import Bool, Float64, Int32, Int64

from data_pipeline.graphs.sparse_search import sparse_pairs
from data_pipeline.structure import MAX_DENSITY, MIN_DISTANCE, InvalidStructure, Structure

MAX_BINS = 100_000
"""Largest number of bins of vesin; to stay below, it enlarges them in all directions by the same factor."""
MAX_COORDINATE = 10_000.0
"""Largest coordinate passed to vesin [Å]: it counts the cells from there to the origin one by one."""
MAX_IMAGES = 8
"""Number of repetitions of a cell in one direction within the cutoff, above which vesin is slower than the other
search."""
MANY_PAIRS = 10_000_000
"""Number of pairs of atoms and images that can be held at once (0.5 GB); below it, density is not checked."""
Pairs = tuple[Int64[np.ndarray, "pairs 2"], Int32[np.ndarray, "pairs 3"], Float64[np.ndarray, " pairs"]]
"""Both atoms of every pair, lattice vectors (integers) from the first's cell to the second's, and lengths [Å]."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Cells:
    """Cells of some structures, each with a volume."""

    vectors: Float64[np.ndarray, "frames 3 3"]
    """Lattice vectors as rows [Å]; unit vectors orthogonal to the others for directions that do not repeat."""
    inverses: Float64[np.ndarray, "frames 3 3"]
    """Inverse matrices [1/Å]."""
    usual: Bool[np.ndarray, " frames"]
    """Cells in which vesin can search."""


class NeighborSearch:
    """Search for the pairs of atoms closer than a cutoff, periodic images included, each pair once."""

    def __init__(self, cutoff: float) -> None:
        """Search within the cutoff [Å]."""
        self.cutoff = cutoff
        self._list = vesin.NeighborList(cutoff=cutoff, full_list=False, sorted=False, n_threads=1)

    def cells(self, structures: Sequence[Structure]) -> Cells:
        """Return the cells of at least one structure."""
        num_atoms = np.array([s.num_atoms for s in structures])
        pbc, vectors = np.stack([s.pbc for s in structures]), np.stack([s.cell for s in structures])
        for number in np.flatnonzero(~pbc.all(axis=1)).tolist():
            vectors[number] = complete_cell(structures[number].cell, structures[number].pbc)
        inverses = np.linalg.inv(vectors)
        sides = 1.0 / np.linalg.norm(inverses, axis=1)
        images = (2 * np.ceil(self.cutoff / sides) * pbc + 1).prod(axis=1)
        for number in np.flatnonzero(~pbc.all(axis=1)).tolist():
            free = ~pbc[number]
            sides[number, free] = np.ptp(structures[number].positions @ inverses[number][:, free], axis=0)
        bins = np.maximum(sides / self.cutoff, 1.0)
        shrunk = np.minimum(np.cbrt(MAX_BINS / bins.prod(axis=1)), 1.0)
        starts = np.cumsum(num_atoms) - num_atoms
        coordinates = np.concatenate([s.positions.reshape(-1) for s in structures])
        largest = np.maximum.reduceat(np.abs(coordinates, out=coordinates), 3 * starts)
        usual = (largest <= MAX_COORDINATE) & np.where(shrunk < 1, bins.min(axis=1) * shrunk >= 4, True)
        usual &= (~pbc | (sides * MAX_IMAGES >= self.cutoff)).all(axis=1)
        for number in np.flatnonzero(usual & (num_atoms**2 * images > MANY_PAIRS)).tolist():
            usual[number] = self._density(structures[number], vectors[number], sides[number]) <= MAX_DENSITY
        return Cells(vectors=vectors, inverses=inverses, usual=usual)

    def _density(
        self, structure: Structure, vectors: Float64[np.ndarray, "3 3"], sides: Float64[np.ndarray, " 3"]
    ) -> float:
        """Return the largest density [1/Å³] of parts of the cell not much larger than the cutoff."""
        fractions = structure.positions @ np.linalg.inv(vectors)
        parts = np.maximum(np.floor(sides / self.cutoff), 1.0)
        widths = np.where(structure.pbc, 1.0 / parts, np.maximum(self.cutoff, sides / parts))
        fractions -= np.where(structure.pbc, np.floor(fractions), fractions.min(axis=0))
        places = np.minimum(np.floor(fractions / widths), parts - 1).astype(np.int64)
        _, counts = np.unique(np.ravel_multi_index(tuple(places.T), tuple(parts.astype(int))), return_counts=True)
        return float(counts.max() / (abs(np.linalg.det(vectors)) * widths.prod()))

    def __call__(
        self, structure: Structure, cell: Float64[np.ndarray, "3 3"], *, usual: bool, copy: bool = True
    ) -> Pairs:
        """Return the pairs of a structure in its cell of Cells; without copy they are valid until the next call.

        Raises:
            InvalidStructure: two atoms are at the same place, or too many in one place to hold their pairs.
        """
        if usual:
            ends, shifts, distances = self._list.compute(
                points=structure.positions, box=cell, periodic=structure.pbc, quantities="PSd", copy=copy
            )
            ends = ends.view(np.int64)
        else:
            ends, shifts, distances = sparse_pairs(structure.positions, cell, structure.pbc, self.cutoff)
        if len(distances) and distances.min() < MIN_DISTANCE:
            pair = int(distances.argmin())
            first, second = sorted(ends[pair].tolist())
            raise InvalidStructure(
                f"two atoms at the same place: atoms {first} and {second} are {distances[pair]:.4f} Å apart (at least "
                f"{MIN_DISTANCE} Å expected). Correct the frame or remove it from the source."
            )
        return ends, shifts, distances


def complete_cell(cell: Float64[np.ndarray, "3 3"], pbc: Bool[np.ndarray, " 3"]) -> Float64[np.ndarray, "3 3"]:
    """Replace the vectors of the directions that do not repeat by unit vectors orthogonal to those that do.

    A neighbour search needs a cell with a volume; in directions that do not repeat, the length is arbitrary.
    """
    if pbc.all():
        return cell
    periodic = cell[pbc]
    _, _, directions = np.linalg.svd(periodic) if len(periodic) else (None, None, np.eye(3))
    completed = cell.copy()
    completed[~pbc] = directions[len(periodic) :]
    return completed
