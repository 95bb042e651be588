"""Structure: one labelled frame of atoms, and the one place where the project's conventions are written.

energy [eV], total · lengths [Å] · forces [eV/Å] · stress [eV/Å³], full 3×3, positive in tension (ASE: 1/V ∂E/∂ε) ·
cell rows are lattice vectors · a missing label is a False in a mask, never NaN and never an absent field.

What physics forbids is refused at the door, Structure.checked(), so that nothing downstream has to ask again.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64, UInt8
from numpy.typing import ArrayLike

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
MAX_DENSITY = 5.0
"""Atoms per volume beyond any material [1/Å³]; diamond has 0.18, hydrogen at 1 TPa about 1."""


class InvalidStructure(ValueError):
    """A structure that physics or the project's conventions forbid; the message says what is wrong with it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Structure:
    """One frame of atoms with its labels.

    Structure.checked() is the door for anything that comes from outside. The plain constructor trusts its caller: it is
    for data that went through that door before, such as a shard with the right checksum.
    """

    numbers: UInt8[np.ndarray, " atoms"]
    """Atomic numbers."""
    positions: Float64[np.ndarray, "atoms 3"]
    """Cartesian positions [Å]."""
    cell: Float64[np.ndarray, "3 3"]
    """Lattice vectors as rows [Å]; a zero row where there is none."""
    pbc: Bool[np.ndarray, " 3"]
    """Which lattice vectors repeat."""
    energy: float
    """Total energy [eV]; zero in a data set without labels (Manifest.labelled)."""
    forces: Float32[np.ndarray, "atoms 3"]
    """Forces [eV/Å]; zero where has_forces is False."""
    stress: Float32[np.ndarray, "3 3"]
    """Stress [eV/Å³], symmetric, positive in tension; zero where has_stress is False."""
    has_forces: bool
    """Whether forces were given."""
    has_stress: bool
    """Whether stress was given."""
    alternative_energy: float
    """A second total energy [eV] under another convention, kept but not trained on; zero where there is none."""
    has_alternative_energy: bool
    """Whether a second energy was given."""
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
        id: str = "",
        group: str = "",
    ) -> "Structure":
        """Convert and check arrays of any type, and return the Structure; a label that is None is missing.

        Raises:
            InvalidStructure: an array of the wrong shape, a value that is not finite, an atomic number outside 1-118,
                no atoms, a stress that is not symmetric, periodic lattice vectors that enclose no volume or less than
                any material has for its atoms, or lengths for which float64 is too coarse.
        """
        atoms = _atomic_numbers(numbers)
        lattice, periodic = _lengths(cell, "cell", (3, 3)), _array(pbc, "pbc", (3,), np.bool_)
        _check_cell(lattice, periodic, len(atoms))
        second_energy = 0.0 if alternative_energy is None else float(alternative_energy)
        for name, value in (("energy", energy), ("alternative energy", second_energy)):
            if not np.isfinite(value):
                raise InvalidStructure(f"the {name} is {value}, not a finite number")
        zeros = np.zeros((len(atoms), 3)), np.zeros((3, 3))
        tensor = _array(zeros[1] if stress is None else stress, "stress", (3, 3), np.float32)
        asymmetry = float(np.abs(tensor - tensor.T).max())
        if asymmetry > 1e-4 + 1e-3 * float(np.abs(tensor).max()):
            raise InvalidStructure(f"the stress is not symmetric (by {asymmetry:.3g} eV/Å³)")
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
            alternative_energy=second_energy,
            has_alternative_energy=alternative_energy is not None,
            id=id,
            group=group,
        )

    @property
    def num_atoms(self) -> int:
        """Number of atoms."""
        return len(self.numbers)

    @property
    def volume(self) -> float:
        """Volume that the three lattice vectors enclose [Å³]; zero where there are fewer than three."""
        return float(abs(np.linalg.det(self.cell)))


def _atomic_numbers(values: ArrayLike) -> UInt8[np.ndarray, " atoms"]:
    numbers = np.asarray(values)
    if numbers.ndim != 1 or len(numbers) == 0:
        raise InvalidStructure(f"numbers has shape {numbers.shape}, expected (atoms,) with at least one atom")
    wrong = numbers[(numbers < 1) | (numbers > MAX_ATOMIC_NUMBER) | (numbers != np.rint(numbers))]
    if len(wrong):
        raise InvalidStructure(
            f"unknown element: atomic number {wrong[0]:g} is not a whole number in 1-{MAX_ATOMIC_NUMBER}"
        )
    return np.ascontiguousarray(numbers, dtype=np.uint8)


def _array(values: ArrayLike, name: str, shape: tuple[int, ...], dtype: type[np.generic]) -> np.ndarray:
    # a copy, because the caller may go on with its array
    array = np.array(values, dtype=dtype, order="C")
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
            "coarse for distances; look at the unit, or remove the frame from the source"
        )
    return array


def _check_cell(cell: np.ndarray, pbc: np.ndarray, num_atoms: int) -> None:
    """Refuse periodic lattice vectors that are missing or linearly dependent, or leave the atoms no room."""
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
            f"the cell has {volume:.3g} Å³ for {num_atoms:,} atoms, less than any material; look at the cell's unit"
        )
