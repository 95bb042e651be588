"""Graphs of molecules: atoms unwrapped across boundaries, edges between centres."""

import itertools
from dataclasses import replace

import ase
import ase.build
import numpy as np
import pytest
import torch

from data_pipeline.building.edge_count import EdgeCounter
from data_pipeline.graphs.batch import collate
from data_pipeline.graphs.molecules import MoleculeCutoff, molecules_of
from data_pipeline.structure import InvalidStructure, Structure

CELL = np.array([[9.0, 0.0, 0.0], [2.1, 8.5, 0.0], [-1.3, 0.9, 10.2]])


def waters(count: int = 5, pbc: bool = True) -> Structure:
    """Water molecules at random in a triclinic cell, wrapped into it atom by atom, their atoms not side by side."""
    rng = np.random.default_rng(count)
    water = ase.build.molecule("H2O").positions
    places = [water @ np.linalg.qr(rng.normal(size=(3, 3)))[0] + rng.uniform(0, 1, 3) @ CELL for _ in range(count)]
    positions, labels = np.concatenate(places), np.repeat(7 * np.arange(count) + 2, 3)
    if pbc:
        fractions = positions @ np.linalg.inv(CELL)
        positions = (fractions - np.floor(fractions)) @ CELL
    order = rng.permutation(3 * count)
    return Structure.checked(
        numbers=np.tile([8, 1, 1], count)[order],
        positions=positions[order],
        cell=CELL,
        pbc=[pbc] * 3,
        energy=0.0,
        molecules=labels[order],
    )


def test_atoms_of_a_molecule_are_brought_together_whatever_their_images() -> None:
    structure = waters()
    found = molecules_of(structure)
    unwrapped = structure.positions + found.images @ structure.cell
    assert np.abs(found.images).max() == 1
    for number, label in enumerate(np.unique(structure.molecules)):
        own = unwrapped[structure.molecules == label]
        assert np.linalg.norm(own[:, None] - own, axis=2).max() < 1.7
        np.testing.assert_allclose(found.centres.positions[number], own.mean(axis=0), atol=1e-12)
        assert (found.molecule[structure.molecules == label] == number).all()
    moved = np.random.default_rng(0).integers(-3, 4, (structure.num_atoms, 3)) @ structure.cell
    other = molecules_of(replace(structure, positions=structure.positions + moved))
    np.testing.assert_allclose(
        structure.positions + moved + other.images @ structure.cell - unwrapped,
        np.rint((structure.positions + moved + other.images @ structure.cell - unwrapped) @ np.linalg.inv(CELL)) @ CELL,
        atol=1e-9,
    )


def brute_force(structure: Structure, cutoff: float) -> list[tuple[int, int, tuple[float, ...]]]:
    """Edges between the centres from all images, which the search does not use."""
    centres, found = molecules_of(structure).centres.positions, []
    for shift in itertools.product(range(-3, 4), repeat=3):
        vectors = centres[None] + np.array(shift) @ structure.cell - centres[:, None]
        lengths = np.linalg.norm(vectors, axis=2)
        found += [(int(i), int(j), shift) for i, j in np.argwhere((lengths < cutoff) & (lengths > 1e-9))]
    return sorted(found)


@pytest.mark.parametrize("cutoff", [4.0, 9.5])
def test_edges_join_the_centres_of_molecules(cutoff: float) -> None:
    two = [waters(), waters(3)]
    batch = collate(two, MoleculeCutoff(cutoff), torch.float64)
    expected = [brute_force(structure, cutoff) for structure in two]
    assert batch.num_edges == sum(map(len, expected))
    edges = zip(batch.receivers.tolist(), batch.senders.tolist(), batch.shifts.tolist(), strict=True)
    shifted = [(i + 5, j + 5, shift) for i, j, shift in expected[1]]
    assert sorted((i, j, tuple(map(int, shift))) for i, j, shift in edges) == sorted([*expected[0], *shifted])
    assert batch.graph_of_molecule is not None
    assert batch.graph_of_molecule.tolist() == [0] * 5 + [1] * 3
    counts = torch.bincount(batch.receivers, minlength=8)
    assert batch.row_pointers.tolist() == [0, *counts.cumsum(0).tolist()]
    assert batch.molecule is not None
    assert batch.molecule.tolist() == [*molecules_of(two[0]).molecule, *(5 + molecules_of(two[1]).molecule)]


def test_edges_are_counted_as_the_graph_has_them() -> None:
    structures = [waters(), waters(4)]
    cutoffs = (3.0, 5.0, MoleculeCutoff(4.0), MoleculeCutoff(9.5))
    for structure, edges in zip(structures, EdgeCounter(cutoffs)(structures), strict=True):
        assert not isinstance(edges, InvalidStructure)
        assert edges.counts == [collate([structure], cutoff).num_edges for cutoff in cutoffs]
    unlabelled = replace(structures[0], has_molecules=False)
    (refused,) = EdgeCounter(cutoffs)([unlabelled])
    assert isinstance(refused, InvalidStructure)
    with pytest.raises(ValueError, match="cutoffs between atoms"):
        EdgeCounter((MoleculeCutoff(4.0), 3.0))


def test_a_cutoff_between_molecules_is_none_between_atoms() -> None:
    assert MoleculeCutoff(5.0) != 5.0
    assert MoleculeCutoff(5.0) == MoleculeCutoff(5.0)
    assert len({5.0, MoleculeCutoff(5.0), MoleculeCutoff(5.0)}) == 2


def test_a_molecule_as_long_as_its_cell_is_refused() -> None:
    chain = Structure.checked(
        numbers=[6] * 9,
        positions=[[float(x), 0, 0] for x in range(9)],
        cell=np.diag([8.8, 20, 20]),
        pbc=[True] * 3,
        energy=0.0,
        molecules=[0] * 9,
    )
    with pytest.raises(InvalidStructure, match="too large for its cell"):
        molecules_of(chain)
    whole = replace(chain, pbc=np.array([False, True, True]))
    np.testing.assert_allclose(molecules_of(whole).centres.positions, [[4.0, 0, 0]], atol=1e-12)


@pytest.mark.parametrize("wrong", [[0.5, 1, 2], [0, 1], [2**31, 0, 0], [[0, 1, 2]]])
def test_labels_of_molecules_are_whole_numbers_one_for_each_atom(wrong: list) -> None:
    free: dict = {"cell": np.zeros((3, 3)), "pbc": [False] * 3, "energy": 0.0}
    with pytest.raises(InvalidStructure, match="molecules"):
        Structure.checked(numbers=[1] * 3, positions=2.0 * np.eye(3), molecules=wrong, **free)
