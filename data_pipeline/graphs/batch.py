"""GraphBatch: structures with their neighbour lists, concatenated; and functions to make one.

A single structure is a batch of one. Neighbour lists are built on the fly by vesin rather than stored: the edges of a
frame take some thirty times the bytes of its atoms, and vesin is faster than reading them from disk.

All arrays of a batch lie in one buffer, at offsets that follow from a few sizes. So a worker process writes a batch
with numpy into memory shared with the training process, and one copy takes all of it out; the tensors are views. vesin
takes four fifths of the time of a batch.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int, Int64, UInt8
from torch import Tensor

from data_pipeline.graphs.molecules import MoleculeCutoff, molecules_of
from data_pipeline.graphs.neighbors import NeighborSearch, Pairs
from data_pipeline.graphs.pairs import mirror
from data_pipeline.structure import InvalidStructure, Structure

ALIGNMENT = 64
"""Alignment of every array of a batch [bytes]."""


@dataclass(frozen=True, kw_only=True, eq=False)
class GraphBatch:
    """Structures with their neighbour lists, concatenated; one structure is a batch of one.

    Indices are absolute within the batch. An edge points from its receiver to a neighbour: its vector is
    positions[sender] + shift·cell - positions[receiver]. Edges are sorted by receiver.

    In a graph of molecules, made with a MoleculeCutoff, edges join the centres of molecules instead of atoms.
    """

    numbers: Int[Tensor, " atoms"]
    """Atomic numbers."""
    positions: Float64[Tensor, "atoms 3"]
    """Cartesian positions [Å]; float64, because only their differences count, in cells of any size."""
    cell: Float64[Tensor, "graphs 3 3"]
    """Lattice vectors as rows [Å]; a missing one is a zero row."""
    senders: Int[Tensor, " edges"]
    """Atom at the far end of each edge."""
    receivers: Int[Tensor, " edges"]
    """Atom that each edge belongs to, ascending."""
    shifts: Float[Tensor, "edges 3"]
    """Whole lattice vectors from the receiver's cell to the sender's."""
    row_pointers: Int[Tensor, " atoms_plus_one"]
    """The edges of atom i are row_pointers[i] to row_pointers[i + 1] (CSR)."""
    pairs: Int[Tensor, " edges"]
    """Pair of each edge: an edge and the one that runs the other way, which have the same length."""
    reverse: Int[Tensor, " edges"]
    """Index of the opposite edge of the same pair."""
    pair_edges: Int[Tensor, " pairs"]
    """First edge of each pair, the one of its lower receiver; ascending."""
    graph_of_atom: Int[Tensor, " atoms"]
    """Structure that each atom belongs to, ascending."""
    num_atoms: Int[Tensor, " graphs"]
    """Number of atoms of each structure."""
    energy: Float64[Tensor, " graphs"]
    """Labelled total energy [eV]."""
    forces: Float[Tensor, "atoms 3"]
    """Labelled forces [eV/Å]; zero where has_forces is False."""
    stress: Float[Tensor, "graphs 3 3"]
    """Labelled stress [eV/Å³], positive in tension; zero where has_stress is False."""
    has_forces: Bool[Tensor, " graphs"]
    """Structures with labelled forces."""
    has_stress: Bool[Tensor, " graphs"]
    """Structures with a labelled stress."""
    theory: Int[Tensor, " graphs"]
    """Number of the level of theory of each structure's labels."""
    weight: Float64[Tensor, " graphs"]
    """Weight of each structure in the loss."""
    molecule: Int[Tensor, " atoms"] | None = None
    """Molecule of each atom; None in a graph of atoms."""
    images: Float[Tensor, "atoms 3"] | None = None
    """Whole lattice vectors to the image of each atom that is beside the others of its molecule."""
    graph_of_molecule: Int[Tensor, " molecules"] | None = None
    """Structure that each molecule belongs to, ascending."""
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

    def edge_vectors(self) -> Float64[Tensor, "edges 3"]:
        """Return the vector of every edge, from its receiver to its sender [Å]."""
        return self._vectors(self.receivers, self.senders, self.shifts)

    def pair_vectors(self) -> Float64[Tensor, "pairs 3"]:
        """Return the vector of every pair's first edge [Å]."""
        first = self.pair_edges
        return self._vectors(self.receivers[first], self.senders[first], self.shifts[first])

    def _vectors(
        self, receivers: Int[Tensor, " some"], senders: Int[Tensor, " some"], shifts: Float[Tensor, "some 3"]
    ) -> Float64[Tensor, "some 3"]:
        cells = self.cell.index_select(0, self.graph_of_atom[receivers])
        translations = torch.einsum("ei,eij->ej", shifts.to(cells.dtype), cells)
        return self.positions.index_select(0, senders) - self.positions.index_select(0, receivers) + translations

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "GraphBatch":
        """Return the batch on a device, with shifts, forces and stress in a float type; other floats stay float64."""

        def convert(name: str, tensor: Tensor) -> Tensor:
            changes = tensor.is_floating_point() and name not in ("energy", "weight", "positions", "cell")
            return tensor.to(device=device, dtype=dtype if changes else None, non_blocking=True)

        return replace(self, **{name: convert(name, tensor) for name, tensor in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name, those of molecules only in a graph of molecules."""
        names = TENSORS if self.molecule is None else (*TENSORS, *OF_MOLECULES)
        return {name: getattr(self, name) for name in names}


OF_MOLECULES = ("molecule", "images", "graph_of_molecule")
"""Tensors of a graph of molecules alone."""
TENSORS = tuple(item.name for item in fields(GraphBatch) if item.name not in ("ids", *OF_MOLECULES))


@dataclass(frozen=True, kw_only=True, eq=False)
class Edges:
    """The directed edges of one structure, sorted by receiver."""

    receivers: Int64[np.ndarray, " edges"]
    """Atom that each edge belongs to, ascending."""
    senders: Int64[np.ndarray, " edges"]
    """Atom at the far end of each edge."""
    shifts: Int64[np.ndarray, "edges 3"]
    """Whole lattice vectors from the receiver's cell to the sender's."""
    distances: Float64[np.ndarray, " edges"]
    """Lengths [Å]."""


def neighbor_list(structure: Structure, cutoff: float) -> Edges:
    """Return every pair of atoms closer than the cutoff [Å], both ways, periodic images included.

    Raises:
        InvalidStructure: atoms at the same place, or too many in one place; the message names the structure.
    """
    ((ends, shifts, distances),) = _pairs([structure], cutoff)
    mirrored = mirror(ends[:, 0], ends[:, 1], structure.num_atoms)
    return Edges(
        receivers=mirrored.receivers,
        senders=mirrored.senders,
        shifts=mirrored.signed(shifts.astype(np.int64)),
        distances=distances[mirrored.origin][mirrored.pairs],
    )


def search(structures: Sequence[Structure], cutoff: float) -> Iterator[Pairs | InvalidStructure]:
    """Yield the pairs of every structure within the cutoff [Å], each pair once, or the reason why there are none."""
    if isinstance(cutoff, MoleculeCutoff):
        for structure in structures:
            try:
                yield from _search([molecules_of(structure).centres], cutoff)
            except InvalidStructure as error:
                yield error
    elif structures:
        yield from _search(structures, cutoff)


def _search(structures: Sequence[Structure], cutoff: float) -> Iterator[Pairs | InvalidStructure]:
    """Yield the pairs of points."""
    neighbors = NeighborSearch(cutoff)
    cells = neighbors.cells(structures)
    for structure, cell, usual in zip(structures, cells.vectors, cells.usual.tolist(), strict=True):
        try:
            yield neighbors(structure, cell, usual=usual)
        except InvalidStructure as error:
            yield InvalidStructure(f"structure {structure.id!r}: {error}")


def _pairs(structures: Sequence[Structure], cutoff: float) -> list[Pairs]:
    """Return the pairs of every structure, each pair once; a whole batch is mirrored at a time."""
    found: list[Pairs] = []
    for pairs in _search(structures, cutoff) if structures else ():
        if isinstance(pairs, InvalidStructure):
            raise pairs
        found.append(pairs)
    return found


def to_graph(structure: Structure, cutoff: float, dtype: torch.dtype = torch.float32, theory: int = 0) -> GraphBatch:
    """Return one structure as a batch of one, with its edges within the cutoff [Å], at a level of theory by number.

    Raises:
        InvalidStructure: atoms at the same place, or too many in one place; the message names the structure.
    """
    return collate([structure], cutoff, dtype, [theory])


def collate(
    structures: Sequence[Structure],
    cutoff: float,
    dtype: torch.dtype = torch.float32,
    theories: Sequence[int] | None = None,
) -> GraphBatch:
    """Return the structures as one batch, with their edges within the cutoff [Å]; see GraphBatch.to for the float type.

    Without `theories`, every structure is of level of theory 0.

    Raises:
        InvalidStructure: atoms at the same place, or too many in one place; the message names the structure.
    """
    return Graphs(structures, cutoff, theories, float_type(dtype)).batch().to(dtype=dtype)


def float_type(dtype: torch.dtype) -> str:
    """Return NumPy's name of the type in which a batch is written that is then converted to a type of torch's."""
    return "float64" if dtype == torch.float64 else "float32"


@dataclass(frozen=True, kw_only=True)
class BatchLayout:
    """Places of the arrays of a batch in its buffer."""

    num_atoms: int
    """Number of atoms of all structures."""
    num_pairs: int
    """Number of pairs of neighbours, each of two directed edges."""
    num_graphs: int
    """Number of structures."""
    id_bytes: int
    """Size of the names as JSON [bytes]."""
    float_type: str
    """NumPy's name of the type of shifts, forces and stress."""
    num_molecules: int | None = None
    """Number of molecules of all structures; None in a graph of atoms."""

    @property
    def num_points(self) -> int:
        """Number of points that edges join: atoms, or molecules."""
        return self.num_atoms if self.num_molecules is None else self.num_molecules

    @cached_property
    def _places(self) -> dict[str, tuple[int, int, str, tuple[int, ...]]]:
        """First byte, last byte + 1, type and shape of every array."""
        atoms, edges, graphs, real = self.num_atoms, 2 * self.num_pairs, self.num_graphs, self.float_type
        points = self.num_points
        arrays: dict[str, tuple[str, tuple[int, ...]]] = {
            "senders": ("int64", (edges,)),
            "receivers": ("int64", (edges,)),
            "shifts": (real, (edges, 3)),
            "pairs": ("int64", (edges,)),
            "reverse": ("int64", (edges,)),
            "pair_edges": ("int64", (self.num_pairs,)),
            "numbers": ("int64", (atoms,)),
            "row_pointers": ("int64", (points + 1,)),
            "graph_of_atom": ("int64", (atoms,)),
            "positions": ("float64", (atoms, 3)),
            "forces": (real, (atoms, 3)),
            "num_atoms": ("int64", (graphs,)),
            "theory": ("int64", (graphs,)),
            "weight": ("float64", (graphs,)),
            "energy": ("float64", (graphs,)),
            "cell": ("float64", (graphs, 3, 3)),
            "stress": (real, (graphs, 3, 3)),
            "has_forces": ("bool", (graphs,)),
            "has_stress": ("bool", (graphs,)),
        }
        if self.num_molecules is not None:
            arrays["molecule"], arrays["images"] = ("int64", (atoms,)), (real, (atoms, 3))
            arrays["graph_of_molecule"] = ("int64", (points,))
        arrays["ids"] = ("uint8", (self.id_bytes,))
        places, start = {}, 0
        for name, (kind, shape) in arrays.items():
            stop = start + math.prod(shape) * _ITEM_BYTES[kind]
            places[name] = (start, stop, kind, shape)
            start = -(-stop // ALIGNMENT) * ALIGNMENT
        return places

    @property
    def num_bytes(self) -> int:
        """Size of the buffer [bytes]."""
        return self._places["ids"][1]

    def arrays(self, buffer: UInt8[np.ndarray, " bytes"]) -> dict[str, np.ndarray]:
        """Return the arrays in a buffer, as views."""
        return {
            name: buffer[start:stop].view(kind).reshape(shape)
            for name, (start, stop, kind, shape) in self._places.items()
        }

    def batch(self, buffer: UInt8[Tensor, " bytes"]) -> GraphBatch:
        """Return the batch in a buffer, with tensors as views."""
        tensors = {
            name: buffer[start:stop].view(getattr(torch, kind)).view(shape)
            for name, (start, stop, kind, shape) in self._places.items()
        }
        ids = json.loads(tensors.pop("ids").numpy().tobytes())
        return GraphBatch(**tensors, ids=tuple(ids))


_ITEM_BYTES = {"int64": 8, "float64": 8, "float32": 4, "bool": 1, "uint8": 1}


class Graphs:
    """Structures with their edges, not yet concatenated: the size of the batch is known, its buffer is not."""

    def __init__(
        self,
        structures: Sequence[Structure],
        cutoff: float,
        theories: Sequence[int] | None = None,
        float_type: str = "float32",
        weights: Sequence[float] | None = None,
        pairs: list[Any] | None = None,
    ) -> None:
        """Find the edges within the cutoff [Å], unless they were by search(); by default theories are 0, weights 1.

        Raises:
            InvalidStructure: atoms at the same place, or too many in one place; the message names the structure.
        """
        self._structures, self._theories, self._weights = structures, theories, weights
        self._molecules = [molecules_of(s) for s in structures] if isinstance(cutoff, MoleculeCutoff) else None
        self._points = structures if self._molecules is None else [each.centres for each in self._molecules]
        self._pairs: list[Pairs] = _pairs(self._points, cutoff) if pairs is None else pairs
        self._ids = json.dumps([s.id for s in structures]).encode()
        self.layout = BatchLayout(
            num_atoms=sum(s.num_atoms for s in structures),
            num_pairs=sum(len(ends) for ends, _, _ in self._pairs),
            num_graphs=len(structures),
            id_bytes=len(self._ids),
            float_type=float_type,
            num_molecules=None if self._molecules is None else sum(p.num_atoms for p in self._points),
        )

    def batch(self) -> GraphBatch:
        """Return the batch, in a buffer of its own."""
        buffer = torch.empty(self.layout.num_bytes, dtype=torch.uint8)
        self.write(buffer.numpy())
        return self.layout.batch(buffer)

    def write(self, buffer: UInt8[np.ndarray, " bytes"]) -> None:
        """Write the batch into a buffer of the layout's size."""
        arrays, structures = self.layout.arrays(buffer), self._structures
        arrays["ids"][:] = np.frombuffer(self._ids, np.uint8)
        arrays["row_pointers"][0] = 0
        if not structures:
            return
        for name in ("numbers", "positions", "forces"):
            np.concatenate([getattr(s, name) for s in structures], out=arrays[name], casting="unsafe")
        for name in ("cell", "stress"):
            rows = arrays[name].reshape(-1, 3)
            np.concatenate([getattr(s, name) for s in structures], out=rows, casting="unsafe")
        for name in ("num_atoms", "energy", "has_forces", "has_stress"):
            arrays[name][:] = [getattr(s, name) for s in structures]
        arrays["theory"][:] = 0 if self._theories is None else self._theories
        arrays["weight"][:] = 1.0 if self._weights is None else self._weights
        arrays["graph_of_atom"][:] = np.repeat(np.arange(len(structures)), arrays["num_atoms"])
        num_points = np.array([points.num_atoms for points in self._points])
        first_point = np.cumsum(num_points) - num_points
        if self._molecules is not None:
            arrays["molecule"][:] = np.concatenate([each.molecule for each in self._molecules])
            arrays["molecule"] += np.repeat(first_point, arrays["num_atoms"])
            arrays["images"][:] = np.concatenate([each.images for each in self._molecules])
            arrays["graph_of_molecule"][:] = np.repeat(np.arange(len(structures)), num_points)
        ends = np.concatenate([ends for ends, _, _ in self._pairs])
        ends += np.repeat(first_point, [len(ends) for ends, _, _ in self._pairs])[:, None]
        mirrored = mirror(ends[:, 0], ends[:, 1], self.layout.num_points)
        for name in ("receivers", "senders", "pairs", "reverse", "pair_edges"):
            arrays[name][:] = getattr(mirrored, name)
        shifts = np.concatenate([shifts for _, shifts, _ in self._pairs])
        arrays["shifts"][:] = mirrored.signed(shifts.astype(self.layout.float_type))
        degrees = np.bincount(arrays["receivers"], minlength=self.layout.num_points)
        np.cumsum(degrees, out=arrays["row_pointers"][1:])
