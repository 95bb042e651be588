"""Random crystals without labels: structures that nobody owns, to ask a potential about everything it knows.

Random sensible structures (Pickard and Needs, J. Phys.: Condens. Matter 23, 053201 (2011)): a composition that balances
charges, a random cell of a sensible volume, and atoms placed at random where they have most room. Nothing is relaxed
here. Only a potential can label them, as in rehearsal with the start's predictions.
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from ase.data import atomic_numbers, chemical_symbols, covalent_radii
from jaxtyping import Float64, Int64

from data_pipeline.sources.source import Part, Source
from data_pipeline.structure import Structure

PART_FRAMES = 1024
"""Number of frames in a part."""
CHARGES = {
    symbol: tuple(int(charge) for charge in charges.split(","))
    for symbol, _, charges in (
        entry.partition(":")
        for entry in (
            "H:1 Li:1 Be:2 B:3 C:4 N:5 Na:1 Mg:2 Al:3 Si:4 P:5,3 S:6,4 Cl:5 K:1 Ca:2 Sc:3 Ti:4,3,2 V:5,4,3,2 Cr:3,6,2 "
            "Mn:2,3,4 Fe:3,2 Co:2,3 Ni:2,3 Cu:2,1 Zn:2 Ga:3 Ge:4,2 As:5,3 Se:4,6 Br:5 Rb:1 Sr:2 Y:3 Zr:4 Nb:5,4 Mo:6,4 "
            "Tc:7,4 Ru:4,3 Rh:3 Pd:2 Ag:1 Cd:2 In:3,1 Sn:4,2 Sb:3,5 Te:4,6 I:5 Cs:1 Ba:2 La:3 Ce:3,4 Pr:3 Nd:3 Pm:3 "
            "Sm:3 Eu:2,3 Gd:3 Tb:3 Dy:3 Ho:3 Er:3 Tm:3 Yb:3,2 Lu:3 Hf:4 Ta:5 W:6,4 Re:7,4 Os:4 Ir:4,3 Pt:4,2 Au:1,3 "
            "Hg:2,1 Tl:1,3 Pb:2,4 Bi:3,5 Ac:3 Th:4 Pa:5 U:4,6 Np:4,5 Pu:3,4 Am:3 Cm:3"
        ).split()
    )
}
"""Common positive charges of the elements (oxidation states)."""
ANIONS = {
    **{"O": (-2, 20.0), "F": (-1, 2.5), "S": (-2, 3.0), "Cl": (-1, 2.0), "Se": (-2, 2.0), "N": (-3, 1.5)},
    **{"Br": (-1, 1.0), "I": (-1, 1.0), "Te": (-2, 1.0), "P": (-3, 1.0), "As": (-3, 0.7), "H": (-1, 0.7)},
    **{"C": (-4, 0.7), "Si": (-4, 0.7), "Sb": (-3, 0.7), "B": (-3, 0.7), "Ge": (-4, 0.5)},
}
"""Common negative charge of each element that has one, and its weight in the choice."""
COMMON = frozenset("H Li B C N Na Mg Al Si P S K Ca Ti V Cr Mn Fe Co Ni Cu Zn Rb Sr Ba Cs La".split())
"""Cations of most known compounds, which are chosen three times as often as others."""
IONIC = 0.75
"""Fraction of the frames that are ionic compounds, where the elements allow it."""
CANDIDATES = 60
"""Number of random places among which an atom takes the one with most room."""
NEAREST = 0.7
"""Least distance over the sum of covalent radii, for which the cell is enlarged."""
RADII = np.nan_to_num(covalent_radii, nan=1.5)
"""Covalent radius by atomic number [Å]."""
IMAGES = np.array(list(itertools.product((-1, 0, 1), repeat=3)), dtype=np.float64)


@dataclass(frozen=True, kw_only=True)
class RandomCrystals(Source):
    """Random ionic compounds, alloys and elements made of given elements, without labels.

    Elements are cycled, so that each is in a similar number of frames. The group is the composition.
    """

    num_crystals: int
    """Number of frames to make."""
    elements: tuple[str, ...]
    """Symbols of the elements to make them of."""
    max_atoms: int = 20
    """Largest number of atoms of a frame."""
    seed: int = 0
    """Random seed; a frame depends only on the options and on its number."""
    labels: Literal["none"] = "none"
    """There are none."""

    def __post_init__(self) -> None:
        unknown = [symbol for symbol in self.elements if symbol not in chemical_symbols[1:]]
        if unknown or not self.elements:
            raise ValueError(f"elements must be chemical symbols, such as Li and Cl, not {unknown or 'none'}")
        if self.num_crystals < 1 or self.max_atoms < 1:
            raise ValueError("num_crystals and max_atoms must be at least 1")

    def parts(self) -> Sequence[Part]:
        """Return ranges of frames."""
        bounds = [*range(0, self.num_crystals, PART_FRAMES), self.num_crystals]
        return [
            Part(name=f"frames {first}-{last - 1}", size=last - first, read=partial(self.make, first, last))
            for first, last in itertools.pairwise(bounds)
        ]

    def make(self, start: int, stop: int) -> Iterator[Structure]:
        """Yield frames by number."""
        for number in range(start, stop):
            rng = np.random.default_rng([self.seed, number])
            names = self._composition(number, rng)
            numbers = np.array([atomic_numbers[name] for name, _ in names])
            charges = np.array([charge for _, charge in names])
            positions, cell = _packed(numbers, charges, rng)
            formula = "".join(f"{name}{count}" for name, count in sorted(Counter(name for name, _ in names).items()))
            yield Structure.checked(
                numbers=numbers,
                positions=positions,
                cell=cell,
                pbc=np.array([True, True, True]),
                energy=0.0,
                id=f"random-{self.seed}-{number}",
                group=formula,
            )

    def _composition(self, number: int, rng: np.random.Generator) -> list[tuple[str, int]]:
        """Return the symbol and charge of each atom; all charges are zero in alloys and elements."""
        first = self.elements[number % len(self.elements)]
        kind = rng.random()
        for _ in range(100):
            if kind < IONIC and (found := self._salt(first, rng)):
                return found
        return self._alloy(first, rng)

    def _salt(self, first: str, rng: np.random.Generator) -> list[tuple[str, int]]:
        """Return the ions of a neutral composition with an element, or [] if a try fails."""
        ions = self._ions(first, rng)
        if not ions:
            return []
        charges = np.array([charge for _, charge in ions])
        counts = rng.integers(1, 5, len(ions))
        owed = -int(counts[:-1] @ charges[:-1])
        if owed % charges[-1] or owed // charges[-1] < 1:
            return []
        counts[-1] = owed // charges[-1]
        counts //= np.gcd.reduce(counts)
        total = int(counts.sum())
        if total > self.max_atoms:
            return []
        counts *= int(rng.integers(1, self.max_atoms // total + 1))
        return [ion for ion, times in zip(ions, counts.tolist(), strict=True) for _ in range(times)]

    def _ions(self, first: str, rng: np.random.Generator) -> list[tuple[str, int]]:
        """Return one to three cations, then one or two anions, an element among them; [] if a try fails."""
        anions = {name: weight for name, (_, weight) in ANIONS.items() if name in self.elements}
        cations = {name: 3.0 if name in COMMON else 1.0 for name in self.elements if name in CHARGES}
        if not anions or not cations or first not in anions | cations:
            return []
        negative = _chosen(anions, 1 + int(rng.random() < 0.25), rng)
        positive = _chosen(cations, 1 + int(rng.choice(3, p=(0.25, 0.5, 0.25))), rng)
        if first in anions and (first not in cations or rng.random() < 0.5):
            negative[0] = first
        else:
            positive[0] = first
        if len({*positive, *negative}) < len(positive) + len(negative):
            return []
        charged = [(name, int(rng.choice(CHARGES[name]))) for name in positive]
        return charged + [(name, ANIONS[name][0]) for name in negative]

    def _alloy(self, first: str, rng: np.random.Generator) -> list[tuple[str, int]]:
        """Return a composition of one to three elements in any proportion."""
        others = rng.permutation([name for name in self.elements if name != first])[: int(rng.integers(0, 3))]
        counts = rng.integers(1, 5, 1 + len(others))
        while counts.sum() > self.max_atoms:
            counts = np.maximum(counts - 1, np.arange(len(counts)) == 0)
        names = [first, *others.tolist()]
        return [(name, 0) for name, times in zip(names, counts.tolist(), strict=True) for _ in range(times)]


def _chosen(weights: Mapping[str, float], count: int, rng: np.random.Generator) -> list[str]:
    """Return some different names, chosen by weight; all if there are fewer."""
    chances = np.array(list(weights.values()))
    return rng.choice(list(weights), min(len(weights), count), replace=False, p=chances / chances.sum()).tolist()


def _packed(
    numbers: Int64[np.ndarray, " atoms"], charges: Int64[np.ndarray, " atoms"], rng: np.random.Generator
) -> tuple[Float64[np.ndarray, "atoms 3"], Float64[np.ndarray, "3 3"]]:
    """Return positions and a cell [Å] in which atoms have room: distances are compared with sums of covalent radii.

    Neighbours of like charge, which repel, are kept apart by half as much again.
    """
    radii = RADII[numbers]
    like = charges[:, None] * charges[None, :] > 0
    wanted = (radii[:, None] + radii[None, :]) * np.where(like, 1.5, 1.0)
    volume = float((wanted**3).mean()) * len(numbers) / (1.4 if charges.any() else 1.0) * rng.uniform(0.9, 1.3) / 1.2
    volume = max(volume, 5.0 * len(numbers))
    cell = _random_cell(rng)
    cell *= (volume / abs(np.linalg.det(cell))) ** (1 / 3)
    placed = np.zeros((0, 3))
    for atom in range(len(numbers)):
        tries = rng.random((CANDIDATES, 3))
        room = (_distances(tries, placed, cell) / wanted[atom, :atom]).min(axis=1, initial=np.inf)
        placed = np.vstack([placed, tries[room.argmax()]])
    # nearest images of the same atom are a lattice vector apart
    own = np.linalg.norm(IMAGES[np.abs(IMAGES).any(axis=1)] @ cell, axis=1).min() / (2 * radii)
    pairs = np.triu_indices(len(numbers), 1)
    others = (_distances(placed, placed, cell) / (radii[:, None] + radii[None, :]))[pairs]
    cell *= max(1.0, NEAREST / min(own.min(), others.min(initial=np.inf)))
    return placed @ cell, cell


def _distances(
    one: Float64[np.ndarray, "ones 3"], other: Float64[np.ndarray, "others 3"], cell: Float64[np.ndarray, "3 3"]
) -> Float64[np.ndarray, "ones others"]:
    """Return the distances [Å] of atoms at fractional coordinates, each to the nearest image of the other."""
    return np.linalg.norm((one[:, None, None] - other[None, :, None] + IMAGES) @ cell, axis=-1).min(axis=-1)


def _random_cell(rng: np.random.Generator) -> Float64[np.ndarray, "3 3"]:
    """Return a cell with lengths of 0.7 to 1.4 and angles of 60° to 120°, not too flat."""
    while True:
        cosines = rng.uniform(-0.5, 0.5, 3)
        gram = np.eye(3)
        gram[0, 1] = gram[1, 0] = cosines[0]
        gram[0, 2] = gram[2, 0] = cosines[1]
        gram[1, 2] = gram[2, 1] = cosines[2]
        if np.linalg.det(gram) > 0.3:
            lengths = rng.uniform(0.7, 1.4, 3)
            return np.linalg.cholesky(gram) * lengths[:, None]
