"""Relaxations of many structures one by one, appended to a file of lines, so that a killed process goes on.

Several processes share the work: each has a file of its own, and every one reads those of all. A structure that cannot
be relaxed has a line as well, with the reason.
"""

import math
from collections.abc import Callable, Iterable
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


def relax_all(
    materials: Iterable[Material | None],
    calculator: Calculator,
    folder: Path,
    name: str,
    *,
    max_force: float,
    max_steps: int,
    tell: Callable[[int], None],
) -> int:
    """Relax the materials that have no line yet, and return the number of all, chosen or not.

    Args:
        materials: Materials in order; None for one of another process.
        calculator: Calculator of energy, forces and stress.
        folder: Folder of the files of lines.
        name: Name of the file of this process.
        max_force: Largest force at which to end [eV/Å].
        max_steps: Largest number of steps.
        tell: Function that is called with the number of lines after each.

    Raises:
        CorruptFile: a file of lines is damaged.
        ValueError: two materials have one name.
    """
    done = {each.id: each.number for each in read_relaxed(folder)}
    total = 0
    for number, material in enumerate(materials):
        total += 1
        if material is None:
            continue
        if done.setdefault(material.id, -1) not in (-1, number):
            raise ValueError(f"materials {done[material.id]} and {number} of the file are both named {material.id}")
        if done[material.id] == number:
            continue
        found = _relaxed(number, material, calculator, max_force, max_steps)
        append_line(folder / f"{name}{SUFFIX}", asdict(found))
        done[material.id] = number
        tell(len(done))
    return total


def _relaxed(number: int, material: Material, calculator: Calculator, max_force: float, max_steps: int) -> Relaxed:
    """Return the relaxed structure of a material, or why there is none."""
    if isinstance(material.structure, InvalidStructure):
        return Relaxed(number=number, id=material.id, error=one_line(str(material.structure)))
    try:
        found = relax_with(material.structure, calculator, max_force=max_force, max_steps=max_steps)
        if not math.isfinite(found.energy_after):
            raise ValueError(f"the energy is {found.energy_after}")
    except OF_THE_MACHINE:
        raise
    except Exception as error:  # calculators of other programs raise any type
        return Relaxed(number=number, id=material.id, error=one_line(f"{type(error).__name__}: {error}"))
    return Relaxed(
        number=number,
        id=material.id,
        atomic_numbers=tuple(found.atoms.numbers.tolist()),
        positions=_rows(found.atoms.positions),
        cell=_rows(np.asarray(found.atoms.cell)),
        pbc=tuple(found.atoms.pbc.tolist()),
        energy=found.energy_after,
        energy_before=found.energy_before,
        max_force=found.max_force,
        num_steps=found.num_steps,
        converged=found.converged,
    )


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


def _rows(array: Float64[np.ndarray, "rows 3"]) -> tuple[Triple, ...]:
    return tuple((float(x), float(y), float(z)) for x, y, z in array)
