"""Edge indices of a batch for the convolution."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class EdgeIndex(NamedTuple):
    """Directed edges sorted by receiver, in pairs.

    Its functions take sizes from shapes, because len() would bind a traced graph to the size that it was traced with.

    An edge and its reverse are a pair: they have the same length, hence the same weights, and opposite directions,
    hence the same harmonics but for the sign of odd degrees. A pair's first edge gives it its direction; an edge
    without a reverse is a pair by itself. Pairs are numbered in the order of their first edges.
    """

    row_pointers: Int[Tensor, " atoms_plus_one"]
    """The edges of receiver i are row_pointers[i] to row_pointers[i + 1]."""
    senders: Int[Tensor, " edges"]
    """Atom at the far end of each edge."""
    pairs: Int[Tensor, " edges"]
    """Pair of each edge."""
    reverse: Int[Tensor, " edges"]
    """Index of the opposite edge of the same pair, or -1. A pair's first edge is the lower one."""
    sender_order: Int[Tensor, " edges"]
    """Edges sorted by sender; among those of one sender, first edges are ascending."""
    sender_pointers: Int[Tensor, " atoms_plus_one"]
    """The edges of sender j are sender_order[sender_pointers[j]] to sender_order[sender_pointers[j + 1]]."""

    @staticmethod
    def single(senders: Int[Tensor, " edges"], receivers: Int[Tensor, " edges"], num_atoms: int) -> "EdgeIndex":
        """Return the index of edges (sorted by receiver) that are each a pair of their own."""
        start = senders.new_zeros(1)
        rows, columns = (torch.bincount(ends, minlength=num_atoms).cumsum(0) for ends in (receivers, senders))
        return EdgeIndex(
            row_pointers=torch.cat([start, rows]),
            senders=senders,
            pairs=torch.arange(senders.shape[0], device=senders.device),
            reverse=torch.full_like(senders, -1),
            sender_order=torch.argsort(senders, stable=True),
            sender_pointers=torch.cat([start, columns]),
        )

    def receivers(self) -> Int[Tensor, " edges"]:
        """Return the atom that each edge belongs to."""
        degrees = self.row_pointers.diff()
        atoms = torch.arange(degrees.shape[0], device=degrees.device)
        return torch.repeat_interleave(atoms, degrees, output_size=self.senders.shape[0])

    def reversed(self) -> Bool[Tensor, " edges"]:
        """Return a mask of edges that run against their pair's direction."""
        numbers = torch.arange(self.reverse.shape[0], device=self.reverse.device)
        return (self.reverse >= 0) & (self.reverse < numbers)


def spread(
    edges: EdgeIndex,
    harmonics: Float[Tensor, "pairs harmonics"],
    weights: Float[Tensor, "pairs weights"],
    odd: tuple[bool, ...],
) -> tuple[Float[Tensor, "edges harmonics"], Float[Tensor, "edges weights"]]:
    """Return the harmonics and weights of every edge; odd harmonics change sign with the edge's direction."""
    turned = 1 - 2 * edges.reversed().to(harmonics.dtype)
    signs = torch.stack([turned if each else torch.ones_like(turned) for each in odd], dim=1)
    return harmonics.index_select(0, edges.pairs) * signs, weights.index_select(0, edges.pairs)
