"""Forces of an ASE calculator in a LAMMPS that Python runs, by LAMMPS's `fix external`: for any device, one process."""

from collections.abc import Callable, Sequence
from typing import Any

import ase
import numpy as np
from ase.calculators.calculator import Calculator
from jaxtyping import Float64

from data_pipeline.structure import SYMBOLS

FIX = "foundation"
"""Name of the fix in LAMMPS."""
VOIGT = [0, 1, 2, 5, 4, 3]
"""ASE's order of the components xx, yy, zz, yz, xz, xy in LAMMPS's, xx, yy, zz, xy, xz, yz."""


def add_forces(lammps: Any, calculator: Calculator, elements: Sequence[str]) -> None:
    """Add a calculator's energy, forces and virial to those of a LAMMPS that has a box and atoms.

    What the calculator raises is printed by Python, because LAMMPS is between it and the caller; the run then ends at
    its next step, with forces that are not numbers.

    Args:
        lammps: Object of LAMMPS's Python module.
        calculator: Calculator, such as foundation.Calculator("sevennet-0", device="cuda", mode="md").
        elements: Chemical symbol of each of LAMMPS's atom types.

    Raises:
        ValueError: LAMMPS has other units than metal, no box yet, several processes, or another number of types than
            there are elements; or an element is none.
    """
    if lammps.extract_global("units") != "metal":
        raise ValueError(f"LAMMPS has the units {lammps.extract_global('units')}; begin its input with: units metal")
    if not lammps.extract_setting("box_exist"):
        raise ValueError("LAMMPS has no box yet; read its atoms first, with read_data or create_box")
    if (processes := lammps.extract_setting("world_size")) != 1:
        raise ValueError(f"LAMMPS runs on {processes} processes, and forces come from one; use pair_style foundation")
    if len(elements) != (types := lammps.extract_setting("ntypes")):
        raise ValueError(f"LAMMPS has {types} atom types, but {len(elements)} elements are named: {' '.join(elements)}")
    if strange := [symbol for symbol in elements if symbol not in SYMBOLS[1:]]:
        raise ValueError(f"{strange[0]}: no chemical symbol")
    lammps.command(f"fix {FIX} all external pf/callback 1 1")
    lammps.command(f"fix_modify {FIX} energy yes virial yes")
    lammps.set_fix_external_callback(FIX, _callback(lammps, calculator, list(elements)), lammps)


def _callback(lammps: Any, calculator: Calculator, elements: list[str]) -> Callable[..., None]:
    """Return the function that LAMMPS calls in every step."""

    def compute(
        caller: Any,
        step: int,
        count: int,
        tags: Any,
        x: Float64[np.ndarray, "atoms 3"],
        f: Float64[np.ndarray, "atoms 3"],
    ) -> None:
        try:
            atoms = _atoms(lammps, elements, count, x)
            atoms.calc = calculator
            f[:] = atoms.get_forces()
            lammps.fix_external_set_energy_global(FIX, atoms.get_potential_energy())
            if atoms.cell.rank == 3:
                virial = -atoms.get_volume() * np.asarray(atoms.get_stress())
                lammps.fix_external_set_virial_global(FIX, virial[VOIGT].tolist())
        except BaseException:
            f[:] = np.nan
            lammps.lib.lammps_force_timeout(lammps.lmp)
            raise

    return compute


def _atoms(lammps: Any, elements: list[str], count: int, x: Float64[np.ndarray, "atoms 3"]) -> ase.Atoms:
    """Return LAMMPS's atoms in its own order."""
    low, high, xy, yz, xz, periodic, _ = lammps.extract_box()
    lengths = np.subtract(high, low)
    cell = [[lengths[0], 0, 0], [xy, lengths[1], 0], [xz, yz, lengths[2]]]
    types = lammps.numpy.extract_atom("type")[:count]
    symbols = [elements[number - 1] for number in types]
    return ase.Atoms(symbols, positions=x[:count] - np.array(low), cell=cell, pbc=[bool(each) for each in periodic])
