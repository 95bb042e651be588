"""Survey of files: the entries that hold energy, forces and stress, and everything else that is there.

The names differ from program to program (energy, REF_energy, dft_energy, virials). A name is taken where it is the only
one of its kind, or where all of a kind say the same; two that differ are the user's choice. VASP writes two energies:
the forces are derivatives of the free energy, so that is the one to train on.
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from data_pipeline.plain_files.finding import DataFile
from data_pipeline.plain_files.read_config import ReadConfig
from data_pipeline.sources.ase_files import (
    STRESS_UNITS,
    all_entries,
    full_stress,
    hill_formula,
    ranges,
    stress_of_virial,
)
from data_pipeline.sources.labels import KINDS, Kind, check_charge, energies_listed, unread_labels
from data_pipeline.structure import InvalidStructure, has_volume

SAME_ENERGY = 1e-5
"""Largest difference of energies that say the same [eV per atom]."""
STANDARD = ("energy", "forces", "stress")
"""Entries that ASE's own reader takes for labels."""
PER_ATOM = ("energies", "stresses")
"""Entries of ASE's calculators with a value for each atom."""
VASP = ("vasp-out", "vasp-xml")
FREE = "free_energy"
OPTIONS: dict[Kind, str] = {"energy": "energy_key", "forces": "forces_key", "stress": "stress_key"}
FOREIGN = ("hartree", "ha", "ry", "rydberg", "kcal", "kcalmol", "kj", "kjmol", "mev", "bohr", "au", "nm")
"""Endings of names that state units other than eV and Å."""


class Difference(NamedTuple):
    """Two entries of one kind that differ in a frame."""

    frame: int
    """Number of the frame."""
    names: tuple[str, str]
    """Names of the two."""
    values: str
    """The two values, or their ratio, in words."""


@dataclass
class Survey:
    """Contents of the surveyed frames of a file."""

    num_frames: int = 0
    """Number of frames surveyed."""
    counts: Counter[str] = field(default_factory=Counter)
    """Number of frames with each entry."""
    labels: dict[Kind, Counter[str]] = field(default_factory=lambda: {kind: Counter() for kind in KINDS})
    """Number of frames with each entry that looks like a label, by kind; without free energies."""
    covered: Counter[Kind] = field(default_factory=Counter)
    """Number of frames with any entry of a kind."""
    differences: dict[frozenset[str], Difference] = field(default_factory=dict)
    """First difference between two entries of one kind."""
    groups: Counter[str] = field(default_factory=Counter)
    """Number of frames of each group."""
    units: set[str] = field(default_factory=set)
    """Units of the stress that entries of the frames state."""
    energies: str = ""
    """Energies of any kind in the first frame, for messages."""


@dataclass(frozen=True, kw_only=True)
class Keys:
    """Entries that hold the labels of a file; None: the one that ASE's reader takes, or none."""

    energy_key: str | None = None
    """Entry with the energy."""
    forces_key: str | None = None
    """Entry with the forces."""
    stress_key: str | None = None
    """Entry with the stress."""
    virials_key: str | None = None
    """Entry with the virial."""
    stress_unit: str = "eV/A^3"
    """Unit of the stress."""


def survey(file: DataFile, *, most: int, group_key: str | None, charged: bool) -> Survey:
    """Read frames of a file that ASE reads, and return what they hold.

    Args:
        file: The file.
        most: Number of frames to survey of each of its ranges; those that cannot be used do not count.
        group_key: Entry that names the group of a frame; None: the chemical formula.
        charged: Whether charged frames are kept.

    Raises:
        InvalidStructure: the file cannot be read, no frame of it can (of VASP's output, the build says why), or a frame
            is charged.
    """
    found, errors = Survey(), list[InvalidStructure]()
    format = None if file.kind == "other" else file.kind
    for each in ranges(file.path, file.path.name, format, file.slice):
        frames = (
            (number, atoms)
            for number, atoms in each.frames()
            if not isinstance(atoms, InvalidStructure) or errors.append(_placed(file, number, atoms))
        )
        for number, atoms in itertools.islice(frames, most):
            assert not isinstance(atoms, InvalidStructure)
            if not charged:
                try:
                    check_charge(atoms.info, "charged")
                except InvalidStructure as error:
                    raise _placed(file, number, error) from error
            _add(found, number, dict(all_entries(atoms)), atoms.numbers, np.asarray(atoms.cell), group_key)
    if not found.num_frames and errors and file.kind not in VASP:
        raise errors[0]
    return found


def _placed(file: DataFile, number: int, error: InvalidStructure) -> InvalidStructure:
    return InvalidStructure(f"{file.path}, frame {number}: {error}")


def _add(
    found: Survey, number: int, entries: dict[str, Any], numbers: np.ndarray, cell: np.ndarray, group_key: str | None
) -> None:
    if not found.num_frames:
        found.energies = energies_listed(entries.items())
    found.num_frames += 1
    found.counts.update(entries.keys())
    found.groups[hill_formula(numbers) if group_key is None else str(entries.get(group_key))] += 1
    found.units |= {
        str(value).strip()
        for name, value in entries.items()
        if "stress" in name.lower() and name.lower().endswith(("unit", "units"))
    }
    labels = [
        each
        for each in unread_labels(entries.items(), len(numbers), PER_ATOM, stress=has_volume(cell))
        if each.readable
    ]
    for kind in KINDS:
        values = {each.name: each.value for each in labels if each.kind == kind}
        found.covered[kind] += bool(values)
        found.labels[kind].update(values.keys())
        if kind == "energy" and isinstance(entries.get(FREE), int | float | np.number):
            values[FREE] = np.array([entries[FREE]], dtype=np.float64)
        for one, other in itertools.combinations(sorted(values), 2):
            pair = frozenset((one, other))
            if pair not in found.differences and (words := _difference(kind, (one, other), values, cell, len(numbers))):
                found.differences[pair] = Difference(number, (one, other), words)


def _difference(
    kind: Kind, names: tuple[str, str], values: Mapping[str, np.ndarray], cell: np.ndarray, num_atoms: int
) -> str:
    """Return how two entries of one kind differ, or ''."""
    one, other = (values[name].astype(np.float64) for name in names)
    if kind == "energy":
        same = abs(one[0] - other[0]) <= SAME_ENERGY * num_atoms
        return "" if same else f"{one[0]:.10g} and {other[0]:.10g} eV"
    if kind == "stress":
        one, other = (_stress(name, value, cell) for name, value in zip(names, (one, other), strict=True))
    size = max(float(np.abs(one).max()), float(np.abs(other).max()))
    if np.allclose(one, other, rtol=1e-3, atol=1e-6 + 1e-4 * size):
        return ""
    overlap = float((one * other).sum())
    if overlap**2 > (1 - 1e-6) * float((one**2).sum() * (other**2).sum()):
        return f"by a factor of {overlap / float((one**2).sum()):.4g}"
    return f"by up to {float(np.abs(one - other).max()):.4g} {'eV/Å' if kind == 'forces' else 'eV/Å³'}"


def _stress(name: str, value: np.ndarray, cell: np.ndarray) -> np.ndarray:
    tensor = full_stress(value)
    if "vir" in name.lower():
        return stress_of_virial(tensor, cell)
    return tensor * STRESS_UNITS[unit_in(name) or "eV/A^3"]


def unit_in(name: str) -> str | None:
    """Return the unit of stress that ends a name, such as stress_GPa, or None."""
    plain = name.lower().rstrip(")]").replace("_", "")
    return "GPa" if plain.endswith("gpa") else "kbar" if plain.endswith(("kbar", "kb")) else None


def choose(file: DataFile, found: Survey, config: ReadConfig) -> Keys:
    """Return the entries to read as labels of a file.

    Args:
        file: The file.
        found: Its survey.
        config: Options that the user gave.

    Raises:
        InvalidStructure: there is no energy, two entries of a kind differ, or frames use different names; the message
            names the options.
    """
    if not found.num_frames:
        return Keys(energy_key=config.energy_key or FREE)
    keys = {option: _chosen(file, found, kind, config) for kind, option in OPTIONS.items()}
    stress = keys[OPTIONS["stress"]]
    if stress is not None and (stress == config.virials_key or "vir" in stress.lower()):
        keys |= {"stress_key": None, "virials_key": stress}
    for name in filter(None, keys.values()):
        if name.lower().rpartition("_")[2] in FOREIGN:
            raise InvalidStructure(
                f"{file.path}: the name {name!r} states a unit other than eV and Å; convert the numbers, and name the "
                "entry without it"
            )
    unit = config.stress_unit or _unit(file, found, stress)
    given = {option: None if name in STANDARD else name for option, name in keys.items()}
    return Keys(**given, **({} if unit is None else {"stress_unit": unit}))


def _unit(file: DataFile, found: Survey, stress: str | None) -> str | None:
    """Return the unit of the stress that its name or an entry of the frames states, or None."""
    stated = {unit.lower() for unit in found.units} - {"ev/a^3", "ev/å^3", "ev/å³", "ev/ang^3", "ev/angstrom^3"}
    named = {unit for unit in ("GPa", "kbar") if unit.lower() in stated} | ({unit_in(stress or "")} - {None})
    if len(named) > 1:
        raise InvalidStructure(f"{file.path}: the stress has two units, {' and '.join(sorted(map(str, named)))}")
    return next(iter(named), None)


def _chosen(file: DataFile, found: Survey, kind: Kind, config: ReadConfig) -> str | None:
    """Return the entry of a kind to read, or None if no frame has one."""
    asked = getattr(config, OPTIONS[kind]) or (config.virials_key if kind == "stress" else None)
    names = found.labels[kind]
    if asked is not None and (found.counts[asked] or not names):
        if kind == "energy" and not found.counts[asked]:
            raise _without_energy(file, found, f"no entry {asked!r}")
        return asked if found.counts[asked] else None
    if asked is not None:
        raise InvalidStructure(
            f"{file.path}: no entry {asked!r}, but {_listed(names)} look{'s' * (len(names) == 1)} like {kind}; build "
            "files with other names as a data set of their own"
        )
    if kind == "energy":
        return _chosen_energy(file, found)
    return _single(file, found, kind, names)


def _chosen_energy(file: DataFile, found: Survey) -> str:
    """Return the entry with the energy: for VASP the free energy, elsewhere only if there is no other, or no choice."""
    names = found.labels["energy"]
    if not names and not found.counts[FREE]:
        raise _without_energy(file, found, "no energy")
    if not names or (file.kind in VASP and found.counts[FREE]):
        return FREE
    name = _single(file, found, "energy", names)
    assert name is not None
    difference = found.differences.get(frozenset((name, FREE)))
    if difference is not None:
        raise InvalidStructure(
            f"{file.path}: {' and '.join(difference.names)} differ (frame {difference.frame}: {difference.values}). "
            f"The forces are derivatives of one of them, of the free energy in VASP and most programs with smeared "
            f"electrons. Choose: --read.energy_key {FREE} or --read.energy_key {name}"
        )
    return name


def _without_energy(file: DataFile, found: Survey, problem: str) -> InvalidStructure:
    there = found.energies or f"no energies, but {', '.join(sorted(found.counts)[:20]) or 'nothing beside the atoms'}"
    return InvalidStructure(
        f"{file.path}: {problem} in its frames, so nothing to learn from; name the entry with the total energy "
        f"[eV] by --read.energy_key. The first frame has {there}"
    )


def _single(file: DataFile, found: Survey, kind: Kind, names: Counter[str]) -> str | None:
    """Return the one entry of a kind, or the first of those that say the same.

    Raises:
        InvalidStructure: two differ, or no entry is in all frames that have one.
    """
    for one, other in itertools.combinations(_preferred(names), 2):
        difference = found.differences.get(frozenset((one, other)))
        if difference is not None:
            raise InvalidStructure(
                f"{file.path}: the entries {' and '.join(difference.names)} both look like {kind} and differ (frame "
                f"{difference.frame}: {difference.values}). Choose the one to train on: {_option(kind, one)} or "
                f"{_option(kind, other)}"
            )
    if not names:
        return None
    for name in _preferred(names):
        if names[name] == found.covered[kind]:
            return name
    listed = ", ".join(f"{name} in {number:,}" for name, number in sorted(names.items()))
    raise InvalidStructure(
        f"{file.path}: the frames name their {kind} differently ({listed} of {found.num_frames:,} frames); put frames "
        "with different names in separate files"
    )


def _option(kind: Kind, name: str) -> str:
    option = "virials_key" if kind == "stress" and "vir" in name.lower() else OPTIONS[kind]
    return f"--read.{option} {name}"


def _preferred(names: Mapping[str, int]) -> Iterator[str]:
    """Yield names in the order in which equal ones are taken: ASE's own, stresses before virials, by letters."""
    return iter(sorted(names, key=lambda name: (name not in STANDARD, "vir" in name.lower(), name)))


def _listed(names: Mapping[str, int] | Sequence[str]) -> str:
    return ", ".join(sorted(names))
