"""The search for sparse atoms and thin cells, against vesin, trying every pair, and the lattice in other vectors."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.graphs.batch import neighbor_list
from data_pipeline.graphs.neighbors import NeighborSearch, complete_cell
from data_pipeline.graphs.sparse_search import shortest_lattice, sparse_pairs
from data_pipeline.structure import InvalidStructure, Structure
from tests.data_pipeline.trying import Found, by_trying, halved

CUTOFF = 4.0
ANY_PBC = st.tuples(*[st.booleans()] * 3)


def structure(positions: np.ndarray, cell: np.ndarray, pbc: Sequence[bool]) -> Structure:
    numbers = np.full(len(positions), 29)
    return Structure.checked(numbers=numbers, positions=positions, cell=cell, pbc=list(pbc), energy=0.0)


def random_frame(seed: int, pbc: Sequence[bool]) -> Structure:
    rng = np.random.default_rng(seed)
    cell = np.diag(rng.uniform(2.5, 9.0, 3)) + rng.uniform(-1.5, 1.5, (3, 3))
    return structure(rng.uniform(-12.0, 12.0, (int(rng.integers(1, 20)), 3)), cell, pbc)


def sparse(frame: Structure, cutoff: float = CUTOFF) -> Found:
    """Distance of every pair (first, second, *shift), the lower atom first, or the shift that is ahead."""
    cell = complete_cell(frame.cell, frame.pbc)
    return halved(*sparse_pairs(frame.positions, cell, frame.pbc, cutoff))


def assert_same(found: Found, expected: Found) -> None:
    assert found.keys() == expected.keys()
    np.testing.assert_allclose([found[key] for key in expected], list(expected.values()), rtol=1e-7, atol=1e-7)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), ANY_PBC)
def test_pairs_of_usual_cells_are_those_of_vesin(seed: int, pbc: tuple[bool, ...]) -> None:
    frame = random_frame(seed, pbc)
    search = NeighborSearch(CUTOFF)
    cells = search.cells([frame])
    assert cells.usual.all()
    try:
        expected = search(frame, cells.vectors[0], usual=True)
    except InvalidStructure:
        return  # atoms at the same place
    assert_same(sparse(frame), halved(*expected))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6),
    ANY_PBC,
    st.tuples(*[st.sampled_from([0.0, 3e2, 1e5, 3e7])] * 3),
    st.tuples(*[st.sampled_from([0.0, 2e3, 1e7])] * 3),
)
def test_gaps_and_vectors_of_any_length_change_nothing_but_the_distances(
    seed: int, pbc: tuple[bool, ...], longer: tuple[float, ...], apart: tuple[float, ...]
) -> None:
    # atoms in two groups far apart, in a cell of which any vector may have run away
    frame = random_frame(seed, pbc)
    second = np.arange(frame.num_atoms) % 2 == 1
    positions = frame.positions + np.outer(second, np.where(pbc, 0.0, apart))
    cell = frame.cell + np.diag(longer)
    frame = structure(positions, cell, pbc)
    assert_same(sparse(frame), by_trying(frame, CUTOFF))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.permutations(range(3)), st.tuples(st.integers(-99, 99), st.integers(-9, 9)))
def test_a_sheared_cell_is_the_lattice_that_it_is(seed: int, axes: list[int], turns: tuple[int, int]) -> None:
    frame = random_frame(seed, (True, True, True))
    shear = np.eye(3)
    for axis, other, turn in zip(axes, axes[1:], turns, strict=False):
        shear[axis] += turn * shear[other]
    sheared = structure(frame.positions, shear @ frame.cell, (True, True, True))
    inverse = np.rint(np.linalg.inv(shear))
    expected = {
        (i, j, *np.rint(np.array(shift) @ inverse).astype(int).tolist()): distance
        for (i, j, *shift), distance in sparse(frame).items()
    }
    pairs = [(key[:2], key[2:], distance) for key, distance in expected.items()]
    columns = ([p[n] for p in pairs] for n in range(3))
    assert_same(sparse(sheared), halved(*(np.array(column) for column in columns)) if pairs else {})


@pytest.mark.parametrize("pbc", [(True, True, True), (True, False, True), (False, False, True)])
def test_the_shortest_lattice_is_the_same_lattice(pbc: tuple[bool, ...]) -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        cell = rng.integers(-40, 41, (3, 3)) + 0.3 * np.eye(3)
        steps = shortest_lattice(cell, np.array(pbc))
        assert abs(np.linalg.det(steps)) == pytest.approx(1.0)
        np.testing.assert_array_equal(steps[~np.array(pbc)], np.eye(3)[~np.array(pbc)])
        short = (steps @ cell)[list(pbc)]
        longest = np.linalg.norm(short, axis=1).max()
        # no combination of small numbers with a part of the longest vector is shorter
        for numbers in itertools.product((-1, 0, 1), repeat=len(short)):
            one = np.array(numbers) @ short
            if numbers[np.linalg.norm(short, axis=1).argmax()]:
                assert np.linalg.norm(one) > longest * (1 - 1e-6)


@pytest.mark.parametrize(
    ("positions", "cell", "pbc", "message"),
    [
        (np.zeros((10_000, 3)), np.eye(3), (False,) * 3, "10,000 of them and their images are in one cube"),
        (np.zeros((1, 3)), np.diag([1e-3, 1e-3, 1e6]), (True, True, False), "images of its atoms"),
        (np.zeros((1, 3)), np.diag([0.05, 9.0, 9.0]), (True,) * 3, "atoms 0 and 0 are 0.0500 Å apart"),
        (np.array([[0, 0, 0], [0, 0, 9e7]]), np.diag([9.0, 9.0, 0.5]), (True,) * 3, "16,777,216 cells apart"),
    ],
)
def test_what_no_material_is_like_is_refused_at_once(
    positions: np.ndarray, cell: np.ndarray, pbc: tuple[bool, ...], message: str
) -> None:
    with pytest.raises(InvalidStructure, match=message):
        neighbor_list(structure(positions, cell, pbc), 5.0)
