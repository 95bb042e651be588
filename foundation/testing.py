"""Check of the physical laws that every potential must obey, for your own network: check_laws(potential).

Structures are generated: clusters, a slab and a crystal without any symmetry, of the potential's elements, with
distances relative to its cutoff. Those of a network that knows certain molecules only are made of these in place of
atoms; molecules are shuffled then, but not the atoms inside. Everything is computed in float64 on the CPU.
"""

import copy
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from data_pipeline.graphs.batch import collate
from data_pipeline.structure import Structure
from foundation.potential import Potential, Prediction

EXACT = 1e-10
"""Largest deviation, relative to the largest value, of results that differ only by the order of sums."""
SLOPE = 1e-5
"""Largest relative deviation of derivatives from finite differences."""
STEP = 1e-5
"""Displacement [Å] and strain of the finite differences."""
AT_CUTOFF = 1e-6
"""Distance of a pair inside and outside the cutoff, as a fraction of it."""
JUMP = 1e-4
"""Largest change of energy and forces there, relative to the pair's effect well inside the cutoff."""
QUANTITIES = ("energy", "atom_energies", "forces", "stress")

NEAREST = 0.3
"""Smallest distance of two atoms, or of the centres of two molecules, as a fraction of the cutoff."""
INSIDE = 0.8
"""Smallest distance of two atoms of a molecule [Å]."""

Array3 = Float64[np.ndarray, "_ 3"]
OPEN = np.zeros((3, 3))
"""The cell of a cluster."""


def check_laws(potential: Potential, laws: Sequence[str] = (), seed: int = 0) -> dict[str, float]:
    """Check the physical laws of a potential and return the deviation from each.

    The laws are: rotation, mirror (only if the network claims parity), translation, permutation, extensivity, forces,
    stress, smoothness and locality. A potential with the same energy for every structure obeys them all, so it is
    refused. Randomise the weights first: some are initially zero.

    Args:
        potential: Potential to check; it is not modified. Wrap a network in Potential(network, elements, theories).
        laws: Names of the laws to check; all if empty.
        seed: Seed of the structures.

    Returns:
        The largest deviation by law, relative to the largest value of the quantity.

    Raises:
        AssertionError: a law does not hold; the message has its name and the measured deviation.
        ValueError: unknown law.
    """
    unknown = [law for law in laws if law not in LAWS]
    if unknown:
        raise ValueError(f"unknown law {unknown[0]!r}; the laws are {', '.join(LAWS)}")
    lab = _Lab(potential=copy.deepcopy(potential).cpu().cast(torch.float64).eval(), seed=seed)
    found = {}
    for name, (law, limit) in LAWS.items():
        if (laws and name not in laws) or (name == "mirror" and not lab.potential.network.parity):
            continue
        found[name] = law(lab)
        _require(
            found[name] <= limit, f"{name}: the deviation is {found[name]:.3g}, and at most {limit:.3g} is allowed"
        )
    return found


@dataclass(frozen=True, kw_only=True, eq=False)
class _Lab:
    """A potential, and structures to test it with."""

    potential: Potential
    seed: int

    def predict(self, *structures: Structure) -> Prediction:
        """Return predictions for structures in one batch."""
        return self.potential(collate(structures, self.potential.cutoff, torch.float64))

    def cluster(self, number: int = 0, num_atoms: int = 7) -> Structure:
        """Return atoms without any symmetry, most of them neighbours."""
        rng = np.random.default_rng([self.seed, number])
        return self.of(self._apart(rng, self.potential.cutoff * np.eye(3), num_atoms), OPEN)

    def crystal(self) -> Structure:
        """Return a triclinic cell smaller than the cutoff, without any symmetry."""
        cell = 0.25 * self.potential.cutoff * np.array([[3.6, 0.0, 0.0], [0.7, 3.9, 0.0], [-0.5, 0.8, 4.4]])
        return self.of(self._apart(np.random.default_rng([self.seed, 99]), cell, 4, cell), cell)

    def slab(self) -> Structure:
        """Return atoms that repeat along two directions, without a third lattice vector."""
        box = 0.25 * self.potential.cutoff * np.array([[3.7, 0.0, 0.0], [0.9, 4.1, 0.0], [0.0, 0.0, 3.0]])
        cell = box * [[1.0], [1.0], [0.0]]
        return self.of(self._apart(np.random.default_rng([self.seed, 98]), box, 4, cell), cell)

    @property
    def three(self) -> tuple[Structure, Structure, Structure]:
        """A structure of each kind."""
        return self.cluster(), self.slab(), self.crystal()

    def of(self, positions: Array3, cell: Array3) -> Structure:
        """Return a structure of the potential's elements, or molecules, in turn, periodic along lattice vectors."""
        labels: list[int] | None = None
        numbers = np.resize(self.potential.elements, len(positions))
        if units := self.potential.network.units:
            own = [number % len(units) for number in range(len(positions))]
            labels = [number for number, unit in enumerate(own) for _ in units[unit]]
            numbers = np.concatenate([units[unit] for unit in own])
            positions = np.concatenate([place + self._shape(unit) for place, unit in zip(positions, own, strict=True)])
        return Structure.checked(
            numbers=numbers, positions=positions, cell=cell, pbc=cell.any(axis=1), energy=0.0, molecules=labels
        )

    def _shape(self, unit: int) -> Array3:
        """Return the positions of the atoms of a molecule around its centre."""
        count = len(self.potential.network.units[unit])
        rng = np.random.default_rng([self.seed, 1000 + unit])
        shape = self._apart(rng, 1.6 * count ** (1 / 3) * np.eye(3), count, nearest=INSIDE)
        return shape - shape.mean(axis=0)

    def _apart(
        self,
        rng: np.random.Generator,
        box: Array3,
        num_atoms: int,
        cell: Array3 = OPEN,
        nearest: float | None = None,
    ) -> Array3:
        """Return random positions in a box, no two or their images too near: by default, NEAREST cutoffs."""
        nearest = NEAREST * self.potential.cutoff if nearest is None else nearest
        images = np.array(list(itertools.product((-1, 0, 1), repeat=3))) @ cell
        positions: list[np.ndarray] = []
        while len(positions) < num_atoms:
            new = rng.uniform(0, 1, 3) @ box
            lengths = np.linalg.norm(new - np.reshape(positions, (-1, 1, 3)) + images, axis=2)
            if (lengths > nearest).all():
                positions.append(new)
        return np.array(positions)


def _owners(structure: Structure) -> Int64[np.ndarray, " atoms"]:
    """Return the number of each atom's molecule, or of the atom itself if there are none."""
    return structure.molecules.astype(np.int64) if structure.has_molecules else np.arange(structure.num_atoms)


def _repeated(structure: Structure, translations: Array3, cell: Array3) -> Structure:
    """Return a structure with each atom repeated at translations, copy by copy of its molecule."""
    copies = len(translations)
    labels = (copies * _owners(structure)[:, None] + np.arange(copies)).ravel()
    return Structure.checked(
        numbers=np.repeat(structure.numbers, copies),
        positions=(structure.positions[:, None] + translations).reshape(-1, 3),
        cell=cell,
        pbc=cell.any(axis=1),
        energy=0.0,
        molecules=labels if structure.has_molecules else None,
    )


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise AssertionError(message)


def _deviation(found: Tensor, expected: Tensor) -> float:
    _require(bool(found.isfinite().all()), "a prediction is not a finite number")
    return float((found - expected).abs().max()) / max(float(expected.abs().max()), 1e-12)


def _largest(found: Prediction, expected: Prediction, order: Sequence[int] | None = None) -> float:
    """Return the largest deviation of predictions, whose atoms may be in another order."""
    pairs = {name: (getattr(found, name), getattr(expected, name)) for name in QUANTITIES}
    if order is not None:
        pairs |= {name: (pairs[name][0], pairs[name][1][list(order)]) for name in ("atom_energies", "forces")}
    return max(_deviation(*pair) for pair in pairs.values())


def _turned(lab: _Lab, matrix: Float64[np.ndarray, "3 3"]) -> float:
    deviations, turn = [], torch.from_numpy(matrix)
    for each in lab.three:
        before = lab.predict(each)
        after = lab.predict(replace(each, positions=each.positions @ matrix.T, cell=each.cell @ matrix.T))
        expected = replace(before, forces=before.forces @ turn.T, stress=turn @ before.stress @ turn.T)
        deviations.append(_largest(after, expected))
    return max(deviations)


def _rotation(lab: _Lab) -> float:
    """Rotate structures: forces and stress turn with them, the energies stay."""
    q, r = np.linalg.qr(np.random.default_rng([lab.seed, 4]).normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return _turned(lab, q * np.sign(np.linalg.det(q)))


def _mirror(lab: _Lab) -> float:
    """Invert structures: the same."""
    return _turned(lab, -np.eye(3))


def _translation(lab: _Lab) -> float:
    """Shift all atoms, some of them to other periodic images: nothing changes."""
    rng, deviations = np.random.default_rng([lab.seed, 5]), []
    for each in lab.three:
        images = rng.integers(-3, 4, (each.num_atoms, 3)) @ each.cell
        moved = replace(each, positions=each.positions + images + np.array([0.31, -1.7, 12.9]))
        deviations.append(_largest(lab.predict(moved), lab.predict(each)))
    return max(deviations)


def _permutation(lab: _Lab) -> float:
    """Shuffle the atoms, those of a molecule in their order: the predictions of each stay its own."""
    deviations = []
    for each in lab.three:
        order = np.random.default_rng([lab.seed, 6]).permutation(each.num_atoms)
        for molecule in np.unique(_owners(each)):
            own = _owners(each)[order] == molecule
            order[own] = np.sort(order[own])
        moved = {"numbers": each.numbers[order], "positions": each.positions[order]}
        shuffled = replace(each, **moved, molecules=each.molecules[order])
        deviations.append(_largest(lab.predict(shuffled), lab.predict(each), order.tolist()))
    return max(deviations)


def _extensivity(lab: _Lab) -> float:
    """Put structures into one batch, or far apart into one, and repeat a cell: energies add up."""
    parts = [lab.cluster(1), lab.cluster(2, 5), lab.crystal()]
    batch, alone = lab.predict(*parts), [lab.predict(each) for each in parts]
    together = [torch.cat([getattr(each, name) for each in alone]) for name in QUANTITIES]
    found = [_deviation(getattr(batch, name), each) for name, each in zip(QUANTITIES, together, strict=True)]
    far = np.array([10.0 * lab.potential.network.reach, 0.0, 0.0])
    pair = _repeated(parts[0], np.stack([0 * far, far]), OPEN)
    found.append(_deviation(lab.predict(pair).energy, 2 * alone[0].energy))
    crystal, repeated = parts[2], np.array(list(itertools.product(range(2), repeat=3))) @ parts[2].cell
    supercell = lab.predict(_repeated(crystal, repeated, 2 * crystal.cell))
    return max(*found, _deviation(supercell.energy / 8, alone[2].energy), _deviation(supercell.stress, alone[2].stress))


def _forces(lab: _Lab) -> float:
    """Compare forces with the slope of the energy."""
    deviations = []
    for each in lab.three:
        copies = []
        for atom, axis, sign in itertools.product(range(each.num_atoms), range(3), (1, -1)):
            positions = each.positions.copy()
            positions[atom, axis] += sign * STEP
            copies.append(replace(each, positions=positions))
        energies = lab.predict(*copies).energy.view(-1, 3, 2)
        forces = lab.predict(each).forces
        _require(float(forces.abs().max()) > 0, "forces: all are zero, so nothing is checked")
        deviations.append(_deviation(-(energies[..., 0] - energies[..., 1]) / (2 * STEP), forces))
    return max(deviations)


def _stress(lab: _Lab) -> float:
    """Compare stress with the slope of the energy with strain, per volume."""
    crystal, slopes = lab.crystal(), torch.zeros(1, 3, 3, dtype=torch.float64)
    for a, b in itertools.combinations_with_replacement(range(3), 2):
        strain = np.zeros((3, 3))
        strain[a, b] += 0.5 * STEP
        strain[b, a] += 0.5 * STEP
        stretched = [
            replace(crystal, positions=crystal.positions @ change, cell=crystal.cell @ change)
            for change in (np.eye(3) + strain, np.eye(3) - strain)
        ]
        plus, minus = lab.predict(*stretched).energy
        slopes[0, a, b] = slopes[0, b, a] = (plus - minus) / (2 * STEP) / crystal.volume
    return _deviation(slopes, lab.predict(crystal).stress)


def _smoothness(lab: _Lab) -> float:
    """Move an atom through the cutoff of another: energy and forces do not jump."""
    cutoff, deviations = lab.potential.cutoff, []
    third = [0.42 * cutoff, 0.27 * cutoff, 0.08 * cutoff]
    for others in ([], [third]):
        distances = (0.62 * cutoff, cutoff * (1 - AT_CUTOFF), cutoff * (1 + AT_CUTOFF))
        structures = [lab.of(np.array([[0.0] * 3, [d, 0.0, 0.0], *others]), OPEN) for d in distances]
        inside, before, after = (lab.predict(each) for each in structures)
        for name in ("energy", "forces"):
            near, far, here = (getattr(each, name) for each in (before, after, inside))
            size = float((here - far).abs().max())
            _require(size > 0, f"smoothness: {name} does not depend on the distance, so nothing is checked")
            deviations.append(float((near - far).abs().max()) / size)
    return max(deviations)


def _locality(lab: _Lab) -> float:
    """Move an atom: energies beyond the reach do not change, those of its neighbours do."""
    potential = lab.potential
    step = 0.75 * potential.cutoff
    places = np.arange(2 * round(potential.network.reach / potential.cutoff) + 4)
    positions = step * np.stack([places, 0.2 * (places % 2), 0.13 * (places % 3 == 0)], axis=1)
    chain = lab.of(positions, OPEN)
    changed = positions.copy()
    changed[0] += 0.1 * step * np.array([1.0, -0.7, 0.8])
    changes = lab.predict(lab.of(changed, OPEN)).atom_energies - lab.predict(chain).atom_energies
    energies = torch.zeros(len(places), dtype=torch.float64)
    energies.index_add_(0, torch.from_numpy(_owners(chain)), changes.abs())
    _require(float(energies[:2].min()) > 0, "locality: an atom does not see its neighbour, so nothing is checked")
    distances = np.minimum(*(np.linalg.norm(each - each[0], axis=1) for each in (positions, changed)))
    beyond = torch.from_numpy(distances > potential.network.reach)
    return float(energies[beyond].max()) / float(energies.max())


LAWS: dict[str, tuple[Callable[[_Lab], float], float]] = {
    "rotation": (_rotation, EXACT),
    "mirror": (_mirror, EXACT),
    "translation": (_translation, EXACT),
    "permutation": (_permutation, EXACT),
    "extensivity": (_extensivity, EXACT),
    "forces": (_forces, SLOPE),
    "stress": (_stress, SLOPE),
    "smoothness": (_smoothness, JUMP),
    "locality": (_locality, 0.0),
}
"""Laws by name, each with the largest allowed deviation."""
