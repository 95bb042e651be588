"""The .aselmdb shards of OMat24, sAlex, OMC25 and OMol25 as Structures.

A shard is an LMDB of ASE's database rows (ase-db-backends writes it): keys are row ids in decimal, a value is the
zlib-compressed JSON of a row, with arrays as {"__ndarray__": [shape, dtype, numbers]}, and the entries nextid and
deleted_ids tell the existing rows. The values are decoded here without ASE's row and Atoms objects: 6,700 MPtrj
frames/s against 2,800 on one core; parsing JSON takes nearly half of the time.

Rows are read by number, 1, 2, 3 ..., as written and as counted by metadata.npz; a cursor would return the keys in
alphabetical order, 1, 10, 100 ... LMDB trusts its pages, and a damaged one would kill the process, so all are checked
once, when the parts are listed (lmdb_pages.py).
"""

import functools
import itertools
import json
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from weakref import WeakValueDictionary

import lmdb
import numpy as np
from jaxtyping import UInt

from data_pipeline.quoting import abbreviated
from data_pipeline.sources.ase_files import full_stress, hill_formula
from data_pipeline.sources.labels import (
    Kind,
    check_charge,
    check_units,
    check_unread,
    energies_listed,
    say_once,
    unread_labels,
)
from data_pipeline.sources.lmdb_pages import check_pages
from data_pipeline.sources.source import Frame, Part, Source, resolve
from data_pipeline.structure import InvalidStructure, Structure, has_volume, number_array

PART_ROWS = 8192
"""Number of row ids after which a shard is cut: about a second of work for one process."""
MAX_VALUE = 64 << 20
"""Largest unpacked row [bytes]."""
MAX_GONE = 100_000
"""Missing rows, beyond the number present, above which a shard's counter is taken to be wrong."""

_Rows = tuple[int, frozenset[int]]
_environments: WeakValueDictionary[tuple[int, Path], lmdb.Environment] = WeakValueDictionary()
"""Files open in this process while they are read: LMDB forbids opening a file twice in one process."""


@dataclass(frozen=True, kw_only=True)
class AseLmdb(Source):
    """Labelled frames in .aselmdb shards: total energy [eV], forces [eV/Å], stress [eV/Å³] in ASE's order and sign."""

    aselmdb: tuple[str, ...]
    """Folders (searched with subfolders, shards in the order of their paths) or single shards; ${NAME} is filled in."""
    energy_key: str | None = None
    """Entry of a row's key-value pairs or data with the total energy [eV]; None: the row's own energy."""
    alternative_energy_key: str | None = None
    """Entry of a row's key-value pairs or data with a second total energy [eV], stored but not trained on."""
    group_key: str | None = None
    """Entry of a row's key-value pairs or data that names the group; None: the chemical formula."""
    id_key: str | None = None
    """Entry of a row's key-value pairs or data that names the frame; None: shard (below the folder) and row."""
    ignored_entries: tuple[str, ...] = ()
    """Entries that look like labels but are not; otherwise a row whose only label is such an entry is refused."""
    charged: Literal["refuse", "keep"] = "refuse"
    """Treatment of frames with nonzero charge or spin multiplicity above 1: the network knows neither."""

    def parts(self) -> Sequence[Part]:
        """Return ranges of rows of each shard.

        Raises:
            FileNotFoundError: no such file or folder, no shard in a folder, or a variable in a path that is not set.
            InvalidStructure: a shard is not an LMDB file or is truncated, or metadata.npz does not match the shards
                beside it.
        """
        shards, tops = [], []
        for name in self.aselmdb:
            path = resolve(name, field="aselmdb", folders=True).absolute()
            found = sorted(path.rglob("*.aselmdb")) if path.is_dir() else [path]
            if not found:
                raise FileNotFoundError(f"{path}: no .aselmdb file in this folder (source.aselmdb names it)")
            shards += found
            tops.append(path if path.is_dir() else path.parent)
        folder = os.path.commonpath(tops) if tops else ""
        natoms, rows = {}, functools.cache(_rows)
        for parent in dict.fromkeys(shard.parent for shard in shards):
            natoms |= _natoms(parent, rows)
        names = [os.path.relpath(path, folder) for path in shards]
        return [
            part
            for path, name in zip(shards, names, strict=True)
            for part in self._parts_of(path, name, rows(path), natoms)
        ]

    def _parts_of(self, path: Path, name: str, rows: _Rows, natoms: dict[Path, np.ndarray]) -> list[Part]:
        last, deleted = rows
        size, parts, position = path.stat().st_size, [], 0
        for first in range(1, last + 1, PART_ROWS):
            ids = range(first, min(first + PART_ROWS, last + 1))
            gone = deleted.intersection(ids)
            count = len(ids) - len(gone)
            counts = natoms[path][position : position + count] if path in natoms else None
            parts.append(
                Part(
                    name=f"{name}:{ids[0]}-{ids[-1]}",
                    size=size * count // max(last - len(deleted), 1),
                    read=functools.partial(self._read, path, name, ids, gone, counts),
                )
            )
            position += count
        return parts

    def _read(
        self, path: Path, name: str, ids: range, deleted: frozenset[int], natoms: UInt[np.ndarray, " rows"] | None
    ) -> Iterator[Frame]:
        environment, said = _open(path), set[str]()
        with environment.begin(buffers=True) as transaction:
            for position, number in enumerate(number for number in ids if number not in deleted):
                try:
                    row = _decode(transaction.get(str(number).encode()))
                    structure = self._convert(row, default_id=f"{name}:{number}")
                    say_once(said, f"{path}, row {number}", self._unread(row, structure))
                except InvalidStructure as error:
                    yield InvalidStructure(f"{path}, row {number}: {error}")
                    continue
                except lmdb.Error as error:
                    raise InvalidStructure(
                        f"{path}, row {number}: cannot be read ({error}). The file is damaged; get it again."
                    ) from error
                if natoms is not None and structure.num_atoms != natoms[position]:
                    raise InvalidStructure(
                        f"{path}, row {number}: has {structure.num_atoms} atoms where {path.parent / 'metadata.npz'} "
                        f"says {natoms[position]}. They do not match: download both again, or remove metadata.npz."
                    )
                yield structure

    def _convert(self, row: dict[str, Any], *, default_id: str) -> Structure:
        entries = _entries(row)
        check_units(entries)
        if self.charged == "refuse":
            check_charge(row, "charged")
            check_charge(entries, "charged")
        energy = _energy(row if self.energy_key is None else entries, self.energy_key or "energy")
        if energy is None:
            listed = energies_listed([*row.items(), *entries.items()])
            raise InvalidStructure(
                f"no energy {repr(self.energy_key) if self.energy_key else 'of its own'}; name its entry "
                f"with energy_key (the row has {sorted(entries)[:50]}{'; energies: ' + listed if listed else ''})"
            )
        numbers = _array(row, "numbers")
        stress = _optional_array(row, "stress")
        second_key = self.alternative_energy_key
        return Structure.checked(
            numbers=numbers,
            positions=_array(row, "positions"),
            cell=_array(row, "cell"),
            pbc=_array(row, "pbc", flags=True),
            energy=energy,
            forces=_optional_array(row, "forces"),
            stress=None if stress is None else full_stress(stress),
            alternative_energy=None if second_key is None else _energy(entries, second_key),
            id=default_id if self.id_key is None else _name(entries, self.id_key),
            group=hill_formula(numbers.ravel()) if self.group_key is None else _name(entries, self.group_key),
        )

    def _unread(self, row: dict[str, Any], structure: Structure) -> Iterator[str]:
        """Refuse a row if a label of it is not read; yield warnings about other entries that look like labels."""
        own = ((name, value) for name, value in row.items() if name not in ("energy", "forces", "stress"))
        read = {*filter(None, [self.energy_key, self.alternative_energy_key]), *self.ignored_entries}
        entries = ((name, _plain(value)) for name, value in itertools.chain(own, _entries(row).items()))
        if unread := unread_labels(entries, structure.num_atoms, read, stress=has_volume(structure.cell)):
            labels: dict[Kind, Any] = {
                "energy": structure.energy,
                "forces": structure.forces if structure.has_forces else None,
                "stress": structure.stress if structure.has_stress else None,
            }
            yield from check_unread(
                unread, labels, {"energy": "energy_key"}, {"energy": self.energy_key}, "ignored_entries"
            )


def _open(path: Path) -> lmdb.Environment:
    """Return the environment of a shard, one per process; it closes with its last reference.

    Raises:
        InvalidStructure: not an LMDB file.
    """
    environment = _environments.get((os.getpid(), path))
    if environment is None:
        try:
            environment = lmdb.open(str(path), subdir=False, readonly=True, lock=False)
        except lmdb.Error as error:
            raise InvalidStructure(
                f"{path}: cannot be opened as an LMDB file ({error}). Get it again or remove it."
            ) from error
        _environments[os.getpid(), path] = environment
    return environment


def _rows(path: Path) -> _Rows:
    """Return the largest row id and the deleted ids below it; the pages must have been checked."""
    check_pages(path)
    environment = _open(path)
    try:
        with environment.begin() as transaction:
            counters = {key: transaction.get(key) for key in (b"nextid", b"deleted_ids", b"metadata")}
        last = 0 if counters[b"nextid"] is None else _whole(_json(counters[b"nextid"])) - 1
        gone = frozenset(() if counters[b"deleted_ids"] is None else map(_whole, _json(counters[b"deleted_ids"])))
    except (lmdb.Error, zlib.error, ValueError, TypeError) as error:
        raise InvalidStructure(
            f"{path}: its list of rows cannot be read ({type(error).__name__}: {error}). Get it again or remove it."
        ) from error
    if not environment.stat()["entries"] and _has_pages(path, environment.stat()["psize"]):
        raise InvalidStructure(
            f"{path}: its root leads to no row, but the file has {path.stat().st_size:,} bytes. It is damaged; get "
            "it again or remove it."
        )
    present = environment.stat()["entries"] - sum(value is not None for value in counters.values())
    if present > last - len(gone):
        raise InvalidStructure(
            f"{path}: holds {present:,} rows where its counters say {last - len(gone):,}, so rows would be lost. "
            "The file is damaged; get it again or remove it."
        )
    # a missing row is refused by its number; far more missing than present means a wrong counter
    if last - len(gone) > 2 * present + MAX_GONE:
        raise InvalidStructure(
            f"{path}: holds {present:,} rows where its counters say {last - len(gone):,}. The file is damaged; get "
            "it again or remove it."
        )
    return last, gone


def _has_pages(path: Path, page_size: int) -> bool:
    """Return whether any page follows the two that point to the newest and the previous root."""
    with path.open("rb") as file:
        file.seek(2 * page_size)
        return any(file.read(page_size))


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{abbreviated(value)} is not a row number")
    return value


def _natoms(folder: Path, rows: Callable[[Path], _Rows]) -> dict[Path, UInt[np.ndarray, " rows"]]:
    """Return the number of atoms of each row of each shard in a folder by metadata.npz, or {} without that file.

    Raises:
        InvalidStructure: metadata.npz cannot be read, or its number of rows is not that of the shards.
    """
    path = folder / "metadata.npz"
    if not path.is_file():
        return {}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            natoms = arrays["natoms"]
    except Exception as error:  # numpy and zipfile raise a dozen kinds
        raise InvalidStructure(
            f"{path}: cannot be read ({type(error).__name__}: {error}). Get it again or remove it."
        ) from error
    shards = sorted(folder.glob("*.aselmdb"))
    counts = [last - len(deleted) for last, deleted in map(rows, shards)]
    if natoms.shape != (sum(counts),):
        raise InvalidStructure(
            f"{path}: lists {natoms.size:,} rows, and the {len(shards)} shards beside it hold {sum(counts):,}. "
            "A shard may be missing; download all of them, or remove metadata.npz."
        )
    small = natoms.astype(np.min_scalar_type(int(natoms.max(initial=0))))
    return dict(zip(shards, np.split(small, np.cumsum(counts)[:-1]), strict=True))


def _json(value: memoryview | bytes) -> Any:
    """Return the value of a compressed JSON text; refuse to unpack more than the largest row."""
    unpacking = zlib.decompressobj()
    text = unpacking.decompress(value, MAX_VALUE)
    if not unpacking.eof:
        raise ValueError(f"it ends early or unpacks to more than {MAX_VALUE:,} bytes")
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError as error:
        raise ValueError("its lists or objects are nested too deeply") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError(f"the key {abbreviated(Counter(name for name, _ in pairs).most_common(1)[0][0])} occurs twice")
    return found


def _decode(value: memoryview | bytes | None) -> dict[str, Any]:
    if value is None:
        raise InvalidStructure("is missing, but not in the list of deleted rows")
    try:
        row = _json(value)
    except (zlib.error, ValueError) as error:
        raise InvalidStructure(f"is damaged ({type(error).__name__}: {error}). Get the file again.") from error
    if not isinstance(row, dict):
        raise InvalidStructure(f"is {type(row).__name__}, not a row of ASE's database")
    return row


def _entries(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row's key-value pairs and data."""
    found = {}
    for name in ("key_value_pairs", "data"):
        value = row.get(name) or {}
        if not isinstance(value, dict):
            raise InvalidStructure(f"{name} is {abbreviated(value)}, not an object of names and values")
        found |= value
    return found


def _plain(value: Any) -> Any:
    """Return the numbers of an array in ASE's encoding, any other value unchanged."""
    array = value.get("__ndarray__") if isinstance(value, dict) else None
    return array[2] if isinstance(array, list) and len(array) == 3 else value


def _array(row: dict[str, Any], name: str, *, flags: bool = False) -> np.ndarray:
    array = _optional_array(row, name, flags=flags)
    if array is None:
        raise InvalidStructure(f"has no {name}")
    return array


def _optional_array(row: dict[str, Any], name: str, *, flags: bool = False) -> np.ndarray | None:
    value = row.get(name)
    if value is None:
        return None
    try:
        if isinstance(value, dict):
            shape, _, numbers = value["__ndarray__"]
            return (np.asarray(numbers) if flags else number_array(numbers, name).astype(np.float64)).reshape(shape)
        return np.asarray(value) if flags else number_array(value, name).astype(np.float64)
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidStructure(f"{name} is not an array ({type(error).__name__}: {error})") from error


def _energy(entries: dict[str, Any], key: str) -> float | None:
    energy = entries.get(key)
    if energy is not None and (isinstance(energy, bool) or not isinstance(energy, int | float)):
        raise InvalidStructure(f"the energy {key} is {abbreviated(energy)}, not a number")
    return None if energy is None else float(energy)


def _name(entries: dict[str, Any], key: str) -> str:
    if not isinstance(entries.get(key), str | int | float):
        raise InvalidStructure(f"no name or number {key!r} in its key-value pairs or data: {sorted(entries)}")
    return str(entries[key])
