"""Verlet list: what a search finds, to the last bit, whatever came before; and few searches while atoms move."""

from collections.abc import Iterator

import ase
import numpy as np
import pytest
from ase.build import bulk, fcc111, molecule

from data_pipeline.graphs.batch import neighbor_list
from data_pipeline.graphs.verlet_list import Neighbors, VerletList
from data_pipeline.structure import InvalidStructure, Structure
from foundation.potential import to_structure

CUTOFF = 4.0
STARTS = {
    "crystal": bulk("Cu", cubic=True).repeat(2),
    "cell shorter than the cutoff": bulk("Cu"),
    "slab": fcc111("Al", (2, 3, 3), vacuum=6.0),
    "molecule": molecule("C60"),
    "one atom": ase.Atoms("Ar"),
}


def walk(start: ase.Atoms, step: float, strain: float = 0.0) -> Iterator[Structure]:
    """Yield forty structures, each by a little displaced and deformed against the one before; the array is reused."""
    rng, atoms = np.random.default_rng(3), start.copy()
    for _ in range(40):
        deformed = np.eye(3) + strain * rng.normal(size=(3, 3))
        atoms.set_cell(np.asarray(atoms.cell) @ deformed, scale_atoms=True)
        atoms.positions += step * rng.normal(size=(len(atoms), 3)) + 0.1
        yield to_structure(atoms)


def same(one: Neighbors, other: Neighbors) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in vars(one))


def is_all(found: Neighbors, structure: Structure) -> bool:
    """Return True if the edges are those of a plain search."""
    edges = neighbor_list(structure, CUTOFF)
    keys = [np.lexsort((lengths, s, r)) for r, s, lengths in (
        (edges.receivers, edges.senders, edges.distances), (found.receivers, found.senders, found.lengths)
    )]  # fmt: skip
    return (
        np.array_equal(edges.receivers[keys[0]], found.receivers[keys[1]])
        and np.array_equal(edges.senders[keys[0]], found.senders[keys[1]])
        and np.allclose(edges.distances[keys[0]], found.lengths[keys[1]], atol=1e-9)
    )


@pytest.mark.parametrize("strain", [0.0, 0.002])
@pytest.mark.parametrize("name", STARTS)
def test_neighbours_are_those_of_a_search_whatever_came_before(name: str, strain: float) -> None:
    moving = VerletList(CUTOFF)
    for structure in walk(STARTS[name], 0.02, strain):
        found = moving(structure)
        assert same(found, VerletList(CUTOFF)(structure))
        assert is_all(found, structure)
        assert np.array_equal(np.repeat(np.arange(structure.num_atoms), np.diff(found.row_pointers)), found.receivers)
        spans = found.vectors + structure.positions[found.receivers] - structure.positions[found.senders]
        if structure.pbc.all():
            lattice = spans @ np.linalg.inv(structure.cell)
            assert np.abs(lattice - np.round(lattice)).max(initial=0.0) < 1e-9
    assert 1 <= moving.num_searches < 25


def test_a_common_motion_and_small_steps_need_no_search() -> None:
    moving = VerletList(CUTOFF)
    for structure in walk(STARTS["crystal"], 0.002):
        moving(structure)
    assert moving.num_searches == 2  # the first without a skin


def test_structures_that_have_nothing_in_common_are_searched_each() -> None:
    moving = VerletList(CUTOFF)
    for _ in range(2):
        for atoms in STARTS.values():
            structure = to_structure(atoms)
            assert same(moving(structure), VerletList(CUTOFF)(structure))
    assert moving.num_searches == 2 * len(STARTS)


def test_an_atom_that_jumps_and_one_of_another_element_are_seen() -> None:
    moving, atoms = VerletList(CUTOFF), STARTS["crystal"].copy()
    for change in ("wait", "wait", "jump", "wrap", "swap", "free"):
        if change == "jump":
            atoms.positions[3] += (0.9, 0, 0)
        elif change == "wrap":
            atoms.positions[5] += np.asarray(atoms.cell)[0]
        elif change == "swap":
            atoms.numbers[7] = 79
        elif change == "free":
            atoms.pbc = False
        structure = to_structure(atoms)
        assert same(moving(structure), VerletList(CUTOFF)(structure))
        assert is_all(moving(structure), structure)


def test_a_pair_exactly_at_the_cutoff_is_no_edge() -> None:
    assert len(VerletList(2.0)(to_structure(ase.Atoms("H2", [(0, 0, 0), (0, 0, 2.0)]))).senders) == 0


def test_atoms_that_come_to_the_same_place_are_refused_by_name() -> None:
    moving, atoms = VerletList(CUTOFF), molecule("H2")
    moving(to_structure(atoms))
    moving(to_structure(atoms))
    atoms.positions[1] = atoms.positions[0] + 0.004
    with pytest.raises(InvalidStructure, match="two atoms at the same place: atoms 0 and 1"):
        moving(to_structure(atoms))
