"""Rigid-ion magnesium oxide: an oracle of long-range forces, and crystals of its molecular dynamics as a data set.

Ions of charge ±2 e repel as A exp(-r/ρ), with the parameters of G. V. Lewis and C. R. A. Catlow (J. Phys. C 18, 1149
(1985)); their attraction of oxygen ions, -C/r⁶, is left out, because it diverges in hot disordered ions. Coulomb sums
are those of P. P. Ewald (Ann. Phys. 369, 253 (1921)). This is a classical model, not density functional theory: it asks
what a network makes of forces whose law is known, and is useless for materials.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import ase
import ase.units
import numpy as np
import torch
import vesin
from ase.build import bulk
from ase.calculators.calculator import Calculator, all_changes
from ase.constraints import FixAtoms
from ase.md.langevin import Langevin
from ase.stress import full_3x3_to_voigt_6_stress
from jaxtyping import Complex128, Float64, Int64

from data_pipeline.sources.ase_files import AseFiles
from data_pipeline.sources.source import Part, Source
from data_pipeline.structure import Structure

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
LATTICE_CONSTANT = 4.21
"""Lattice constant of the crystals [Å] (experiment, room temperature)."""
TIME_STEP = 1.5
"""Time step of molecular dynamics [fs]."""
FRICTION = 0.01
"""Friction of the Langevin thermostat [1/fs]."""


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


def crystal(repeats: int) -> ase.Atoms:
    """Return the perfect crystal, `repeats` conventional cells of eight ions along each side."""
    return bulk("MgO", "rocksalt", LATTICE_CONSTANT, cubic=True).repeat(repeats)


def dynamics(
    atoms: ase.Atoms,
    *,
    temperature: float,
    seed: Sequence[int],
    calculator: Calculator,
    warm_up: int,
    interval: int,
    frozen: Sequence[int] = (),
) -> Iterator[ase.Atoms]:
    """Yield a trajectory's frames without end: the same atoms, changed in place, with calculated energy and forces.

    Args:
        atoms: Start, changed in place.
        temperature: Temperature [K]; velocities begin at twice as much, half of which becomes potential energy.
        seed: Numbers that decide the trajectory.
        calculator: Calculator that drives it.
        warm_up: Number of steps before the first frame.
        interval: Number of steps from frame to frame.
        frozen: Indices of atoms that do not move.
    """
    rng = np.random.default_rng([*seed])
    atoms.calc = calculator
    atoms.set_constraint(FixAtoms(indices=list(frozen)))
    widths = np.sqrt(atoms.get_masses() * 2 * temperature * ase.units.kB)
    atoms.set_momenta(rng.standard_normal((len(atoms), 3)) * widths[:, None])
    step, friction = TIME_STEP * ase.units.fs, FRICTION / ase.units.fs
    moving = Langevin(atoms, step, temperature_K=temperature, friction=friction, fixcm=False, rng=rng)
    moving.run(warm_up)
    while True:
        yield atoms
        moving.run(interval)


@dataclass(frozen=True, kw_only=True)
class RigidIonCrystals(Source):
    """Snapshots of molecular dynamics of rigid-ion magnesium oxide crystals, with energy, forces and stress.

    The volume is fixed. The group is the trajectory.
    """

    temperatures: tuple[float, ...]
    """Temperatures [K]."""
    repeats: int = 3
    """Number of conventional cells of eight ions along each side: 2, 3, 4 are 64, 216, 512 ions."""
    trajectories: int = 4
    """Number of trajectories at each temperature."""
    frames: int = 30
    """Number of frames of each trajectory."""
    interval: int = 10
    """Number of steps of 1.5 fs from frame to frame."""
    warm_up: int = 200
    """Number of steps before the first frame."""
    seed: int = 0
    """Random seed; a trajectory depends only on this, its temperature, its number and the cell."""

    def __post_init__(self) -> None:
        if not self.temperatures or min(self.temperatures) <= 0:
            raise ValueError(f"temperatures must be positive [K], not {self.temperatures}")
        if min(self.repeats, self.trajectories, self.frames, self.interval) < 1 or min(self.warm_up, self.seed) < 0:
            raise ValueError(
                "repeats, trajectories, frames and interval must be at least 1, warm_up and seed at least 0"
            )

    def parts(self) -> Sequence[Part]:
        """Return the trajectories."""
        return [
            Part(name=_name(temperature, number), size=self.frames, read=partial(self._run, temperature, number))
            for temperature in self.temperatures
            for number in range(self.trajectories)
        ]

    def _run(self, temperature: float, number: int) -> Iterator[Structure]:
        reader, name = AseFiles(files=(), group_key="group"), _name(temperature, number)
        frames = dynamics(
            crystal(self.repeats),
            temperature=temperature,
            seed=(self.seed, round(temperature), number),
            calculator=RigidIons(),
            warm_up=self.warm_up,
            interval=self.interval,
        )
        for frame, atoms in enumerate(itertools.islice(frames, self.frames)):
            atoms.get_stress()
            atoms.info["group"] = name
            yield reader.convert(atoms, default_id=f"rigid-ions-{self.seed}, {name}, frame {frame}")


def _name(temperature: float, number: int) -> str:
    return f"{temperature:g} K, trajectory {number}"
