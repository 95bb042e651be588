"""Relaxations of many structures, appended to a file of lines, so that a killed process goes on.

Several processes share the work: each has a file of its own, and every one reads those of all. A structure that cannot
be relaxed has a line as well, with the reason.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import ase
import numpy as np
import torch
from ase.calculators.calculator import Calculator
from jaxtyping import Float64

from data_pipeline.quoting import one_line
from data_pipeline.sources.materials import Material
from data_pipeline.store.untrusted import CorruptFile, OpenRecord, typed
from data_pipeline.structure import InvalidStructure
from foundation.interop.lines import SUFFIX, append_line, read_lines
from foundation.interop.relaxation import relax_with

FOLDER = "relaxed"
"""Folder of the files of lines."""
OF_THE_MACHINE = (OSError, MemoryError, torch.OutOfMemoryError)
"""Errors that say nothing about a structure: they end the process, and the structure is tried again."""
Triple = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Relaxed(OpenRecord):
    """A relaxed structure, or the reason why there is none."""

    number: int
    """Place in the file of structures, from zero on."""
    id: str
    """Name."""
    atomic_numbers: tuple[int, ...] = ()
    """Atomic numbers; () after a failure."""
    positions: tuple[Triple, ...] = ()
    """Positions [Å]."""
    cell: tuple[Triple, ...] = ()
    """Lattice vectors as rows [Å]."""
    pbc: tuple[bool, ...] = (True, True, True)
    """Lattice vectors that repeat."""
    energy: float | None = None
    """Total energy [eV]; None after a failure."""
    energy_before: float | None = None
    """Total energy before the relaxation [eV]."""
    max_force: float | None = None
    """Largest force at the end, including strain [eV/Å]."""
    num_steps: int = 0
    """Steps taken."""
    converged: bool = False
    """True if the largest force is below the limit."""
    error: str | None = None
    """Reason why there is no relaxed structure."""

    def atoms(self) -> ase.Atoms:
        """Return the relaxed structure."""
        return ase.Atoms(list(self.atomic_numbers), np.array(self.positions), cell=self.cell, pbc=self.pbc)


Relaxer = Callable[[Iterator[tuple[int, Material]]], Iterator[Relaxed]]
"""Function that relaxes materials with their numbers, in any order."""


def relax_all(
    materials: Iterable[Material | None], relaxer: Relaxer, folder: Path, name: str, *, tell: Callable[[int], None]
) -> int:
    """Relax the materials that have no line yet, and return the number of all, chosen or not.

    Args:
        materials: Materials in order; None for one of another process.
        relaxer: Function that relaxes them.
        folder: Folder of the files of lines.
        name: Name of the file of this process.
        tell: Function that is called with the number of lines after each.

    Raises:
        CorruptFile: a file of lines is damaged.
        ValueError: two materials have one name.
    """
    done = {each.id: each.number for each in read_relaxed(folder)}
    total, count = 0, len(done)

    def waiting() -> Iterator[tuple[int, Material]]:
        nonlocal total
        for number, material in enumerate(materials):
            total += 1
            if material is None:
                continue
            if done.setdefault(material.id, -1) not in (-1, number):
                raise ValueError(f"materials {done[material.id]} and {number} of the file are both named {material.id}")
            if done[material.id] != number:
                done[material.id] = number
                yield number, material

    for found in relaxer(waiting()):
        append_line(folder / f"{name}{SUFFIX}", asdict(found), flush=True)
        count += 1
        tell(count)
    return total


def one_by_one(calculator: Calculator, *, max_force: float, max_steps: int) -> Relaxer:
    """Return a function that relaxes materials by ASE's FIRE with a calculator.

    Args:
        calculator: Calculator of energy, forces and stress.
        max_force: Largest force at which to end [eV/Å].
        max_steps: Largest number of steps.
    """

    def relaxer(materials: Iterator[tuple[int, Material]]) -> Iterator[Relaxed]:
        for number, material in materials:
            yield _relaxed(number, material, calculator, max_force, max_steps)

    return relaxer


def _relaxed(number: int, material: Material, calculator: Calculator, max_force: float, max_steps: int) -> Relaxed:
    """Return the relaxed structure of a material, or why there is none."""
    if isinstance(material.structure, InvalidStructure):
        return not_relaxed(number, material, str(material.structure))
    try:
        found = relax_with(material.structure, calculator, max_force=max_force, max_steps=max_steps)
        if not math.isfinite(found.energy_after):
            raise ValueError(f"the energy is {found.energy_after}")
    except OF_THE_MACHINE:
        raise
    except Exception as error:  # calculators of other programs raise any type
        return not_relaxed(number, material, f"{type(error).__name__}: {error}")
    return Relaxed(
        number=number,
        id=material.id,
        atomic_numbers=tuple(found.atoms.numbers.tolist()),
        positions=rows_of(found.atoms.positions),
        cell=rows_of(np.asarray(found.atoms.cell)),
        pbc=tuple(found.atoms.pbc.tolist()),
        energy=found.energy_after,
        energy_before=found.energy_before,
        max_force=found.max_force,
        num_steps=found.num_steps,
        converged=found.converged,
    )


def not_relaxed(number: int, material: Material, reason: str) -> Relaxed:
    """Return the line of a material that cannot be relaxed."""
    return Relaxed(number=number, id=material.id, error=one_line(reason))


def read_relaxed(folder: Path) -> list[Relaxed]:
    """Return the lines of all files in a folder, by number; a torn line is left out, and its structure relaxed again.

    Raises:
        CorruptFile: a line is not a relaxed structure.
    """
    found: dict[str, Relaxed] = {}
    for place, values in read_lines(folder):
        try:
            relaxed = typed(Relaxed, values, "")
        except ValueError as error:
            raise CorruptFile(f"{place}: not a relaxed structure ({error}); remove the line") from error
        found[relaxed.id] = relaxed
    return sorted(found.values(), key=lambda each: each.number)


def rows_of(array: Float64[np.ndarray, "rows 3"]) -> tuple[Triple, ...]:
    """Return the rows of an array as tuples."""
    return tuple((float(x), float(y), float(z)) for x, y, z in array)
