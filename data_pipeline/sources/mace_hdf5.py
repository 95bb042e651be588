"""HDF5 files of MACE's preprocessing: groups config_batch_i/config_j, in its older and its newer layout.

The older layout keeps labels and their weights beside the positions (energy, energy_weight, ...), the newer one in the
groups properties and property_weights; it writes "None" for a missing value. Energies are total [eV], forces [eV/Å];
stress needs no conversion (eV/Å³, 1/V ∂E/∂ε, Voigt in ASE's order or 3×3), and virials [eV] are -volume · stress. A
weight of zero marks a missing label (its value is a zero that was never computed); other weights are ignored.

HDF5 opens every small array of every frame by name, some 100 µs each: about 600 frames/s on one core.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from data_pipeline.sources.ase_files import full_stress, hill_formula, stress_of_virial
from data_pipeline.sources.labels import (
    Kind,
    check_charge,
    check_geometry,
    check_unread,
    energies_listed,
    geometry,
    kind_of,
    unread_labels,
)
from data_pipeline.sources.source import Frame, Part, Source, below_common_folder, resolve
from data_pipeline.structure import InvalidStructure, Structure, number_array

PART_FRAMES = 4096
"""Number of frames in a part: the newer layout keeps a whole file in one batch."""
HARD_LINK = 0
"""HDF5's number for a name of an object itself (H5L_TYPE_HARD), not a link to another place."""
MAX_NUMBERS = 10_000_000
"""Largest number of values in one array of a frame."""
READ = frozenset(("energy", "forces", "stress", "virials"))
ELECTRONS = ("charge", "total_charge", "spin", "total_spin")
"""Entries with the charge or spin of a frame."""


@dataclass(frozen=True, kw_only=True)
class MaceHdf5(Source):
    """Labelled frames in files that mace_prepare_data wrote, in the order of file, batch and number.

    A frame is called file:batch:number. The files do not name trajectories: the group is the chemical formula.
    """

    mace_hdf5: tuple[str, ...]
    """Files, or folders of *.h5 and *.hdf5 files; ${NAME} stands for an environment variable."""

    def parts(self) -> Sequence[Part]:
        """Return ranges of frames of each batch.

        Raises:
            FileNotFoundError: a file is missing, a folder holds none, or a path names an environment variable that is
                not set.
            InvalidStructure: a file is not of this layout.
        """
        paths = [resolve(name, field="mace_hdf5", folders=True) for name in self.mace_hdf5]
        files = [file for path in paths for file in _files(path)]
        parts = []
        for file, name in below_common_folder(files):
            counts = _batches(file)
            total = max(1, sum(counts.values()))
            for batch, count in counts.items():
                for first in range(0, count, PART_FRAMES):
                    last = min(first + PART_FRAMES, count)
                    prefix = f"{name}:{batch}"
                    parts.append(
                        Part(
                            name=f"{prefix}:{first}-{last - 1}",
                            size=file.stat().st_size * (last - first) // total,
                            read=partial(self._read, file, prefix, batch, range(first, last)),
                        )
                    )
        return parts

    def _read(self, file: Path, prefix: str, batch: int, numbers: range) -> Iterator[Frame]:
        with _open(file) as data:
            for number in numbers:
                place = f"config_batch_{batch}/config_{number}"
                try:
                    frame = _frame(_group(data, place), f"{prefix}:{number}")
                except (ValueError, TypeError, OverflowError) as error:
                    frame = InvalidStructure(f"{file}, {place}: {error}. Correct the frame or remove it from the file.")
                except (KeyError, OSError, RuntimeError) as error:
                    raise InvalidStructure(
                        f"{file}, {place}: cannot be read ({error}). The file may be damaged or its frames not "
                        "numbered throughout; write it again or remove it from source.mace_hdf5."
                    ) from error
                yield frame


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    files = sorted(file for file in path.glob("*") if file.suffix in (".h5", ".hdf5"))
    if not files:
        raise FileNotFoundError(f"{path}: no *.h5 or *.hdf5 file in this folder (source.mace_hdf5 names it)")
    return files


def _batches(file: Path) -> dict[int, int]:
    """Return the number of frames of each batch, without reading them."""
    with _open(file) as data:
        try:
            names = [name for name in map(str, data) if name.startswith("config_batch_")]
            counts = {int(name.removeprefix("config_batch_")): len(_group(data, name)) for name in names}
        except (ValueError, KeyError, OSError, RuntimeError) as error:
            raise InvalidStructure(
                f"{file}: its batches cannot be read ({error}). The file may be damaged; write it again or remove it "
                "from source.mace_hdf5."
            ) from error
    if not counts:
        raise InvalidStructure(
            f"{file}: no group config_batch_0. Only the files of mace_prepare_data are read, not data sets "
            "of finished graphs."
        )
    return dict(sorted(counts.items()))


def _open(file: Path) -> h5py.File:
    try:
        return h5py.File(file, "r")
    except OSError as error:
        raise InvalidStructure(f"{file}: cannot be read as HDF5 ({error}); write or copy it again") from error


def _frame(config: h5py.Group, id: str) -> Structure:
    newer = "properties" in config
    labels = _group(config, "properties") if newer else config
    weights = _group(config, "property_weights") if newer else config
    suffix = "" if newer else "_weight"
    if _value(config, "weight") == 0:
        raise InvalidStructure("the weight of the frame is zero, so it is not meant for training")

    def label(name: str) -> Any:
        return None if _value(weights, name + suffix) == 0 else _value(labels, name)

    check_charge({name: _value(labels, name) for name in ELECTRONS})
    energy = label("energy")
    if energy is None:
        listed = energies_listed(
            (name, _value(labels, name)) for name in map(str, labels) if not name.endswith("weight")
        )
        raise InvalidStructure(f"no energy, or its weight is zero{'; the frame has ' + listed if listed else ''}")
    cell, pbc = _value(config, "cell"), _value(config, "pbc")
    if cell is None or pbc is None:
        others = [name for name in map(str, config) if geometry(name) and name not in ("cell", "pbc")]
        check_geometry({name: _value(config, name) for name in others}, "cell", "pbc")
    cell = np.zeros((3, 3)) if cell is None else cell
    stress, forces = label("stress"), label("forces")
    if stress is not None:
        stress = full_stress(stress)
    elif (virials := label("virials")) is not None:
        stress = stress_of_virial(full_stress(virials), number_array(cell, "cell"))
    numbers = np.atleast_1d(_value(config, "atomic_numbers"))
    if forces is None or stress is None:
        _check_unread(labels, len(numbers), forces, stress)
    return Structure.checked(
        numbers=numbers,
        positions=_value(config, "positions"),
        cell=cell,
        pbc=[False] * 3 if pbc is None else pbc,
        energy=_scalar(energy),
        forces=forces,
        stress=stress,
        id=id,
        group=hill_formula(numbers),
    )


def _check_unread(labels: h5py.Group, num_atoms: int, forces: Any, stress: Any) -> None:
    """Refuse a frame whose only forces or stress have another name."""
    have: dict[Kind, Any] = {"energy": 0.0, "forces": forces, "stress": stress}
    names = [name for name in map(str, labels) if name not in READ and have.get(kind_of(name) or "energy") is None]
    unread = unread_labels(((name, _value(labels, name)) for name in names), num_atoms)
    list(check_unread(unread, have, {}, {}))


def _group(parent: h5py.Group, name: str) -> h5py.Group:
    group = parent
    for part in name.split("/"):
        _check_link(group, part)
        group = group[part]
        if not isinstance(group, h5py.Group):
            raise KeyError(f"{name} is not a group")
    return group


def _value(group: h5py.Group, name: str) -> Any:
    """Return an entry, or None if it is missing or the word None."""
    if not _check_link(group, name, missing=True):
        return None
    entry = group[name]
    if not isinstance(entry, h5py.Dataset):
        raise InvalidStructure(f"{name} is a group, not an array")
    if entry.size is not None and entry.size > MAX_NUMBERS:
        raise InvalidStructure(f"{name} has {entry.size:,} numbers, more than a frame can have")
    value = entry[()]
    return None if isinstance(value, bytes) and value == b"None" else value


def _check_link(group: h5py.Group, name: str, *, missing: bool = False) -> bool:
    """Return whether an entry exists; refuse a link, which may lead nowhere or in circles."""
    links, key = group.id.links, name.encode()
    if not links.exists(key):
        if missing:
            return False
        raise KeyError(f"no {name}")
    if links.get_info(key).type != HARD_LINK:
        raise InvalidStructure(f"{name} is a link to another place, which is not followed")
    return True


def _scalar(value: Any) -> float:
    array = number_array(value, "energy")
    if array.size != 1:
        raise InvalidStructure(f"the energy has shape {array.shape}, expected one number")
    return float(array.reshape(()))
