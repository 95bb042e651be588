"""GraphBatch: structures with their neighbour lists, concatenated; and how one is made.

A single structure is a batch of one. Neighbour lists are built on the fly by vesin rather than stored: the edges of a
frame take some thirty times the bytes of its atoms, and vesin is faster than reading them from disk.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
import vesin
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

from data_pipeline.structure import InvalidStructure, Structure

MIN_DISTANCE = 0.1
"""Atoms closer than this [Å] are taken to be at the same place: the hydrogen molecule has 0.74 Å."""


@dataclass(frozen=True, kw_only=True, eq=False)
class GraphBatch:
    """Structures with their neighbour lists, concatenated; one structure is a batch of one.

    Indices are absolute within the batch. An edge points from its receiver to a neighbour: its vector is
    positions[sender] + shift·cell - positions[receiver]. Edges are sorted by receiver.
    """

    numbers: Int[Tensor, " atoms"]
    """Atomic numbers."""
    positions: Float[Tensor, "atoms 3"]
    """Cartesian positions [Å]."""
    cell: Float[Tensor, "graphs 3 3"]
    """Lattice vectors as rows [Å]; a zero row where there is none."""
    senders: Int[Tensor, " edges"]
    """Atom at the far end of each edge."""
    receivers: Int[Tensor, " edges"]
    """Atom that each edge belongs to, ascending."""
    shifts: Float[Tensor, "edges 3"]
    """Whole lattice vectors from the receiver's cell to the sender's."""
    row_pointers: Int[Tensor, " atoms_plus_one"]
    """The edges of atom i are row_pointers[i] to row_pointers[i + 1] (CSR)."""
    graph_of_atom: Int[Tensor, " atoms"]
    """Structure that each atom belongs to, ascending."""
    num_atoms: Int[Tensor, " graphs"]
    """Atoms of each structure."""
    energy: Float64[Tensor, " graphs"]
    """Labelled total energy [eV]."""
    forces: Float[Tensor, "atoms 3"]
    """Labelled forces [eV/Å]; zero where has_forces is False."""
    stress: Float[Tensor, "graphs 3 3"]
    """Labelled stress [eV/Å³], positive in tension; zero where has_stress is False."""
    has_forces: Bool[Tensor, " graphs"]
    """Whether a structure's forces are labelled."""
    has_stress: Bool[Tensor, " graphs"]
    """Whether a structure's stress is labelled."""
    ids: tuple[str, ...] = ()
    """Names of the structures."""

    @property
    def num_graphs(self) -> int:
        """Number of structures."""
        return len(self.num_atoms)

    @property
    def num_edges(self) -> int:
        """Number of directed edges."""
        return len(self.senders)

    def edge_vectors(self) -> Float[Tensor, "edges 3"]:
        """Return the vector of every edge, from its receiver to its sender [Å]."""
        cells = self.cell[self.graph_of_atom[self.receivers]]
        translations = torch.einsum("ei,eij->ej", self.shifts, cells)
        return self.positions[self.senders] - self.positions[self.receivers] + translations

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "GraphBatch":
        """Return the batch on a device, with positions, cell, shifts, forces and stress in a float type."""

        def convert(name: str, tensor: Tensor) -> Tensor:
            changes = tensor.is_floating_point() and name != "energy"
            return tensor.to(device=device, dtype=dtype if changes else None, non_blocking=True)

        return replace(self, **{name: convert(name, getattr(self, name)) for name in TENSORS})

    def pin_memory(self) -> "GraphBatch":
        """Return the batch in page-locked memory, from which copies to an accelerator are asynchronous."""
        return replace(self, **{name: getattr(self, name).pin_memory() for name in TENSORS})


TENSORS = tuple(item.name for item in fields(GraphBatch) if item.name != "ids")


@dataclass(frozen=True, kw_only=True, eq=False)
class Edges:
    """The directed edges of one structure, sorted by receiver."""

    receivers: Int[np.ndarray, " edges"]
    senders: Int[np.ndarray, " edges"]
    shifts: Int[np.ndarray, "edges 3"]
    distances: Float64[np.ndarray, " edges"]
    """Lengths [Å]."""


def neighbor_list(structure: Structure, cutoff: float) -> Edges:
    """Return every pair of atoms closer than the cutoff [Å], both ways, periodic images included.

    Raises:
        InvalidStructure: two atoms are at the same place.
    """
    calculator = vesin.NeighborList(cutoff=cutoff, full_list=True, sorted=True, n_threads=1)
    receivers, senders, shifts, distances = calculator.compute(
        points=structure.positions,
        box=complete_cell(structure.cell, structure.pbc),
        periodic=structure.pbc,
        quantities="ijSd",
    )
    if len(distances) and distances.min() < MIN_DISTANCE:
        edge = int(distances.argmin())
        raise InvalidStructure(
            f"two atoms at the same place: atoms {int(receivers[edge])} and {int(senders[edge])} are "
            f"{distances[edge]:.4f} Å apart (at least {MIN_DISTANCE} Å expected)"
        )
    return Edges(
        receivers=receivers.astype(np.int64),
        senders=senders.astype(np.int64),
        shifts=shifts.astype(np.int64),
        distances=distances,
    )


def complete_cell(cell: Float64[np.ndarray, "3 3"], pbc: Bool[np.ndarray, " 3"]) -> Float64[np.ndarray, "3 3"]:
    """Replace the vectors of the directions that do not repeat by unit vectors orthogonal to those that do.

    A neighbour search needs a cell with a volume; where nothing repeats, the length of a vector means nothing.
    """
    if pbc.all():
        return cell
    periodic = cell[pbc]
    _, _, directions = np.linalg.svd(periodic) if len(periodic) else (None, None, np.eye(3))
    completed = cell.copy()
    completed[~pbc] = directions[len(periodic) :]
    return completed


def to_graph(structure: Structure, cutoff: float, dtype: torch.dtype = torch.float32) -> GraphBatch:
    """Return one structure as a batch of one, with its edges within the cutoff [Å].

    Raises:
        InvalidStructure: two atoms are at the same place.
    """
    return collate([structure], cutoff, dtype)


def collate(structures: Sequence[Structure], cutoff: float, dtype: torch.dtype = torch.float32) -> GraphBatch:
    """Return the structures as one batch in a float type, with their edges within the cutoff [Å].

    Raises:
        InvalidStructure: two atoms of a structure are at the same place; the message names the structure.
    """
    edges = [_named_neighbor_list(structure, cutoff) for structure in structures]
    sizes = np.array([structure.num_atoms for structure in structures], dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    receivers = _concatenate([e.receivers + start for e, start in zip(edges, starts, strict=False)], (0,), np.int64)
    degrees = np.bincount(receivers, minlength=int(starts[-1]))
    arrays = {
        "numbers": _concatenate([s.numbers for s in structures], (0,), np.int64),
        "positions": _concatenate([s.positions for s in structures], (0, 3), np.float64),
        "cell": np.array([s.cell for s in structures], dtype=np.float64).reshape(-1, 3, 3),
        "senders": _concatenate([e.senders + start for e, start in zip(edges, starts, strict=False)], (0,), np.int64),
        "receivers": receivers,
        "shifts": _concatenate([e.shifts for e in edges], (0, 3), np.float32),
        "row_pointers": np.concatenate([[0], np.cumsum(degrees)]).astype(np.int64),
        "graph_of_atom": np.repeat(np.arange(len(sizes)), sizes),
        "num_atoms": sizes,
        "energy": np.array([s.energy for s in structures], dtype=np.float64),
        "forces": _concatenate([s.forces for s in structures], (0, 3), np.float32),
        "stress": np.array([s.stress for s in structures], dtype=np.float32).reshape(-1, 3, 3),
        "has_forces": np.array([s.has_forces for s in structures], dtype=bool),
        "has_stress": np.array([s.has_stress for s in structures], dtype=bool),
    }
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    return GraphBatch(**tensors, ids=tuple(structure.id for structure in structures)).to(dtype=dtype)


def _named_neighbor_list(structure: Structure, cutoff: float) -> Edges:
    try:
        return neighbor_list(structure, cutoff)
    except InvalidStructure as error:
        raise InvalidStructure(f"structure {structure.id!r}: {error}") from error


def _concatenate(arrays: list[np.ndarray], empty_shape: tuple[int, ...], dtype: type) -> np.ndarray:
    if not arrays:
        return np.zeros(empty_shape, dtype)
    return np.concatenate(arrays).astype(dtype, copy=False)
