"""DeePMD-kit systems: folders of type.raw, type_map.raw and set.*/*.npy, plain or of mixed type.

Lengths [Å], energies [eV] and forces [eV/Å] need no conversion. The virial [eV] is of the whole frame and positive in
compression: stress = -virial / volume. Arrays are mapped into memory, so a set may be larger than the machine.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Shaped

from data_pipeline.quoting import abbreviated
from data_pipeline.sources.ase_files import hill_formula
from data_pipeline.sources.labels import check_charge, electrons, geometry, kind_of, say_once
from data_pipeline.sources.source import Frame, Part, Source, resolve
from data_pipeline.structure import NUMERIC, SYMBOLS, InvalidStructure, Structure

VIRTUAL = -1
"""Type of a padding atom: it fills the frames of a mixed-type set up to the same number of atoms."""

_SET = re.compile(r"set\.\d+")
_DECIDING = ("spin", "fparam", "aparam")
"""Files of quantities other than the atoms on which the energies of a set depend."""
MAX_TEXT = 16 * 2**20
"""Largest file of types [bytes]: millions of atoms."""


@dataclass(frozen=True, kw_only=True)
class DeepmdNpy(Source):
    """Labelled frames in DeePMD-kit systems; force and virial are missing labels if their files are missing.

    A frame is called system:set:number. Its group is the system, a folder of one composition; a mixed-type system
    holds many compositions, and there the group is the composition within it.
    """

    deepmd_npy: tuple[str, ...]
    """System folders, or folders searched for systems at any depth; ${NAME} stands for an environment variable."""
    type_map: tuple[str, ...] = ()
    """Elements of the types 0, 1, ... in systems without a type_map.raw."""

    def parts(self) -> Sequence[Part]:
        """Return one part per set, in the order of the folders given, then of names.

        Raises:
            FileNotFoundError: a folder is missing or holds no system, a system holds no set, or a path names an
                environment variable that is not set.
            InvalidStructure: the name of a folder set.* is not set. and a number.
        """
        systems = _systems([resolve(name, field="deepmd_npy", folders=True) for name in self.deepmd_npy])
        common = os.path.commonpath([system.parent for system in systems]) if systems else ""
        parts = []
        for system in systems:
            sets = sorted(path for path in system.glob("set.*") if path.is_dir())
            if unknown := [path.name for path in sets if not _SET.fullmatch(path.name)]:
                raise InvalidStructure(
                    f"{system / unknown[0]}: is not named set. and a number, so it may be a copy of a set; move "
                    "it out of the system"
                )
            if not sets:
                raise FileNotFoundError(f"{system}: no folder set.* beside type.raw; complete the system or remove it")
            for folder in sets:
                name = f"{os.path.relpath(system, common)}:{folder.name}"
                size = sum(file.stat().st_size for file in folder.glob("*.npy"))
                parts.append(Part(name=name, size=size, read=partial(self._read, folder, name)))
        return parts

    def _read(self, folder: Path, name: str) -> Iterator[Frame]:
        elements = self._elements(folder.parent)
        arrays = _load(folder)
        say_once(set(), str(folder), _unread(folder, arrays))
        for number in range(len(arrays.coord)):
            try:
                yield _frame(arrays, elements, number, name)
            except InvalidStructure as error:
                yield InvalidStructure(f"{folder}, frame {number}: {error}. Correct the frame or remove it.")

    def _elements(self, system: Path) -> np.ndarray:
        """Return the atomic number of each type of a system."""
        file = system / "type_map.raw"
        names = tuple(_words(file)) if file.is_file() else self.type_map
        if not names:
            raise InvalidStructure(f"{system}: no type_map.raw; name the elements of the types with type_map")
        if twice := [name for number, name in enumerate(names) if name in names[:number]]:
            raise InvalidStructure(
                f"{file if file.is_file() else 'type_map'}: names {abbreviated(twice[0])} twice; name each once"
            )
        numbers = {symbol: number for number, symbol in enumerate(SYMBOLS) if number}
        unknown = [name for name in names if name not in numbers]
        if unknown:
            raise InvalidStructure(
                f"{file if file.is_file() else 'type_map'}: {abbreviated(unknown[0])} is not a chemical symbol; name "
                "an element"
            )
        return np.array([numbers[name] for name in names])


class _Arrays(NamedTuple):
    """The arrays of a set; None where a file is missing."""

    coord: np.ndarray
    energy: np.ndarray
    types: np.ndarray
    box: np.ndarray | None
    force: np.ndarray | None
    virial: np.ndarray | None
    mixed: bool
    electrons: dict[str, np.ndarray]
    """Charge or spin of each frame, by the name of its file."""


def _systems(roots: list[Path]) -> list[Path]:
    systems: dict[Path, None] = {}  # a system below two of the roots is read once
    for root in roots:
        found = sorted(file.parent.absolute() for file in root.rglob("type.raw"))
        if not found:
            raise FileNotFoundError(f"{root}: no type.raw in this folder or below (source.deepmd_npy names it)")
        systems.update(dict.fromkeys(found))
    return list(systems)


def _load(folder: Path) -> _Arrays:
    """Open the arrays of a set and compare their shapes with the number of frames and atoms."""
    system = folder.parent
    try:
        types = np.array(_words(system / "type.raw"), dtype=np.int64)
    except (ValueError, OverflowError) as error:
        raise InvalidStructure(f"{system / 'type.raw'}: not a list of whole numbers ({error}); repair it") from error
    num_atoms, periodic = len(types), not (system / "nopbc").is_file()
    coord = _array(folder / "coord.npy", None, 3 * num_atoms)
    if coord is None:
        raise InvalidStructure(f"{folder / 'coord.npy'}: no such file, so the set has no frames; complete or remove it")
    frames = len(coord)
    energy = _array(folder / "energy.npy", frames, 1)
    if energy is None:
        raise InvalidStructure(f"{folder / 'energy.npy'}: no such file; frames without energy cannot be used")
    box = _array(folder / "box.npy", frames, 9) if periodic else None
    if periodic and box is None:
        raise InvalidStructure(f"{folder / 'box.npy'}: no such file; give the cells, or an empty file {system}/nopbc")
    real_types = _array(folder / "real_atom_types.npy", frames, num_atoms)
    if real_types is not None and real_types.dtype.kind == "f":
        raise InvalidStructure(f"{folder / 'real_atom_types.npy'}: is of type {real_types.dtype}, not whole numbers")
    if real_types is None and num_atoms and types.min() < 0:
        raise InvalidStructure(
            f"{system / 'type.raw'}: type {types.min()} is not valid; only real_atom_types.npy of a mixed system "
            "may have -1, for a padding atom"
        )
    for name in _DECIDING:
        if (folder / f"{name}.npy").exists():
            raise InvalidStructure(
                f"{folder / name}.npy: the energies depend on it, but the network does not know it; leave it out"
            )
    own = {file.stem: _array(file, None, None) for file in folder.glob("*.npy") if electrons(file.stem)}
    return _Arrays(
        coord=coord,
        energy=energy,
        types=np.broadcast_to(types, (frames, num_atoms)) if real_types is None else real_types,
        box=box,
        force=_array(folder / "force.npy", frames, 3 * num_atoms),
        virial=_array(folder / "virial.npy", frames, 9) if periodic else None,
        mixed=real_types is not None,
        electrons={name: array for name, array in own.items() if array is not None and len(array) == frames},
    )


def _array(file: Path, frames: int | None, width: int | None) -> Shaped[np.ndarray, "frames width"] | None:
    """Return a file's array as one row per frame, of any width if width is None; None if the file is missing."""
    if not file.is_file():
        return None
    try:
        array = np.load(file, mmap_mode="r")
    except Exception as error:  # numpy and mmap raise a dozen kinds
        reason = abbreviated(f"{type(error).__name__}: {error}")
        raise InvalidStructure(f"{file}: cannot be read ({reason}); copy it again or remove the set") from error
    if array.dtype.kind not in NUMERIC:
        raise InvalidStructure(f"{file}: is of type {abbreviated(str(array.dtype))}, not numbers; write it again")
    rows = len(array) if array.ndim else 0
    wide = array.size // max(rows, 1) if width is None else width
    if array.size != rows * wide or (frames is not None and rows != frames):
        raise InvalidStructure(
            f"{file}: has shape {array.shape}, expected ({'frames' if frames is None else frames}, {wide}) "
            "by coord.npy and type.raw; the files belong to different systems"
        )
    return array.reshape(rows, wide)


def _words(file: Path) -> list[str]:
    if file.stat().st_size > MAX_TEXT:
        raise InvalidStructure(f"{file}: has more than {MAX_TEXT:,} bytes, so it is not a list of types; copy it again")
    try:
        return file.read_text().split()
    except ValueError as error:
        raise InvalidStructure(f"{file}: is not text ({error}); copy it again") from error


def _unread(folder: Path, arrays: _Arrays) -> Iterator[str]:
    """Refuse a set whose only forces, virial, cell or types are in files with other names; warn of other such files."""
    have: dict[str, Any] = {
        "energy": arrays.energy,
        "forces": arrays.force,
        "stress": arrays.virial,
        "cell": arrays.box,
        "types": arrays.types if arrays.mixed else None,
    }
    right = {"energy": "energy", "forces": "force", "stress": "virial", "cell": "box", "types": "real_atom_types"}
    if arrays.box is None and (folder / "virial.npy").is_file():
        yield f"{folder / 'virial.npy'}: not read, because a system without cell (nopbc) has no stress"
        have["stress"] = False
    for file in sorted(folder.glob("*.npy")):
        what = kind_of(file.stem) or geometry(file.stem) or ("types" if "type" in file.stem.lower() else "")
        if what not in right or file.stem in right.values():
            continue
        hint = f"{file}: looks like {what} but is not read; DeePMD-kit's name is {right[what]}.npy"
        if what == "stress" and "vir" not in file.stem.lower():
            hint += " for the virial [eV], -stress * volume"
        if have[what] is None:
            raise InvalidStructure(f"{hint}, which is missing. Write it under that name, or remove the file.")
        yield hint


def _frame(arrays: _Arrays, elements: np.ndarray, number: int, name: str) -> Structure:
    types = np.asarray(arrays.types[number], dtype=np.int64)
    real = types != VIRTUAL
    if types[real].size and not 0 <= types[real].min() <= types[real].max() < len(elements):
        raise InvalidStructure(f"a type is outside 0-{len(elements) - 1}, the named types")
    numbers = elements[types[real]]
    cell = np.zeros((3, 3)) if arrays.box is None else np.asarray(arrays.box[number], dtype=np.float64).reshape(3, 3)
    volume = abs(np.linalg.det(cell))
    check_charge({name: array[number] for name, array in arrays.electrons.items()})
    system = name.rpartition(":")[0]
    return Structure.checked(
        numbers=numbers,
        positions=arrays.coord[number].reshape(-1, 3)[real],
        cell=cell,
        pbc=[arrays.box is not None] * 3,
        energy=float(arrays.energy[number, 0]),
        forces=None if arrays.force is None else arrays.force[number].reshape(-1, 3)[real],
        # a cell without volume is refused by what follows
        stress=None if arrays.virial is None or volume == 0 else -arrays.virial[number].reshape(3, 3) / volume,
        id=f"{name}:{number}",
        group=f"{system}:{hill_formula(numbers)}" if arrays.mixed else system,
    )
