"""Edge counts: those of the neighbour list, for every kind of cell, at every cutoff."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.building.edge_count import EdgeCounter, Edges
from data_pipeline.graphs.batch import neighbor_list
from data_pipeline.sources import AseFiles, EmtAlloys
from data_pipeline.structure import InvalidStructure, Structure

CUTOFFS = (3.0, 5.5, 4.0)


def expected(structure: Structure) -> list[int]:
    return [len(neighbor_list(structure, cutoff).distances) for cutoff in CUTOFFS]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.booleans(), min_size=3, max_size=3), st.integers(1, 30))
def test_counts_are_those_of_the_neighbour_list(seed: int, pbc: list[bool], num_atoms: int) -> None:
    rng = np.random.default_rng(seed)
    cell = np.diag(rng.uniform(2.5, 9.0, 3)) + rng.uniform(-1.5, 1.5, (3, 3))
    structure = Structure.checked(
        numbers=[6] * num_atoms,
        positions=rng.uniform(-12.0, 12.0, (num_atoms, 3)),
        cell=cell,
        pbc=pbc,
        energy=0.0,
    )
    (edges,) = EdgeCounter(CUTOFFS)([structure])
    try:
        counts = expected(structure)
    except InvalidStructure:
        assert isinstance(edges, InvalidStructure)
        return
    assert isinstance(edges, Edges)
    assert edges.counts == counts
    distances = neighbor_list(structure, max(CUTOFFS)).distances
    assert edges.closest == pytest.approx(distances.min() if len(distances) else np.inf, rel=1e-9)


def test_counts_of_real_frames_are_those_of_the_neighbour_list(real_data: Path) -> None:
    frames = list(AseFiles(files=(str(real_data / "mptrj-1k" / "mptrj-random-1k.xyz"),)))[:100]
    frames += list(AseFiles(files=(str(real_data / "lpsc" / "600K.extxyz"),)))[:1]
    assert [edges.counts for edges in EdgeCounter(CUTOFFS)(frames)] == [expected(frame) for frame in frames]


@pytest.mark.parametrize("spacing", [2.5, 2.75, 3.0, 4.0, 5.5])
def test_distances_at_a_cutoff_count_as_in_the_neighbour_list(spacing: float) -> None:
    structure = Structure.checked(
        numbers=[29], positions=[[0.1, 0.2, 0.3]], cell=spacing * np.eye(3), pbc=[True] * 3, energy=0.0
    )
    (edges,) = EdgeCounter(CUTOFFS)([structure])
    assert edges.counts == expected(structure)


def test_atoms_at_the_same_place_are_named(random_structure: Callable[..., Structure]) -> None:
    structure = random_structure(0)
    positions = structure.positions.copy()
    positions[3] = positions[1] + structure.cell[2] + 0.01
    good, bad = EdgeCounter(CUTOFFS)([structure, replace(structure, positions=positions)])
    assert isinstance(good, Edges)
    assert isinstance(bad, InvalidStructure)
    assert "frame 'frame-0': two atoms at the same place: atoms 1 and 3 are 0.0173 Å apart" in str(bad)


def test_both_ways_of_counting_agree() -> None:
    frames = list(EmtAlloys(num_frames=60))
    product, pairs = (EdgeCounter(CUTOFFS, isolated=isolated)(frames) for isolated in (False, True))
    assert [edges.counts for edges in product] == [edges.counts for edges in pairs]
    assert [edges.closest for edges in product] == pytest.approx([edges.closest for edges in pairs], rel=1e-9)
