"""Conversion of a half neighbour list into directed edges sorted by receiver, each with the index of its pair.

Quantities that depend only on a pair's length (radial functions, weights of a convolution) are evaluated once per pair,
half as often as per edge. Mirroring half of the pairs takes no longer than searching for all, and makes both directions
agree to the last bit.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64, Shaped


@dataclass(frozen=True, kw_only=True, eq=False)
class Mirrored:
    """Directed edges sorted by receiver. A pair's first edge is the one of its lower receiver."""

    receivers: Int64[np.ndarray, " edges"]
    """Atom that each edge belongs to, ascending."""
    senders: Int64[np.ndarray, " edges"]
    """Atom at the far end of each edge."""
    pairs: Int64[np.ndarray, " edges"]
    """Pair of each edge."""
    reverse: Int64[np.ndarray, " edges"]
    """Index of the opposite edge of the same pair."""
    pair_edges: Int64[np.ndarray, " pairs"]
    """First edge of each pair, ascending."""
    origin: Int64[np.ndarray, " pairs"]
    """Index of each pair in the mirrored list."""
    flipped: Bool[np.ndarray, " pairs"]
    """Pairs whose first edge runs against the list's direction."""

    def signed(self, vectors: Shaped[np.ndarray, "pairs 3"]) -> Shaped[np.ndarray, "edges 3"]:
        """Return for every edge the vector from first to second of its pair in the list, with the sign of the edge."""
        forward = vectors[self.origin]
        forward[self.flipped] *= -1
        both = forward[self.pairs]
        both[self.reverse[self.pair_edges]] *= -1
        return both


def mirror(first: Int64[np.ndarray, " pairs"], second: Int64[np.ndarray, " pairs"], num_atoms: int) -> Mirrored:
    """Return both directions of every pair (first, second) of num_atoms atoms."""
    num_pairs = len(first)
    # numpy sorts short integers in linear time
    key_type = np.uint16 if num_atoms <= 2**16 else np.int64
    flipped = first > second
    lower, higher = np.minimum(first, second), np.maximum(first, second)
    origin = np.argsort(lower.astype(key_type), kind="stable")
    lower, higher = lower[origin], higher[origin]
    receivers = np.concatenate([lower, higher])
    order = np.argsort(receivers.astype(key_type), kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(2 * num_pairs)
    other = np.where(order < num_pairs, order + num_pairs, order - num_pairs)
    return Mirrored(
        receivers=receivers[order],
        senders=np.concatenate([higher, lower])[order],
        pairs=np.where(order < num_pairs, order, order - num_pairs),
        reverse=place[other],
        pair_edges=place[:num_pairs],
        origin=origin,
        flipped=flipped[origin],
    )
