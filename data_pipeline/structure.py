"""Structure: one labelled frame of atoms. The project's conventions are defined here.

energy [eV], total · lengths [Å] · forces [eV/Å] · stress [eV/Å³], full 3×3, positive in tension (ASE: 1/V ∂E/∂ε) ·
cell rows are lattice vectors · a missing label is a False in a mask, never NaN or a missing field.

Structure.checked() refuses everything unphysical, so that no later code has to check again.
"""

import itertools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32, Num, UInt8
from numpy.typing import ArrayLike

from data_pipeline.quoting import abbreviated

SYMBOLS = (
    "X H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr Rb Sr Y Zr "
    "Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt "
    "Au Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am Cm Bk Cf Es Fm Md No Lr Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv "
    "Ts Og"
).split()
"""Chemical symbols by atomic number."""
MAX_ATOMIC_NUMBER = len(SYMBOLS) - 1
MAX_LENGTH = 1e8
"""Largest coordinate of an atom or a lattice vector [Å]: beyond, float64 has less than 10⁻⁸ Å left for distances."""
MIN_DISTANCE = 0.1
"""Atoms closer than this [Å] are taken to be at the same place: the hydrogen molecule has 0.74 Å."""
MAX_DENSITY = 5.0
"""Atoms per volume beyond any material [1/Å³]; diamond has 0.18, hydrogen at 1 TPa about 1."""
MAX_ENERGY = 1e7
"""Largest energy per atom [eV]: all electrons of oganesson have 1.5e6."""
MAX_LABEL = 2**31 - 1
"""Largest label of a molecule."""
NUMERIC = "iuf"
"""Kinds of NumPy's types that are numbers: integers and floats, not booleans, text, complex numbers or objects."""


def atomic_number(symbol: str) -> int:
    """Return the atomic number of a symbol.

    Raises:
        ValueError: there is no such element.
    """
    if symbol not in SYMBOLS[1:]:
        raise ValueError(f"{abbreviated(symbol)} is not the symbol of an element")
    return SYMBOLS.index(symbol)


class InvalidStructure(ValueError):
    """A structure that physics or the project's conventions forbid; the message gives the reason."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Structure:
    """One frame of atoms with its labels.

    Structure.checked() converts and checks external data. The plain constructor trusts its caller: it is for data that
    was checked before, such as a shard with the right checksum.
    """

    numbers: UInt8[np.ndarray, " atoms"]
    """Atomic numbers."""
    positions: Float64[np.ndarray, "atoms 3"]
    """Cartesian positions [Å]."""
    cell: Float64[np.ndarray, "3 3"]
    """Lattice vectors as rows [Å]; a missing one is a zero row."""
    pbc: Bool[np.ndarray, " 3"]
    """Lattice vectors that repeat."""
    energy: float
    """Total energy [eV]; zero in a data set without labels (Manifest.labelled)."""
    forces: Float32[np.ndarray, "atoms 3"]
    """Forces [eV/Å]; zero where has_forces is False."""
    stress: Float32[np.ndarray, "3 3"]
    """Stress [eV/Å³], symmetric, positive in tension; zero where has_stress is False."""
    has_forces: bool
    """True if forces were given."""
    has_stress: bool
    """True if stress was given."""
    alternative_energy: float
    """A second total energy [eV] under another convention, stored but not trained on; zero if missing."""
    has_alternative_energy: bool
    """True if a second energy was given."""
    molecules: Int32[np.ndarray, " atoms"]
    """Label of each atom's molecule: atoms with the same one belong together; zero where has_molecules is False."""
    has_molecules: bool
    """True if molecules were given."""
    id: str
    """Name of the frame, unique in its data set."""
    group: str
    """Frames of one group (a trajectory, a composition) never fall on two sides of a split."""

    @classmethod
    def checked(
        cls,
        *,
        numbers: ArrayLike,
        positions: ArrayLike,
        cell: ArrayLike,
        pbc: ArrayLike,
        energy: float,
        forces: ArrayLike | None = None,
        stress: ArrayLike | None = None,
        alternative_energy: float | None = None,
        molecules: ArrayLike | None = None,
        id: str = "",
        group: str = "",
    ) -> "Structure":
        """Convert and check arrays of any type and return the Structure; None is a missing label.

        A stress of zeros or NaN is a missing label where the cell does not repeat in all three directions: programs
        write it where they calculated none.

        Raises:
            InvalidStructure: an array of the wrong shape, a value that is not a number, not finite or absurdly large,
                an atomic number outside 1-118, labels of molecules that are not whole numbers, no atoms, a stress that
                is not symmetric or whose cell has no volume, periodic lattice vectors that enclose no volume or less
                than the atoms of any material need, or lengths too large for the precision of float64.
        """
        atoms = _atomic_numbers(numbers)
        lattice, periodic = _lengths(cell, "cell", (3, 3)), _periodic(pbc)
        _check_cell(lattice, periodic, len(atoms))
        second_energy = 0.0 if alternative_energy is None else alternative_energy
        for name, value in (("energy", energy), ("alternative energy", second_energy)):
            _check_energy(name, value, len(atoms))
        if stress is not None and not periodic.all() and _says_nothing(stress):
            stress = None
        zeros = np.zeros((len(atoms), 3)), np.zeros((3, 3))
        tensor = _array(zeros[1] if stress is None else stress, "stress", (3, 3), np.float32)
        asymmetry = float(np.abs(tensor - tensor.T).max())
        if asymmetry > 1e-4 + 1e-3 * float(np.abs(tensor).max()):
            raise InvalidStructure(f"the stress is not symmetric (by {asymmetry:.3g} eV/Å³)")
        if stress is not None and not has_volume(lattice):
            raise InvalidStructure(
                "the frame has a stress, but its cell has no volume; remove the stress or correct the cell"
            )
        return cls(
            numbers=atoms,
            positions=_lengths(positions, "positions", (len(atoms), 3)),
            cell=lattice,
            pbc=periodic,
            energy=float(energy),
            forces=_array(zeros[0] if forces is None else forces, "forces", (len(atoms), 3), np.float32),
            stress=tensor,
            has_forces=forces is not None,
            has_stress=stress is not None,
            alternative_energy=float(second_energy),
            has_alternative_energy=alternative_energy is not None,
            molecules=_molecules(np.zeros(len(atoms)) if molecules is None else molecules, len(atoms)),
            has_molecules=molecules is not None,
            id=id,
            group=group,
        )

    @property
    def num_atoms(self) -> int:
        """Number of atoms."""
        return len(self.numbers)

    @property
    def volume(self) -> float:
        """Volume enclosed by the three lattice vectors [Å³]; zero with fewer than three."""
        return float(abs(np.linalg.det(self.cell)))


def has_volume(cell: Num[np.ndarray, "3 3"]) -> bool:
    """Return whether three lattice vectors enclose a volume."""
    return abs(float(np.linalg.det(cell))) > 1e-6


def number_array(values: ArrayLike, name: str) -> Num[np.ndarray, "..."]:
    """Return values as an array of numbers, without copying one that is such an array already.

    Raises:
        InvalidStructure: rows of different lengths, or booleans, text or other values that are not numbers.
    """
    if isinstance(values, list | tuple) and (others := _no_numbers(values)):
        raise InvalidStructure(f"{name}: could not convert {others} to numbers")
    try:
        array = np.asarray(values)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise InvalidStructure(f"{name}: could not convert {abbreviated(values)} to an array of numbers") from error
    if array.dtype.kind not in NUMERIC:
        raise InvalidStructure(f"{name} is of type {array.dtype}, not numbers: {abbreviated(values)}")
    return array


def _no_numbers(values: list | tuple) -> str:
    """Return the types of non-numbers in a list or a list of lists: NumPy reads True beside floats as 1."""
    kinds = set(map(type, values))
    if kinds <= {list, tuple}:
        kinds = set(map(type, itertools.chain.from_iterable(values)))
    return ", ".join(sorted(kind.__name__ for kind in kinds & {bool, np.bool_, str, bytes, dict, type(None)}))


def _atomic_numbers(values: ArrayLike) -> UInt8[np.ndarray, " atoms"]:
    numbers = number_array(values, "numbers")
    if numbers.ndim != 1 or len(numbers) == 0:
        raise InvalidStructure(f"numbers has shape {numbers.shape}, expected (atoms,) with at least one atom")
    wrong = numbers[(numbers < 1) | (numbers > MAX_ATOMIC_NUMBER) | (numbers != np.rint(numbers))]
    if len(wrong):
        raise InvalidStructure(
            f"unknown element: atomic number {wrong[0]:g} is not a whole number in 1-{MAX_ATOMIC_NUMBER}"
        )
    return np.ascontiguousarray(numbers, dtype=np.uint8)


def _molecules(values: ArrayLike, num_atoms: int) -> Int32[np.ndarray, " atoms"]:
    labels = number_array(values, "molecules")
    if labels.shape != (num_atoms,):
        raise InvalidStructure(f"molecules has shape {labels.shape}, expected {(num_atoms,)}")
    if not (np.abs(labels) <= MAX_LABEL).all() or not (labels == np.rint(labels)).all():
        raise InvalidStructure(f"molecules are not all whole numbers up to {MAX_LABEL:,}")
    return labels.astype(np.int32)


def _periodic(values: ArrayLike) -> Bool[np.ndarray, " 3"]:
    try:
        flags = np.asarray(values)
    except (ValueError, RecursionError) as error:
        raise InvalidStructure(f"pbc is {abbreviated(values)}, not three of true and false") from error
    if flags.shape != (3,):
        raise InvalidStructure(f"pbc has shape {flags.shape}, expected (3,)")
    if flags.dtype.kind not in "b" + NUMERIC or not ((flags == 0) | (flags == 1)).all():
        raise InvalidStructure(f"pbc is {abbreviated(str(flags.tolist()))}, not three of true and false")
    return flags.astype(np.bool_)


def _check_energy(name: str, value: object, num_atoms: int) -> None:
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | float | np.integer | np.floating):
        raise InvalidStructure(f"the {name} is {abbreviated(value)}, not a number")
    if not np.isfinite(value):
        raise InvalidStructure(f"the {name} is {value}, not a finite number")
    if abs(value) > MAX_ENERGY * num_atoms:
        raise InvalidStructure(
            f"the {name} is {value:.3g} eV for {num_atoms} atoms, beyond any real one ({MAX_ENERGY:g} eV per atom)"
        )


def _says_nothing(stress: ArrayLike) -> bool:
    """Return whether a stress is zeros or NaN, which programs write when they calculated none."""
    values = number_array(stress, "stress")
    return values.shape == (3, 3) and bool((np.isnan(values) | (values == 0)).all())


def _array(values: ArrayLike, name: str, shape: tuple[int, ...], dtype: type[np.generic]) -> np.ndarray:
    # a copy, because the caller may change its array later
    with np.errstate(over="ignore"):  # values beyond float32 become infinite and are refused below
        array = np.array(number_array(values, name), dtype=dtype, order="C")
    if array.shape != shape:
        raise InvalidStructure(f"{name} has shape {array.shape}, expected {shape}")
    finite = np.isfinite(array)
    if not finite.all():
        row = int(np.argwhere(~finite)[0][0])
        raise InvalidStructure(f"{name} has a value that is not finite (first in row {row}: {array[row].tolist()})")
    return array


def _lengths(values: ArrayLike, name: str, shape: tuple[int, ...]) -> np.ndarray:
    array = _array(values, name, shape, np.float64)
    row = int(np.abs(array).max(axis=1).argmax())
    if np.abs(array[row]).max() > MAX_LENGTH:
        raise InvalidStructure(
            f"{name} has a value beyond {MAX_LENGTH:g} Å (row {row}: {array[row].tolist()}), where float64 is too "
            "coarse for distances; check the unit, or remove the frame from the source"
        )
    return array


def _check_cell(cell: np.ndarray, pbc: np.ndarray, num_atoms: int) -> None:
    """Refuse periodic lattice vectors that are missing, linearly dependent, or too short for the atoms."""
    vectors = cell[pbc]
    if len(vectors) == 0:
        return
    lengths = np.linalg.norm(vectors, axis=1)
    if lengths.min() < 1e-3:
        raise InvalidStructure("periodic cell without volume: a periodic lattice vector has no length")
    # singular values of the unit vectors: zero exactly when the vectors are linearly dependent
    if np.linalg.svd(vectors / lengths[:, None], compute_uv=False).min() < 1e-6:
        raise InvalidStructure("periodic cell without volume: its periodic lattice vectors are linearly dependent")
    volume = abs(float(np.linalg.det(cell)))
    if pbc.all() and num_atoms > MAX_DENSITY * volume:
        raise InvalidStructure(
            f"the cell has {volume:.3g} Å³ for {num_atoms:,} atoms, less than any material; check the cell's unit"
        )
