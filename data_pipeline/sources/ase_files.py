"""Files that ASE reads (extxyz, VASP OUTCAR and vasprun.xml, .db, .traj, CIF with labels ...) as Structures.

Large extxyz files and databases are cut into parts, so that several processes can read one file; a database is cut by
its row ids, which costs nothing. Any other file is one part. Errors that ASE ignores in extxyz files or VASP's output
are found before ASE reads them (extxyz.py, vasp.py); labels that are not read are found here.
"""

import itertools
import logging
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import ase
import ase.db
import ase.io
import ase.units
import numpy as np
from ase.io.formats import filetype, get_compression
from jaxtyping import Float64, Num
from numpy.typing import ArrayLike

from data_pipeline.quoting import abbreviated
from data_pipeline.sources.bonds import Bonds
from data_pipeline.sources.extxyz import PART_BYTES, cuts, read_extxyz
from data_pipeline.sources.labels import (
    Kind,
    check_charge,
    check_units,
    check_unread,
    energies_listed,
    say_once,
    unread_labels,
)
from data_pipeline.sources.source import (
    Frame,
    Frames,
    MachineLearned,
    Part,
    Source,
    errors_named,
    named_paths,
    no_frames,
    reason_of,
)
from data_pipeline.sources.vasp import read_outcar, read_vasprun
from data_pipeline.structure import SYMBOLS, InvalidStructure, Structure, has_volume, number_array

logger = logging.getLogger(__name__)
STRESS_UNITS = {"eV/A^3": 1.0, "GPa": ase.units.GPa, "kbar": 0.1 * ase.units.GPa}
"""Size of each unit in eV/Å³ (CODATA values of ASE)."""
VOIGT = np.array([[0, 5, 4], [5, 1, 3], [4, 3, 2]])
"""Index of each component of the tensor in ASE's order."""
PART_ROWS = 8192
"""Number of row ids after which a database is cut."""
READERS = {
    "extxyz": partial(read_extxyz, start=0, first=0, stop=None),
    "vasp-out": read_outcar,
    "vasp-xml": read_vasprun,
}
"""Readers of the formats (ASE's names) that ASE alone does not check enough."""
_OPTIONS = {"energy": "energy_key", "forces": "forces_key", "stress": "stress_key", "stress:virial": "virials_key"}


@dataclass(frozen=True, kw_only=True)
class AseFiles(Source):
    """Labelled frames in files of any format that ASE reads, in the order given.

    Labels come from ASE's single-point calculator (ASE moves energy, forces and stress there) or from the entries named
    below: atoms.info and atoms.arrays, which for a row of a database are its key-value pairs and data. Energies are
    total energies [eV] and forces [eV/Å]; only stress differs between formats in use. For VASP, ASE's energy is the one
    extrapolated to zero smearing; the free energy, whose derivatives the forces are, is `free_energy`.
    """

    files: tuple[str, ...]
    """Paths; ${NAME} stands for an environment variable."""
    format: str | None = None
    """ASE's name of the format; None guesses it from the file."""
    slices: tuple[str, ...] = ()
    """Frames to read of each file, as a Python slice such as 0:10:2; empty: all frames of all files."""
    energy_key: str | None = None
    """Entry with the total energy [eV], such as REF_energy or free_energy; None: the calculator's energy."""
    alternative_energy_key: str | None = None
    """Entry with a second total energy [eV], stored but not trained on, such as corrected_total_energy."""
    forces_key: str | None = None
    """Entry with the forces [eV/Å], such as REF_forces; None: the calculator's forces."""
    stress_key: str | None = None
    """Entry with the stress (6 in ASE's Voigt order, 9 or 3×3); None: the calculator's stress."""
    virials_key: str | None = None
    """Entry with the virial −stress·volume [eV] (6, 9 or 3×3), such as REF_virials, in place of the stress."""
    stress_unit: Literal["eV/A^3", "GPa", "kbar"] = "eV/A^3"
    """Unit of the stress in the files."""
    stress_positive_in: Literal["tension", "compression"] = "tension"
    """Sign of the stress in the files; VASP's own output is positive in compression; ASE's reader changes the sign."""
    group_key: str | None = None
    """Entry that names the group; None: the chemical formula."""
    molecule_key: str | None = None
    """Array of labels of molecules, equal for atoms that belong together; `bonds` finds them from bonds; None: the
    array `molecule`, `grain` or `molecule-id`, if there is one."""
    id_key: str | None = None
    """Entry that names the frame; None: file (below the common folder) and number (or row id)."""
    ignored_entries: tuple[str, ...] = ()
    """Entries that look like labels but are not, such as the forces of another method; otherwise a frame whose only
    label is such an entry is refused."""
    charged: Literal["refuse", "keep"] = "refuse"
    """Treatment of frames that are charged or have unpaired electrons according to their entries charge or spin: the
    network knows neither."""
    labels: Literal["file", "none"] = "file"
    """'none' for structures without labels, or to ignore their labels: the energy is zero, forces and stress are
    missing. Only a potential can label them, as in rehearsal with the start's predictions."""

    def __post_init__(self) -> None:
        keys = ("energy_key", "alternative_energy_key", "forces_key", "stress_key", "virials_key")
        named = [key for key in keys if getattr(self, key) is not None]
        if self.labels == "none" and named:
            raise ValueError(f"labels is 'none', and {', '.join(named)} names them; remove one of the two")
        if self.stress_key is not None and self.virials_key is not None:
            raise ValueError("stress_key and virials_key both name the stress; give one of them")
        if self.slices and len(self.slices) != len(self.files):
            raise ValueError(f"slices has {len(self.slices)} entries for {len(self.files)} files; give one for each")
        for chosen in self.slices:
            slice_of(chosen)

    def parts(self) -> Sequence[Part]:
        """Return ranges of frames of each file: several for large extxyz files and databases.

        Raises:
            FileNotFoundError: a file is missing, or its path names an environment variable that is not set.
            InvalidStructure: a file of several parts is damaged.
        """
        slices = self.slices or (":",) * len(self.files)
        return [
            Part(name=each.name, size=each.size, read=partial(self._read, path, name, each.frames))
            for (path, name), chosen in zip(named_paths(self.files, "files"), slices, strict=True)
            for each in ranges(path, name, self.format, chosen)
        ]

    def _read(self, path: Path, name: str, frames: Callable[[], Frames]) -> Iterator[Frame]:
        """Convert frames and refuse keys missing from all of them: a misspelt key would train without its labels."""
        counts, said = Counter[str](), set[str]()
        for number, atoms in frames():
            try:
                if isinstance(atoms, InvalidStructure):
                    raise atoms
                structure = self.convert(atoms, default_id=f"{name}:{number}")
                say_once(said, f"{path}, frame {number}", self._unread(atoms, structure))
            except MachineLearned as error:
                counts["predicted"] += 1
                yield MachineLearned(f"{path}, frame {number}: {error}")
            except InvalidStructure as error:
                counts["refused"] += 1
                yield InvalidStructure(
                    f"{path}, frame {number}: {error}. Correct the frame or remove it from the file."
                )
            else:
                yield structure
                counts["accepted"] += 1
                counts["forces_key"] += structure.has_forces
                counts["stress_key"] += structure.has_stress or not structure.pbc.all()
                counts["alternative_energy_key"] += structure.has_alternative_energy
        self._check_counts(path, counts)

    def _check_counts(self, path: Path, counts: Counter[str]) -> None:
        """Log the number of steps left out; refuse a file with no other steps, and a key missing from all frames."""
        if counts["predicted"]:
            logger.warning("%s: %d machine-learned steps are left out", path, counts["predicted"])
            if not counts["accepted"] and not counts["refused"]:
                raise InvalidStructure(
                    f"{path}: all {counts['predicted']} steps are machine-learned (ML_LMLFF): predicted by VASP's "
                    "force field and not calculated. Remove the file from the source's files."
                )
        counts["virials_key"] = counts["stress_key"]
        for option in ("forces_key", "stress_key", "virials_key", "alternative_energy_key"):
            if getattr(self, option) is not None and counts["accepted"] and counts[option] == 0:
                raise InvalidStructure(
                    f"{path}: none of {counts['accepted']} frames has an entry {getattr(self, option)!r}; correct "
                    f"{option}, or put the files without it in a separate source"
                )

    def convert(self, atoms: ase.Atoms, *, default_id: str) -> Structure:
        """Return ASE's Atoms as a Structure, with units and signs converted.

        Raises:
            InvalidStructure: no energy, an isolated atom of MACE, or Structure.checked refuses the frame.
        """
        if len(atoms) == 1 and atoms.info.get("config_type") == "IsolatedAtom":
            raise InvalidStructure("is an isolated atom for MACE's reference energies (config_type=IsolatedAtom)")
        if self.labels == "none":
            atoms = atoms.copy()  # without the calculator
        energy = 0.0 if self.labels == "none" else _energy(atoms, self.energy_key)
        second_key = self.alternative_energy_key
        if energy is None:
            where = f"atoms.info[{self.energy_key!r}]" if self.energy_key else "the calculator"
            there_are = (
                energies_listed(all_entries(atoms)) or f"no energies, but {sorted(atoms.info)[:20]} in atoms.info"
            )
            raise InvalidStructure(
                f"no energy in {where}; name its entry with energy_key (--source.energy_key): the frame has {there_are}"
            )
        check_units(atoms.info)
        if self.charged == "refuse":
            check_charge(atoms.info, "charged")
        return Structure.checked(
            numbers=atoms.numbers,
            positions=atoms.positions,
            cell=np.asarray(atoms.cell),
            pbc=atoms.pbc,
            energy=energy,
            forces=_label(atoms, "forces", self.forces_key, {**atoms.info, **atoms.arrays}),
            stress=self._stress(atoms),
            alternative_energy=None if second_key is None else _energy(atoms, second_key),
            molecules=Bonds().labels(atoms, self.molecule_key),
            id=default_id if self.id_key is None else str(_entry(atoms, self.id_key)),
            group=hill_formula(atoms.numbers) if self.group_key is None else str(_entry(atoms, self.group_key)),
        )

    def _unread(self, atoms: ase.Atoms, structure: Structure) -> Iterator[str]:
        """Refuse the frame if a label of it is not read; yield warnings about other entries that look like labels."""
        if self.labels == "none":
            return
        stress_key = self.stress_key or self.virials_key
        named: dict[Kind, str | None] = {"energy": self.energy_key, "forces": self.forces_key, "stress": stress_key}
        read = {*filter(None, named.values()), *filter(None, [self.alternative_energy_key]), *self.ignored_entries}
        entries = all_entries(atoms, [kind for kind, key in named.items() if key is None])
        unread = unread_labels(entries, len(atoms), read, stress=has_volume(structure.cell))
        if unread:
            labels: dict[Kind, Any] = {
                "energy": structure.energy,
                "forces": structure.forces if structure.has_forces else None,
                "stress": structure.stress if structure.has_stress else None,
            }
            yield from check_unread(unread, labels, _OPTIONS, named, "ignored_entries")

    def _stress(self, atoms: ase.Atoms) -> np.ndarray | None:
        if self.virials_key is not None:
            virial = _label(atoms, "virial", self.virials_key, atoms.info)
            return None if virial is None else stress_of_virial(full_stress(virial), atoms.cell)
        stress = _label(atoms, "stress", self.stress_key, atoms.info)
        factor = STRESS_UNITS[self.stress_unit] * (1.0 if self.stress_positive_in == "tension" else -1.0)
        return None if stress is None else factor * full_stress(stress)


class Range(NamedTuple):
    """A range of the frames of a file."""

    name: str
    """Name: that of the file, and the frames if it has several ranges."""
    size: int
    """Size to read [bytes]."""
    frames: Callable[[], Frames]
    """Generator of the frames as ASE reads them."""


def ranges(path: Path, name: str, format: str | None = None, chosen: str = ":") -> list[Range]:
    """Return the ranges of a file that processes can read independently.

    Args:
        path: The file.
        name: Its name in a source.
        format: ASE's name of the format; None guesses it from the file.
        chosen: Python slice of the frames to read; one other than ":" gives one range.

    Raises:
        InvalidStructure: a file of several ranges is damaged, or a database is empty.
    """
    root, compression = get_compression(str(path))
    size, suffix = path.stat().st_size, Path(root).suffix
    if format == "extxyz" or (format is None and suffix in (".xyz", ".extxyz")):
        found = _extxyz_ranges(path, name, size, whole=compression is not None or chosen != ":")
    elif format == "db" or (format is None and suffix == ".db"):
        found = _database_ranges(path, name, size)
    else:
        found = [Range(name, size, partial(_any, path, format))]
    return found if chosen == ":" else [Range(name, size, partial(_sliced, found, slice_of(chosen)))]


def slice_of(text: str) -> slice:
    """Return the slice in a text such as 0:10:2, or of one frame in a text such as 5.

    Raises:
        ValueError: the text is no slice.
    """
    words = text.split(":")
    if not 1 <= len(words) <= 3 or not all(re.fullmatch(r"[+-]?\d+|", word.strip()) for word in words):
        raise ValueError(f"{text!r} is not a slice of frames; write start:stop:step such as 0:10:2, or : for all")
    numbers = [int(word) if word.strip() else None for word in words]
    if len(words) > 1:
        return slice(*numbers)
    if numbers[0] is None:
        raise ValueError("an empty slice of frames; write start:stop:step such as 0:10:2, or : for all")
    return slice(numbers[0], numbers[0] + 1 or None)


def _sliced(found: Sequence[Range], chosen: slice) -> Frames:
    """Yield the chosen frames of a file; only a slice that counts from the end or backwards holds all in memory."""
    frames = itertools.chain.from_iterable(each.frames() for each in found)
    if min(each or 0 for each in (chosen.start, chosen.stop, chosen.step)) < 0:
        yield from list(frames)[chosen]
    else:
        yield from itertools.islice(frames, chosen.start, chosen.stop, chosen.step)


def _extxyz_ranges(path: Path, name: str, size: int, *, whole: bool) -> list[Range]:
    if whole or size <= PART_BYTES:
        return [Range(name, size, partial(read_extxyz, path, 0, 0, None))]
    return [
        Range(f"{name}:{first}-{last - 1}", stop - start, partial(read_extxyz, path, start, first, stop))
        for (start, first), (stop, last) in itertools.pairwise(cuts(path, PART_BYTES))
    ]


def _database_ranges(path: Path, name: str, size: int) -> list[Range]:
    spans: list[tuple[int, int]] = []
    with errors_named(path, "newest row"):
        database = ase.db.connect(path, type="db", serial=True)
        newest = list(database.select(sort="-id", limit=1, include_data=False))
        # from row to row, because the ids may have gaps of any size
        while rows := list(database.select(f"id>{spans[-1][1] if spans else 0}", sort="id", limit=1)):
            first = 1 + (rows[0].id - 1) // PART_ROWS * PART_ROWS
            spans.append((first, min(first + PART_ROWS - 1, newest[0].id)))
    if not spans:
        raise no_frames(path)
    return [
        Range(
            name if len(spans) == 1 else f"{name}:{first}-{stop}",
            size // len(spans),
            partial(_database, path, first, stop),
        )
        for first, stop in spans
    ]


def full_stress(stress: ArrayLike) -> Float64[np.ndarray, "3 3"]:
    """Return the tensor of 6 numbers in ASE's Voigt order (xx, yy, zz, yz, xz, xy), of 9, or of 3×3.

    Raises:
        InvalidStructure: another number of values, or a value that is not a number.
    """
    numbers = number_array(stress, "stress").astype(np.float64)
    if numbers.size == 6:
        return numbers.reshape(6)[VOIGT]
    if numbers.size == 9:
        return numbers.reshape(3, 3)
    raise InvalidStructure(f"stress has shape {numbers.shape}, expected 6 (Voigt), 9 or 3×3 numbers")


def stress_of_virial(virial: Float64[np.ndarray, "3 3"], cell: ArrayLike) -> Float64[np.ndarray, "3 3"]:
    """Return −virial/volume [eV/Å³], and zeros where both are zero.

    Raises:
        InvalidStructure: the virial is not zero, but the volume is.
    """
    volume = abs(np.linalg.det(np.asarray(cell, dtype=np.float64)))
    if volume == 0.0 and np.any(np.isfinite(virial) & (virial != 0)):
        raise InvalidStructure("a virial without three lattice vectors is not a stress")
    return np.zeros((3, 3)) if volume == 0.0 else -virial / volume


def hill_formula(numbers: Num[np.ndarray, " atoms"]) -> str:
    """Return the chemical formula in ASE's order (C, H, then alphabetical); X for unknown elements."""
    counts = Counter(numbers.tolist())
    symbols = {SYMBOLS[int(number)] if 0 < number < len(SYMBOLS) else "X": count for number, count in counts.items()}
    order = sorted(symbols, key=lambda symbol: (symbol not in ("C", "H"), symbol))
    return "".join(f"{symbol}{symbols[symbol] if symbols[symbol] > 1 else ''}" for symbol in order)


def _database(path: Path, first: int, last: int) -> Frames:
    """Read the rows with the ids first to last; ASE fetches a selection whole, so a part must fit into memory."""
    with errors_named(path, f"rows {first}-{last}"):
        for row in ase.db.connect(path, type="db", serial=True).select(f"id>={first},id<={last}"):
            try:
                atoms = row.toatoms()
                atoms.info.update(unique_id=row.unique_id, **row.key_value_pairs)
                atoms.info.update(row.data)
            except Exception as error:  # ASE's decoding raises any type
                atoms = InvalidStructure(reason_of(error))
            yield row.id, atoms


def _any(path: Path, format: str | None) -> Frames:
    with errors_named(path, "frame 0"):
        format = format or filetype(str(path))
    if format in READERS:
        yield from READERS[format](path)
        return
    # parallel: under MPI, ASE would have the first process read and send its frames to all others
    frames = ase.io.iread(path, index=":", format=format, parallel=False, do_not_split_by_at_sign=True)
    for number in itertools.count():
        with errors_named(path, f"frame {number}"):
            atoms = next(frames, None)
        if atoms is None and number == 0:
            raise no_frames(path)
        if atoms is None:
            return
        yield number, atoms


def all_entries(atoms: ase.Atoms, read: Collection[str] = ()) -> Iterator[tuple[str, Any]]:
    """Yield names and values of possible labels, without those of the calculator that are read."""
    if atoms.calc is not None:
        yield from ((name, value) for name, value in atoms.calc.results.items() if name not in read)
    yield from atoms.info.items()
    yield from atoms.arrays.items()


def _energy(atoms: ase.Atoms, key: str | None) -> float | None:
    energy = _label(atoms, "energy", key, atoms.info)
    if energy is not None and (isinstance(energy, bool) or not isinstance(energy, int | float | np.number)):
        where = f"atoms.info[{key!r}]" if key else "the calculator"
        raise InvalidStructure(f"the energy in {where} is {abbreviated(energy)}, not a number")
    return None if energy is None else float(energy)


def _label(atoms: ase.Atoms, name: str, key: str | None, entries: dict[str, Any]) -> Any:
    """Return a label from the named entry, or from the calculator if key is None; None if missing."""
    # not get_property(), which drops all labels of a frame with a NaN position
    results = {} if atoms.calc is None else atoms.calc.results
    return results.get(name) if key is None else entries.get(key, results.get(key))


def _entry(atoms: ase.Atoms, key: str) -> Any:
    if key not in atoms.info:
        raise InvalidStructure(f"no entry {key!r} in atoms.info; it holds {sorted(atoms.info)}")
    return atoms.info[key]
