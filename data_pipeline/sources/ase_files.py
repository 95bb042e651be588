"""Files that ASE reads (extxyz, VASP OUTCAR and vasprun.xml, .db, .traj, CIF with labels ...) as Structures."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import ase
import ase.io
import ase.units
import numpy as np
from ase.calculators.calculator import PropertyNotImplementedError
from ase.stress import voigt_6_to_full_3x3_stress

from data_pipeline.structure import InvalidStructure, Structure

STRESS_UNITS = {"eV/A^3": 1.0, "GPa": ase.units.GPa, "kbar": 0.1 * ase.units.GPa}
"""Size of each unit in eV/Å³ (CODATA values of ASE)."""


@dataclass(frozen=True, kw_only=True)
class AseFiles:
    """Labelled frames in files of any format that ASE reads, in the order given.

    Labels are what ASE's single-point calculator holds (it moves energy, forces and stress there), or the arrays
    named below. Energies are total energies [eV] and forces [eV/Å]; only stress differs between formats in use.
    """

    files: tuple[str, ...]
    """Paths; an environment variable is written ${NAME}."""
    format: str | None = None
    """ASE's name of the format; guessed from the file when absent."""
    energy_key: str | None = None
    """Entry of atoms.info with the total energy [eV], such as REF_energy; the calculator's when absent."""
    forces_key: str | None = None
    """Entry of atoms.arrays with the forces [eV/Å], such as REF_forces; the calculator's when absent."""
    stress_key: str | None = None
    """Entry of atoms.info with the stress (6 in ASE's Voigt order, 9 or 3×3); the calculator's when absent."""
    stress_unit: Literal["eV/A^3", "GPa", "kbar"] = "eV/A^3"
    """Unit of the stress in the files."""
    stress_positive_in: Literal["tension", "compression"] = "tension"
    """Sign of the stress in the files; VASP's own output is positive in compression, ASE's reader turns it."""
    group_key: str | None = None
    """Entry of atoms.info that names the group; the chemical formula when absent."""
    id_key: str | None = None
    """Entry of atoms.info that names the frame; file name and frame number when absent."""

    def __iter__(self) -> Iterator[Structure]:
        """Yield every frame of every file.

        Raises:
            FileNotFoundError: a file is not there, or its path names an environment variable that is not set.
            InvalidStructure: a file cannot be read or a frame is refused; the message names file and frame.
        """
        for name in self.files:
            yield from self._read(resolve(name))

    def _read(self, path: Path) -> Iterator[Structure]:
        frames = ase.io.iread(path, index=":", format=self.format)
        number = 0
        while True:
            try:
                atoms = next(frames, None)
            except Exception as error:  # a reader of ASE's may raise anything; all of it means "unreadable here"
                raise InvalidStructure(
                    f"{path}, frame {number}: cannot be read ({type(error).__name__}: {error}). "
                    "The file may be truncated; repair it or remove it from the source's files."
                ) from error
            if atoms is None:
                break
            try:
                yield self.convert(atoms, default_id=f"{path.name}:{number}")
            except InvalidStructure as error:
                raise InvalidStructure(
                    f"{path}, frame {number}: {error}. Correct the frame or remove it from the file."
                ) from error
            number += 1
        if number == 0:
            raise InvalidStructure(f"{path}: the file holds no frames. Remove it from the source's files.")

    def convert(self, atoms: ase.Atoms, *, default_id: str) -> Structure:
        """Return one of ASE's Atoms as a Structure, with units and signs settled.

        Raises:
            InvalidStructure: no energy, or what Structure.checked refuses.
        """
        energy = _label(atoms, "energy", self.energy_key, atoms.info)
        if energy is None:
            where = f"atoms.info[{self.energy_key!r}]" if self.energy_key else "the calculator"
            raise InvalidStructure(f"there is no energy in {where}; name its entry with energy_key")
        forces = _label(atoms, "forces", self.forces_key, atoms.arrays)
        stress = _label(atoms, "stress", self.stress_key, atoms.info)
        factor = STRESS_UNITS[self.stress_unit] * (1.0 if self.stress_positive_in == "tension" else -1.0)
        return Structure.checked(
            numbers=atoms.numbers,
            positions=atoms.positions,
            cell=np.asarray(atoms.cell),
            pbc=atoms.pbc,
            energy=float(energy),
            forces=forces,
            stress=None if stress is None else factor * _full_stress(np.asarray(stress)),
            id=str(_entry(atoms, self.id_key, default_id)),
            group=str(_entry(atoms, self.group_key, atoms.get_chemical_formula())),
        )


def resolve(name: str) -> Path:
    """Return the path with its environment variables filled in.

    Raises:
        FileNotFoundError: a variable is not set, or there is no such file.
    """
    path = Path(os.path.expandvars(name)).expanduser()
    if "$" in str(path):
        raise FileNotFoundError(
            f"{name}: the environment variable in this path is not set. Set it to the folder that holds the data, "
            "or give the path itself with --source.files."
        )
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file (source.files names it)")
    return path


def _label(atoms: ase.Atoms, name: str, key: str | None, entries: dict) -> np.ndarray | float | None:
    """Return a label from the named entry or, without one, from the calculator; None where there is none."""
    if key is not None:
        return entries.get(key)
    if atoms.calc is None:
        return None
    try:
        return atoms.calc.get_property(name, atoms, allow_calculation=False)
    except PropertyNotImplementedError:
        return None


def _entry(atoms: ase.Atoms, key: str | None, default: str) -> str:
    if key is None:
        return default
    if key not in atoms.info:
        raise InvalidStructure(f"there is no entry {key!r} in atoms.info; it holds {sorted(atoms.info)}")
    return atoms.info[key]


def _full_stress(stress: np.ndarray) -> np.ndarray:
    if stress.size == 6:
        return voigt_6_to_full_3x3_stress(stress.reshape(6).astype(np.float64))
    if stress.size == 9:
        return stress.reshape(3, 3)
    raise InvalidStructure(f"stress has shape {stress.shape}, expected 6 (Voigt), 9 or 3×3 numbers")
