"""Files that ASE reads (extxyz, VASP OUTCAR and vasprun.xml, .db, .traj, CIF with labels ...) as Structures."""

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import ase
import ase.io
import ase.units
import numpy as np
from ase.stress import voigt_6_to_full_3x3_stress

from data_pipeline.sources.source import Frame, Part, Source
from data_pipeline.structure import InvalidStructure, Structure

STRESS_UNITS = {"eV/A^3": 1.0, "GPa": ase.units.GPa, "kbar": 0.1 * ase.units.GPa}
"""Size of each unit in eV/Å³ (CODATA values of ASE)."""


@dataclass(frozen=True, kw_only=True)
class AseFiles(Source):
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
    """Entry of atoms.info that names the frame; file (below the folder common to all) and number when absent."""

    def parts(self) -> Sequence[Part]:
        """Return one part per file.

        Raises:
            FileNotFoundError: a file is not there, or its path names an environment variable that is not set.
        """
        paths = [resolve(name) for name in self.files]
        folder = os.path.commonpath([path.absolute().parent for path in paths]) if paths else ""
        names = [os.path.relpath(path.absolute(), folder) for path in paths]
        return [
            Part(name=name, size=path.stat().st_size, read=partial(self._read, path, name))
            for path, name in zip(paths, names, strict=True)
        ]

    def _read(self, path: Path, name: str) -> Iterator[Frame]:
        if self.format == "extxyz" or (self.format is None and path.suffix in (".xyz", ".extxyz")):
            _check_extxyz(path)
        frames = ase.io.iread(path, index=":", format=self.format)
        number, with_forces, with_stress = 0, 0, 0
        while (atoms := _next(frames, path, number)) is not None:
            try:
                structure = self.convert(atoms, default_id=f"{name}:{number}")
            except InvalidStructure as error:
                yield InvalidStructure(
                    f"{path}, frame {number}: {error}. Correct the frame or remove it from the file."
                )
            else:
                yield structure
                with_forces += structure.has_forces
                with_stress += structure.has_stress
            number += 1
        if number == 0:
            raise InvalidStructure(f"{path}: the file holds no frames. Remove it from the source's files.")
        for option, key, count in (
            ("forces_key", self.forces_key, with_forces),
            ("stress_key", self.stress_key, with_stress),
        ):
            if key is not None and count == 0:
                raise InvalidStructure(f"{path}: no frame has an entry {key!r}; correct {option} or leave it out")

    def convert(self, atoms: ase.Atoms, *, default_id: str) -> Structure:
        """Return one of ASE's Atoms as a Structure, with units and signs settled.

        Raises:
            InvalidStructure: no energy, or what Structure.checked refuses.
        """
        energy = _label(atoms, "energy", self.energy_key, atoms.info)
        where = f"atoms.info[{self.energy_key!r}]" if self.energy_key else "the calculator"
        if energy is None:
            raise InvalidStructure(f"there is no energy in {where}; name its entry with energy_key")
        if not isinstance(energy, int | float | np.number):
            raise InvalidStructure(f"the energy in {where} is {energy!r}, not a number")
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


def _next(frames: Iterator[ase.Atoms], path: Path, number: int) -> ase.Atoms | None:
    """Return the next frame, or None at the end; whatever a reader of ASE's raises becomes an error with a place."""
    try:
        return next(frames, None)
    except KeyError as error:
        raise InvalidStructure(
            f"{path}, frame {number}: unknown element or entry {error}. Correct the frame or remove it from the file."
        ) from error
    except Exception as error:
        raise InvalidStructure(
            f"{path}, frame {number}: cannot be read ({type(error).__name__}: {error}). "
            "The file may be truncated; repair it or remove it from the source's files."
        ) from error


def _check_extxyz(path: Path) -> None:
    """Refuse what ASE reads wrongly without a word: it stops at a blank line, and takes half a number for a number."""
    with path.open() as file:
        for frame in itertools.count():
            header = file.readline()
            if not header.strip():
                if file.read().strip():
                    raise InvalidStructure(
                        f"{path}: a blank line after frame {frame - 1} would end reading. Remove it."
                    )
                return
            if not header.strip().isdigit():
                raise InvalidStructure(
                    f"{path}, frame {frame}: begins with {header.strip()[:40]!r}, not with a number of atoms. "
                    "The file may be damaged; repair it or remove it from the source's files."
                )
            last = header
            for _ in range(int(header) + 1):
                last = file.readline()
            if not last.endswith("\n"):
                raise InvalidStructure(
                    f"{path}, frame {frame}: the file ends in the middle, so it may be truncated; repair it, remove it "
                    "from the source's files, or end it with a newline if it is complete."
                )


def _label(atoms: ase.Atoms, name: str, key: str | None, entries: dict[str, Any]) -> Any:
    """Return a label from the named entry or, without one, from the calculator; None where there is none."""
    if key is not None:
        return entries.get(key)
    # not get_property(), which drops all labels of a frame with a NaN position
    return None if atoms.calc is None else atoms.calc.results.get(name)


def _entry(atoms: ase.Atoms, key: str | None, default: str) -> Any:
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
