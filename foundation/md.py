"""Md: molecular dynamics of many structures, from any files to a table, trajectories and extended XYZ."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from data_pipeline.structure import Structure
from foundation.interop.result_files import write_trajectory
from foundation.potential import Potential
from foundation.simulation.campaign import Begin, CampaignConfig, Summary, run_campaign
from foundation.simulation.driver import Task
from foundation.simulation.dynamics import Conditions, Ensemble, Frame, Running
from foundation.simulation.outcome import Outcome, outcome, put_aside

TRAJECTORIES = "trajectories"
"""Folder of the trajectories."""


@dataclass(frozen=True, kw_only=True)
class MdConfig(CampaignConfig):
    """Structures to follow in time, the potential, and the conditions."""

    steps: int
    """Number of steps."""
    mode: Literal["precise", "md"] = "md"
    """Float64 (precise), or float32 with tabulated radial functions, which is faster (md)."""
    ensemble: Ensemble = "nvt"
    """Energy kept (nve), temperature by a Langevin thermostat (nvt), or pressure as well, by scaling the cell in all
    directions alike (npt)."""
    temperature: float = 300.0
    """Temperature of the thermostat and of the first velocities [K]."""
    timestep: float = 1.0
    """Time step [fs]."""
    friction: float = 0.01
    """Friction of the thermostat [1/fs]."""
    pressure: float = 0.0
    """Pressure [GPa]."""
    pressure_time: float = 1000.0
    """Relaxation time of the pressure [fs]."""
    compressibility: float = 0.01
    """Estimate of the compressibility [1/GPa]; with pressure_time it decides the speed, not the averages."""
    seed: int = 0
    """Seed of the velocities and of the thermostat; every structure has its own from it."""
    every: int = 0
    """Number of steps between frames of the trajectories; 0: none are written."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.steps, self.every, self.seed) < 0:
            raise ValueError("steps, every and seed must not be negative")
        if min(self.timestep, self.temperature, self.pressure_time, self.compressibility) <= 0 or self.friction < 0:
            raise ValueError(
                "timestep, temperature, pressure_time and compressibility must be positive, and friction not negative"
            )


def md(config: MdConfig) -> Summary | None:
    """Run the structures that are not yet finished and, if none is left, write the results.

    Raises:
        FileNotFoundError, CorruptFile, ValueError, BlockingIOError: see run_campaign().
    """
    return run_campaign(config, "md", _prepare, replace=False)


def _prepare(config: MdConfig, potential: Potential) -> Begin:
    conditions = Conditions(**{each.name: getattr(config, each.name) for each in fields(Conditions)})

    def keep(number: int, frames: list[Frame]) -> None:
        _keep(config.out, number, frames)

    def begin(number: int, structure: Structure) -> Task | Outcome:
        if config.ensemble == "npt" and not structure.pbc.all():
            return put_aside(number, structure, "npt needs a cell that repeats in all directions")
        return Running(number, structure, potential.cutoff, conditions, keep)

    return begin


def _keep(out: Path, number: int, frames: list[Frame]) -> None:
    outcomes = [outcome(place, structure, found) for place, (structure, found) in enumerate(frames)]
    write_trajectory(out / TRAJECTORIES / f"{number}.extxyz", outcomes)
