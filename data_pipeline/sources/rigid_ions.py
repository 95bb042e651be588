"""Rigid-ion magnesium oxide: an oracle of long-range forces.

Ions of charge ±2 e repel as A exp(-r/ρ), with the parameters of G. V. Lewis and C. R. A. Catlow (J. Phys. C 18, 1149
(1985)); their attraction of oxygen ions, -C/r⁶, is left out, because it diverges in hot disordered ions. Coulomb sums
are those of P. P. Ewald (Ann. Phys. 369, 253 (1921)). This is a classical model, not density functional theory: it asks
what a network makes of forces whose law is known, and is useless for materials.
"""

import math
from collections.abc import Sequence
from typing import Any

import ase
import ase.units
import numpy as np
import torch
import vesin
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress
from jaxtyping import Complex128, Float64, Int64

COULOMB = ase.units.Hartree * ase.units.Bohr
"""Coulomb's constant times the square of the elementary charge [eV Å]."""
CHARGES = {12: 2.0, 8: -2.0}
"""Charge of each ion [e], by atomic number."""
STRENGTHS, WIDTHS = np.array([[0.0, 1428.5], [1428.5, 22764.0]]), np.array([[1.0, 0.2945], [0.2945, 0.149]])
"""A [eV] and ρ [Å] of the repulsion; rows and columns are Mg and O. Ions of magnesium do not touch."""
CUTOFF = 8.0
"""Distance up to which pairs are summed in real space [Å]; repulsion beyond it is below 3e-9 eV."""
ACCURACY = 1e-12
"""Relative size of the terms at which both sums of the default splitting parameter end."""


class RigidIons(Calculator):
    """An ASE calculator of rigid-ion magnesium oxide, for neutral cells that repeat in all directions."""

    implemented_properties = ["energy", "forces", "stress"]  # noqa: RUF012 (as ASE declares it)

    def __init__(self, splitting: float | None = None) -> None:
        """Take the splitting parameter of Ewald's sums [1/Å]; None: one with which both are short."""
        super().__init__()
        self._depth = math.sqrt(-math.log(ACCURACY))
        self.splitting = self._depth / CUTOFF if splitting is None else splitting
        self._pairs = vesin.NeighborList(cutoff=CUTOFF, full_list=False, sorted=False, n_threads=1)

    def calculate(
        self, atoms: ase.Atoms | None = None, properties: Any = ("energy",), system_changes: Any = all_changes
    ) -> None:
        """Compute energy [eV], forces [eV/Å] and stress [eV/Å³].

        Raises:
            ValueError: other elements than Mg and O, a charged cell, or one that does not repeat in all directions.
        """
        super().calculate(atoms, properties, system_changes)
        assert isinstance(self.atoms, ase.Atoms)
        atoms = self.atoms
        if not atoms.pbc.all() or not set(atoms.numbers.tolist()) <= CHARGES.keys():
            raise ValueError(f"rigid ions are Mg and O in a cell that repeats, not {atoms.get_chemical_formula()}")
        charges = np.array([CHARGES[number] for number in atoms.numbers.tolist()])
        if abs(charges.sum()) > 1e-9:
            raise ValueError(f"{atoms.get_chemical_formula()} has a charge of {charges.sum():g} e; it must be neutral")
        near, far = self._near(atoms, charges), self._far(atoms, charges)
        own = COULOMB * self.splitting / math.sqrt(math.pi) * float((charges**2).sum())
        self.results = {
            "energy": near[0] + far[0] - own,
            "forces": near[1] + far[1],
            "stress": full_3x3_to_voigt_6_stress((near[2] + far[2]) / atoms.get_volume()),
        }

    def _near(
        self, atoms: ase.Atoms, charges: Float64[np.ndarray, " atoms"]
    ) -> tuple[float, Float64[np.ndarray, "atoms 3"], Float64[np.ndarray, "3 3"]]:
        """Return energy, forces and ∂E/∂strain of the repulsion and of the screened charges."""
        cell = np.asarray(atoms.cell)
        ends, shifts, distances = self._pairs.compute(
            points=atoms.positions, box=cell, periodic=True, quantities="PSd", copy=True
        )
        first, second = ends.astype(np.int64).T
        vectors = atoms.positions[second] - atoms.positions[first] + shifts @ cell
        product = COULOMB * charges[first] * charges[second]
        screened = torch.erfc(torch.from_numpy(self.splitting * distances)).numpy() / distances
        gauss = 2 * self.splitting / math.sqrt(math.pi) * np.exp(-((self.splitting * distances) ** 2))
        energies, slopes = product * screened, -product * (screened + gauss) / distances
        anion = (charges < 0).astype(int)
        widths = WIDTHS[anion[first], anion[second]]
        repulsion = STRENGTHS[anion[first], anion[second]] * np.exp(-distances / widths)
        energies += repulsion
        slopes -= repulsion / widths
        pulls = (slopes / distances)[:, None] * vectors
        forces = np.stack(
            [np.bincount(first, p, len(atoms)) - np.bincount(second, p, len(atoms)) for p in pulls.T], axis=1
        )
        return float(energies.sum()), forces, pulls.T @ vectors

    def _far(
        self, atoms: ase.Atoms, charges: Float64[np.ndarray, " atoms"]
    ) -> tuple[float, Float64[np.ndarray, "atoms 3"], Float64[np.ndarray, "3 3"]]:
        """Return energy, forces and ∂E/∂strain of the smooth charges, summed over waves.

        A phase is a product of three, one for each lattice vector, so that the sums are products of matrices.
        """
        reciprocal = 2 * math.pi * np.linalg.inv(np.asarray(atoms.cell)).T
        longest = 2 * self.splitting * self._depth
        counts = np.floor(longest * np.linalg.norm(np.asarray(atoms.cell), axis=1) / (2 * math.pi)).astype(int)
        indices = [np.arange(-count, count + 1) for count in counts]
        indices[0] = indices[0][counts[0] :]  # the other half are complex conjugates
        fractions = atoms.get_scaled_positions(wrap=False)
        a, b, c = (np.exp(2j * math.pi * np.outer(x, n)) for x, n in zip(fractions.T, indices, strict=True))
        waves = np.stack(np.meshgrid(*indices, indexing="ij"), axis=-1) @ reciprocal
        squares = (waves**2).sum(axis=-1)
        kept = (squares > 0) & (squares < longest**2)
        twice = np.where(indices[0] > 0, 2.0, 1.0)[:, None, None]
        weights = np.zeros_like(squares)
        weights[kept] = np.exp(-squares[kept] / (4 * self.splitting**2)) / squares[kept]
        weights *= twice * 2 * math.pi * COULOMB / atoms.get_volume()
        sides = (a[:, :, None] * b[:, None, :]).reshape(len(atoms), -1)
        sums = ((charges[:, None] * sides).T @ c).reshape(squares.shape)
        energies = weights * np.abs(sums) ** 2
        forces = charges[:, None] * _slopes(a, b, c, indices, weights * sums.conj()) @ reciprocal
        factors = np.zeros_like(squares)
        factors[kept] = 2 * energies[kept] * (1 / squares[kept] + 1 / (4 * self.splitting**2))
        virial = np.einsum("abc,abci,abcj->ij", factors, waves, waves) - energies.sum() * np.eye(3)
        return float(energies.sum()), forces, virial


def _slopes(
    a: Complex128[np.ndarray, "atoms A"],
    b: Complex128[np.ndarray, "atoms B"],
    c: Complex128[np.ndarray, "atoms C"],
    indices: Sequence[Int64[np.ndarray, " _"]],
    values: Complex128[np.ndarray, "A B C"],
) -> Float64[np.ndarray, "atoms 3"]:
    """Return 2 Im Σ_k n_k values_k exp(i k·r) for the three indices n_k of each wave."""
    over_c = np.stack([c, c * indices[2]]).reshape(-1, c.shape[1]) @ values.reshape(-1, len(indices[2])).T
    plain, third = over_c.reshape(2, len(a), a.shape[1], b.shape[1])
    over_b = (plain * b[:, None]).sum(axis=2)
    found = [
        (over_b * a * indices[0]).sum(axis=1),
        ((plain * (b * indices[1])[:, None]).sum(axis=2) * a).sum(axis=1),
        ((third * b[:, None]).sum(axis=2) * a).sum(axis=1),
    ]
    return 2 * np.imag(np.stack(found, axis=1))
