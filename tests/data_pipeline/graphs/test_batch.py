"""Neighbour lists against a search over all pairs and images; batches; what is refused."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch

from data_pipeline.graphs.batch import TENSORS, GraphBatch, collate, neighbor_list, to_graph
from data_pipeline.structure import InvalidStructure, Structure


def structure(positions: np.ndarray, cell: np.ndarray, pbc: tuple[bool, ...], id: str = "s") -> Structure:
    numbers = np.full(len(positions), 29)
    return Structure.checked(numbers=numbers, positions=positions, cell=cell, pbc=list(pbc), energy=-1.0, id=id)


def all_pairs(frame: Structure, cutoff: float) -> dict[tuple[int, ...], float]:
    """Distance of every (receiver, sender, *shift) closer than the cutoff, by trying every pair and image."""
    spread = np.linalg.norm(np.ptp(frame.positions, axis=0))
    periodic = frame.cell[frame.pbc]
    # |shift·cell| is at least the smallest singular value times |shift|
    smallest = np.linalg.svd(periodic, compute_uv=False).min() if len(periodic) else np.inf
    reach = int((cutoff + spread) / smallest) + 1
    found = {}
    for shift in itertools.product(*[range(-reach, reach + 1) if p else (0,) for p in frame.pbc]):
        vectors = frame.positions[None] + np.array(shift) @ frame.cell - frame.positions[:, None]
        lengths = np.linalg.norm(vectors, axis=2)
        for i, j in np.argwhere(lengths < cutoff):
            if i != j or any(shift):
                found[int(i), int(j), *shift] = float(lengths[i, j])
    return found


def listed(frame: Structure, cutoff: float) -> dict[tuple[int, ...], float]:
    edges = neighbor_list(frame, cutoff)
    keys = [
        (int(i), int(j), *map(int, shift))
        for i, j, shift in zip(edges.receivers, edges.senders, edges.shifts, strict=True)
    ]
    assert len(set(keys)) == len(keys)
    return dict(zip(keys, edges.distances.tolist(), strict=True))


def random_cell(seed: int, pbc: tuple[bool, ...]) -> Structure:
    """A small skewed cell; no two atoms closer than 0.5 Å; atoms also outside the cell."""
    rng = np.random.default_rng([seed, *pbc])
    while True:
        cell = np.diag(rng.uniform(2.5, 5.0, 3)) + rng.uniform(-2.0, 2.0, (3, 3))
        positions = rng.uniform(-1.0, 2.0, (int(rng.integers(1, 6)), 3)) @ cell
        if np.linalg.svd(cell, compute_uv=False).min() < 1.2:
            continue
        frame = structure(positions, cell, pbc)
        if min(all_pairs(frame, 3.0).values(), default=1.0) > 0.5:
            return frame


def assert_same_pairs(frame: Structure, cutoff: float) -> int:
    expected, got = all_pairs(frame, cutoff), listed(frame, cutoff)
    assert got.keys() == expected.keys()
    for key, length in expected.items():
        assert got[key] == pytest.approx(length, rel=1e-12)
    return len(got)


@pytest.mark.parametrize("pbc", list(itertools.product([True, False], repeat=3)))
@pytest.mark.parametrize("seed", range(3))
def test_random_triclinic_cells(pbc: tuple[bool, ...], seed: int) -> None:
    assert_same_pairs(random_cell(seed, pbc), cutoff=4.0)


def test_a_cutoff_much_longer_than_the_cell() -> None:
    assert assert_same_pairs(random_cell(11, (True, True, True)), cutoff=13.0) > 100


def test_one_atom_with_many_images() -> None:
    cell = np.array([[2.2, 0.0, 0.0], [0.9, 2.0, 0.0], [-0.7, 0.6, 2.1]])
    assert assert_same_pairs(structure(np.array([[7.0, -3.0, 0.5]]), cell, (True, True, True)), cutoff=7.0) > 100


def test_neighbours_of_fcc_are_12_6_24() -> None:
    half = 3.6 / 2
    frame = structure(np.zeros((1, 3)), half * (np.ones((3, 3)) - np.eye(3)), (True, True, True))
    nearest = 3.6 / np.sqrt(2)
    counts = [len(listed(frame, factor * nearest)) for factor in (0.99, 1.01, 1.5, 1.8)]
    assert counts == [0, 12, 18, 42]


@pytest.mark.parametrize("vacuum", [(0, 0, 0), (0, 0, 9), (3, 3, 1e-9), (6, -2, 0.1), (3, 0, 0)])
def test_the_vacuum_vector_of_a_slab_means_nothing(vacuum: tuple[float, ...]) -> None:
    positions = np.array([[0.1, 0.2, 0.0], [1.5, 1.4, 2.0], [0.3, 1.0, 30.0]])
    with_vacuum = structure(positions, np.array([[3, 0, 0], [1, 2.8, 0], vacuum]), (True, True, False))
    reference = structure(positions, np.array([[3, 0, 0], [1, 2.8, 0], [0, 0, 500.0]]), (True, True, True))
    assert assert_same_pairs(with_vacuum, cutoff=6.0) > 20
    assert listed(with_vacuum, 6.0).keys() == listed(reference, 6.0).keys()


@pytest.mark.parametrize("axes", list(itertools.permutations(range(3))))
def test_a_slab_may_lie_in_any_plane(axes: tuple[int, ...]) -> None:
    # the two periodic vectors along any Cartesian axes, so no fixed choice of the third vector will do
    positions = np.array([[0.1, 0.2, 0.0], [1.5, 1.4, 2.0], [0.3, 1.0, 30.0]])
    cell = np.diag([3.0, 2.8, 0.0])
    frame = structure(positions[:, axes], cell[:, axes], (True, True, False))
    assert assert_same_pairs(frame, cutoff=6.0) > 20


@pytest.mark.parametrize("periodic", [0, 1, 2])
def test_a_wire_along_any_axis(periodic: int) -> None:
    cell = np.zeros((3, 3))
    cell[periodic] = [1.0, 2.0, -1.5]
    pbc = tuple(axis == periodic for axis in range(3))
    positions = np.array([[0.0, 0.0, 0.0], [12.0, 1.0, 1.0], [0.7, 0.7, 0.7]])
    assert assert_same_pairs(structure(positions, cell, pbc), cutoff=5.0) > 10


def test_a_molecule_has_no_images() -> None:
    positions = np.array([[0, 0, 0], [1, 0, 0], [0, 3, 0], [40, 40, 40.0]])
    frame = structure(positions, np.zeros((3, 3)), (False, False, False))
    assert {key[:2] for key in listed(frame, 3.5)} == {(0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1)}
    boxed = structure(positions, np.diag([2.0, 2.0, 2.0]), (False, False, False))
    assert listed(boxed, 3.5) == listed(frame, 3.5)


def test_a_pair_exactly_at_the_cutoff_is_no_edge() -> None:
    frame = structure(np.zeros((1, 3)), 2.5 * np.eye(3), (True, True, True))
    assert max(listed(frame, 5.0).values()) < 4.9


def test_both_directions_of_every_edge_are_there() -> None:
    edges = listed(random_cell(5, (True, True, False)), 5.0)
    assert edges
    assert all((j, i, -a, -b, -c) in edges for i, j, a, b, c in edges)


@pytest.mark.parametrize(
    ("positions", "pbc", "pair"),
    [
        (np.array([[0, 0, 0], [2, 2, 2], [2, 2, 2.001]]), (False,) * 3, "atoms (1 and 2|2 and 1)"),
        (np.array([[0, 0, 0], [1, 1, 1], [4, 0, 0.0]]), (True,) * 3, "atoms (0 and 2|2 and 0)"),
    ],
    ids=["molecule", "image"],
)
def test_two_atoms_at_the_same_place_are_named(positions: np.ndarray, pbc: tuple[bool, ...], pair: str) -> None:
    bad = structure(positions, 4.0 * np.eye(3), pbc, id="bad-one")
    good = structure(np.zeros((1, 3)), 4.0 * np.eye(3), pbc, id="good-one")
    with pytest.raises(InvalidStructure, match=f"'bad-one': two atoms at the same place: {pair} are"):
        collate([good, bad], 5.0)


@pytest.fixture(scope="module")
def frames() -> list[Structure]:
    """Periodic, slab, a lone atom without any edge, molecule-like."""
    lone = structure(np.zeros((1, 3)), np.zeros((3, 3)), (False,) * 3, id="lone")
    return [
        random_cell(1, (True,) * 3),
        random_cell(2, (True, True, False)),
        lone,
        random_cell(4, (False,) * 3),
    ]


@pytest.fixture(scope="module")
def batch(frames: list[Structure]) -> GraphBatch:
    return collate(frames, 4.5, torch.float64)


def test_edges_are_sorted_by_receiver_and_row_pointers_bound_them(batch: GraphBatch) -> None:
    assert (batch.receivers.diff() >= 0).all()
    assert len(batch.row_pointers) == len(batch.numbers) + 1
    for atom, (start, stop) in enumerate(itertools.pairwise(batch.row_pointers.tolist())):
        assert torch.equal(torch.nonzero(batch.receivers == atom).flatten(), torch.arange(start, stop))
    assert batch.row_pointers[-1] == batch.num_edges


def test_indices_are_absolute_and_edges_stay_within_a_graph(batch: GraphBatch, frames: list[Structure]) -> None:
    assert torch.equal(batch.graph_of_atom[batch.senders], batch.graph_of_atom[batch.receivers])
    start = 0
    for number, frame in enumerate(frames):
        mine = batch.graph_of_atom[batch.receivers] == number
        edges = neighbor_list(frame, 4.5)
        assert batch.receivers[mine].tolist() == (edges.receivers + start).tolist()
        assert batch.senders[mine].tolist() == (edges.senders + start).tolist()
        start += frame.num_atoms
    assert batch.num_atoms.tolist() == [frame.num_atoms for frame in frames]
    assert batch.graph_of_atom.tolist() == np.repeat(range(4), batch.num_atoms).tolist()


def test_edge_vectors_have_the_lengths_of_the_list(batch: GraphBatch, frames: list[Structure]) -> None:
    lengths = batch.edge_vectors().norm(dim=1)
    expected = np.concatenate([neighbor_list(frame, 4.5).distances for frame in frames])
    np.testing.assert_allclose(lengths, expected, rtol=1e-12)
    assert lengths.max() < 4.5
    assert batch.num_edges > 50


def test_an_edge_and_its_reverse_are_one_pair(batch: GraphBatch) -> None:
    vectors, numbers = batch.edge_vectors(), torch.arange(batch.num_edges)
    assert torch.equal(batch.reverse[batch.reverse], numbers)
    assert torch.equal(batch.senders[batch.reverse], batch.receivers)
    assert torch.equal(vectors[batch.reverse], -vectors)
    assert torch.equal(batch.pairs[batch.reverse], batch.pairs)
    assert torch.equal(batch.pairs[batch.pair_edges], torch.arange(batch.num_edges // 2))
    assert (batch.pair_edges.diff() > 0).all()
    assert (batch.pair_edges < batch.reverse[batch.pair_edges]).all()
    assert torch.equal(batch.pair_vectors(), vectors[batch.pair_edges])


def test_edge_vectors_point_from_receiver_to_sender() -> None:
    frame = structure(np.array([[0, 0, 0], [3.5, 0, 0]]), np.diag([5.0, 50, 50]), (True,) * 3)
    batch = to_graph(frame, 2.0, torch.float64)
    assert batch.receivers.tolist() == [0, 1]
    assert batch.shifts[:, 0].tolist() == [-1.0, 1.0]
    assert batch.edge_vectors()[:, 0].tolist() == [-1.5, 1.5]


def test_a_batch_is_its_structures_one_after_another(batch: GraphBatch, frames: list[Structure]) -> None:
    singles = [to_graph(frame, 4.5, torch.float64) for frame in frames]
    offsets = np.concatenate([[0], np.cumsum([frame.num_atoms for frame in frames])])
    indices = {"senders", "receivers", "row_pointers", "graph_of_atom", "pairs", "reverse", "pair_edges"}
    for name in set(TENSORS) - indices:
        assert torch.equal(getattr(batch, name), torch.cat([getattr(single, name) for single in singles])), name
    senders = torch.cat([s.senders + int(offset) for s, offset in zip(singles, offsets, strict=False)])
    assert torch.equal(batch.senders, senders)
    assert batch.ids == tuple(frame.id for frame in frames)


def test_labels_and_masks_come_along(random_structure: Callable[..., Structure]) -> None:
    full, bare = random_structure(1), random_structure(2, labelled=False)
    batch = collate([full, bare], 3.0, torch.float64)
    assert batch.has_forces.tolist() == batch.has_stress.tolist() == [True, False]
    assert batch.energy.tolist() == [full.energy, bare.energy]
    np.testing.assert_array_equal(batch.forces[:5], full.forces)
    np.testing.assert_array_equal(batch.stress[0], full.stress)
    assert not batch.forces[5:].any()
    assert not batch.stress[1].any()


def test_an_empty_batch_has_no_graphs() -> None:
    batch = collate([], 5.0)
    assert (batch.num_graphs, batch.num_edges, batch.ids) == (0, 0, ())
    assert batch.edge_vectors().shape == (0, 3)
    assert batch.row_pointers.tolist() == [0]
    assert batch.cell.shape == batch.stress.shape == (0, 3, 3)


FLOATS = {"shifts", "forces", "stress"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_float_type_changes_neither_energies_and_indices_nor_where_the_atoms_are(
    frames: list[Structure], dtype: torch.dtype
) -> None:
    original = collate(frames, 4.5)
    converted = original.to("cpu", dtype)
    for name in TENSORS:
        expected = dtype if name in FLOATS else getattr(original, name).dtype
        assert getattr(converted, name).dtype == expected, name
    assert original.forces.dtype == torch.float32
    assert converted.energy.dtype == converted.positions.dtype == converted.cell.dtype == torch.float64
    assert converted.ids == original.ids


def test_without_a_float_type_nothing_changes(batch: GraphBatch) -> None:
    moved = batch.to("cpu")
    assert all(torch.equal(getattr(moved, name), getattr(batch, name)) for name in TENSORS)
    assert moved.positions.dtype == torch.float64


def test_energies_keep_more_digits_than_float32(random_structure: Callable[..., Structure]) -> None:
    frame = random_structure(3)
    precise = Structure(**{**vars(frame), "energy": -123456.789012345})
    assert to_graph(precise, 3.0).energy.item() == -123456.789012345
