"""Molecular dynamics in shared batches: what statistical mechanics says of an ideal gas, springs and a crystal."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from ase.build import bulk

from data_pipeline.structure import Structure
from foundation.interop.atomic_data import BOLTZMANN, FEMTOSECOND, GIGAPASCAL, MASSES
from foundation.interop.calculator import to_structure
from foundation.simulation.driver import drive
from foundation.simulation.dynamics import Conditions, Frame, Running
from foundation.simulation.outcome import Outcome
from foundation.simulation.predictor import Predictor
from tests.foundation.simulation.analytic import emt, gas, nothing, springs

CONDITIONS: dict[str, Any] = {
    "ensemble": "nvt", "steps": 100, "timestep": 1.0, "temperature": 300.0, "friction": 0.05, "pressure": 0.1,
    "pressure_time": 100.0, "compressibility": 10.0, "seed": 0, "every": 1,
}  # fmt: skip


def run(
    structures: list[Structure], predict: Predictor, **changes: Any
) -> tuple[list[Outcome], dict[int, list[Frame]]]:
    conditions, frames = Conditions(**(CONDITIONS | changes)), dict[int, list[Frame]]()
    tasks = (Running(n, each, 5.0, conditions, frames.__setitem__) for n, each in enumerate(structures))
    found = [each for some in drive(tasks, predict, edge_budget=10**9, replace=False) for each in some]
    return found, frames


def test_the_volume_of_an_ideal_gas_at_a_pressure_has_the_gamma_distribution() -> None:
    atoms, steps = 4, 1500
    temperature, pressure = 300.0, 0.02
    found, frames = run(
        [gas(atoms, seed) for seed in range(6)], nothing, ensemble="npt", steps=steps, timestep=20.0, friction=0.02,
        pressure=pressure, pressure_time=100.0, compressibility=1 / pressure / 5, temperature=temperature,
    )  # fmt: skip
    assert all(each.error is None for each in found)
    volumes = np.array([frame.volume for some in frames.values() for frame, _ in some[steps // 4 :]])
    unit = BOLTZMANN * temperature / (pressure * GIGAPASCAL)
    # exp(-PV/kT) V^N: mean N + 1 and variance N + 1 in units of kT/P
    assert volumes.mean() / unit == pytest.approx(atoms + 1, rel=0.06)
    assert volumes.var() / unit**2 == pytest.approx(atoms + 1, rel=0.2)


def test_springs_in_a_thermostat_have_their_share_of_energy() -> None:
    starts = [replace(each, positions=0.01 * each.positions) for each in (gas(32, 0), gas(32, 1))]
    found, frames = run(starts, springs, steps=2000, timestep=8.0, temperature=500.0)
    energies = np.array([each.energy for some in frames.values() for _, each in some[500:]])
    assert energies.mean() == pytest.approx(32 * 1.5 * BOLTZMANN * 500.0, rel=0.06)
    assert np.mean([each.averages["mean_temperature"] for each in found]) == pytest.approx(500.0, rel=0.06)


def test_without_a_thermostat_a_spring_swings_at_its_frequency_and_its_energy_is_kept() -> None:
    constant, steps = 2.0, 400
    start = Structure.checked(numbers=[18], positions=[[0.5, 0, 0]], cell=np.zeros((3, 3)), pbc=[False] * 3, energy=0.0)
    found, frames = run([start], springs, ensemble="nve", steps=steps, temperature=1e-6)
    swung = np.array([frame.positions[0, 0] for frame, _ in frames[0]])
    omega = np.sqrt(constant / MASSES[18]) * FEMTOSECOND
    assert np.abs(swung - 0.5 * np.cos(omega * np.arange(steps + 1))).max() < 2e-3
    assert abs(found[0].averages["energy_drift"]) < 1e-4


def test_a_crystal_keeps_its_energy_and_half_the_step_a_quarter_of_the_error() -> None:
    crystal = to_structure(bulk("Cu", cubic=True))

    def spread(timestep: float, steps: int) -> float:
        _, frames = run([crystal], emt, ensemble="nve", timestep=timestep, steps=steps, temperature=600.0)
        energies = []
        for (before, _), (frame, found), (after, _) in zip(frames[0], frames[0][1:], frames[0][2:], strict=False):
            velocity = (after.positions - before.positions) / (2 * timestep * FEMTOSECOND)
            kinetic = 0.5 * (MASSES[frame.numbers][:, None] * velocity**2).sum()
            energies.append(found.energy + kinetic)
        return float(np.std(energies))

    assert spread(5.0, 60) / spread(2.5, 120) == pytest.approx(4.0, rel=0.3)


def test_seeds_decide_a_trajectory_and_mates_do_not() -> None:
    first, second = to_structure(bulk("Cu", cubic=True)), to_structure(bulk("Al", cubic=True))
    (alone,), _ = run([first], emt, steps=5)
    (together, other), _ = run([first, second], emt, steps=5)
    (again,), _ = run([first], emt, steps=5, seed=1)
    assert alone.positions == together.positions
    assert alone.positions != again.positions
    assert other.steps == 5


def test_a_structure_that_explodes_is_put_aside_with_its_reason() -> None:
    def blown(structures: Any) -> Any:
        return [springs([each], constant=1e5)[0] for each in structures]

    (found,), frames = run([gas(3)], blown, steps=5)
    assert found.error is not None
    assert found.error.startswith("exploded: a force of")
    assert not frames
