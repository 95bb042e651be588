"""Molecular dynamics of one structure among many: NVE, Langevin, and NPT by stochastic cell rescaling.

Each structure has a random generator of its own, so its trajectory does not depend on the others.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Float64

from data_pipeline.structure import Structure
from foundation.interop.atomic_data import BOLTZMANN, FEMTOSECOND, GIGAPASCAL, MASSES
from foundation.simulation.driver import expected_edges
from foundation.simulation.outcome import OUTSIDE, Evaluated, Outcome, outcome, put_aside

MAX_TEMPERATURE = 100_000.0
"""Temperature above which a structure has exploded [K]."""
MAX_FORCE = 1_000.0
"""Force above which a structure has exploded [eV/Å]."""
Ensemble = Literal["nve", "nvt", "npt"]
Frame = tuple[Structure, Evaluated]
"""A structure of a trajectory with its prediction."""


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Options of a molecular dynamics."""

    ensemble: Ensemble
    """Energy kept (nve), temperature by a Langevin thermostat (nvt), or pressure as well (npt)."""
    steps: int
    """Number of steps."""
    timestep: float
    """Time step [fs]."""
    temperature: float
    """Temperature of the thermostat and of the first velocities [K]."""
    friction: float
    """Friction of the thermostat [1/fs]."""
    pressure: float
    """Pressure [GPa]."""
    pressure_time: float
    """Relaxation time of the pressure [fs]."""
    compressibility: float
    """Estimate of the compressibility [1/GPa]: with the relaxation time it decides the speed, not the averages."""
    seed: int
    """Seed of the velocities and of the thermostat."""
    every: int
    """Number of steps between frames of the trajectory; 0: none."""


class Running:
    """A structure in molecular dynamics.

    A step is BAOAB: half a kick, half a drift, friction and noise, half a drift, forces, half a kick (Leimkuhler and
    Matthews, Appl. Math. Res. Express 2013, 34); without friction it is velocity Verlet. Beside the friction, the
    logarithm ε of the volume follows dε = (β/τ)(P_int - P) dt + √(2 kT β / (V τ)) dW, and positions scale with the
    cell, momenta inversely (stochastic cell rescaling, Bernetti and Bussi, J. Chem. Phys. 153, 114107 (2020)). With V
    in the noise, this drift in Itô's sense keeps exp(-(H + P V)/kT) at fixed fractional coordinates.
    """

    def __init__(
        self,
        number: int,
        start: Structure,
        cutoff: float,
        conditions: Conditions,
        keep: Callable[[int, list[Frame]], None],
    ) -> None:
        """Begin at a structure of the input, by its number there.

        Args:
            number: Number.
            start: Structure.
            cutoff: Cutoff of the potential [Å].
            conditions: Options.
            keep: Function that takes the frames at the end.
        """
        self.structure, self.cost = start, expected_edges(start, cutoff)
        self._number, self._start, self._conditions, self._keep = number, start, conditions, keep
        self._random = np.random.default_rng([conditions.seed, number])
        self._mass = MASSES[start.numbers][:, None]
        self._dt, self._kt = conditions.timestep * FEMTOSECOND, BOLTZMANN * conditions.temperature
        self._velocity = self._first_velocity()
        self._step = 0
        self._first: Evaluated | None = None
        self._rows: list[tuple[float, ...]] = []
        self._frames: list[Frame] = []
        self._largest: list[float] = []
        self._left: dict[str, int] = {}

    def advance(self, found: Evaluated) -> Outcome | None:
        """Take a step, or end; see Task."""
        force = found.forces
        if self._first is None:
            self._first = found
        else:
            self._velocity = self._velocity + 0.5 * self._dt * force / self._mass
            self._step += 1
        if reason := self._exploded(found):
            return self.failed(reason)
        self._record(found)
        if self._step >= self._conditions.steps:
            return self._outcome(found)
        self._velocity = self._velocity + 0.5 * self._dt * force / self._mass
        positions = self.structure.positions + 0.5 * self._dt * self._velocity
        cell = self.structure.cell
        if self._conditions.ensemble != "nve":
            self._thermostat()
        if self._conditions.ensemble == "npt":
            factor = self._rescaling(found)
            positions, cell, self._velocity = positions * factor, cell * factor, self._velocity / factor
        positions = positions + 0.5 * self._dt * self._velocity
        self.structure = replace(self.structure, positions=positions, cell=cell)
        return None

    def failed(self, reason: str) -> Outcome:
        """Return the outcome of a structure that cannot be followed further."""
        after = f" after {self._step} steps" if self._step else ""
        return put_aside(self._number, self._start, f"{reason}{after}")

    def _first_velocity(self) -> Float64[np.ndarray, "atoms 3"]:
        """Return velocities of the temperature, without a drift of the whole."""
        velocity = self._random.normal(size=(len(self._mass), 3)) * np.sqrt(self._kt / self._mass)
        if len(self._mass) > 1:
            velocity -= (self._mass * velocity).sum(axis=0) / self._mass.sum()
        return velocity

    def _thermostat(self) -> None:
        kept = np.exp(-self._conditions.friction * self._conditions.timestep)
        noise = self._random.normal(size=self._velocity.shape) * np.sqrt(self._kt / self._mass)
        self._velocity = kept * self._velocity + np.sqrt(1 - kept**2) * noise

    def _rescaling(self, found: Evaluated) -> float:
        """Return the factor of lengths in this step."""
        conditions, volume = self._conditions, self.structure.volume
        rate = conditions.compressibility / GIGAPASCAL * conditions.timestep / conditions.pressure_time
        drift = rate * (self._pressure(found) - conditions.pressure * GIGAPASCAL)
        noise = np.sqrt(2 * self._kt * rate / volume) * self._random.normal()
        return float(np.exp((drift + noise) / 3))

    def _kinetic(self) -> float:
        return 0.5 * float((self._mass * self._velocity**2).sum())

    def _pressure(self, found: Evaluated) -> float:
        """Return the pressure with its kinetic part [eV/Å³]."""
        return 2 * self._kinetic() / (3 * self.structure.volume) - float(np.trace(found.stress)) / 3

    def _temperature(self) -> float:
        # the drift of the whole stays zero without a thermostat
        free = 3 * len(self._mass) - (3 if self._conditions.ensemble == "nve" and len(self._mass) > 1 else 0)
        return 2 * self._kinetic() / (free * BOLTZMANN)

    def _record(self, found: Evaluated) -> None:
        volume = self.structure.volume
        pressure = self._pressure(found) / GIGAPASCAL if volume > 0 else np.nan
        self._rows.append((self._temperature(), pressure, volume, found.energy, found.energy + self._kinetic()))
        if found.force_uncertainty is not None:
            self._largest.append(found.force_uncertainty)
        for reason in found.outside:
            self._left.setdefault(reason, self._step)
        if self._conditions.every and self._step % self._conditions.every == 0:
            self._frames.append((self.structure, found))

    def _exploded(self, found: Evaluated) -> str | None:
        largest = float(np.linalg.norm(found.forces, axis=1).max())
        if largest > MAX_FORCE:
            return f"exploded: a force of {largest:.3g} eV/Å"
        if (temperature := self._temperature()) > MAX_TEMPERATURE:
            return f"exploded: a temperature of {temperature:.3g} K"
        return None

    def _outcome(self, found: Evaluated) -> Outcome:
        """Return the outcome, with means over the second half of the steps."""
        assert self._first is not None
        rows = np.array(self._rows)
        temperature, pressure, volume, energy, _ = rows[len(rows) // 2 :].mean(axis=0).tolist()
        averages = {"mean_temperature": temperature, "mean_energy": energy}
        if self._start.volume > 0:
            averages |= {"mean_pressure": pressure, "mean_volume": volume}
        if self._conditions.ensemble == "nve" and len(rows) > 2:
            picoseconds = np.arange(len(rows)) * self._conditions.timestep / 1000
            averages["energy_drift"] = float(np.polyfit(picoseconds, rows[:, 4], 1)[0]) / len(self._mass)
        if self._largest:
            averages["mean_force_uncertainty"] = float(np.mean(self._largest[len(rows) // 2 :]))
            averages["max_force_uncertainty"] = max(self._largest)
        if self._frames:
            self._keep(self._number, self._frames)
        return replace(
            outcome(self._number, self.structure, found),
            energy_before=self._first.energy,
            volume_before=self._start.volume or None,
            steps=self._step,
            averages=averages,
            warnings=tuple(f"{OUTSIDE}{reason}, from step {step} on" for reason, step in self._left.items()),
        )
