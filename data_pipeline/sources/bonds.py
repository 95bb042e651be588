"""Bonds: pairs of atoms near the sum of their covalent radii, and the molecules that they make."""

from dataclasses import dataclass

import ase
import numpy as np
import scipy.sparse
import vesin
from ase.data import covalent_radii
from jaxtyping import Int64

from data_pipeline.graphs.molecules import molecule_labels
from data_pipeline.structure import SYMBOLS, InvalidStructure

BOND, BROKEN = 1.25, 1.5
"""Length of a pair over the sum of its covalent radii, below which it is a bond, and above which a bond is broken."""
IONS = ("Li", "Na", "K", "Rb", "Cs", "Be", "Mg", "Ca", "Sr", "Ba")
"""Metals of the first two groups: ions among molecules, whatever is close to them."""
FROM_BONDS = "bonds"
"""Word for labels that are found from bonds."""


@dataclass(frozen=True, kw_only=True)
class Bonds:
    """Definition of bonds by lengths."""

    longest: float = BOND
    """Length below which a pair is a bond, over the sum of the covalent radii of B. Cordero et al. (Dalton Trans. 2832
    (2008))."""
    broken: float = BROKEN
    """Length above which a bond is broken, over the same sum."""
    without: tuple[str, ...] = IONS
    """Elements that have no bonds."""

    def __post_init__(self) -> None:
        if not 1.0 <= self.longest <= self.broken <= 3.0:
            raise ValueError(f"need 1 <= longest <= broken <= 3, not {self.longest:g} and {self.broken:g}")

    def within(self, atoms: ase.Atoms) -> Int64[np.ndarray, "bonds 2"]:
        """Return the atoms of every bond, the lower index first, in order."""
        return self._pairs(atoms, self.longest)

    def change(self, atoms: ase.Atoms, bonds: Int64[np.ndarray, "bonds 2"]) -> str | None:
        """Return what happened to bonds that were found before, or None: lost, or joined by a new one."""
        before, num_atoms = bonds @ [len(atoms), 1], len(atoms)
        near = self._pairs(atoms, self.broken) @ [num_atoms, 1]
        for codes, words in (
            (np.setdiff1d(before, near), "a bond was broken"),
            (np.setdiff1d(self.within(atoms) @ [num_atoms, 1], before), "a bond was made"),
        ):
            if len(codes):
                first, second = divmod(int(codes[0]), num_atoms)
                return f"{words}: atoms {first} ({atoms.symbols[first]}) and {second} ({atoms.symbols[second]})"
        return None

    def molecules(self, atoms: ase.Atoms) -> Int64[np.ndarray, " atoms"]:
        """Return the number of each atom's molecule: atoms joined by bonds, numbered by their first atoms."""
        bonds = self.within(atoms)
        links = scipy.sparse.coo_array((np.ones(len(bonds)), bonds.T), shape=(len(atoms), len(atoms)))
        return scipy.sparse.csgraph.connected_components(links, directed=False)[1].astype(np.int64)

    def labels(self, atoms: ase.Atoms, key: str | None = None) -> np.ndarray | None:
        """Return the label of each atom's molecule, or None.

        Args:
            atoms: The atoms.
            key: Name of their array of labels; `bonds` finds them from bonds; None: one of MOLECULE_ARRAYS, if there is
                one of whole numbers.

        Raises:
            InvalidStructure: there is no array of this name.
        """
        if key == FROM_BONDS:
            return self.molecules(atoms)
        if key is None:
            return molecule_labels(atoms.arrays)
        if key not in atoms.arrays:
            raise InvalidStructure(
                f"there is no array {key!r}, but {', '.join(sorted(atoms.arrays))}; correct molecule_key"
            )
        return atoms.arrays[key]

    def _pairs(self, atoms: ase.Atoms, factor: float) -> Int64[np.ndarray, "pairs 2"]:
        radii = covalent_radii[atoms.numbers]
        radii = np.where(
            np.isin(atoms.numbers, [number for number, symbol in enumerate(SYMBOLS) if symbol in self.without]),
            0.0,
            radii,
        )
        search = vesin.NeighborList(cutoff=2 * factor * float(radii.max(initial=0.1)), full_list=False, sorted=False)
        ends, lengths = search.compute(
            points=atoms.positions, box=np.asarray(atoms.cell), periodic=bool(atoms.pbc.all()), quantities="Pd"
        )
        ends = np.sort(ends.astype(np.int64), axis=1)
        sums = radii[ends].sum(axis=1)
        kept = (lengths < factor * sums) & (radii[ends] > 0).all(axis=1)
        return np.unique(ends[kept], axis=0)
