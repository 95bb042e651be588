"""Selection of pretraining frames for rehearsal: by element, at random, or by farthest points.

Elements cost a pass over the blocks (no neighbours are searched). Farthest points cover all kinds of environments,
while a random choice repeats the most common ones; they cost a forward pass of the potential over the candidates
without derivatives, and one product of the candidates' features with a vector for each chosen frame. Both choices are
nested: a smaller choice from the same candidates is contained in a larger one.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float64, Int64

from data_pipeline.loading.datasets import Dataset
from data_pipeline.loading.stream import full_pass
from data_pipeline.loading.subset import Subset
from data_pipeline.structure import MAX_ATOMIC_NUMBER
from foundation.potential import Potential

EDGE_BUDGET = 20000
"""Number of directed edges of a batch whose features are computed; a larger structure is a batch of its own."""


def with_elements(dataset: Dataset, wanted: Sequence[int], known: Sequence[int]) -> Int64[np.ndarray, " chosen"]:
    """Return the frames of a data set that have a wanted element (any if none is named) and only known ones.

    Args:
        dataset: Data set to search; it is read once.
        wanted: Atomic numbers.
        known: Atomic numbers.
    """
    sought, allowed = (np.zeros(MAX_ATOMIC_NUMBER + 1, dtype=bool) for _ in range(2))
    sought[list(wanted or known)], allowed[list(known)] = True, True
    fitting = (bool(sought[f.numbers].any() and allowed[f.numbers].all()) for f in dataset.frames())
    return np.flatnonzero(np.fromiter(fitting, dtype=bool))


def random_part(num_candidates: int, count: int, seed: Sequence[int]) -> Int64[np.ndarray, " chosen"]:
    """Return the indices of `count` random candidates: the first ones of a permutation given by the seed."""
    return np.random.default_rng(seed).permutation(num_candidates)[:count]


def farthest_points(features: Float64[np.ndarray, "candidates features"], count: int) -> Int64[np.ndarray, " chosen"]:
    """Return the indices of `count` candidates, each the farthest from the previous ones (greedy k-center).

    Gonzalez, Theor. Comput. Sci. 38, 293 (1985), starting with the point farthest from the mean; ties go to the first.
    """
    centred = features - features.mean(axis=0)
    squares = np.square(centred).sum(axis=1)
    nearest, chosen = np.full(len(features), np.inf), np.zeros(count, dtype=np.int64)
    for place in range(count):
        chosen[place] = number = int(np.argmax(squares if place == 0 else nearest))
        distances = squares + squares[number] - 2.0 * (centred @ centred[number])
        nearest = np.minimum(nearest, distances)
        # never again, even among equal candidates
        nearest[number] = -np.inf
    return chosen


def frame_features(
    potential: Potential, dataset: Dataset, candidates: Int64[np.ndarray, " candidates"]
) -> Float64[np.ndarray, "candidates features"]:
    """Return the mean of a potential's features over the atoms of each candidate frame."""
    batches = full_pass(
        dataset.manifest,
        dataset.split,
        cutoff=potential.cutoff,
        edge_budget=EDGE_BUDGET,
        theory=dataset.theory_number,
        subset=Subset(candidates),
    )
    training, rows = potential.training, []
    potential.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                moved = batch.to(potential.device)
                features = potential.atom_features(moved).double()
                sums = features.new_zeros(batch.num_graphs, features.shape[1])
                rows.append((sums.index_add_(0, moved.graph_of_atom, features) / moved.num_atoms.unsqueeze(1)).cpu())
    finally:
        potential.train(training)
    return torch.cat(rows).numpy()
