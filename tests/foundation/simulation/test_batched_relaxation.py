"""Relaxation in shared batches: ASE's minima, the limits, symmetry, and structures that fail."""

from dataclasses import replace
from typing import Any

import ase
import numpy as np
import pytest
from ase.build import bulk, fcc111, molecule
from ase.calculators.emt import EMT

from data_pipeline.structure import Structure
from foundation.interop.calculator import to_structure
from foundation.interop.relaxation import relax_with
from foundation.simulation.driver import drive
from foundation.simulation.optimizers import ALGORITHMS, Algorithm
from foundation.simulation.outcome import Outcome
from foundation.simulation.predictor import Predictor
from foundation.simulation.relaxation import Coordinates, Limits, Relaxing
from tests.foundation.simulation.analytic import emt, springs

LIMITS = Limits(max_force=0.01, max_steps=200, algorithm="fire", cell=True, symmetry=False, precision=0.01)


def disturbed(atoms: ase.Atoms, seed: int = 0, strain: float = 0.03) -> Structure:
    random = np.random.default_rng(seed)
    deformation = random.normal(scale=strain, size=(3, 3))
    if atoms.pbc.all():
        atoms.set_cell(atoms.cell[:] @ (np.eye(3) + (deformation + deformation.T) / 2), scale_atoms=True)
    atoms.rattle(0.05, seed=seed)
    return to_structure(atoms)


def relaxed(structures: list[Structure], predict: Predictor = emt, **changes: Any) -> list[Outcome]:
    limits = replace(LIMITS, **changes)
    tasks = (Relaxing(number, each, 5.0, limits) for number, each in enumerate(structures))
    found = [each for some in drive(tasks, predict, edge_budget=2000, replace=True) for each in some]
    return sorted(found, key=lambda each: each.number)


CRYSTALS = [bulk("Cu", cubic=True), bulk("Al", cubic=True), bulk("Ni", cubic=True)]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_crystals_end_in_ases_minimum(algorithm: Algorithm) -> None:
    starts = [disturbed(atoms.copy(), seed) for seed, atoms in enumerate(CRYSTALS)]
    for start, found in zip(starts, relaxed(starts, algorithm=algorithm), strict=True):
        expected = relax_with(start, EMT(), max_force=0.01, max_steps=200)
        assert found.converged
        assert found.error is None
        assert found.energy == pytest.approx(expected.energy_after, abs=1e-8 if algorithm == "fire" else 1e-3)
        if algorithm == "fire":
            assert found.steps == expected.num_steps
        assert found.energy_before == pytest.approx(expected.energy_before, abs=1e-10)
        assert found.volume == pytest.approx(expected.atoms.get_volume(), rel=2e-3)
        assert 0 < found.steps < 200
        end = ase.Atoms(found.atomic_numbers, found.array("positions", -1, 3), cell=found.array("cell", 3, 3), pbc=True)
        end.calc = EMT()
        assert np.linalg.norm(end.get_forces(), axis=1).max() <= 0.011
        virial = end.get_volume() * end.get_stress(voigt=False) / len(end)
        assert np.linalg.norm(virial, axis=1).max() <= 0.011


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_spring_is_relaxed_to_its_rest(algorithm: Algorithm) -> None:
    start = to_structure(ase.Atoms("H2", [[0.3, 0, 0.1], [-0.4, 0.2, 0]]))
    (found,) = relaxed([start], springs, algorithm=algorithm, max_force=1e-4)
    assert found.converged
    assert np.abs(found.array("positions", 2, 3)).max() < 1e-4


def test_without_its_cell_only_positions_relax() -> None:
    start = disturbed(CRYSTALS[0].copy())
    (found,) = relaxed([start], cell=False)
    assert np.array_equal(found.array("cell", 3, 3), start.cell)
    assert found.converged
    slab = fcc111("Cu", (2, 2, 3), vacuum=6.0)
    (found,) = relaxed([disturbed(slab)])
    assert np.array_equal(found.array("cell", 3, 3), np.asarray(slab.cell))


def test_the_forces_on_the_coordinates_are_the_slopes_of_the_energy() -> None:
    start = disturbed(CRYSTALS[0].copy(), seed=4)
    coordinates = Coordinates(start, cell=True)
    random = np.random.default_rng(0)
    coordinates.rows = coordinates.rows + random.normal(scale=0.05, size=coordinates.rows.shape)

    def energy(shift: np.ndarray) -> float:
        moved = Coordinates(start, cell=True)
        moved.rows = coordinates.rows + shift
        (found,) = emt([moved.structure()])
        assert not isinstance(found, str)
        return found.energy

    structure = coordinates.structure()
    (found,) = emt([structure])
    assert not isinstance(found, str)
    rows = coordinates.forces(found.forces, found.stress, structure.volume)
    for place in ((0, 0), (2, 1), (-3, 0), (-2, 2), (-1, 1)):
        shift = np.zeros_like(rows)
        shift[place] = 1e-4
        assert rows[place] == pytest.approx(-(energy(shift) - energy(-shift)) / 2e-4, rel=1e-5, abs=1e-6)


def test_symmetry_is_kept_on_request_and_space_groups_are_named() -> None:
    atoms = bulk("Cu", cubic=True)
    atoms.set_cell(atoms.cell[:] * [1.04, 1.04, 0.97], scale_atoms=True)
    tetragonal = to_structure(atoms)

    def noisy(structures: Any) -> Any:
        random = np.random.default_rng(0)
        return [
            replace(each, forces=each.forces + random.normal(scale=0.004, size=each.forces.shape))
            for each in emt(structures)
        ]

    (kept,) = relaxed([tetragonal], noisy, symmetry=True, precision=1e-4)
    (free,) = relaxed([tetragonal], noisy, precision=1e-4)
    assert kept.space_group_before == "I4/mmm (139)"
    assert kept.space_group in ("I4/mmm (139)", "Fm-3m (225)")
    assert free.space_group not in (kept.space_group, "I4/mmm (139)")
    (found,) = relaxed([disturbed(molecule("H2O"))], emt)
    assert found.space_group is None


def test_too_few_steps_leave_the_last_state_and_a_remark() -> None:
    (found,) = relaxed([disturbed(CRYSTALS[0].copy())], max_steps=3)
    assert (found.steps, found.converged) == (3, False)
    assert found.warnings == ("not converged in 3 steps",)
    assert found.energy is not None


def test_each_is_independent_of_the_others_and_one_that_fails_stops_none() -> None:
    starts = [disturbed(atoms.copy(), seed) for seed, atoms in enumerate(CRYSTALS)]

    def predict(structures: Any) -> Any:
        found = emt(structures)
        return [
            "broken" if each.numbers[0] == 13 and found[0] else found[place] for place, each in enumerate(structures)
        ]

    alone, together = relaxed([starts[2]])[0], relaxed(starts, predict)
    assert [each.error for each in together] == [None, "broken", None]
    assert together[2].energy == alone.energy
    assert together[2].positions == alone.positions


def test_a_structure_that_explodes_is_put_aside_with_its_reason() -> None:
    def blown(structures: Any) -> Any:
        return [replace(each, forces=0 * each.forces, stress=-5.0 * np.eye(3)) for each in emt(structures)]

    (found,) = relaxed([disturbed(CRYSTALS[0].copy())], blown)
    assert found.error is not None
    assert found.error.startswith("exploded: its volume is")
    assert found.energy is None
