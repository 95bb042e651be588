"""Batches filled up to a few sizes with atoms that count for nothing, for devices that repeat recorded work.

The added atoms form structures of their own, without labels and of weight zero. They come in couples, each the
neighbour of its partner alone, with as many edges between the two as are needed: of the others they change nothing but
the rounding of sums.
"""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from data_pipeline.graphs.batch import GraphBatch

STEPS = 8
"""Number of sizes from a power of two to the next: at most an eighth is added."""
SMALLEST = 8
"""Smallest step between sizes."""
DEGREE = 32
"""Largest number of edges of an added atom; a much longer row than the others would keep them waiting."""
DISTANCE = 0.9
"""Distance in a couple, over the cutoff."""


class Bucket(NamedTuple):
    """Sizes of a batch that is filled up."""

    atoms: int
    """Number of atoms."""
    pairs: int
    """Number of pairs of neighbours."""
    graphs: int
    """Number of structures."""

    @staticmethod
    def of(batch: GraphBatch) -> "Bucket":
        """Return the sizes to which a batch is filled up; at least one structure of two atoms is added."""
        pairs, graphs = rounded(len(batch.pair_edges)), rounded(batch.num_graphs + 1)
        couples = max(1, -(-(pairs - len(batch.pair_edges)) // DEGREE))
        added = max(2 * couples, graphs - batch.num_graphs)
        return Bucket(rounded(len(batch.numbers) + added), pairs, graphs)


def rounded(number: int) -> int:
    """Round a size up to one of those that are allowed."""
    step = max(SMALLEST, (1 << max(number, 1).bit_length() - 1) // STEPS)
    return -(-number // step) * step


def padded(batch: GraphBatch, bucket: Bucket, cutoff: float) -> GraphBatch:
    """Return a batch filled up to the sizes of a bucket, on its device; its own rows come first.

    Args:
        batch: Structures, at least one.
        bucket: Sizes, by `Bucket.of`.
        cutoff: Distance below which atoms are neighbours [Å].

    Raises:
        ValueError: it is a graph of molecules, which cannot be filled up.
    """
    if batch.molecule is not None:
        raise ValueError("a graph of molecules cannot be filled up, only a graph of atoms")
    atoms, graphs = bucket.atoms - len(batch.numbers), bucket.graphs - batch.num_graphs
    places = torch.arange(atoms, device=batch.numbers.device)
    sizes = torch.ones_like(batch.num_atoms[:1]).repeat(graphs)
    sizes[-1] = atoms - graphs + 1
    added = _edges_of_couples(batch, bucket) | {
        "numbers": batch.numbers[:1].expand(atoms),
        "positions": torch.stack([DISTANCE * cutoff * places, *[torch.zeros_like(places)] * 2], dim=1),
        "graph_of_atom": batch.num_graphs + places.clamp(max=graphs - 1),
        "num_atoms": sizes,
        "forces": batch.forces.new_zeros(atoms, 3),
    }
    for name in ("cell", "energy", "stress", "has_forces", "has_stress", "theory", "weight"):
        like = getattr(batch, name)
        added[name] = like.new_zeros(graphs, *like.shape[1:])
    return replace(batch, **{name: torch.cat([own, added[name]]) for name, own in batch.tensors().items()})


def _edges_of_couples(batch: GraphBatch, bucket: Bucket) -> dict[str, Tensor]:
    """Return the added parts of all tensors of edges.

    Couple i is the added atoms 2i and 2i + 1. Its edges follow those of couple i - 1: the edges of atom 2i, then their
    reverses.
    """
    atoms, edges, pairs = len(batch.numbers), batch.num_edges, len(batch.pair_edges)
    added = bucket.pairs - pairs
    most = -(-added // ((bucket.atoms - atoms) // 2))
    number = torch.arange(added, device=batch.pairs.device)
    couple = number // max(most, 1)
    before = couple * most
    size = (added - before).clamp(max=most)
    first = before + number
    second = first + size
    order, atom = torch.cat([first, second]), atoms + 2 * couple

    def placed(of_first: Tensor, of_second: Tensor) -> Tensor:
        """Return values of both edges of every pair in the order of edges."""
        return torch.empty_like(order).scatter_(0, order, torch.cat([of_first, of_second]))

    row = torch.arange(1, bucket.atoms - atoms + 1, device=number.device)
    # the rows of whole couples before, and of this one the first
    pointers = ((row // 2) * most).clamp(max=added) + (((row + 1) // 2) * most).clamp(max=added)
    return {
        "receivers": placed(atom, atom + 1),
        "senders": placed(atom + 1, atom),
        "pairs": placed(pairs + number, pairs + number),
        "reverse": placed(edges + second, edges + first),
        "pair_edges": edges + first,
        "row_pointers": edges + pointers,
        "shifts": batch.shifts.new_zeros(2 * added, 3),
    }
