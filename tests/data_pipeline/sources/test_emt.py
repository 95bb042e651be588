"""EMT alloys: frames depend on seed and number only, labels fit the energy, groups are compositions."""

import itertools
from collections import defaultdict

import ase
import numpy as np
import pytest
from ase.calculators.emt import EMT

from data_pipeline.sources import EmtAlloys
from data_pipeline.structure import Structure


def contents(structure: Structure) -> tuple:
    arrays = (structure.numbers, structure.positions, structure.cell, structure.forces, structure.stress)
    return (structure.id, structure.group, structure.energy, *(array.tobytes() for array in arrays))


@pytest.fixture(scope="module")
def all_recipes() -> list[Structure]:
    """Every host, guest, kind and number of guests once."""
    return list(EmtAlloys(num_frames=7 * 6 * 12))


def test_the_same_seed_makes_the_same_frames() -> None:
    source = EmtAlloys(num_frames=15, seed=3)
    assert [contents(s) for s in source] == [contents(s) for s in EmtAlloys(num_frames=15, seed=3)]


def test_another_seed_makes_other_frames() -> None:
    pairs = zip(EmtAlloys(num_frames=8, seed=0), EmtAlloys(num_frames=8, seed=1), strict=True)
    assert all(a.positions.tobytes() != b.positions.tobytes() and a.id != b.id for a, b in pairs)


def test_a_frame_does_not_depend_on_how_many_are_asked_for() -> None:
    few, many = EmtAlloys(num_frames=5), EmtAlloys(num_frames=40)
    assert [contents(s) for s in few] == [contents(s) for s in itertools.islice(many, 5)]


def test_there_are_as_many_frames_as_asked_for_and_all_have_all_labels() -> None:
    structures = list(EmtAlloys(num_frames=17))
    assert len(structures) == 17
    assert all(s.has_forces and s.has_stress for s in structures)
    assert len({s.id for s in structures}) == 17


def energy(structure: Structure, positions: np.ndarray, cell: np.ndarray) -> float:
    atoms = ase.Atoms(numbers=structure.numbers, positions=positions, cell=cell, pbc=structure.pbc)
    atoms.calc = EMT()
    return atoms.get_potential_energy()


@pytest.fixture(scope="module")
def smallest() -> Structure:
    return min(EmtAlloys(num_frames=12), key=lambda structure: structure.num_atoms)


def test_energy_is_that_of_emt(smallest: Structure) -> None:
    assert energy(smallest, smallest.positions, smallest.cell) == pytest.approx(smallest.energy, abs=1e-12)


def test_forces_are_minus_the_derivative_of_the_energy(smallest: Structure) -> None:
    step = 1e-4
    numeric = np.zeros((smallest.num_atoms, 3))
    for index in np.ndindex(*numeric.shape):
        change = np.zeros_like(numeric)
        change[index] = step
        above, below = (energy(smallest, smallest.positions + s * change, smallest.cell) for s in (1, -1))
        numeric[index] = -(above - below) / (2 * step)
    assert np.abs(numeric).max() > 0.1
    np.testing.assert_allclose(smallest.forces, numeric, atol=1e-5)


def test_stress_is_the_derivative_with_strain_positive_in_tension(smallest: Structure) -> None:
    step = 1e-5
    numeric = np.zeros((3, 3))
    for a, b in np.ndindex(3, 3):
        strain = np.zeros((3, 3))
        strain[a, b] += step / 2
        strain[b, a] += step / 2
        above, below = (
            energy(smallest, smallest.positions @ deformed, smallest.cell @ deformed)
            for deformed in (np.eye(3) + strain, np.eye(3) - strain)
        )
        numeric[a, b] = (above - below) / (2 * step * smallest.volume)
    assert np.abs(numeric).max() > 0.005
    np.testing.assert_allclose(smallest.stress, numeric, atol=1e-6)


def test_groups_do_not_differ_by_the_order_of_a_composition(all_recipes: list[Structure]) -> None:
    groups = defaultdict(set)
    for structure in all_recipes:
        kind = structure.group.partition("-")[0]
        groups[kind, tuple(np.sort(structure.numbers))].add(structure.group)
    assert all(len(names) == 1 for names in groups.values())


def test_a_composition_that_two_hosts_reach_is_one_group(all_recipes: list[Structure]) -> None:
    hosts = defaultdict(int)
    for structure in all_recipes:
        hosts[structure.group] += 1
    assert hosts["bulk-Cu2Ni2"] == 2
    assert len({group for group in hosts if group.startswith("bulk")}) == 7 + 7 * 6 + 7 * 6 // 2


def test_every_metal_and_kind_occurs(all_recipes: list[Structure]) -> None:
    assert {int(z) for s in all_recipes for z in s.numbers} == {13, 28, 29, 46, 47, 78, 79}
    assert {s.group.partition("-")[0] for s in all_recipes} == {"bulk", "vacancy", "slab", "primitive"}
