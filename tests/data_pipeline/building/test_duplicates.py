"""Duplicates: found exactly, also across rounding boundaries and lattice translations, and the first is kept."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.building.duplicates import (
    content_key,
    content_keys,
    find_duplicates,
    fingerprint,
    frames_in_both,
    same,
)
from data_pipeline.structure import Structure


def found(structures: list[Structure], tolerance: float) -> dict[int, int]:
    prints = [fingerprint(structure) for structure in structures]
    return find_duplicates(
        np.array([p.key for p in prints], dtype=np.uint64),
        np.array([p.projections for p in prints]),
        np.array([p.steepness for p in prints]),
        tolerance,
        structures.__getitem__,
    )


def by_comparing_all(structures: list[Structure], tolerance: float) -> dict[int, int]:
    repeats: dict[int, int] = {}
    for second in range(len(structures)):
        for first in range(second):
            if first not in repeats and same(structures[first], structures[second], tolerance):
                repeats[second] = first
                break
    return repeats


def moved(structure: Structure, by: float, seed: int) -> Structure:
    """Every atom displaced by exactly this length in some direction, and whole lattice vectors."""
    rng = np.random.default_rng(seed)
    steps = rng.normal(size=(structure.num_atoms, 3))
    steps *= by / np.linalg.norm(steps, axis=1)[:, None]
    translations = rng.integers(-2, 3, (structure.num_atoms, 3)) * structure.pbc
    return replace(structure, positions=structure.positions + steps + translations @ structure.cell)


PERIODIC = ([True] * 3, [True, True, False], [False, False, True], [False] * 3)


@pytest.mark.parametrize("pbc", PERIODIC)
def test_small_displacements_and_lattice_translations_are_found_and_larger_ones_are_not(
    random_structure: Callable[..., Structure], pbc: list[bool]
) -> None:
    first = replace(random_structure(1), pbc=np.array(pbc))
    assert found([first, moved(first, 0.9e-3, 2)], 1e-3) == {1: 0}
    assert found([first, moved(first, 1.2e-3, 3)], 1e-3) == {}


def test_pairs_that_straddle_a_rounding_boundary_are_found(random_structure: Callable[..., Structure]) -> None:
    tolerance = 1e-3
    frames = []
    for number in range(300):
        # positions on a boundary of rounding to the tolerance, one frame on each side
        first = random_structure(number)
        boundary = (np.rint(first.positions / tolerance) + 0.5) * tolerance
        frames += [replace(first, positions=boundary + offset) for offset in (-1e-7, 1e-7)]
        # and at a face of the cell
        face = first.positions - first.positions[:1]
        frames += [replace(first, positions=face + offset) for offset in (-1e-7, 1e-7)]
    repeats = found(frames, tolerance)
    assert repeats == {number + 1: number for number in range(0, 1200, 2)}


def test_other_elements_order_cells_and_boundaries_are_no_duplicates(
    random_structure: Callable[..., Structure],
) -> None:
    first = random_structure(0)
    others = [
        replace(first, numbers=first.numbers[::-1].copy()),
        replace(first, cell=first.cell + 0.002),
        replace(first, pbc=np.array([True, True, False])),
    ]
    assert found([first, *others], 1e-3) == {}


def test_a_chain_is_cut_where_it_has_drifted_from_what_is_kept(random_structure: Callable[..., Structure]) -> None:
    first = random_structure(4)
    step = np.array([0.0, 0.0, 0.6e-3])
    chain = [replace(first, positions=first.positions + number * step) for number in range(5)]
    # 1 repeats 0; 2 is too far from 0 and is kept; 3 repeats 2 ...
    assert found(chain, 1e-3) == {1: 0, 3: 2}


def test_many_copies_cost_one_comparison_each(random_structure: Callable[..., Structure]) -> None:
    copies = [random_structure(1)] * 2000
    reads = []
    prints = fingerprint(copies[0])

    def read(number: int) -> Structure:
        reads.append(number)
        return copies[number]

    keys = np.full(2000, prints.key, dtype=np.uint64)
    projections = np.tile(prints.projections, (2000, 1))
    repeats = find_duplicates(keys, projections, np.full(2000, prints.steepness), 1e-3, read)
    assert repeats == dict.fromkeys(range(1, 2000), 0)
    assert len(reads) == 2 * 1999


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(PERIODIC), st.floats(0.0, 2.0), st.floats(0.0, 1.5))
def test_what_comparing_all_pairs_finds_is_found(seed: int, pbc: list[bool], skew: float, strain: float) -> None:
    rng = np.random.default_rng(seed)
    tolerance = 10.0 ** rng.uniform(-4, -1)
    cell = 5.0 * np.eye(3) + skew * rng.uniform(-1.0, 1.0, (3, 3))
    first = Structure.checked(
        numbers=[1, 8, 8], positions=rng.uniform(-9.0, 9.0, (3, 3)), cell=cell, pbc=pbc, energy=0.0
    )
    frames = [first]
    for number in range(8):
        near = moved(frames[rng.integers(len(frames))], tolerance * rng.uniform(0.0, 1.5), seed + number)
        change = strain * tolerance * rng.uniform(-1.0, 1.0, (3, 3))
        # atoms move with the cell, as in a strained crystal
        periodic = near.cell[near.pbc]
        follow = near.positions @ np.linalg.pinv(periodic) @ change[near.pbc] if len(periodic) else 0.0
        frames.append(replace(near, cell=near.cell + change, positions=near.positions + follow))
    assert found(frames, tolerance).keys() == by_comparing_all(frames, tolerance).keys()


def renamed(structure: Structure, name: str, digits: int = 12) -> Structure:
    return replace(structure, id=name, energy=structure.energy + 1.0, positions=np.round(structure.positions, digits))


def test_frames_are_the_same_by_their_atoms_not_by_name_or_labels(
    random_structure: Callable[..., Structure],
) -> None:
    first = [random_structure(seed) for seed in range(6)]
    second = [renamed(first[4], "x"), moved(first[0], 1e-2, 0), renamed(moved(first[2], 2e-5, 1), "y", digits=5)]
    second = [replace(each, id=first[0].id) for each in second]
    assert frames_in_both(first, second) == [(4, 0), (2, 2)]
    assert frames_in_both(first, []) == frames_in_both([], second) == []
    assert frames_in_both(first[:1], [moved(first[0], 1e-3, 0)], tolerance=2e-3) == [(0, 0)]


def test_a_frame_held_out_twice_is_found_again(random_structure: Callable[..., Structure]) -> None:
    frame = random_structure(0)
    pairs = frames_in_both([frame, renamed(frame, "again")], [renamed(frame, "a"), renamed(frame, "b")])
    assert pairs == [(0, 0), (0, 1)]


@pytest.mark.parametrize("change", ["float32", "8 decimals", "translated"])
def test_a_key_is_found_where_positions_are_rounded_otherwise(
    random_structure: Callable[..., Structure], change: str
) -> None:
    for seed in range(100):
        structure = random_structure(seed)
        positions = {
            "float32": structure.positions.astype(np.float32).astype(np.float64),
            "8 decimals": np.round(structure.positions, 8),
            "translated": structure.positions + structure.cell[0] - 2 * structure.cell[2],
        }[change]
        assert content_key(structure) in content_keys(replace(structure, positions=positions, id="other"))
        assert content_key(structure) not in content_keys(moved(structure, 0.01, seed))
