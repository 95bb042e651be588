"""Edge counts of each frame at each cutoff, at a fraction of the cost of finding the edges.

A plan needs numbers, not edges. In a small frame all squared distances to half of its periodic images are one matrix
product, and counting them takes a third of the time of vesin's cheapest list (17,000 and 6,000 frames/s on MPtrj at 5
Å; its sorted full list: 4,000). vesin counts when rounding could decide (a distance at a cutoff), when atoms nearly
coincide, and for large frames, where the product would cost more.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int

from data_pipeline.graphs.molecules import MoleculeCutoff, molecules_of
from data_pipeline.graphs.neighbors import Cells, NeighborSearch
from data_pipeline.structure import MIN_DISTANCE, InvalidStructure, Structure

MAX_DISTANCES = 200_000
"""Largest number of distances in one product: above, vesin is faster (about 250 atoms); also bounds memory."""
SERIAL_DISTANCES = 40_000
"""Largest number of distances in one call of the product: above, OpenBLAS uses all cores, which costs more than it
saves."""
MAX_RADIUS = 200.0
"""Largest distance of an atom from the middle of its frame [Å]: above, the product's rounding could decide."""
TIE = 1e-9
"""Distance from a squared cutoff [Å²] below which the product does not decide; its rounding is far smaller."""


class Edges(NamedTuple):
    """Edge counts of one frame."""

    counts: list[int]
    """Number of directed edges at each cutoff."""
    closest: float
    """Smallest distance of two atoms [Å] if it is below the largest cutoff, infinite otherwise."""
    num_isolated: int
    """Number of atoms without a neighbour within the largest cutoff, if requested."""


class EdgeCounter:
    """Counter of the directed edges of frames; with isolated, also of the atoms without edges."""

    def __init__(self, cutoffs: tuple[float, ...], *, isolated: bool = False) -> None:
        """Count edges at cutoffs [Å], of which those between molecules come last.

        Raises:
            ValueError: there is no cutoff between atoms, or it is not before those between molecules.
        """
        between = tuple(each for each in cutoffs if isinstance(each, MoleculeCutoff))
        self._of_molecules = EdgeCounter(tuple(map(float, between))) if between else None
        cutoffs = cutoffs[: len(cutoffs) - len(between)]
        if not cutoffs or any(isinstance(each, MoleculeCutoff) for each in cutoffs):
            raise ValueError("need cutoffs between atoms, and those between molecules after them")
        self._cutoffs, self._isolated = cutoffs, isolated
        self._largest = int(np.argmax(cutoffs))
        self._squares = np.square(cutoffs).tolist()
        # fresh memory for every frame costs as much as the arithmetic
        self._distances, self._below = np.empty(MAX_DISTANCES), np.empty(MAX_DISTANCES, dtype=bool)
        self._left, self._right = np.ones((MAX_DISTANCES, 5)), np.ones((MAX_DISTANCES, 5))
        self._search = NeighborSearch(max(cutoffs))

    def __call__(self, structures: Sequence[Structure]) -> list[Edges | InvalidStructure]:
        """Return the counts of each frame, or the error: atoms at the same place, or too many in one place.

        With cutoffs between molecules it is also an error if a frame does not say which atoms are one.
        """
        if not structures:
            return []
        result = self._of_atoms(structures)
        if self._of_molecules is not None:
            for number, structure in enumerate(structures):
                if isinstance(edges := result[number], Edges):
                    result[number] = self._with_molecules(edges, structure)
        return result

    def _with_molecules(self, edges: Edges, structure: Structure) -> Edges | InvalidStructure:
        """Return the counts of a frame with those between its molecules behind them."""
        assert self._of_molecules is not None
        try:
            (found,) = self._of_molecules([molecules_of(structure).centres])
        except InvalidStructure as error:
            return error
        return edges._replace(counts=edges.counts + found.counts) if isinstance(found, Edges) else found

    def _of_atoms(self, structures: Sequence[Structure]) -> list[Edges | InvalidStructure]:
        cells = self._search.cells(structures)
        products = [None] * len(structures) if self._isolated else self._by_product(structures, cells)
        result: list[Edges | InvalidStructure] = []
        for number, structure in enumerate(structures):
            try:
                result.append(products[number] or self._by_list(structure, cells, number))
            except InvalidStructure as error:
                result.append(InvalidStructure(f"frame {structure.id!r}: {error}"))
        return result

    def _by_product(self, structures: Sequence[Structure], cells: Cells) -> list[Edges | None]:
        """Count from all distances at once; None if that is not exact or not cheap."""
        num_atoms = np.array([s.num_atoms for s in structures])
        starts = np.cumsum(num_atoms) - num_atoms
        pbc = np.stack([s.pbc for s in structures])
        # number of cells on each side that can hold neighbours: the cutoff over the distance of the cell's faces
        repeats = np.ceil(self._cutoffs[self._largest] * np.linalg.norm(cells.inverses, axis=1)) * pbc
        cheap = cells.usual & (num_atoms**2 * (2 * repeats + 1).prod(axis=1) <= 10 * MAX_DISTANCES)
        fractions = _times(np.concatenate([s.positions for s in structures]), cells.inverses, num_atoms)
        fractions -= np.floor(fractions) * np.repeat(pbc, num_atoms, axis=0)
        fractions -= np.repeat(np.add.reduceat(fractions, starts) / num_atoms[:, None], num_atoms, axis=0)
        positions = np.split(_times(fractions, cells.vectors, num_atoms), starts[1:])
        return [
            self._from_distances(
                positions[number], _half_of_images(*repeats[number].astype(int).tolist()) @ cells.vectors[number]
            )
            if cheap[number]
            else None
            for number in range(len(structures))
        ]

    def _from_distances(
        self, cell_positions: Float64[np.ndarray, "atoms 3"], translations: Float64[np.ndarray, "images 3"]
    ) -> Edges | None:
        """Count between the atoms of a cell, around the origin, and those of its images; the first is the cell."""
        num_atoms = len(cell_positions)
        positions = (translations[:, None] + cell_positions).reshape(-1, 3)
        squares = np.einsum("ij,ij->i", positions, positions)
        if squares[:num_atoms].max() > MAX_RADIUS**2:
            return None
        # beyond the outermost atom plus the cutoff there are no neighbours
        inside = squares < (squares[:num_atoms].max() ** 0.5 + self._cutoffs[self._largest]) ** 2 + TIE
        positions, squares = positions[inside], squares[inside]
        if num_atoms * len(positions) > MAX_DISTANCES:
            return None
        # |a - b|² = a·(-2b) + 1·|b|² + |a|²·1 as one product
        left, right = self._left[:num_atoms], self._right[: len(positions)]
        left[:, :3], left[:, 4] = cell_positions, squares[:num_atoms]
        np.multiply(positions, -2.0, out=right[:, :3])
        right[:, 3] = squares
        size = num_atoms * len(right)
        distances = self._distances[:size].reshape(num_atoms, -1)
        rows = max(1, SERIAL_DISTANCES // len(right))
        for first in range(0, num_atoms, rows):
            np.matmul(left[first : first + rows], right.T, out=distances[first : first + rows])
        below = self._below[:size].reshape(num_atoms, -1)
        distances.reshape(-1)[:: len(right) + 1] = np.inf  # an atom and itself
        closest = float(distances.min())
        if closest < (2 * MIN_DISTANCE) ** 2:
            return None
        counts = []
        for square in self._squares:
            number = np.count_nonzero(np.less(distances, square - TIE, out=below))
            if number != np.count_nonzero(np.less(distances, square + TIE, out=below)):
                return None
            # each pair in the cell is counted both ways, each pair with an image once
            counts.append(int(2 * number - np.count_nonzero(below[:, :num_atoms])))
        return Edges(counts, closest**0.5 if closest < self._squares[self._largest] else np.inf, 0)

    def _by_list(self, structure: Structure, cells: Cells, number: int) -> Edges:
        # no copies: the arrays live until the next call
        usual = bool(cells.usual[number])
        pairs, _, distances = self._search(structure, cells.vectors[number], usual=usual, copy=False)
        closest = float(distances.min()) if len(distances) else np.inf
        counts = [2 * int(np.count_nonzero(distances < cutoff)) for cutoff in self._cutoffs]
        counts[self._largest] = 2 * len(distances)
        return Edges(counts, closest, structure.num_atoms - len(np.unique(pairs)) if self._isolated else 0)


def _times(
    vectors: Float64[np.ndarray, "atoms 3"],
    matrices: Float64[np.ndarray, "frames 3 3"],
    num_atoms: Int[np.ndarray, " frames"],
) -> Float64[np.ndarray, "atoms 3"]:
    """Multiply the vectors of each frame by its matrix."""
    return np.einsum("ai,aij->aj", vectors, np.repeat(matrices, num_atoms, axis=0))


@lru_cache(maxsize=1024)
def _half_of_images(first: int, second: int, third: int) -> Float64[np.ndarray, "images 3"]:
    """Return the zero translation and one of each opposite pair, up to the given steps in each direction."""
    steps = np.stack(np.meshgrid(*(np.arange(-n, n + 1.0) for n in (first, second, third)), indexing="ij"), axis=-1)
    steps = steps.reshape(-1, 3)
    return steps[len(steps) // 2 :]
