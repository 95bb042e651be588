"""Checks for labels under other names, other units and charges: a source must not ignore them silently.

Files name their labels as their authors like: force, REF_forces, dft_energy, virial. An entry that looks like a label
by its name and number of values but is not read is refused if the frame has no other label of its kind; otherwise it
causes a warning, unless it is equal to the label.
"""

import functools
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from data_pipeline.quoting import abbreviated
from data_pipeline.structure import NUMERIC, InvalidStructure

logger = logging.getLogger(__name__)
Kind = Literal["energy", "forces", "stress"]
KINDS: tuple[Kind, ...] = ("energy", "forces", "stress")

_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_ENERGY = frozenset("e etot toten energie energia u epot".split())
_FORCES = frozenset("f frc gradient gradients grad grads fx fy fz".split())
_STRESS = frozenset("vir sigma".split())
_COMPONENTS = frozenset("x y z xx yy zz xy yx yz zy xz zx fx fy fz".split())
_OTHER = frozenset(
    "unit units key weight weights mask error errors err mae rmse std var variance uncertainty max min norm rms mean "
    "per atom atoms atomic isolated free corrected correction formation form binding cohesive hull above kinetic ke "
    "nuclear cutoff encut fermi band gap bandgap homo lumo nl xc exchange correlation ewald vdw disp dispersion d zpe "
    "zero point adsorption interaction solvation ionization shift offset baseline barrier activation surface elastic "
    "thermal constant constants relaxed id name type".split()
)
"""Words that turn a name into another quantity: max_force, energy_per_atom, stress_unit."""
_CELL = frozenset("lattice latticevectors latticematrix cell cellvectors cellmatrix unitcell box".split())
_PBC = frozenset("pbc pbcs periodic periodicity periodicboundaryconditions boundary".split())
_CHARGE = frozenset("charge totalcharge totcharge netcharge systemcharge chargetotal qtot qtotal totalq q".split())
_SPIN = frozenset("spin totalspin spinmultiplicity multiplicity mult".split())
_CHARGE_TEXT = re.compile(r"([+-]?)(\d+(?:\.\d*)?)([+-]?)")
_EDGES = tuple(frozenset(names.split()) for names in ("a b c", "ax bx cx", "ax by cz", "lx ly lz", "cella cellb cellc"))
"""Names of numbers that form a cell together."""
_MEASURED = re.compile(r"energ|forc|length|position|distance|coord|lattice|stress|virial")
_UNITS = frozenset(
    "ev electronvolt a å ang angstrom angstroms ångström metal ev/a ev/å ev/ang ev/angstrom ev/a^3 ev/å^3 ev/å³ "
    "ev/ang^3 ev/angstrom^3 ev/a3 ev/a**3 ev/å**3 ev/angstrom**3 ev/ang**3".split()
)
_STRESS_UNITS = _UNITS | {"gpa", "kbar"}
"""Units of stress that stress_unit of a source can be."""


class Unread(NamedTuple):
    """An entry that looks like a label but is not read."""

    name: str
    kind: Kind
    value: np.ndarray
    readable: bool
    """True if an option can read it: not a single component, and not a gradient, which has the opposite sign."""


def unread_labels(
    entries: Iterable[tuple[str, Any]], num_atoms: int, read: Iterable[str] = (), *, stress: bool = True
) -> list[Unread]:
    """Return the entries that look like labels, without those whose names are read.

    Args:
        entries: Names and values of all entries of the frame.
        num_atoms: Number of its atoms.
        read: Names that are read, or known not to be labels.
        stress: Whether the frame can have a stress.
    """
    found = []
    for name, value in entries:
        kind = kind_of(name)
        if kind is None or name in read or (kind == "stress" and not stress):
            continue
        array = _numbers(value)
        component = _is_component(name)
        sizes = {"energy": (1,), "forces": (3 * num_atoms,), "stress": (6, 9)}[kind]
        if component:
            sizes = {"energy": (), "forces": (num_atoms,), "stress": (1,)}[kind]
        if array is not None and array.size in sizes:
            readable = not component and "grad" not in name.lower()
            found.append(Unread(name, kind, array.ravel(), readable))
    return found


@functools.lru_cache(maxsize=4096)
def kind_of(name: str) -> Kind | None:
    """Return the kind of label that a name means, or None."""
    words = _words(name)
    if set(words) & _OTHER:
        return None
    if any("force" in word or word in _FORCES for word in words):
        return "forces"
    if any("stress" in word or "virial" in word or word in _STRESS for word in words):
        return "stress"
    return "energy" if any("energ" in word or word in _ENERGY for word in words) else None


@functools.lru_cache(maxsize=4096)
def _words(name: str) -> list[str]:
    return [word.lower() for word in _WORDS.findall(name)]


@functools.lru_cache(maxsize=4096)
def _is_component(name: str) -> bool:
    return bool(_words(name)) and _words(name)[-1] in _COMPONENTS


def _numbers(value: Any) -> np.ndarray | None:
    """Return a value as an array, or None if it is not an array of numbers."""
    if isinstance(value, str | bytes | dict | bool) or value is None:
        return None
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, OverflowError, RecursionError):
        return None
    return array if array.dtype.kind in NUMERIC else None


def check_unread(
    unread: Iterable[Unread],
    labels: Mapping[Kind, Any],
    options: Mapping[str, str],
    named: Mapping[Kind, str | None],
    ignore: str = "",
) -> Iterator[str]:
    """Refuse a frame whose only label of a kind is not read; yield a warning for one that differs from the label.

    Args:
        unread: The entries that look like labels.
        labels: The label of each kind that is read, or None.
        options: Option of the source that names the entry, by kind, or by kind:virial for a virial.
        named: Entry that the option of a kind names, or None: the user chose it, so the others cause no warning.
        ignore: Option of the source that lists entries that are not labels; empty if it has none.

    Raises:
        InvalidStructure: a label is missing, but an entry looks like it.
    """
    for entry in unread:
        option = options.get(f"{entry.kind}:virial" if "vir" in entry.name.lower() else entry.kind)
        how = (
            f"read it with {option} (--source.{option} {entry.name})"
            if option and entry.readable
            else f"write it as the file's own {entry.kind}, all components in one and with the sign of {entry.kind}"
        )
        how += f", or mark it as not a label with --source.{ignore} '[{entry.name}]'" if ignore else ""
        label, name = labels[entry.kind], named.get(entry.kind)
        if label is None:
            missing = f"no {entry.kind} under the name {name!r}" if name else f"no {entry.kind} would be read"
            raise InvalidStructure(f"{missing}, but the entry {entry.name!r} looks like it: {how}")
        if name is None and not _says_the_same(entry, np.asarray(label, dtype=np.float64).ravel()):
            yield f"the entry {entry.name!r} also looks like {entry.kind} and differs, but is not read: {how}"


def _says_the_same(entry: Unread, label: np.ndarray) -> bool:
    """Return whether an entry has the same numbers as a label, for an array also in another unit, sign or order."""
    if entry.kind == "energy":
        return bool(np.isclose(entry.value[0], label[0], rtol=1e-6, atol=1e-6))
    one, other = (np.abs(values.astype(np.float64)) for values in (entry.value, label))
    if entry.kind == "stress" and len(one) > 1:  # of nine, the six of ASE's order
        one, other = (np.sort(v if len(v) == 6 else v[[0, 4, 8, 5, 2, 1]]) for v in (one, other))
    if len(one) != len(other):
        return True  # a component of the label that is read
    length = float(np.linalg.norm(one) * np.linalg.norm(other))
    return not one.any() and not other.any() if length == 0 else bool(one @ other / length > 1 - 1e-6)


def say_once(said: set[str], place: str, warnings: Iterable[str]) -> None:
    """Log each warning once, with its place."""
    for warning in warnings:
        if warning not in said:
            logger.warning("%s: %s", place, warning)
        said.add(warning)


def energies_listed(entries: Iterable[tuple[str, Any]]) -> str:
    """List the entries that are energies of any kind, with their values, for a message."""
    found = []
    for name, value in entries:
        array = _numbers(value)
        if array is not None and array.size == 1 and any("energ" in w or w in _ENERGY for w in _words(name)):
            found.append(f"{name!r} ({array.item():.10g})")
    return ", ".join(found[:10])


def check_geometry(entries: Mapping[str, Any], cell: str, pbc: str) -> None:
    """Refuse a cell or periodicity under a name that is not read.

    Args:
        entries: Names and values of the frame's entries.
        cell: Name of the cell in this format.
        pbc: Name of the periodicity in this format.

    Raises:
        InvalidStructure: an entry looks like one of them, but is not equal to the one that is read.
    """
    for names in _EDGES if cell not in entries else ():
        found = {name: _numbers(value) for name, value in entries.items() if name.lower() in names}
        if len(found) == len(names) and all(value is not None and value.size == 1 for value in found.values()):
            raise InvalidStructure(
                f"the cell has the names {', '.join(sorted(found))}, which are not read; call it {cell!r}"
            )
    for name, value in entries.items():
        what, right = geometry(name), {"cell": cell, "pbc": pbc}
        if what is None or name == right[what]:
            continue
        array = _numbers(value)
        if what == "cell" and (array is None or array.size not in (3, 6, 9)):
            continue  # unit_cell=conventional is a name, not a cell
        beside = _numbers(entries.get(right[what])) if what == "cell" else entries.get(right[what])
        if beside is not None and np.array_equal(np.ravel(beside), np.ravel(value)):
            continue
        raise InvalidStructure(f"the {what} has the name {name!r}, which is not read; call it {right[what]!r}")


@functools.lru_cache(maxsize=4096)
def geometry(name: str) -> str | None:
    """Return 'cell' or 'pbc' if a name means one of them, else None."""
    plain = name.lower().replace("_", "").replace("-", "")
    return "cell" if plain in _CELL else "pbc" if plain in _PBC else None


def check_charge(entries: Mapping[str, Any], option: str = "") -> None:
    """Refuse a frame that is charged or has unpaired electrons, under any name of the entry.

    The spin is the multiplicity 2S + 1; 0 means not set.

    Raises:
        InvalidStructure: a charge other than zero, or a spin multiplicity other than 0 or 1.
    """
    found, names = {"charge": 0, "spin": 1}, []
    for name, value in entries.items():
        what = electrons(name)
        array = _numbers(_charge_of(value)) if what else None
        if what is not None and array is not None and array.size == 1 and array.item() != 0:
            found[what] = array.item()
            names.append(name)
    if found != {"charge": 0, "spin": 1}:
        keep = f". To train on it nevertheless, set {option}: keep (--source.{option} keep)" if option else ""
        raise InvalidStructure(
            f"has charge {found['charge']:g} and spin multiplicity {found['spin']:g} (by {', '.join(names)}), which "
            f"the network does not know: the same atoms would have several energies{keep}"
        )


def _charge_of(value: Any) -> Any:
    """Return the number in a text such as 1, +1 or 1-, any other value unchanged."""
    match = _CHARGE_TEXT.fullmatch(value.strip()) if isinstance(value, str) else None
    return value if match is None else float(match[2]) * (-1 if "-" in (match[1], match[3]) else 1)


def check_units(entries: Mapping[str, Any]) -> None:
    """Refuse a frame whose entries declare units other than eV and Å.

    Raises:
        InvalidStructure: the message names the entry.
    """
    for name, value in entries.items():
        if isinstance(value, str) and (known := _units_known(name)) and value.strip().lower() not in known:
            raise InvalidStructure(
                f"{name} is {abbreviated(value)}, but numbers are read as eV and Å; convert them, and remove the entry"
            )


@functools.lru_cache(maxsize=4096)
def _units_known(name: str) -> frozenset[str]:
    """Return the units that an entry may name; an empty set if it is not a unit of anything read."""
    words = _words(name)
    others = [word for word in words if word not in ("unit", "units")]
    if len(others) == len(words) or (others and not _MEASURED.search(" ".join(others))):
        return frozenset()
    return _STRESS_UNITS if "stress" in others or "virial" in others else _UNITS


@functools.lru_cache(maxsize=4096)
def electrons(name: str) -> str | None:
    """Return 'charge' or 'spin' if a name means that of all electrons, else None."""
    plain = name.lower().replace("_", "").replace("-", "")
    return "charge" if plain in _CHARGE else "spin" if plain in _SPIN else None
