"""A potential in every engine: energies, forces and stresses of structures, and dynamics, by each."""

import copy
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ase
import ase.io
import numpy as np
import torch

from foundation.engine.network import Unsupported
from foundation.evaluation.suites.dynamics import thermal_momenta
from foundation.interop.answers import Answer, Asked, Motion, total_energies
from foundation.interop.calculator import Calculator
from foundation.interop.in_lammps import InLammps
from foundation.potential import Potential

EXACT, ROUNDED = 1e-9, 1e-4
"""Largest differences in float64 and in float32."""
OF_UNITS = 1e-5
"""Largest difference of a program with constants of its own: i-PI's electronvolt is 1e-7 larger than ASE's."""
DOORS = {
    "torch-sim": ("in_torch_sim", EXACT),
    "OpenMM": ("in_openmm", EXACT),
    "i-PI": ("in_ipi", OF_UNITS),
    "metatomic": ("in_metatomic", EXACT),
}
"""Modules of engines in Python, imported only where they are installed, and their differences in float64."""
WITHOUT_LABELS = ("torch-sim", "OpenMM", "metatomic")
"""Engines that hand over atoms without the labels of their molecules."""

Start = ase.Atoms
"""A structure with the velocities of a dynamics' beginning."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way to compute structures in an engine."""

    engine: str
    """Name of the engine."""
    options: str
    """Options."""
    tolerance: float
    """Largest difference of energies per atom, forces and stresses, relative to 1 + |value|, that still is rounding."""
    compute: Callable[[list[ase.Atoms]], list[Answer]]
    """Function that computes structures."""
    move: Callable[[ase.Atoms, Motion], list[float]] | None = None
    """Function that returns total energies along a dynamics of a periodic structure [eV], the first one included; None:
    another way of the engine shows it."""
    periodic: bool = True
    """True if the engine is given periodic structures alone: see boxed()."""


def ways_to_compute(potential: Potential, theory: int) -> list[Way]:
    """Return all ways to compute by a potential in float64 at one of its levels of theory.

    Where dynamics are measured, the network is in float32 and has tabulated radial functions, as users take it.
    """
    name = potential.theories[theory]
    modes = [(Asked(potential, name, mode), mode == "md") for mode in ("precise", "md")]
    ways = [_in_ase(asked, engine, rounded) for asked, rounded in modes for engine in ("torch", "compiled")]
    for processes, words in ((1, "1 process"), (2, "2 processes"), (4, "4 processes")):
        lammps = InLammps(potential=potential, theory=theory, processes=processes)
        ways.append(Way(engine="LAMMPS", options=f"{words}, float64", tolerance=EXACT, compute=lammps.compute))
    single = InLammps(potential=copy.deepcopy(potential).cast(torch.float32), theory=theory, table=True)
    options = "1 process, float32, table"
    ways.append(Way(engine="LAMMPS", options=options, tolerance=ROUNDED, compute=single.compute, move=single.move))
    for engine, (module, difference) in DOORS.items():
        if potential.network.units and engine in WITHOUT_LABELS:
            ways.append(_without_labels(engine))
            continue
        ways += [
            Way(
                engine=engine,
                options=f"mode {asked.mode}",
                tolerance=ROUNDED if rounded else difference,
                compute=partial(_lazily, module, "compute", asked),
                move=partial(_lazily, module, "move", asked) if rounded else None,
            )
            for asked, rounded in modes
        ]
    return ways


def _without_labels(engine: str) -> Way:
    """Return a way that refuses: the engine hands over atoms without the labels of their molecules."""

    def compute(_: list[ase.Atoms]) -> list[Answer]:
        raise Unsupported("atoms are handed over without the labels of their molecules")

    return Way(engine=engine, options="mode precise", tolerance=EXACT, compute=compute)


def thermal(path: Path, temperature: float) -> Start:
    """Return the first structure of a file, with velocities of the Maxwell-Boltzmann distribution, at rest as a whole.

    Args:
        path: File that ASE reads.
        temperature: Temperature [K].
    """
    atoms = ase.io.read(path, index=0)
    assert isinstance(atoms, ase.Atoms)
    atoms.calc = None
    atoms.set_momenta(thermal_momenta(atoms, temperature, np.random.default_rng(0)))
    return atoms


def boxed(atoms: ase.Atoms, cutoff: float) -> ase.Atoms:
    """Return a structure as a periodic one, with more empty space than the cutoff where it does not repeat."""
    found = atoms.copy()
    if not atoms.pbc.all():
        found.center(vacuum=0.6 * cutoff, axis=[axis for axis in range(3) if not atoms.pbc[axis]])
        found.pbc = True
    return found


def _lazily(module: str, function: str, *arguments: Any) -> Any:
    return getattr(importlib.import_module(f"foundation.interop.{module}"), function)(*arguments)


def _in_ase(asked: Asked, engine: str, rounded: bool) -> Way:
    return Way(
        engine="ASE",
        options=f"mode {asked.mode}, engine {engine}",
        tolerance=ROUNDED if rounded else EXACT,
        compute=partial(_compute_in_ase, asked, engine),
        move=partial(_move_in_ase, asked, engine) if rounded else None,
        periodic=False,
    )


def _compute_in_ase(asked: Asked, engine: str, structures: list[ase.Atoms]) -> list[Answer]:
    calculator, found = Calculator(asked.potential, theory=asked.theory, mode=asked.mode, engine=engine), []
    for each in structures:
        atoms = each.copy()
        atoms.calc = calculator
        stress = atoms.get_stress(voigt=False) if atoms.cell.rank == 3 else None
        found.append(Answer(atoms.get_potential_energy(), atoms.get_forces(), stress))
    return found


def _move_in_ase(asked: Asked, engine: str, atoms: ase.Atoms, motion: Motion) -> list[float]:
    calculator = Calculator(asked.potential, theory=asked.theory, mode=asked.mode, engine=engine)
    return total_energies(calculator, atoms, motion)
