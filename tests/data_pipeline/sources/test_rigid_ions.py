"""Rigid ions: derivatives of the energy, Ewald's sums, Madelung's constant; trajectories depend on their number."""

import itertools
import math

import ase
import numpy as np
import pytest

from data_pipeline.sources import RigidIonCrystals
from data_pipeline.sources.rigid_ions import (
    COULOMB,
    LATTICE_CONSTANT,
    STRENGTHS,
    WIDTHS,
    RigidIons,
    crystal,
    dynamics,
)
from data_pipeline.structure import Structure

SKEW = np.array([[0.03, 0.02, 0.0], [0.02, -0.01, 0.03], [0.0, 0.03, 0.02]])
SHORT = RigidIonCrystals(temperatures=(1000.0, 2500.0), repeats=1, trajectories=2, frames=3, interval=2, warm_up=3)


@pytest.fixture(scope="module")
def disordered() -> ase.Atoms:
    """A disordered cell of eight ions without right angles."""
    atoms = crystal(1)
    atoms.rattle(0.2, rng=np.random.default_rng(1))
    atoms.set_cell(np.asarray(atoms.cell) @ (np.eye(3) + SKEW), scale_atoms=True)
    return atoms


def energy(atoms: ase.Atoms, change: np.ndarray, strain: np.ndarray) -> float:
    changed = ase.Atoms(
        atoms.numbers,
        positions=(atoms.positions + change) @ (np.eye(3) + strain),
        cell=np.asarray(atoms.cell) @ (np.eye(3) + strain),
        pbc=True,
        calculator=RigidIons(),
    )
    return changed.get_potential_energy()


def slope(atoms: ase.Atoms, change: np.ndarray, strain: np.ndarray) -> float:
    """Return the derivative along a direction, by differences of fourth order."""
    step = 1e-3
    one, two = (
        energy(atoms, size * change, size * strain) - energy(atoms, -size * change, -size * strain)
        for size in (step, 2 * step)
    )
    return (8 * one - two) / (12 * step)


def test_forces_are_minus_the_derivative_of_the_energy(disordered: ase.Atoms) -> None:
    disordered.calc = RigidIons()
    forces = disordered.get_forces()
    for index in np.ndindex(*forces.shape):
        change = np.zeros_like(forces)
        change[index] = 1.0
        assert forces[index] == pytest.approx(-slope(disordered, change, np.zeros((3, 3))), abs=1e-7)
    assert np.abs(forces).max() > 1.0


def test_stress_is_the_derivative_with_strain_positive_in_tension(disordered: ase.Atoms) -> None:
    disordered.calc = RigidIons()
    stress = disordered.get_stress(voigt=False)
    for a, b in itertools.combinations_with_replacement(range(3), 2):
        strain = np.zeros((3, 3))
        strain[a, b] += 0.5
        strain[b, a] += 0.5
        expected = slope(disordered, np.zeros_like(disordered.positions), strain) / disordered.get_volume()
        assert stress[a, b] == pytest.approx(expected, abs=1e-7)
    assert np.abs(stress).max() > 0.01


def test_the_total_force_is_zero(disordered: ase.Atoms) -> None:
    disordered.calc = RigidIons()
    assert np.abs(disordered.get_forces().sum(axis=0)).max() < 1e-11


@pytest.mark.parametrize("splitting", [0.7, 0.8, 1.0])
def test_nothing_depends_on_the_splitting_parameter(disordered: ase.Atoms, splitting: float) -> None:
    found = []
    for calculator in (RigidIons(), RigidIons(splitting)):
        disordered.calc = calculator
        found.append((disordered.get_potential_energy(), disordered.get_forces(), disordered.get_stress()))
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-8)


def test_the_madelung_constant_is_that_of_rocksalt() -> None:
    atoms = crystal(1)
    atoms.calc = RigidIons()
    repulsion = 0.0
    # neighbours of each of the eight ions in a rocksalt lattice: an odd sum of indices is another kind
    for indices in itertools.product(range(-4, 5), repeat=3):
        distance = LATTICE_CONSTANT / 2 * math.hypot(*indices)
        if 0 < distance < 8.0:
            kinds = [(0, 1)] if sum(indices) % 2 else [(0, 0), (1, 1)]
            repulsion += sum(2 / len(kinds) * STRENGTHS[k] * math.exp(-distance / WIDTHS[k]) for k in kinds) / 2
    per_pair = atoms.get_potential_energy() / 4 - repulsion
    assert -per_pair * (LATTICE_CONSTANT / 2) / (4 * COULOMB) == pytest.approx(1.747565, abs=1e-6)


def test_a_larger_cell_has_the_same_energy_and_stress_per_ion(disordered: ase.Atoms) -> None:
    large = disordered.repeat((2, 1, 1))
    for atoms in (disordered, large):
        atoms.calc = RigidIons()
    assert large.get_potential_energy() == pytest.approx(2 * disordered.get_potential_energy(), abs=1e-8)
    np.testing.assert_allclose(large.get_forces()[:8], disordered.get_forces(), atol=1e-8)
    np.testing.assert_allclose(large.get_stress(), disordered.get_stress(), atol=1e-10)


def test_other_elements_charges_and_free_boundaries_are_refused() -> None:
    for atoms, message in (
        (ase.Atoms("NaCl", [[0, 0, 0], [2, 0, 0]], cell=[4, 4, 4], pbc=True), "rigid ions are Mg and O"),
        (ase.Atoms("MgO", [[0, 0, 0], [2, 0, 0]], cell=[4, 4, 4], pbc=[True, True, False]), "in a cell that repeats"),
        (ase.Atoms("Mg2O", [[0, 0, 0], [2, 0, 0], [0, 2, 0]], cell=[4, 4, 4], pbc=True), "a charge of 2 e"),
    ):
        with pytest.raises(ValueError, match=message):
            RigidIons().calculate(atoms)


def contents(structure: Structure) -> tuple:
    arrays = (structure.numbers, structure.positions, structure.cell, structure.forces, structure.stress)
    return (structure.id, structure.group, structure.energy, *(array.tobytes() for array in arrays))


def test_a_trajectory_does_not_depend_on_which_others_are_made() -> None:
    whole = list(SHORT)
    assert len(whole) == 2 * 2 * 3
    parts = [[contents(frame) for frame in part.read()] for part in reversed(SHORT.parts())]
    assert [contents(frame) for frame in whole] == list(itertools.chain(*reversed(parts)))
    hot = RigidIonCrystals(temperatures=(2500.0,), repeats=1, trajectories=1, frames=2, interval=2, warm_up=3)
    assert [contents(frame) for frame in hot] == [contents(frame) for frame in whole[6:8]]
    assert len({frame.positions.tobytes() for frame in whole}) == len({frame.id for frame in whole}) == len(whole)
    assert [len(list(group)) for _, group in itertools.groupby(whole, lambda frame: frame.group)] == [3] * 4


def test_frames_have_the_labels_of_their_own_positions() -> None:
    for frame in SHORT:
        atoms = ase.Atoms(frame.numbers, positions=frame.positions, cell=frame.cell, pbc=True, calculator=RigidIons())
        assert frame.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-9)
        np.testing.assert_allclose(frame.forces, atoms.get_forces(), atol=1e-5)
        np.testing.assert_allclose(frame.stress, atoms.get_stress(voigt=False), atol=1e-6)


def test_frozen_ions_stay_and_a_hotter_crystal_moves_more() -> None:
    distances = []
    for temperature in (300.0, 3000.0):
        perfect = crystal(2)
        moving = dynamics(
            perfect.copy(),
            temperature=temperature,
            seed=(0,),
            calculator=RigidIons(),
            warm_up=30,
            interval=1,
            frozen=[0, 5],
        )
        moved = np.linalg.norm(next(moving).positions - perfect.positions, axis=1)
        assert (moved[[0, 5]] == 0).all()
        assert (np.delete(moved, [0, 5]) > 0).all()
        distances.append(np.sqrt((moved**2).mean()))
    # the amplitude grows as the square root of the temperature
    assert 2.0 < distances[1] / distances[0] < 5.0


def test_impossible_options_are_refused() -> None:
    with pytest.raises(ValueError, match="temperatures must be positive"):
        RigidIonCrystals(temperatures=(0.0,))
    with pytest.raises(ValueError, match="must be at least 1"):
        RigidIonCrystals(temperatures=(300.0,), frames=0)
