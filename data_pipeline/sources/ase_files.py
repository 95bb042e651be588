"""Files that ASE reads (extxyz, VASP OUTCAR and vasprun.xml, .db, .traj, CIF with labels ...) as Structures.

Large extxyz files and databases are cut into parts, so that several processes can read one file. An extxyz file has no
index and its frames are named by their number, so a file of more than one part is walked through once, line by line and
without parsing, before it is read: 1,000 MB/s from memory against 12 MB/s for ASE's parser. Reading walks the same way
and so finds what ASE passes over without a word: it stops at a blank line, and takes half a number for a number. A
database is cut by its row ids, which costs nothing. Any other file is one part. An OUTCAR or vasprun.xml of an
unfinished run gives its complete ionic steps.
"""

import contextlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from io import BufferedIOBase, StringIO
from pathlib import Path
from typing import Any, Literal, cast

import ase
import ase.db
import ase.io
import ase.units
import numpy as np
from ase.io.extxyz import read_xyz
from ase.io.formats import get_compression, open_with_compression
from jaxtyping import Float64, Num
from numpy.typing import ArrayLike

from data_pipeline.sources.source import Frame, Part, Source, named_paths
from data_pipeline.structure import SYMBOLS, InvalidStructure, Structure

STRESS_UNITS = {"eV/A^3": 1.0, "GPa": ase.units.GPa, "kbar": 0.1 * ase.units.GPa}
"""Size of each unit in eV/Å³ (CODATA values of ASE)."""
VOIGT = np.array([[0, 5, 4], [5, 1, 3], [4, 3, 2]])
"""Where each component of the tensor is in ASE's order."""
PART_BYTES = 16 * 2**20
"""An extxyz file is cut at the first frame after this much [bytes]: seconds of work for one process."""
PART_ROWS = 8192
"""A database is cut after this many row ids."""

Frames = Iterator[tuple[int, ase.Atoms | InvalidStructure]]
"""Number of each frame in its file, and the frame or why it cannot be read."""


@dataclass(frozen=True, kw_only=True)
class AseFiles(Source):
    """Labelled frames in files of any format that ASE reads, in the order given.

    Labels are what ASE's single-point calculator holds (it moves energy, forces and stress there), or the entries
    named below: atoms.info and atoms.arrays, which for a row of a database are its key-value pairs and data. Energies
    are total energies [eV] and forces [eV/Å]; only stress differs between formats in use. For VASP, ASE's energy is the
    one extrapolated to zero smearing; the free energy, whose derivatives the forces are, is `free_energy`.
    """

    files: tuple[str, ...]
    """Paths; an environment variable is written ${NAME}."""
    format: str | None = None
    """ASE's name of the format; guessed from the file when absent."""
    energy_key: str | None = None
    """Entry with the total energy [eV], such as REF_energy or free_energy; the calculator's energy when absent."""
    alternative_energy_key: str | None = None
    """Entry with a second total energy [eV], kept but not trained on, such as corrected_total_energy."""
    forces_key: str | None = None
    """Entry with the forces [eV/Å], such as REF_forces; the calculator's forces when absent."""
    stress_key: str | None = None
    """Entry with the stress (6 in ASE's Voigt order, 9 or 3×3); the calculator's stress when absent."""
    virials_key: str | None = None
    """Entry with the virial −stress·volume [eV] (6, 9 or 3×3), such as REF_virials, in place of the stress."""
    stress_unit: Literal["eV/A^3", "GPa", "kbar"] = "eV/A^3"
    """Unit of the stress in the files."""
    stress_positive_in: Literal["tension", "compression"] = "tension"
    """Sign of the stress in the files; VASP's own output is positive in compression, ASE's reader turns it."""
    group_key: str | None = None
    """Entry that names the group; the chemical formula when absent."""
    id_key: str | None = None
    """Entry that names the frame; file (below the folder common to all) and number (or row id) when absent."""
    labels: Literal["file", "none"] = "file"
    """'none' for structures without labels, or whose labels are not to be looked at: the energy is zero, and there are
    neither forces nor stress. Only a potential can label them then, as in rehearsal with the start's predictions."""

    def __post_init__(self) -> None:
        keys = ("energy_key", "alternative_energy_key", "forces_key", "stress_key", "virials_key")
        named = [key for key in keys if getattr(self, key) is not None]
        if self.labels == "none" and named:
            raise ValueError(f"labels is 'none', and {', '.join(named)} says where they are; leave one of the two out")
        if self.stress_key is not None and self.virials_key is not None:
            raise ValueError("stress_key and virials_key both name the stress; give one of them")

    def parts(self) -> Sequence[Part]:
        """Return the stretches of frames of each file: large extxyz files and databases give several.

        Raises:
            FileNotFoundError: a file is not there, or its path names an environment variable that is not set.
            InvalidStructure: a file of several parts is damaged.
        """
        return [part for path, name in named_paths(self.files, "files") for part in self._parts_of(path, name)]

    def _parts_of(self, path: Path, name: str) -> list[Part]:
        root, compression = get_compression(str(path))
        size, suffix = path.stat().st_size, Path(root).suffix
        if self.format == "extxyz" or (self.format is None and suffix in (".xyz", ".extxyz")):
            return self._extxyz_parts(path, name, size, whole=compression is not None)
        if self.format == "db" or (self.format is None and suffix == ".db"):
            return self._database_parts(path, name, size)
        return [Part(name=name, size=size, read=partial(self._read, path, name, partial(_any, path, self.format)))]

    def _extxyz_parts(self, path: Path, name: str, size: int, *, whole: bool) -> list[Part]:
        if whole or size <= PART_BYTES:
            frames = partial(_extxyz, path, 0, 0, None)
            return [Part(name=name, size=size, read=partial(self._read, path, name, frames))]
        cuts, number = [(0, 0)], -1
        with path.open("rb") as file:
            for number, (start, _) in enumerate(_extxyz_frames(file, path, 0, None)):
                if start - cuts[-1][0] >= PART_BYTES:
                    cuts.append((start, number))
        return [
            Part(
                name=f"{name}:{first}-{last - 1}",
                size=stop - start,
                read=partial(self._read, path, name, partial(_extxyz, path, start, first, stop)),
            )
            for (start, first), (stop, last) in itertools.pairwise([*cuts, (size, number + 1)])
        ]

    def _database_parts(self, path: Path, name: str, size: int) -> list[Part]:
        with _errors_named(path, "newest row"):
            newest = list(ase.db.connect(path, type="db", serial=True).select(sort="-id", limit=1, include_data=False))
        if not newest:
            raise _no_frames(path)
        last = newest[0].id
        spans = [(first, min(first + PART_ROWS - 1, last)) for first in range(1, last + 1, PART_ROWS)]
        return [
            Part(
                name=name if len(spans) == 1 else f"{name}:{first}-{stop}",
                size=size * (stop - first + 1) // last,
                read=partial(self._read, path, name, partial(_database, path, first, stop)),
            )
            for first, stop in spans
        ]

    def _read(self, path: Path, name: str, frames: Callable[[], Frames]) -> Iterator[Frame]:
        """Convert frames, and refuse keys that none of them has: a misspelt key would train without its labels."""
        accepted, labels = 0, Counter[str]()
        for number, atoms in frames():
            try:
                if isinstance(atoms, InvalidStructure):
                    raise atoms
                structure = self.convert(atoms, default_id=f"{name}:{number}")
            except InvalidStructure as error:
                yield InvalidStructure(
                    f"{path}, frame {number}: {error}. Correct the frame or remove it from the file."
                )
            else:
                yield structure
                accepted += 1
                labels["forces_key"] += structure.has_forces
                labels["stress_key"] += structure.has_stress
                labels["virials_key"] += structure.has_stress
                labels["alternative_energy_key"] += structure.has_alternative_energy
        for option in labels:
            if getattr(self, option) is not None and accepted and labels[option] == 0:
                raise InvalidStructure(
                    f"{path}: none of {accepted} frames has an entry {getattr(self, option)!r}; correct {option}, or "
                    "give the files without it to a source of their own"
                )

    def convert(self, atoms: ase.Atoms, *, default_id: str) -> Structure:
        """Return one of ASE's Atoms as a Structure, with units and signs settled.

        Raises:
            InvalidStructure: no energy, or what Structure.checked refuses.
        """
        if self.labels == "none":
            atoms = atoms.copy()  # without the calculator
        energy = 0.0 if self.labels == "none" else _energy(atoms, self.energy_key)
        second_key = self.alternative_energy_key
        if energy is None:
            where = f"atoms.info[{self.energy_key!r}]" if self.energy_key else "the calculator"
            raise InvalidStructure(
                f"there is no energy in {where}; name its entry with energy_key (atoms.info holds {sorted(atoms.info)})"
            )
        return Structure.checked(
            numbers=atoms.numbers,
            positions=atoms.positions,
            cell=np.asarray(atoms.cell),
            pbc=atoms.pbc,
            energy=energy,
            forces=_label(atoms, "forces", self.forces_key, atoms.arrays),
            stress=self._stress(atoms),
            alternative_energy=None if second_key is None else _energy(atoms, second_key),
            id=default_id if self.id_key is None else str(_entry(atoms, self.id_key)),
            group=hill_formula(atoms.numbers) if self.group_key is None else str(_entry(atoms, self.group_key)),
        )

    def _stress(self, atoms: ase.Atoms) -> np.ndarray | None:
        if self.virials_key is not None:
            virial = _label(atoms, "virial", self.virials_key, atoms.info)
            volume = abs(np.linalg.det(np.asarray(atoms.cell)))
            if virial is not None and volume == 0.0:
                raise InvalidStructure("a virial without three lattice vectors is not a stress")
            return None if virial is None else -full_stress(virial) / volume
        stress = _label(atoms, "stress", self.stress_key, atoms.info)
        factor = STRESS_UNITS[self.stress_unit] * (1.0 if self.stress_positive_in == "tension" else -1.0)
        return None if stress is None else factor * full_stress(stress)


def full_stress(stress: ArrayLike) -> Float64[np.ndarray, "3 3"]:
    """Return the tensor of 6 numbers in ASE's Voigt order (xx, yy, zz, yz, xz, xy), of 9, or of 3×3.

    Raises:
        InvalidStructure: another count of numbers, or something that is no number.
    """
    try:
        numbers = np.asarray(stress, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidStructure(f"the stress is {stress!r}, not numbers") from error
    if numbers.size == 6:
        return numbers.reshape(6)[VOIGT]
    if numbers.size == 9:
        return numbers.reshape(3, 3)
    raise InvalidStructure(f"stress has shape {numbers.shape}, expected 6 (Voigt), 9 or 3×3 numbers")


def hill_formula(numbers: Num[np.ndarray, " atoms"]) -> str:
    """Return the chemical formula as ASE writes it, C, H, then the alphabet; X for what is no element."""
    counts = Counter(numbers.tolist())
    symbols = {SYMBOLS[int(number)] if 0 < number < len(SYMBOLS) else "X": count for number, count in counts.items()}
    order = sorted(symbols, key=lambda symbol: (symbol not in ("C", "H"), symbol))
    return "".join(f"{symbol}{symbols[symbol] if symbols[symbol] > 1 else ''}" for symbol in order)


def _extxyz(path: Path, start: int, first: int, stop: int | None) -> Frames:
    """Parse the frames of a byte range of an extxyz file, one at a time, so that a bad one does not end reading."""
    number = None
    with (
        _errors_named(path, f"frames from {first}"),
        cast(BufferedIOBase, open_with_compression(str(path), "rb")) as file,
    ):
        file.seek(start)
        for number, (_, lines) in enumerate(_extxyz_frames(file, path, first, stop), first):
            try:
                yield number, next(read_xyz(StringIO(b"".join(lines).decode(), newline=None), index=0))
            except Exception as error:  # ASE lets pass whatever its parsing raises
                yield number, InvalidStructure(_reason(error))
    if number is None:
        raise _no_frames(path)


def _extxyz_frames(file: BufferedIOBase, path: Path, first: int, stop: int | None) -> Iterator[tuple[int, list[bytes]]]:
    """Yield the byte where each frame begins, and its lines; `first` is the number of the first one.

    Raises:
        InvalidStructure: a blank line between frames, a frame that does not begin with a number, or the end of the file
            within a frame or without an end of line.
    """
    for number in itertools.count(first):
        start = file.tell()
        if stop is not None and start >= stop:
            return
        header = file.readline()
        if not header.strip():
            if any(line.strip() for line in file):
                raise InvalidStructure(f"{path}: a blank line after frame {number - 1} would end reading. Remove it.")
            return
        if not header.strip().isdigit():
            raise InvalidStructure(
                f"{path}, frame {number}: begins with {header.strip()[:40].decode(errors='replace')!r}, not with a "
                f"number of atoms (byte {start}). The file may be damaged; repair it or remove it from the source's "
                "files."
            )
        lines = [header, *itertools.islice(file, int(header) + 1)]
        if len(lines) < int(header) + 2 or not lines[-1].endswith(b"\n"):
            raise InvalidStructure(
                f"{path}, frame {number}: the file ends in the middle, so it may be truncated; repair it, remove it "
                "from the source's files, or end it with a newline if it is complete."
            )
        yield start, lines


def _database(path: Path, first: int, last: int) -> Frames:
    """Read the rows with the ids first to last; ASE fetches a selection whole, so a part is what memory holds."""
    with _errors_named(path, f"rows {first}-{last}"):
        for row in ase.db.connect(path, type="db", serial=True).select(f"id>={first},id<={last}"):
            atoms = row.toatoms()
            atoms.info.update(unique_id=row.unique_id, **row.key_value_pairs)
            atoms.info.update(row.data)
            yield row.id, atoms


def _any(path: Path, format: str | None) -> Frames:
    # parallel: under MPI, ASE would have the first process read and send its frames to all others
    frames = ase.io.iread(path, index=":", format=format, parallel=False, do_not_split_by_at_sign=True)
    for number in itertools.count():
        with _errors_named(path, f"frame {number}"):
            atoms = next(frames, None)
        if atoms is None and number == 0:
            raise _no_frames(path)
        if atoms is None:
            return
        yield number, atoms


@contextlib.contextmanager
def _errors_named(path: Path, place: str) -> Iterator[None]:
    """Whatever a reader of ASE's raises becomes an error with a place."""
    try:
        yield
    except InvalidStructure:
        raise
    except Exception as error:
        raise InvalidStructure(
            f"{path}, {place}: {_reason(error)}. The file may be truncated; repair it or remove it from the source's "
            "files."
        ) from error


def _no_frames(path: Path) -> InvalidStructure:
    return InvalidStructure(f"{path}: the file holds no frames. Remove it from the source's files.")


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"unknown element or entry {error}"
    return f"cannot be read ({type(error).__name__}: {error})"


def _energy(atoms: ase.Atoms, key: str | None) -> float | None:
    energy = _label(atoms, "energy", key, atoms.info)
    if energy is not None and not isinstance(energy, int | float | np.number):
        where = f"atoms.info[{key!r}]" if key else "the calculator"
        raise InvalidStructure(f"the energy in {where} is {energy!r}, not a number")
    return None if energy is None else float(energy)


def _label(atoms: ase.Atoms, name: str, key: str | None, entries: dict[str, Any]) -> Any:
    """Return a label from the named entry, of the calculator without a name; None where there is none."""
    # not get_property(), which drops all labels of a frame with a NaN position
    results = {} if atoms.calc is None else atoms.calc.results
    return results.get(name) if key is None else entries.get(key, results.get(key))


def _entry(atoms: ase.Atoms, key: str) -> Any:
    if key not in atoms.info:
        raise InvalidStructure(f"there is no entry {key!r} in atoms.info; it holds {sorted(atoms.info)}")
    return atoms.info[key]
