"""Batches of structures of any sizes: each takes structures in order until a budget of edges or of atoms is used up.

A batch ends before the structure that would exceed the budget, so the batches from any first structure of one on are
the same as if the structures began there. A structure above the budget is a batch of its own.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from data_pipeline.graphs.batch import GraphBatch, Graphs, float_type, search
from data_pipeline.structure import InvalidStructure, Structure

EDGE_BUDGET = 20_000
"""Number of directed edges of a batch, of which SevenNet-0 takes about 0.7 GB; a larger one is hardly faster on a CPU
(tests/benchmarks/bench_predict.py)."""
ATOM_BUDGET = 8_000
"""Number of atoms of a batch, for structures with few neighbours."""
SEARCHED = 32
"""Number of structures whose pairs are searched at a time."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Pack:
    """Structures of a batch, with their pairs of neighbours."""

    cutoff: float
    """Distance below which atoms are neighbours [Å]."""
    places: list[int] = field(default_factory=list)
    """Place of each structure among all."""
    structures: list[Structure] = field(default_factory=list)
    """Structures."""
    pairs: list[Any] = field(default_factory=list)
    """Pairs of each structure, by search()."""

    def batch(self, dtype: torch.dtype, theory: int = 0) -> GraphBatch:
        """Return the batch, at a level of theory by number; see GraphBatch.to for the float type."""
        theories = [theory] * len(self.structures)
        graphs = Graphs(self.structures, self.cutoff, theories, float_type(dtype), pairs=self.pairs)
        return graphs.batch().to(dtype=dtype)


@dataclass(frozen=True, kw_only=True, eq=False)
class Refused:
    """A structure without a batch."""

    place: int
    """Place among all."""
    error: InvalidStructure
    """Reason."""


def packed(
    structures: Iterable[Structure], cutoff: float, *, edge_budget: int = EDGE_BUDGET, atom_budget: int = ATOM_BUDGET
) -> Iterator[Pack | Refused]:
    """Yield structures in batches, and those that have no neighbour list, as soon as they are found.

    Args:
        structures: Structures.
        cutoff: Distance below which atoms are neighbours [Å].
        edge_budget: Number of directed edges of a batch.
        atom_budget: Number of atoms of a batch.

    Raises:
        ValueError: a budget is not positive.
    """
    if min(edge_budget, atom_budget) < 1:
        raise ValueError(f"the budgets of a batch must be positive, not {edge_budget} edges and {atom_budget} atoms")
    pack, edges, atoms = Pack(cutoff=cutoff), 0, 0
    numbered = enumerate(structures)
    while some := list(itertools.islice(numbered, SEARCHED)):
        for (place, structure), pairs in zip(some, search([each for _, each in some], cutoff), strict=True):
            if isinstance(pairs, InvalidStructure):
                yield Refused(place=place, error=pairs)
                continue
            new = 2 * len(pairs[0])
            if pack.places and (edges + new > edge_budget or atoms + structure.num_atoms > atom_budget):
                yield pack
                pack, edges, atoms = Pack(cutoff=cutoff), 0, 0
            pack.places.append(place)
            pack.structures.append(structure)
            pack.pairs.append(pairs)
            edges, atoms = edges + new, atoms + structure.num_atoms
    if pack.places:
        yield pack
