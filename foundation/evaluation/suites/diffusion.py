"""Diffusion: molecular dynamics at constant temperature, the diffusivity of one element, and what the others do.

A potential for a superionic conductor must move the ions as fast as the reference does, keep the framework that they
move in, and run to the end.
"""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar, NamedTuple

import ase
import ase.io
import numpy as np
from ase import units
from ase.calculators.calculator import Calculator
from ase.md.langevin import Langevin
from jaxtyping import Float64

from data_pipeline.sources.molecular_dynamics import is_lost
from data_pipeline.sources.source import resolve
from data_pipeline.structure import atomic_number
from foundation.configuration import MAY_CHANGE, check_numbers
from foundation.evaluation.displacements import (
    WINDOW,
    Msd,
    block_diffusivities,
    diffusivity,
    displaced_share,
    height,
    mean_squared_displacement,
    overlap,
    pair_distribution,
    read_msd,
    unwrapped,
    without_drift,
)
from foundation.evaluation.intervals import interval_around
from foundation.evaluation.suites.dynamics import thermal_momenta
from foundation.evaluation.suites.kept import Arrays, kept
from foundation.evaluation.suites.suite import Chart, Curve, Finding, Findings, Subject, Suite

LIMITS = {"trajectories": (1, 1000), "blocks": (1, 100), "sample_every": (1, 100_000)}
"""Smallest and largest value of each number."""
FRAMES = "reference frames"
MAX_PAIR_DISTANCE = 8.0
"""Largest distance of pairs [Å]."""
MAX_PAIR_FRAMES = 50
"""Largest number of frames whose pair distances are counted."""


@dataclass(frozen=True, kw_only=True)
class Condition:
    """A temperature, with what is known of it."""

    temperature: float = field(metadata=MAY_CHANGE)
    """Temperature [K]."""
    diffusivity: float | None = field(default=None, metadata=MAY_CHANGE)
    """Reference diffusivity [cm²/s]; None: that of `msd` if there is one."""
    msd: Path | None = field(default=None, metadata=MAY_CHANGE)
    """Reference table of the mean squared displacement: rows of steps and Å²."""
    frames: Path | None = field(default=None, metadata=MAY_CHANGE)
    """Reference trajectory of the same atoms, for displacements of the framework and its pair distances."""

    def __post_init__(self) -> None:
        if not 1.0 <= self.temperature <= 100_000.0:
            raise ValueError(f"temperature must be between 1 and 100,000 K, not {self.temperature:g}")
        if self.diffusivity is not None and not self.diffusivity > 0:
            raise ValueError(f"diffusivity must be positive, not {self.diffusivity:g} cm²/s")

    def table(self, step: float) -> Msd | None:
        """Return the reference table with its time step [fs], or None."""
        if self.msd is None:
            return None
        return read_msd(resolve(str(self.msd), field="conditions.msd", section="suites"), step)


class Run(NamedTuple):
    """Trajectories at one temperature that reached their end, and the share that did."""

    tracks: list[Float64[np.ndarray, "frames atoms 3"]]
    """Positions without the drift of the centre of mass [Å]."""
    stable: float
    """Share of trajectories that reached their end."""


@dataclass(frozen=True, kw_only=True)
class Diffusion(Suite):
    """Diffusivity of an element at several temperatures, displacements of the other atoms, stability."""

    name: ClassVar[str] = "diffusion"

    diffusing: str = field(metadata=MAY_CHANGE)
    """Symbol of the element that diffuses; the other atoms are the framework."""
    start: Path = field(metadata=MAY_CHANGE)
    """File with the structure to start from; ${NAME} in a path stands for an environment variable."""
    conditions: tuple[Condition, ...] = field(metadata=MAY_CHANGE)
    """Temperatures, with references."""
    frame: int = field(default=0, metadata=MAY_CHANGE)
    """Number of the frame in the file; -1 is the last."""
    trajectories: int = field(default=3, metadata=MAY_CHANGE)
    """Number of trajectories at each temperature, of different seeds."""
    length: float = field(default=10.0, metadata=MAY_CHANGE)
    """Length of each [ps]."""
    equilibration: float = field(default=1.0, metadata=MAY_CHANGE)
    """Time before it that is not measured [ps]."""
    time_step: float = field(default=2.0, metadata=MAY_CHANGE)
    """Time step [fs]."""
    friction: float = field(default=1.0, metadata=MAY_CHANGE)
    """Friction of the Langevin thermostat [1/ps]; a larger one slows diffusion."""
    sample_every: int = field(default=10, metadata=MAY_CHANGE)
    """Number of steps from one frame to the next."""
    blocks: int = field(default=4, metadata=MAY_CHANGE)
    """Number of parts of a trajectory by whose spread the error is judged."""
    lag: float = field(default=0.4, metadata=MAY_CHANGE)
    """Lag at which mean squared displacements are compared [ps]."""
    limit: float = field(default=1.0, metadata=MAY_CHANGE)
    """Distance from its basin beyond which an atom of the framework counts as displaced [Å]."""
    reference_step: float = field(default=2.0, metadata=MAY_CHANGE)
    """Time step of the references' tables [fs]."""
    reference_interval: float = field(default=20.0, metadata=MAY_CHANGE)
    """Time between the frames of reference trajectories [fs]."""

    def __post_init__(self) -> None:
        check_numbers(self, LIMITS)
        atomic_number(self.diffusing)
        for name in ("length", "time_step", "lag", "limit", "reference_step", "reference_interval"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name):g}")
        if self.equilibration < 0 or self.friction < 0:
            raise ValueError("equilibration and friction must not be negative")
        if self._num_frames < 10 * self.blocks:
            raise ValueError(
                f"{self._num_frames} frames in {self.length:g} ps are too few for {self.blocks} blocks of ten; raise "
                "length, or lower sample_every or blocks"
            )
        temperatures = [each.temperature for each in self.conditions]
        if len(set(temperatures)) < len(temperatures) or not temperatures:
            raise ValueError("conditions: one or more temperatures are needed, each once")

    @property
    def _num_frames(self) -> int:
        return round(1e3 * self.length / (self.time_step * self.sample_every))

    def elements(self) -> set[int]:
        """Return the atomic numbers of the structure.

        Raises:
            FileNotFoundError: there is no such file.
        """
        return {*self._start().numbers.tolist()}

    def run(self, subject: Subject) -> Findings:
        """Return diffusivities with intervals, stability and the state of the framework, and their errors.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: the structure does not hold the element, or is not periodic, or a reference has other atoms.
        """
        start = self._start()
        references = [_frames(each.frames, start) if each.frames else None for each in self.conditions]
        tables = [each.table(self.reference_step) for each in self.conditions]
        quantities: dict[str, Finding] = {}
        charts: dict[str, Chart] = {}
        errors = []
        for condition, frames, table in zip(self.conditions, references, tables, strict=True):
            run = self._run(start, subject, condition.temperature)
            found = self._diffusion(start, run, condition, table)
            label = f"{condition.temperature:g} K"
            if found.value is not None and found.reference is not None:
                errors.append(found.value / found.reference - 1.0)
            quantities[f"{label}: diffusivity"] = found
            quantities[f"{label}: stable trajectories"] = Finding(value=run.stable, reference=1.0)
            parts = {**self._framework(start, run, frames), **self._at_lag(start, run, frames, table)}
            quantities |= {f"{label}: {name}": each for name, each in parts.items()}
            if run.tracks:
                charts[f"Mean squared displacement at {label}"] = self._chart(start, run, frames, table)
        if errors:
            percent = 100 * np.array(errors)
            quantities["mean percentage error of the diffusivity"] = Finding(value=float(percent.mean()), unit="%")
            absolute = Finding(value=float(np.abs(percent).mean()), unit="%")
            quantities["mean absolute percentage error of the diffusivity"] = absolute
        return Findings(quantities=quantities, charts=charts)

    def _start(self) -> ase.Atoms:
        atoms = ase.io.read(resolve(str(self.start), field="start", section="suites"), index=self.frame)
        assert isinstance(atoms, ase.Atoms)
        if not atoms.pbc.all():
            raise ValueError(f"{self.start}: the structure must be periodic in three directions")
        if atomic_number(self.diffusing) not in atoms.numbers:
            raise ValueError(f"{self.start}: there is no {self.diffusing} in {atoms.get_chemical_formula()}")
        return atoms

    def _run(self, start: ase.Atoms, subject: Subject, temperature: float) -> Run:
        def arrays(seed: int) -> Arrays:
            # a new calculator for each, so that a trajectory does not depend on those that were run before it
            track = self._trajectory(start.copy(), subject.calculator(), temperature, seed)
            return () if track is None else (track,)

        found = [
            kept(subject.kept, f"{temperature:g} K, seed {seed}", partial(arrays, seed))
            for seed in range(self.trajectories)
        ]
        tracks = [track for each in found for track in each]
        return Run(tracks, len(tracks) / len(found))

    def _trajectory(
        self, atoms: ase.Atoms, calculator: Calculator, temperature: float, seed: int
    ) -> Float64[np.ndarray, "frames atoms 3"] | None:
        """Return positions without the drift of the centre of mass; None if the atoms flew apart."""
        random = np.random.default_rng(seed)
        atoms.calc = calculator
        atoms.set_momenta(thermal_momenta(atoms, temperature, random))
        friction = self.friction / (1e3 * units.fs)
        before = round(1e3 * self.equilibration / self.time_step)
        frames, centre = [], atoms.get_center_of_mass()
        with Langevin(
            atoms, self.time_step * units.fs, temperature_K=temperature, friction=friction, fixcm=False, rng=random
        ) as dynamics:
            for step, _ in enumerate(dynamics.irun(before + self._num_frames * self.sample_every)):
                if is_lost(atoms, temperature):
                    return None
                if step >= before and (step - before) % self.sample_every == 0:
                    frames.append(atoms.positions - (atoms.get_center_of_mass() - centre))
        return np.array(frames)

    @property
    def _interval(self) -> float:
        return 1e-3 * self.time_step * self.sample_every

    def _msd(self, start: ase.Atoms, tracks: list[Float64[np.ndarray, "frames atoms 3"]], interval: float) -> Msd:
        """Return the mean over trajectories for the element that diffuses."""
        moving = start.numbers == atomic_number(self.diffusing)
        each = [mean_squared_displacement(track[:, moving], interval) for track in tracks]
        return Msd(each[0].lags, np.mean([one.values for one in each], axis=0))

    def _diffusion(self, start: ase.Atoms, run: Run, condition: Condition, table: Msd | None) -> Finding:
        """Return the diffusivity; its interval is a bootstrap over the blocks of all trajectories."""
        reference = condition.diffusivity
        if reference is None and table is not None:
            reference = diffusivity(table)
        if not run.tracks:
            return Finding(value=None, unit="cm²/s", reference=reference)
        moving = start.numbers == atomic_number(self.diffusing)
        value = diffusivity(self._msd(start, run.tracks, self._interval))
        blocks = np.concatenate(
            [block_diffusivities(track[:, moving], self._interval, self.blocks) for track in run.tracks]
        )
        return Finding(value=value, unit="cm²/s", reference=reference, interval=interval_around(value, blocks))

    def _framework(
        self, start: ase.Atoms, run: Run, reference: Float64[np.ndarray, "frames atoms 3"] | None
    ) -> dict[str, Finding]:
        """Return the share of displaced atoms that do not diffuse, and the likeness of their pair distances."""
        still, cell = start.numbers != atomic_number(self.diffusing), np.asarray(start.cell)
        if not still.any() or not run.tracks:
            return {}
        own = [track[:, still] for track in run.tracks]
        known = None if reference is None else reference[:, still]
        basins = start.positions[still] if known is None else known.mean(axis=0)
        share = float(np.mean([displaced_share(track, basins, cell, self.limit) for track in own]))
        found = {
            "framework atoms displaced": Finding(
                value=share, reference=None if known is None else displaced_share(known, basins, cell, self.limit)
            )
        }
        if known is not None and np.count_nonzero(still) > 1:
            largest = min(MAX_PAIR_DISTANCE, height(cell) / 2)
            mixed = np.concatenate(own)
            pairs = [pair_distribution(_thinned(each), cell, largest) for each in (mixed, known)]
            found["likeness of the framework's pair distances"] = Finding(value=overlap(*pairs), reference=1.0)
        return found

    def _references(
        self, start: ase.Atoms, frames: Float64[np.ndarray, "frames atoms 3"] | None, table: Msd | None
    ) -> dict[str, Msd]:
        found = (
            {} if frames is None else {"reference frames": self._msd(start, [frames], 1e-3 * self.reference_interval)}
        )
        return found if table is None else found | {"reference table": table}

    def _at_lag(
        self,
        start: ase.Atoms,
        run: Run,
        frames: Float64[np.ndarray, "frames atoms 3"] | None,
        table: Msd | None,
    ) -> dict[str, Finding]:
        """Return the mean squared displacement at a lag, with that of the reference frames or else of the table."""
        if not run.tracks:
            return {}
        references = [msd.at(self.lag) for msd in self._references(start, frames, table).values()]
        value = self._msd(start, run.tracks, self._interval).at(self.lag)
        reference = references[0] if references else None
        return {f"mean squared displacement at {self.lag:g} ps": Finding(value=value, unit="Å²", reference=reference)}

    def _chart(
        self,
        start: ase.Atoms,
        run: Run,
        frames: Float64[np.ndarray, "frames atoms 3"] | None,
        table: Msd | None,
    ) -> Chart:
        """Return mean squared displacements to the end of the fit, with the range over trajectories."""
        longest = WINDOW[1] * self._interval * self._num_frames
        each = [self._msd(start, [track], self._interval).to(longest) for track in run.tracks]
        values = np.array([one.values for one in each])
        several = len(each) > 1
        own = Curve(
            x=tuple(each[0].lags),
            y=tuple(values.mean(axis=0)),
            low=tuple(values.min(axis=0)) if several else (),
            high=tuple(values.max(axis=0)) if several else (),
        )
        curves = {"": own}
        for label, msd in self._references(start, frames, table).items():
            part = msd.to(longest)
            points = label == FRAMES  # both are grey
            curves[label] = Curve(x=tuple(part.lags), y=tuple(part.values), reference=True, points=points)
        return Chart(x="lag [ps]", y=f"mean squared displacement of {self.diffusing} [Å²]", curves=curves)


def _frames(path: Path, start: ase.Atoms) -> Float64[np.ndarray, "frames atoms 3"]:
    """Read a trajectory and return positions without jumps and without the drift of the centre of mass [Å]."""
    images = ase.io.read(resolve(str(path), field="conditions.frames", section="suites"), index=":")
    assert isinstance(images, list)
    for image in images:
        if not np.array_equal(image.numbers, start.numbers) or not np.allclose(image.cell, start.cell, atol=1e-3):
            raise ValueError(f"{path}: its atoms or its cell are not those of the structure to start from")
    tracks = unwrapped(np.array([image.positions for image in images]), np.asarray(start.cell))
    return without_drift(tracks, start.get_masses())


def _thinned(tracks: Float64[np.ndarray, "frames atoms 3"]) -> Float64[np.ndarray, "some atoms 3"]:
    return tracks[:: -(-len(tracks) // MAX_PAIR_FRAMES)]
