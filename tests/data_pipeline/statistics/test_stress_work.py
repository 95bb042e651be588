"""Stress against energy on relaxing crystals labelled by ASE's EMT: what is right, what is wrong, what says nothing."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from ase.build import bulk, fcc111, make_supercell
from ase.calculators.emt import EMT

from data_pipeline.statistics.stress_work import MAX_PAIRS, stress_ratios
from data_pipeline.structure import Structure

KBAR = 1602.1766208


@cache
def trajectory(metal: str = "Cu", seed: int = 0, count: int = 12, strain: float = 0.004) -> tuple[Structure, ...]:
    """A strained and rattled cell that relaxes downhill while its shape changes at random, as in a relaxation."""
    rng = np.random.default_rng(seed)
    atoms = make_supercell(bulk(metal, cubic=True), np.diag([2, 1, 1]))
    atoms.set_cell(np.asarray(atoms.cell) * (1 + rng.uniform(-0.06, 0.06)), scale_atoms=True)
    atoms.rattle(0.05, seed=seed)
    frames = []
    for number in range(count):
        atoms.calc = EMT()
        frames.append(
            Structure.checked(
                numbers=atoms.numbers,
                positions=atoms.positions.copy(),
                cell=np.array(atoms.cell),
                pbc=atoms.pbc,
                energy=atoms.get_potential_energy(),
                forces=atoms.get_forces(),
                stress=atoms.get_stress(voigt=False),
                id=f"{metal}-{seed}-{number}",
                group=f"{metal}-{seed}",
            )
        )
        deformation = rng.normal(0.0, strain, (3, 3))
        atoms.positions += 0.02 * frames[-1].forces
        atoms.set_cell(np.asarray(atoms.cell) @ (np.eye(3) + (deformation + deformation.T) / 2), scale_atoms=True)
    return tuple(frames)


def changed(frames: tuple[Structure, ...], factor: float) -> list[Structure]:
    return [replace(frame, stress=(factor * frame.stress).astype(np.float32)) for frame in frames]


@pytest.mark.parametrize("metal", ["Al", "Cu", "Pt"])
def test_the_right_stress_explains_the_energy(metal: str) -> None:
    ratios = stress_ratios(trajectory(metal))
    assert len(ratios) >= 6
    np.testing.assert_allclose(ratios, 1.0, atol=0.1)


@pytest.mark.parametrize("factor", [-1.0, KBAR, 160.21766, -KBAR, 0.1])
def test_a_wrong_sign_or_unit_is_the_ratio_whatever_it_is(factor: float) -> None:
    expected = factor * stress_ratios(trajectory())
    assert len(expected) >= 6
    np.testing.assert_allclose(stress_ratios(changed(trajectory(), factor)), expected, rtol=1e-4)


def test_strain_without_any_displacement_is_enough() -> None:
    # a perfect crystal has no forces at all
    frames = []
    for size in (0.97, 0.98, 0.99):
        atoms = bulk("Cu", cubic=True)
        atoms.set_cell(np.asarray(atoms.cell) * size, scale_atoms=True)
        atoms.calc = EMT()
        labels = {"forces": atoms.get_forces(), "stress": atoms.get_stress(voigt=False)}
        frame = {"numbers": atoms.numbers, "positions": atoms.positions, "cell": np.array(atoms.cell)}
        frames.append(Structure.checked(**frame, pbc=[True] * 3, energy=atoms.get_potential_energy(), **labels))
    np.testing.assert_allclose(stress_ratios(frames), 1.0, atol=0.05)


def test_atoms_that_cross_the_boundary_and_a_turned_cell_change_nothing() -> None:
    frames = list(trajectory())
    expected = stress_ratios(frames)
    wrapped = [
        replace(f, positions=(np.linalg.solve(f.cell.T, f.positions.T).T + n) % 1.0 @ f.cell)
        for n, f in enumerate(frames)
    ]
    np.testing.assert_allclose(stress_ratios(wrapped), expected, rtol=1e-6)
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    turned = [
        replace(
            f,
            positions=f.positions @ turn,
            cell=f.cell @ turn,
            forces=(f.forces @ turn).astype(np.float32),
            stress=(turn.T @ f.stress @ turn).astype(np.float32),
        )
        for f in frames
    ]
    np.testing.assert_allclose(stress_ratios(turned), expected, rtol=1e-3)


def test_pairs_that_say_nothing_are_left_out() -> None:
    frames = trajectory(count=6)
    assert len(stress_ratios(frames[:2])) == 1
    one, two = frames[0], frames[1]
    far = two.positions + np.where(np.arange(len(two.numbers)) == 0, 0.7, 0.0)[:, None]
    for other in (
        replace(two, group="another"),
        replace(two, has_forces=False),
        replace(two, has_stress=False),
        replace(two, pbc=np.array([True, True, False])),
        replace(two, numbers=np.full_like(two.numbers, 79)),
        replace(two, positions=far),
        replace(two, cell=one.cell),
        replace(two, cell=1.2 * two.cell),
        replace(two, cell=-two.cell),
        replace(one),
    ):
        assert len(stress_ratios([one, other])) == 0
    for few in ([], [one], [one, trajectory("Al", count=6)[0]]):
        assert len(stress_ratios(few)) == 0


def test_molecular_dynamics_in_a_cell_at_rest_makes_no_pairs() -> None:
    assert len(stress_ratios(trajectory(strain=0.0))) == 0


def test_structures_that_are_not_periodic_make_no_pairs() -> None:
    slab = fcc111("Al", size=(2, 1, 3), vacuum=6.0)
    zeros = np.zeros((len(slab), 3))
    frame = Structure.checked(
        numbers=slab.numbers,
        positions=slab.positions,
        cell=np.zeros((3, 3)),
        pbc=[False] * 3,
        energy=0.0,
        forces=zeros,
        stress=np.zeros((3, 3)),
    )
    assert len(stress_ratios([frame, replace(frame, energy=1.0)])) == 0


def test_a_long_trajectory_is_compared_at_evenly_spaced_places() -> None:
    frames = trajectory() * 20
    assert MAX_PAIRS // 4 < len(stress_ratios(frames)) <= MAX_PAIRS
