"""Conservation of energy: drift and fluctuation of the total energy in microcanonical molecular dynamics (NVE).

Forces that are the derivative of a smooth energy conserve it. Velocity Verlet then lets the total energy fluctuate by
an amount that grows with the square of the time step, and does not let it drift (Hairer, Lubich and Wanner, Acta
Numerica 12, 399 (2003)). A drift shows forces that belong to no energy, jumps, rounding, or too long a time step.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import ase
import numpy as np
from ase import units
from ase.calculators.calculator import Calculator
from ase.md.verlet import VelocityVerlet
from jaxtyping import Float64

from data_pipeline.sources.atoms import to_atoms
from data_pipeline.sources.molecular_dynamics import is_lost
from data_pipeline.structure import Structure
from foundation.configuration import MAY_CHANGE, check_numbers
from foundation.evaluation.intervals import Slope, common_slope
from foundation.evaluation.quantities import MILLI_EV_PER_ATOM, MILLI_EV_PER_ATOM_PS
from foundation.evaluation.suites.crystals.equation_of_state import (
    Crystal,
    check_labels,
    elements_of,
    relaxed,
    repeated,
)
from foundation.evaluation.suites.dynamics import thermal_momenta
from foundation.evaluation.suites.suite import Chart, Curve, Finding, Findings, Subject, Suite

LIMITS = {"supercell": (1, 10), "trajectories": (1, 100), "blocks": (3, 100)}
"""Smallest and largest value of each number."""
MAX_POINTS = 200
"""Largest number of points of a curve."""


class Run(NamedTuple):
    """Trajectories with one calculator and time step."""

    energies: Float64[np.ndarray, "trajectories frames"]
    """Total energies of the trajectories that reached their end [eV/atom]."""
    speed: float
    """Largest speed of the centre of mass at the end, in units of the thermal speed of the atoms; NaN without one."""
    stable: float
    """Share of trajectories that reached their end."""


class Fitted(NamedTuple):
    """Line through the total energies of the trajectories of a run."""

    drift: Slope
    """Its slope [eV/atom/ps]."""
    fluctuation: float
    """Root mean square of the energies about it [eV/atom]."""


class Variant(NamedTuple):
    """A way to integrate a crystal's motion."""

    label: str
    """Crystal, and what tells the variant from the others."""
    calculator: Calculator
    """Calculator of the forces."""
    time_step: float
    """Time step [fs]."""


@dataclass(frozen=True, kw_only=True)
class EnergyConservation(Suite):
    """Drift and fluctuation of the total energy of cubic crystals in microcanonical molecular dynamics."""

    name: ClassVar[str] = "energy conservation"

    microcanonical: tuple[Crystal, ...] = field(metadata=MAY_CHANGE)
    """Crystals whose atoms move, in the subject's equilibrium volume."""
    temperature: float = field(default=300.0, metadata=MAY_CHANGE)
    """Temperature that is reached [K]: atoms start on their sites with twice as much, and share it with their bonds."""
    time_steps: tuple[float, ...] = field(default=(2.0,), metadata=MAY_CHANGE)
    """Time steps [fs]; from several, the exponent of the fluctuation is found."""
    length: float = field(default=1.0, metadata=MAY_CHANGE)
    """Length of a trajectory [ps]."""
    equilibration: float = field(default=0.2, metadata=MAY_CHANGE)
    """Time before it that is not measured [ps]."""
    trajectories: int = field(default=2, metadata=MAY_CHANGE)
    """Number of trajectories, of different seeds."""
    supercell: int = field(default=2, metadata=MAY_CHANGE)
    """Number of conventional cells along each axis."""
    blocks: int = field(default=10, metadata=MAY_CHANGE)
    """Number of parts of a trajectory, by whose means the error of the drift is judged."""

    def __post_init__(self) -> None:
        check_labels(self.microcanonical)
        check_numbers(self, LIMITS)
        if not 1.0 <= self.temperature <= 100_000.0:
            raise ValueError(f"temperature must be between 1 and 100,000 K, not {self.temperature:g}")
        if not self.time_steps or len(set(self.time_steps)) < len(self.time_steps):
            raise ValueError("time_steps: one or more are needed, each once")
        if not all(0.01 <= each <= 100.0 for each in self.time_steps):
            raise ValueError(f"time_steps must be between 0.01 and 100 fs, not {self.time_steps}")
        if self.equilibration < 0:
            raise ValueError(f"equilibration must not be negative, but is {self.equilibration:g} ps")
        if self._frames(max(self.time_steps)) < 5 * self.blocks:
            raise ValueError(
                f"a length of {self.length:g} ps has too few steps of {max(self.time_steps):g} fs for {self.blocks} "
                "blocks of five; raise length, or lower time_steps or blocks"
            )

    def _frames(self, time_step: float) -> int:
        return round(1e3 * self.length / time_step)

    def elements(self) -> set[int]:
        """Return the atomic numbers of the crystals."""
        return elements_of(self.microcanonical)

    def run(self, subject: Subject) -> Findings:
        """Return drift, fluctuation, speed and stability by crystal and, if several, by float type and time step.

        They have no values for a crystal without a minimum, and neither have drift and fluctuation if no trajectory
        reached its end.
        """
        quantities: dict[str, Finding] = {}
        charts: dict[str, Chart] = {}
        fast, exact = subject.calculator(), subject.exact_calculator()
        calculators = {"": fast} if exact is None else {", float32": fast, ", float64": exact}
        for crystal in self.microcanonical:
            cell = relaxed(crystal, subject)
            curves: dict[str, Curve] = {}
            for precision, calculator in calculators.items():
                fluctuations = []
                for variant in self._variants(crystal.label + precision, calculator):
                    run = None if cell is None else self._run(repeated(cell, self.supercell), variant)
                    fitted = _fitted(run, variant.time_step, self.blocks)
                    fluctuations.append(None if fitted is None else fitted.fluctuation)
                    found = _findings(run, fitted)
                    quantities |= {f"{variant.label}: {name}": each for name, each in found.items()}
                    if run is not None and len(run.energies):
                        curves[variant.label] = _curve(run, variant.time_step)
                if len(self.time_steps) > 1:
                    exponent = _exponent(self.time_steps, fluctuations)
                    name = f"{crystal.label}{precision}: exponent of the fluctuation over the time step"
                    quantities[name] = Finding(value=exponent, reference=2.0)
            if curves:
                charts[f"Total energy of {crystal.label}"] = Chart(
                    x="time [ps]", y=f"change of the energy [{MILLI_EV_PER_ATOM.name}]", curves=curves
                )
        return Findings(quantities=quantities, charts=charts)

    def _variants(self, label: str, calculator: Calculator) -> Iterator[Variant]:
        for step in self.time_steps:
            yield Variant(f"{label}, {step:g} fs" if len(self.time_steps) > 1 else label, calculator, step)

    def _run(self, supercell: Structure, variant: Variant) -> Run:
        energies, speeds = [], []
        for seed in range(self.trajectories):
            atoms = to_atoms(supercell)
            found = self._trajectory(atoms, variant, seed)
            if found is not None:
                energies.append(found)
                thermal = np.sqrt(3 * units.kB * self.temperature * len(atoms) / atoms.get_masses().sum())
                speeds.append(np.linalg.norm(atoms.get_momenta().sum(axis=0)) / atoms.get_masses().sum() / thermal)
        return Run(np.array(energies), max(speeds, default=np.nan), len(energies) / self.trajectories)

    def _trajectory(self, atoms: ase.Atoms, variant: Variant, seed: int) -> Float64[np.ndarray, " frames"] | None:
        """Return the total energies [eV/atom]; None if the atoms flew apart."""
        atoms.calc = variant.calculator
        atoms.set_momenta(thermal_momenta(atoms, 2 * self.temperature, np.random.default_rng(seed)))
        before, energies = round(1e3 * self.equilibration / variant.time_step), []
        with VelocityVerlet(atoms, variant.time_step * units.fs) as dynamics:
            for _ in dynamics.irun(before + self._frames(variant.time_step)):
                if is_lost(atoms, self.temperature):
                    return None
                energies.append(atoms.get_total_energy() / len(atoms))
        return np.array(energies[before:])


def _fitted(run: Run | None, time_step: float, blocks: int) -> Fitted | None:
    """Return the line through the energies of all trajectories; None without one."""
    if run is None or not len(run.energies):
        return None
    times = 1e-3 * time_step * np.arange(run.energies.shape[1])
    middles = np.array([part.mean() for part in np.array_split(times, blocks)])
    means = np.stack([part.mean(axis=1) for part in np.array_split(run.energies, blocks, axis=1)], axis=1)
    drift = common_slope(middles, means)
    lines = run.energies.mean(axis=1, keepdims=True) + drift.value * (times - times.mean())
    return Fitted(drift, float(np.sqrt(((run.energies - lines) ** 2).mean())))


def _findings(run: Run | None, fitted: Fitted | None) -> dict[str, Finding]:
    drift = fluctuation = interval = None
    if fitted is not None:
        drift = MILLI_EV_PER_ATOM_PS.factor * fitted.drift.value
        low, high = fitted.drift.interval
        interval = MILLI_EV_PER_ATOM_PS.factor * low, MILLI_EV_PER_ATOM_PS.factor * high
        fluctuation = MILLI_EV_PER_ATOM.factor * fitted.fluctuation
    return {
        "drift": Finding(value=drift, unit=MILLI_EV_PER_ATOM_PS.name, reference=0.0, interval=interval),
        "fluctuation": Finding(value=fluctuation, unit=MILLI_EV_PER_ATOM.name),
        "speed of the centre of mass over the thermal speed": Finding(
            value=None if run is None else run.speed, reference=0.0
        ),
        "stable trajectories": Finding(value=None if run is None else run.stable, reference=1.0),
    }


def _curve(run: Run, time_step: float) -> Curve:
    """Return the change of the total energy, averaged over trajectories."""
    every = -(-run.energies.shape[1] // MAX_POINTS)
    changes = MILLI_EV_PER_ATOM.factor * (run.energies - run.energies[:, :1]).mean(axis=0)[::every]
    times = 1e-3 * time_step * every * np.arange(len(changes))
    return Curve(x=tuple(times.tolist()), y=tuple(changes.tolist()))


def _exponent(time_steps: Sequence[float], fluctuations: Sequence[float | None]) -> float | None:
    """Return the slope of the logarithm of the fluctuation over that of the time step."""
    known = [each for each in fluctuations if each]
    if len(known) < len(time_steps):
        return None
    line = np.polynomial.Polynomial.fit(np.log(time_steps), np.log(known), 1)
    return float(line.convert().coef[1])
