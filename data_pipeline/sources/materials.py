"""Materials of a benchmark: structures with names, with or without an energy, in the files that they are published in.

Those are extended XYZ (.extxyz or .xyz, compressed or not), a zip of such files, and pymatgen's dictionaries in JSON:
one record a line, a list of records, or pandas' columns. A record holds a structure or a ComputedStructureEntry under
any name. Materials that are not chosen are passed over without being parsed.
"""

import io
import itertools
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from io import BufferedIOBase
from pathlib import Path
from typing import Any, cast

import ase
import numpy as np
from ase.io.formats import open_with_compression

from data_pipeline.quoting import abbreviated
from data_pipeline.sources.extxyz import atoms_of, frames_of
from data_pipeline.sources.json_stream import JsonReader, open_json, plain_text
from data_pipeline.sources.pymatgen_json import structure_in
from data_pipeline.sources.source import errors_named, reason_of
from data_pipeline.structure import InvalidStructure, Structure

ID = "material_id"
"""Name of the entry with the name of a material."""
XYZ = (".extxyz", ".xyz")
"""Ends of the names of files in extended XYZ."""
JSON = re.compile(r"\.jsonl?(\.gz|\.bz2)?$")
"""End of the names of files of JSON."""
COLUMNS = re.compile(rb'\s*\{\s*"[^"]*"\s*:\s*\{\s*"(\d+|[a-z]+-\d[^"]*)"\s*:')
"""Beginning of pandas' columns: a name, and in it a number or the name of a material."""

Chosen = Callable[[int], bool]
"""Choice of the materials to parse, by their numbers in the file from zero on."""


@dataclass(frozen=True, kw_only=True)
class Material:
    """A named structure, or the reason why it is none."""

    id: str
    """Name in the benchmark, unique in its file."""
    structure: Structure | InvalidStructure
    """Structure, with zero energy and without other labels; or the reason why physics forbids it."""
    energy: float | None
    """Total energy in the file [eV]; None if it has none."""
    entries: Mapping[str, Any] = field(default_factory=dict)
    """Other entries of a frame of extended XYZ."""


def read_materials(path: Path, id_key: str = ID, chosen: Chosen = lambda _: True) -> Iterator[Material | None]:
    """Yield the materials of a file in order; None for each that is not chosen.

    Args:
        path: The file.
        id_key: Entry with the name of a material; in a zip, the name of a file is taken if it is missing.
        chosen: Choice by number.

    Raises:
        FileNotFoundError: there is no such file.
        InvalidStructure: the file is damaged or of no known format, or a material has no name.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with errors_named(path, "its materials"):
        if path.suffix == ".zip":
            yield from _of_zip(path, id_key, chosen)
        elif JSON.search(path.name):
            yield from _of_json(path, id_key, chosen)
        elif any(end in path.suffixes[-2:] for end in XYZ):
            with cast(BufferedIOBase, open_with_compression(str(path), "rb")) as file:
                yield from _of_xyz(file, path, None, id_key, chosen, itertools.count())
        else:
            raise InvalidStructure(
                f"{path} is not named as extended XYZ (.extxyz, .xyz), a zip of it, or JSON (.json, .jsonl); rename it"
            )


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a file of JSON, which are lines, a list, or pandas' columns.

    Raises:
        FileNotFoundError: there is no such file.
        InvalidStructure: it is damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    with errors_named(path, "its records"), open_json(path) as file:
        if COLUMNS.match(_beginning(path)):
            columns = JsonReader(file).value()
            for key in next(iter(columns.values())):
                yield {name: values.get(key) for name, values in columns.items()}
            return
        for _, record in _rows(JsonReader(file), path):
            yield record


def _of_zip(path: Path, id_key: str, chosen: Chosen) -> Iterator[Material | None]:
    numbers = itertools.count()
    with zipfile.ZipFile(path) as archive:
        members = [each for each in archive.namelist() if each.endswith(XYZ) and not each.startswith("__MACOSX/")]
        if not members:
            raise InvalidStructure(f"{path} holds no file that ends in .extxyz or .xyz")
        for member in members:
            inside = path / member
            with io.BytesIO(archive.read(member)) as file:
                yield from _of_xyz(file, inside, Path(member).stem, id_key, chosen, numbers)


def _of_xyz(
    file: BufferedIOBase, path: Path, name: str | None, id_key: str, chosen: Chosen, numbers: Iterator[int]
) -> Iterator[Material | None]:
    for frame, (_, lines) in enumerate(frames_of(file, path, 0, None)):
        if not chosen(next(numbers)):
            yield None
            continue
        place = f"{path}, frame {frame}"
        try:
            atoms = atoms_of(lines)
        except Exception as error:  # ASE's parsing raises any type
            raise InvalidStructure(f"{place}: {reason_of(error)}") from error
        # the name of a file with several frames names none of them
        own = atoms.info.get(id_key, name if frame == 0 else None)
        if own is None:
            entries = ", ".join(map(abbreviated, atoms.info)) or "none"
            raise InvalidStructure(
                f"{place}: no entry {id_key!r} names the material (it has {entries}); name the right one by --id_key"
            )
        yield Material(id=str(own), structure=_checked(atoms), energy=_energy(atoms), entries=atoms.info)


def _checked(atoms: ase.Atoms) -> Structure | InvalidStructure:
    try:
        return Structure.checked(
            numbers=atoms.numbers, positions=atoms.positions, cell=np.asarray(atoms.cell), pbc=atoms.pbc, energy=0.0
        )
    except InvalidStructure as error:
        return error


def _energy(atoms: ase.Atoms) -> float | None:
    found = atoms.calc.results.get("energy") if atoms.calc is not None else atoms.info.get("energy")
    return None if found is None else float(found)


def _of_json(path: Path, id_key: str, chosen: Chosen) -> Iterator[Material | None]:
    with open_json(path) as file:
        reader = JsonReader(file)
        records = _columns(reader, id_key) if COLUMNS.match(_beginning(path)) else _rows(reader, path)
        number = -1
        for number, (key, record) in enumerate(records):
            yield _material(path, key, record, id_key) if chosen(number) else None
        if number < 0:
            raise InvalidStructure(f"{path} holds no structures in pymatgen's form")


def _beginning(path: Path) -> bytes:
    with open_json(path) as file:
        return file.read(4096)


def _rows(reader: JsonReader, path: Path) -> Iterator[tuple[str | None, Any]]:
    """Yield the records of a list, or of lines."""
    if _beginning(path).lstrip()[:1] == b"[":
        for _ in reader.members("["):
            yield None, reader.value()
    while not reader.ended():
        yield None, reader.value()


def _columns(reader: JsonReader, id_key: str) -> Iterator[tuple[str | None, Any]]:
    """Yield the records of the column of structures with their names, from the column of names before it if any."""
    names: dict[str, str] = {}
    for _, column in reader.members("{"):
        if column == id_key:
            names = {key: str(reader.value()) for _, key in reader.members("{")}
            continue
        for _, key in reader.members("{"):
            value = reader.value()
            if _is_structure(value) or _is_entry(value):
                yield names.get(key, key), {column: value}


def _material(path: Path, key: str | None, record: Any, id_key: str) -> Material:
    """Return the material of a record, whose name may be its key."""
    values = record if isinstance(record, dict) else {}
    own = values.get(id_key, key)
    if own is None:
        raise InvalidStructure(
            f"{path}: a record has no entry {id_key!r} that names it (it has {abbreviated(str(list(values)))}); name "
            "the right one by --id_key"
        )
    entry = next((each for each in values.values() if _is_entry(each)), values)
    structure = entry.get("structure") if entry is not values else None
    structure = structure or next((each for each in values.values() if _is_structure(each)), None)
    energy = entry.get("energy")
    place = f"{path}, {plain_text(own)}"
    try:
        if structure is None:
            raise InvalidStructure("it has no structure in pymatgen's form")
        found = structure_in({"structure": structure}, energy=0.0, forces=None, stress=None, id=own)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        found = InvalidStructure(f"{place}: {reason_of(error) if not isinstance(error, InvalidStructure) else error}")
    return Material(
        id=plain_text(own),
        structure=found,
        energy=float(energy) if isinstance(energy, int | float) and not isinstance(energy, bool) else None,
    )


def _is_structure(value: object) -> bool:
    return isinstance(value, dict) and {"lattice", "sites"} <= value.keys()


def _is_entry(value: object) -> bool:
    return isinstance(value, dict) and _is_structure(value.get("structure"))
