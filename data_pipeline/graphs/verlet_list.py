"""Verlet list: neighbours of atoms that move, found again only when two of them may have met unseen.

A search out to the cutoff and a skin finds all pairs that can come within the cutoff while atoms move less than half
the skin (Verlet, Phys. Rev. 159, 98 (1967)). Until then a step costs a subtraction and a comparison for each of them.
The cell may change as well: see VerletList._covers.
"""

import copy
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from data_pipeline.graphs.batch import neighbor_list
from data_pipeline.graphs.neighbors import complete_cell
from data_pipeline.structure import MIN_DISTANCE, Structure

SKIN = 0.5
"""Length beyond the cutoff out to which pairs are kept [Å]: in silicon at 300 K some thirty steps of 1 fs."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Neighbors:
    """Directed edges of one structure within the cutoff, sorted by receiver, sender and lattice vector."""

    row_pointers: Int64[np.ndarray, " atoms_plus_one"]
    """The edges of atom i are row_pointers[i] to row_pointers[i + 1]."""
    receivers: Int64[np.ndarray, " edges"]
    """Atom that each edge belongs to, ascending."""
    senders: Int64[np.ndarray, " edges"]
    """Atom at the far end of each edge."""
    vectors: Float64[np.ndarray, "edges 3"]
    """Vector from receiver to sender [Å]."""
    lengths: Float64[np.ndarray, " edges"]
    """Lengths [Å]."""


class VerletList:
    """Neighbours of one structure after another, fast if each is the one before after a short time.

    The result depends on the structure alone, to the last bit, not on those before.
    """

    def __init__(self, cutoff: float, skin: float = SKIN) -> None:
        """Find neighbours within the cutoff [Å].

        Args:
            cutoff: Cutoff [Å].
            skin: Length beyond it out to which pairs are kept [Å].
        """
        self.cutoff, self.skin = cutoff, skin
        self.num_searches = 0
        """Number of searches so far."""
        self._start: Structure | None = None
        self._skin = 0.0
        self._cell: Float64[np.ndarray, "3 3"] | None = None

    def __call__(self, structure: Structure) -> Neighbors:
        """Return the neighbours in a structure.

        Raises:
            InvalidStructure: atoms at the same place, or too many in one place; the message names the structure.
        """
        if not self._covers(structure, self._skin):
            # the first of a trajectory and a lone structure look the same, and a skin is of no use to the second
            self._search(structure, self.skin if self._covers(structure, 2 * self.skin) else 0.0)
        if self._cell is None or not np.array_equal(self._cell, structure.cell):
            self._cell = structure.cell.copy()
            # not a matrix product, whose digits may depend on the number of rows
            self._translations = (self._shifts[:, :, None] * structure.cell).sum(axis=1)
        vectors = structure.positions.take(self._senders, axis=0)
        vectors -= structure.positions.take(self._receivers, axis=0)
        vectors += self._translations.take(self._shift_of_edge, axis=0)
        lengths = np.sqrt(np.einsum("ei,ei->e", vectors, vectors))
        near = np.flatnonzero(lengths < self.cutoff)
        found = Neighbors(
            row_pointers=np.searchsorted(near, self._row_pointers),
            receivers=self._receivers.take(near),
            senders=self._senders.take(near),
            vectors=vectors.take(near, axis=0),
            lengths=lengths.take(near),
        )
        if len(near) and found.lengths.min() < MIN_DISTANCE:
            neighbor_list(structure, self.cutoff)  # refuses it by name
        return found

    def _covers(self, structure: Structure, skin: float) -> bool:
        """Return True if a search in the first structure out to a skin [Å] found all pairs that are near in this one.

        With the deformation F of the cell and displacements u beyond it, a vector v was (v - Δu) F⁻¹. So pairs within
        the cutoff were within (cutoff + 2 max|u|) ‖F⁻¹‖; a common displacement does not count.
        """
        start = self._start
        if start is None or not (
            np.array_equal(start.numbers, structure.numbers) and np.array_equal(start.pbc, structure.pbc)
        ):
            return False
        stretch, moved = 1.0, structure.positions - start.positions
        if not np.array_equal(start.cell, structure.cell):
            before, now = (complete_cell(each.cell, each.pbc) for each in (start, structure))
            deformation = np.linalg.solve(before, now)
            moved = structure.positions - start.positions @ deformation
            stretch = float(np.linalg.norm(np.linalg.inv(deformation), 2))
        moved -= moved.mean(axis=0)
        farthest = np.sqrt(np.einsum("ai,ai->a", moved, moved).max(initial=0.0))
        return bool((self.cutoff + 2 * farthest) * stretch <= self.cutoff + skin)

    def _search(self, structure: Structure, skin: float) -> None:
        edges = neighbor_list(structure, self.cutoff + skin)
        low = edges.shifts.min(axis=0, initial=0)
        spans = edges.shifts.max(axis=0, initial=0) - low + 1
        shift = np.asarray(np.ravel_multi_index(tuple((edges.shifts - low).T), tuple(spans)))
        order = np.lexsort((shift, edges.senders, edges.receivers))
        self._receivers, self._senders = edges.receivers[order], edges.senders[order]
        found, self._shift_of_edge = np.unique(shift[order], return_inverse=True)
        self._shifts = np.stack(np.unravel_index(found, tuple(spans)), axis=-1) + low.astype(np.float64)
        self._cell = None
        self._row_pointers = np.searchsorted(self._receivers, np.arange(structure.num_atoms + 1))
        # the arrays may be those of a program that changes them in place
        self._start, self._skin = copy.deepcopy(structure), skin
        self.num_searches += 1
