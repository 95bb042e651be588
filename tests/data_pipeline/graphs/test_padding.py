"""Batches filled up to a bucket: a valid neighbour list, few sizes, and predictions that stay what they were."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data_pipeline.graphs.batch import GraphBatch, collate
from data_pipeline.graphs.padding import DEGREE, Bucket, padded, rounded
from data_pipeline.sources import EmtAlloys
from data_pipeline.structure import Structure

CUTOFF = 4.0
FRAMES = list(EmtAlloys(num_frames=12))


def batch_of(first: int, count: int) -> GraphBatch:
    return collate(FRAMES[first : first + count], CUTOFF, torch.float64)


def check_edges(batch: GraphBatch) -> None:
    """Assert what GraphBatch says of its edges."""
    edges, rows = torch.arange(batch.num_edges), batch.row_pointers
    assert len(rows) == len(batch.numbers) + 1
    assert [int(rows[0]), int(rows[-1])] == [0, batch.num_edges]
    assert torch.equal(batch.receivers, torch.repeat_interleave(torch.arange(len(batch.numbers)), rows.diff()))
    assert torch.equal(batch.reverse[batch.reverse], edges)
    assert torch.equal(batch.senders[batch.reverse], batch.receivers)
    assert torch.equal(batch.pairs[batch.reverse], batch.pairs)
    first = edges < batch.reverse
    assert torch.equal(batch.pair_edges, edges[first])
    assert torch.equal(batch.pairs[first], torch.arange(len(batch.pair_edges)))
    assert torch.equal(batch.edge_vectors()[batch.reverse], -batch.edge_vectors())
    lengths = batch.edge_vectors().norm(dim=1)
    assert lengths.min() > 0.5
    assert lengths.max() <= CUTOFF


@given(first=st.integers(0, 8), count=st.integers(1, 4))
def test_a_filled_batch_is_a_batch_of_the_bucket(first: int, count: int) -> None:
    batch = batch_of(first, count)
    bucket = Bucket.of(batch)
    whole = padded(batch, bucket, CUTOFF)
    assert (len(whole.numbers), len(whole.pair_edges), whole.num_graphs) == bucket
    check_edges(whole)
    for name, own in batch.tensors().items():
        found = whole.tensors()[name]
        assert found.dtype == own.dtype
        assert torch.equal(found[: len(own)], own)
    assert torch.equal(whole.num_atoms, torch.bincount(whole.graph_of_atom))
    for name in ("weight", "has_forces", "has_stress"):
        assert not getattr(whole, name)[batch.num_graphs :].any()
    degrees = whole.row_pointers.diff()[len(batch.numbers) :]
    assert int(degrees.max()) <= DEGREE


def test_a_single_atom_without_neighbours_is_filled_up() -> None:
    atom = Structure.checked(numbers=[29], positions=[[0.0, 0.0, 0.0]], cell=np.zeros((3, 3)),
                             pbc=[False] * 3, energy=0.0)  # fmt: skip
    batch = collate([atom], CUTOFF, torch.float64)
    whole = padded(batch, Bucket.of(batch), CUTOFF)
    assert whole.num_edges == 0
    assert not whole.row_pointers.any()
    assert (len(whole.numbers), whole.num_graphs) == (8, 8)


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=50))
def test_sizes_are_few_and_not_much_larger(sizes: list[int]) -> None:
    for size in sizes:
        assert size <= rounded(size) <= max(1.125 * size, size + 7)
        assert rounded(rounded(size)) == rounded(size)


def test_up_to_a_large_size_there_are_eight_sizes_for_a_doubling() -> None:
    assert len({rounded(size) for size in range(1, 2**15)}) <= 8 * 15


def test_molecules_are_refused() -> None:
    batch = batch_of(0, 1)
    grains = GraphBatch(**batch.tensors(), molecule=batch.graph_of_atom)
    with pytest.raises(ValueError, match="molecules"):
        padded(grains, Bucket.of(batch), CUTOFF)
