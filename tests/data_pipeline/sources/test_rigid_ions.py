"""Rigid ions: derivatives of the energy, Ewald's sums, Madelung's constant."""

import itertools
import math

import ase
import numpy as np
import pytest

from data_pipeline.sources.molecular_dynamics import Material
from data_pipeline.sources.rigid_ions import COULOMB, STRENGTHS, WIDTHS, RigidIons

SKEW = np.array([[0.03, 0.02, 0.0], [0.02, -0.01, 0.03], [0.0, 0.03, 0.02]])
MGO = Material()


@pytest.fixture(scope="module")
def disordered() -> ase.Atoms:
    """A disordered cell of eight ions without right angles."""
    atoms = MGO.crystal(1)
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
    atoms = MGO.crystal(1)
    atoms.calc = RigidIons()
    repulsion = 0.0
    # neighbours of each of the eight ions in a rocksalt lattice: an odd sum of indices is another kind
    for indices in itertools.product(range(-4, 5), repeat=3):
        distance = MGO.lattice_constant / 2 * math.hypot(*indices)
        if 0 < distance < 8.0:
            kinds = [(0, 1)] if sum(indices) % 2 else [(0, 0), (1, 1)]
            repulsion += sum(2 / len(kinds) * STRENGTHS[k] * math.exp(-distance / WIDTHS[k]) for k in kinds) / 2
    per_pair = atoms.get_potential_energy() / 4 - repulsion
    assert -per_pair * (MGO.lattice_constant / 2) / (4 * COULOMB) == pytest.approx(1.747565, abs=1e-6)


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
