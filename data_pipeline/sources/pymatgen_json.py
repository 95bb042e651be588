"""Corpora published as JSON of pymatgen's dictionaries: MPtrj, MatPES, Alexandria, and files like those of mlearn.

pymatgen is not needed: a structure is a lattice matrix and sites with species and fractional coordinates, and those
(not the Cartesian ones beside them) are those that pymatgen itself uses. Stress is as VASP prints it: kbar, positive in
compression; the six numbers come in either of two orders. A record without an entry that its corpus always has is
refused by name.
"""

import itertools
import re
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from ase.symbols import Symbols
from jaxtyping import Float64
from numpy.typing import ArrayLike

from data_pipeline.quoting import abbreviated
from data_pipeline.sources.ase_files import STRESS_UNITS
from data_pipeline.sources.json_stream import JsonReader, is_compressed, open_json, plain_text
from data_pipeline.sources.labels import Kind, check_charge, check_geometry, check_unread, unread_labels
from data_pipeline.sources.source import Frame, Part, Source, named_paths
from data_pipeline.structure import SYMBOLS, InvalidStructure, Structure, number_array

VASP_KBAR = -STRESS_UNITS["kbar"]
"""VASP's kbar, positive in compression, as stress [eV/Å³], positive in tension: -0.1 GPa."""
VASP_ORDER = np.array([[0, 3, 5], [3, 1, 4], [5, 4, 2]])
"""Indices of the components of a 3×3 stress among VASP's six: xx, yy, zz, xy, yz, zx."""
VOIGT_ORDER = np.array([[0, 5, 4], [5, 1, 3], [4, 3, 2]])
"""The same for Voigt's six: xx, yy, zz, yz, xz, xy."""
PART_BYTES = 64 << 20
"""Size of a part of one large file [bytes]."""

_NUMBERS = {symbol: number for number, symbol in enumerate(SYMBOLS)} | {"D": 1, "T": 1}  # electronically all hydrogen
_MATERIAL = re.compile(r'"(?:mp|mvc)-\d+"\s*:\s*\{')
"""Key of a material in MPtrj: no other key looks like it, and a value is not followed by a colon."""

_ODD = (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError)
"""Exceptions caused by a record with another type where a number, list or object is expected."""

Record = tuple[tuple[str, ...], Any]
"""The keys that lead to a record, and the record."""


@dataclass(frozen=True, kw_only=True)
class MptrjJson(Source):
    """MPtrj as published (MPtrj_2022.9_full.json, 12 GB): {material: {frame: {structure, force, stress ...}}}.

    The group is the material, the id the frame. The file is read in parts of 64 MiB: a part holds the materials whose
    keys begin in it.
    """

    mptrj_json: tuple[str, ...]
    """Paths (.json, .json.gz or .json.bz2; only .json in several parts); ${NAME} stands for an environment variable."""
    energy: Literal["uncorrected", "corrected"] = "uncorrected"
    """Total energy to train on: VASP's own, or with the MP2020 corrections. The other one is stored as the
    alternative."""

    def parts(self) -> Sequence[Part]:
        """Return the parts of each file.

        Raises:
            FileNotFoundError: a file is not there, or its path names an environment variable that is not set.
        """
        parts = []
        for path, name in named_paths(self.mptrj_json, "mptrj_json"):
            size = path.stat().st_size
            starts = [0] if is_compressed(path) else range(0, size, PART_BYTES) or [0]
            for start, stop in itertools.pairwise([*starts, size]):
                records = partial(_materials, stop=stop if stop < size else None)
                read = partial(_frames, path, start, records, self._convert)
                parts.append(Part(name=f"{name} bytes {start}-{stop}", size=stop - start, read=read))
        return parts

    def _convert(self, keys: tuple[str, ...], record: Any) -> Structure:
        energies = [_energy(record, f"{name}_total_energy") for name in ("uncorrected", "corrected")]
        trained, other = energies if self.energy == "uncorrected" else energies[::-1]
        return structure_in(
            record,
            energy=trained,
            alternative_energy=other,
            forces=_entry(record, "force"),
            stress=VASP_KBAR * _array(record, "stress"),
            id=keys[1],
            group=keys[0],
        )


@dataclass(frozen=True, kw_only=True)
class MatpesJson(Source):
    """MatPES as published (MatPES-PBE-2025.2.json.gz and its like): a list of documents.

    Stress is in Voigt's order xx, yy, zz, yz, xz, xy, as its authors document and as their tutorial reads it, in VASP's
    unit and sign. The group is the Materials Project's id of the origin, else the formula; the id is matpes_id.
    """

    matpes_json: tuple[str, ...]
    """Paths (.json, .json.gz or .json.bz2); an environment variable is written ${NAME}."""

    def parts(self) -> Sequence[Part]:
        """Return one part per file.

        Raises:
            FileNotFoundError: a file is not there, or its path names an environment variable that is not set.
        """
        return [_part(path, name, _items, self._convert) for path, name in named_paths(self.matpes_json, "matpes_json")]

    def _convert(self, keys: tuple[str, ...], record: Any) -> Structure:
        return structure_in(
            record,
            energy=_energy(record, "energy"),
            forces=_entry(record, "forces"),
            stress=VASP_KBAR * _six(record, VOIGT_ORDER, "stress"),
            id=_entry(record, "matpes_id"),
            group=_optional(record, "provenance", "original_mp_id"),
        )


@dataclass(frozen=True, kw_only=True)
class AlexandriaJson(Source):
    """Chunks of Alexandria (alexandria_000.json.bz2 ...): {"entries": [ComputedStructureEntry, ...]}.

    Energy is the entry's own, without corrections. Forces are a property of the sites and stress is data.stress, 3×3;
    either may be missing. That the stress has VASP's unit and sign is an unconfirmed assumption: compare it with the
    volume dependence of the energy before training on it. The group is the formula, the id data.mat_id.
    """

    alexandria_json: tuple[str, ...]
    """Paths (.json, .json.gz or .json.bz2); an environment variable is written ${NAME}."""
    stress_unit: Literal["eV/A^3", "GPa", "kbar"] = "kbar"
    """Unit of the stress in the files."""
    stress_positive_in: Literal["tension", "compression"] = "compression"
    """Sign of the stress in the files."""

    def parts(self) -> Sequence[Part]:
        """Return one part per file.

        Raises:
            FileNotFoundError: a file is not there, or its path names an environment variable that is not set.
        """
        return [
            _part(path, name, _entries, self._convert)
            for path, name in named_paths(self.alexandria_json, "alexandria_json")
        ]

    def _convert(self, keys: tuple[str, ...], record: Any) -> Structure:
        factor = STRESS_UNITS[self.stress_unit] * (1.0 if self.stress_positive_in == "tension" else -1.0)
        sites = _entry(record, "structure", "sites")
        with_forces = any(_optional(site, "properties", "forces") is not None for site in sites)
        with_stress = _optional(record, "data", "stress") is not None
        check_charge(_optional(record, "data") or {})
        _check_unread(record, sites, {"energy": 0.0, "forces": with_forces or None, "stress": with_stress or None})
        return structure_in(
            record,
            energy=_energy(record, "energy"),
            forces=[_entry(site, "properties", "forces") for site in sites] if with_forces else None,
            stress=factor * _array(record, "data", "stress") if with_stress else None,
            id=_entry(record, "data", "mat_id"),
        )


@dataclass(frozen=True, kw_only=True)
class MlearnJson(Source):
    """Files like those of mlearn: a list of {structure, outputs: {energy, forces, virial_stress}, group ...}.

    Stress is in VASP's order xx, yy, zz, xy, yz, zx, unit and sign. The group is formula and the record's own group
    (AIMD-NVT, Vacancy, Elastic ...), because snapshots of one trajectory share both; the id is file and number.
    """

    mlearn_json: tuple[str, ...]
    """Paths (.json, .json.gz or .json.bz2); an environment variable is written ${NAME}."""

    def parts(self) -> Sequence[Part]:
        """Return one part per file.

        Raises:
            FileNotFoundError: a file is not there, or its path names an environment variable that is not set.
        """
        return [
            _part(path, name, _items, partial(self._convert, name))
            for path, name in named_paths(self.mlearn_json, "mlearn_json")
        ]

    def _convert(self, file: str, keys: tuple[str, ...], record: Any) -> Structure:
        return structure_in(
            record,
            energy=_energy(record, "outputs", "energy"),
            forces=_entry(record, "outputs", "forces"),
            stress=VASP_KBAR * _six(record, VASP_ORDER, "outputs", "virial_stress"),
            id=f"{file}:{keys[0]}",
            subgroup=_optional(record, "group"),
        )


def _part(
    path: Path,
    name: str,
    records: Callable[[JsonReader], Iterator[Record]],
    convert: Callable[[tuple[str, ...], Any], Structure],
) -> Part:
    return Part(name=name, size=path.stat().st_size, read=partial(_frames, path, 0, records, convert))


def _materials(reader: JsonReader, stop: int | None) -> Iterator[Record]:
    """Yield the records of MPtrj's materials whose keys begin before stop, or of all others if stop is None."""
    if reader.byte > 0 and not reader.enter_object_at(_MATERIAL, sys.maxsize if stop is None else stop):
        return
    for byte, material in reader.members("{"):
        # the next part looks for such a key, so that any other would be lost
        if not _MATERIAL.fullmatch(f'"{material}":{{'):
            raise ValueError(f"{material!r} at byte {byte} is not the id of a material")
        if stop is not None and byte >= stop:
            return
        for _, frame in reader.members("{"):
            yield (material, frame), reader.value()
    reader.end()


def _items(reader: JsonReader) -> Iterator[Record]:
    for _, number in reader.members("["):
        yield (number,), reader.value()
    reader.end()


def _entries(reader: JsonReader) -> Iterator[Record]:
    for _, key in reader.members("{"):
        if key != "entries":
            reader.value()
            continue
        for _, number in reader.members("["):
            yield (number,), reader.value()
    reader.end()


def _frames(
    path: Path,
    start: int,
    records: Callable[[JsonReader], Iterator[Record]],
    convert: Callable[[tuple[str, ...], Any], Structure],
) -> Iterator[Frame]:
    """Yield the frame of each record from a byte of the file on; raise with the place if the file is unreadable."""
    last = None
    with open_json(path) as file:
        file.seek(start)
        reader = JsonReader(file, start)
        found = records(reader)
        while True:
            try:
                keys, record = next(found, (None, None))
            except (ValueError, EOFError, OSError, zlib.error) as error:
                place = f"byte {reader.byte}{' of the unpacked text' if is_compressed(path) else ''}"
                after = f"after record {last}" if last else f"before the first record after byte {start}"
                raise InvalidStructure(
                    f"{path}: cannot be read beyond {place}, {after} ({error}). The file may be truncated or damaged, "
                    "or of another layout; fetch it again or remove it from the source's files."
                ) from error
            if keys is None:
                break
            last = "/".join(keys)
            try:
                if reader.repeated is not None:
                    raise InvalidStructure(f"the key {abbreviated(reader.repeated)} occurs twice in one object")
                frame = convert(keys, record)
            except _ODD as error:
                why = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
                frame = InvalidStructure(
                    f"{path}, record {last[:200]}: {why[:500]}. Correct the record or remove it from the file."
                )
            yield frame
    if last is None and start == 0:
        raise InvalidStructure(f"{path}: the file holds no records. Remove it from the source's files.")


def structure_in(
    record: Any,
    *,
    energy: float,
    forces: ArrayLike | None,
    stress: Float64[np.ndarray, "..."] | None,
    id: object,
    group: object = None,
    subgroup: object = None,
    alternative_energy: float | None = None,
) -> Structure:
    """Return the Structure in a record's entry `structure` with the given labels.

    Args:
        record: The record.
        energy: Total energy [eV].
        forces: Forces [eV/Å], or None.
        stress: Stress [eV/Å³], positive in tension, or None.
        id: Name of the frame.
        group: Group of the frame; None: its formula.
        subgroup: Second word of the group.
        alternative_energy: Second total energy [eV], or None.

    Raises:
        InvalidStructure: the record lacks an entry, or physics forbids the structure.
        KeyError: a site lacks its species, or one its share; other errors of Python where another type is expected.
    """
    lattice, sites = _entry(record, "structure", "lattice"), _entry(record, "structure", "sites")
    cell = _array(lattice, "matrix")
    check_geometry(lattice, "matrix", "pbc")
    check_charge(record)
    check_charge(record["structure"])
    try:
        numbers = [_atomic_number(site["species"]) for site in sites]
        fractional = number_array([site["abc"] for site in sites], "abc").astype(np.float64)
    except KeyError as error:
        raise InvalidStructure(f"a site has no entry {error}") from error
    if cell.shape != (3, 3) or fractional.shape != (len(numbers), 3):
        raise InvalidStructure(f"cell and coordinates have shapes {cell.shape} and {fractional.shape}")
    names = [plain_text(name) for name in (group or Symbols(numbers).get_chemical_formula(), subgroup) if name]
    return Structure.checked(
        numbers=numbers,
        positions=fractional @ cell,
        cell=cell,
        pbc=lattice.get("pbc", [True, True, True]),
        energy=energy,
        forces=forces,
        stress=stress,
        alternative_energy=alternative_energy,
        id=plain_text(id),
        group=" ".join(names),
    )


def _check_unread(record: Any, sites: list[Any], labels: dict[Kind, Any]) -> None:
    """Refuse a record whose only forces or stress have another name, in the sites or in its data."""
    if labels["forces"] is None or labels["stress"] is None:
        first = _optional(sites[0], "properties") if sites else None
        entries = [(name, [_optional(site, "properties", name) for site in sites]) for name in first or {}]
        entries += (_optional(record, "data") or {}).items()
        missing = [each for each in unread_labels(entries, len(sites)) if labels[each.kind] is None]
        list(check_unread(missing, labels, {}, {}))


def _atomic_number(species: list[dict[str, Any]]) -> int:
    if len(species) != 1 or isinstance(species[0]["occu"], bool) or abs(species[0]["occu"] - 1) > 1e-8:
        raise InvalidStructure(f"a site is partly empty or shared by several species: {abbreviated(str(species))}")
    symbol = species[0]["element"]
    if symbol not in _NUMBERS:
        raise InvalidStructure(f"unknown element {abbreviated(symbol)}")
    return _NUMBERS[symbol]


def _optional(record: Any, *path: str) -> Any:
    for key in path:
        record = record.get(key) if isinstance(record, dict) else None
    return record


def _entry(record: Any, *path: str) -> Any:
    value = _optional(record, *path)
    if value is None:
        raise InvalidStructure(f"no entry {'.'.join(path)}")
    return value


def _energy(record: Any, *path: str) -> float:
    value = _entry(record, *path)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidStructure(f"{'.'.join(path)} is {abbreviated(value)}, not a number")
    return float(value)


def _array(record: Any, *path: str) -> Float64[np.ndarray, "..."]:
    return number_array(_entry(record, *path), ".".join(path)).astype(np.float64)


def _six(record: Any, order: np.ndarray, *path: str) -> Float64[np.ndarray, "3 3"]:
    values = _array(record, *path)
    if values.shape != (6,):
        raise InvalidStructure(f"{'.'.join(path)} has shape {values.shape}, expected six numbers")
    return values[order]
