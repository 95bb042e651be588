"""Variants of relaxed random crystals, labelled by a potential in batches: data for a universal student.

A random crystal is relaxed a little by the potential itself. Around it lie its variants: strained, compressed, rattled,
and with one element in the place of another. They share the cost of the relaxation, which is that of some thirty
labels.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Protocol, runtime_checkable

import numpy as np
from ase.data import atomic_numbers

from data_pipeline.sources.exploration import of_sensible_force, random_deformation
from data_pipeline.sources.random_crystals import RADII, RandomCrystals
from data_pipeline.sources.source import Frame, Part, Source, made_of
from data_pipeline.structure import InvalidStructure, Structure

PART_CRYSTALS = 128
"""Number of random crystals of a part."""
BATCH_FRAMES = 512
"""Number of frames that are labelled at a time."""


Content = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Atomic numbers, positions [Å] and lattice vectors [Å]."""


@runtime_checkable
class Oracle(Protocol):
    """A potential that relaxes and labels structures."""

    def relaxed(self, structures: Iterator[Structure], seed: int) -> Iterator[Structure]:
        """Yield structures relaxed roughly, without those that collapse."""
        ...

    def labelled(self, structures: Sequence[Structure]) -> list[Frame]:
        """Return structures with energy, forces and stress, or the reason why one has none."""
        ...


@dataclass(frozen=True, kw_only=True)
class CrystalVariants(Source):
    """Relaxed random crystals of given elements with variants of each, and an oracle's energy, forces and stress.

    The group is the crystal with its variants.
    """

    num_relaxed: int
    """Number of random crystals to relax."""
    elements: tuple[str, ...]
    """Symbols of the elements to make them of."""
    variants: int = 24
    """Number of variants of each crystal."""
    max_atoms: int = 16
    """Largest number of atoms of a crystal."""
    volumes: tuple[float, float] = (0.75, 1.3)
    """Smallest and largest volume of a variant, over the crystal's."""
    largest_strain: float = 0.1
    """Largest component of a random strain."""
    largest_rattle: float = 0.25
    """Largest standard deviation of the displacements [Å]; each variant draws its own."""
    substituted: float = 0.25
    """Share of the variants in which another element takes the place of one, at a volume that fits its radius."""
    max_force: float = 40.0
    """Force on an atom [eV/Å] above which a frame is left out."""
    oracle: str = "foundation.finetuning.generated:PotentialOracle"
    """Module and name of the class that relaxes and labels. The module is imported and so run."""
    arguments: tuple[str, ...] = ("sevennet-0",)
    """Its arguments, such as the name of a potential."""
    seed: int = 0
    """Random seed."""

    def __post_init__(self) -> None:
        _ = self._crystals
        if self.variants < 0 or self.seed < 0:
            raise ValueError("variants and seed must be at least 0")
        if not 0 < self.volumes[0] <= self.volumes[1] or not 0 <= self.substituted <= 1:
            raise ValueError("volumes must be positive and rise, substituted be a share from 0 to 1")
        if min(self.largest_strain, self.largest_rattle) < 0 or self.max_force <= 0:
            raise ValueError("largest_strain and largest_rattle must not be negative, max_force positive")

    @property
    def _crystals(self) -> RandomCrystals:
        return RandomCrystals(
            num_crystals=self.num_relaxed, elements=self.elements, max_atoms=self.max_atoms, seed=self.seed
        )

    def parts(self) -> Sequence[Part]:
        """Return ranges of crystals."""
        bounds = [*range(0, self.num_relaxed, PART_CRYSTALS), self.num_relaxed]
        return [
            Part(
                name=f"crystals {first}-{last - 1}",
                size=(last - first) * (1 + self.variants),
                read=partial(self._read, first, last),
            )
            for first, last in itertools.pairwise(bounds)
        ]

    def _read(self, start: int, stop: int) -> Iterator[Frame]:
        """Yield the crystals of a range that did not collapse, each followed by its variants."""
        oracle = _oracle(self.oracle, self.arguments)
        relaxed = oracle.relaxed(self._crystals.make(start, stop), self.seed * self.num_relaxed + start)
        frames = itertools.chain.from_iterable(map(self._family, relaxed))
        while batch := list(itertools.islice(frames, BATCH_FRAMES)):
            fit = [each for each in batch if isinstance(each, Structure)]
            yield from (each for each in batch if isinstance(each, InvalidStructure))
            for found in oracle.labelled(fit):
                yield of_sensible_force(found, self.max_force) if isinstance(found, Structure) else found

    def _family(self, crystal: Structure) -> Iterator[Frame]:
        """Yield a crystal and its variants, without labels."""
        for variant in range(1 + self.variants):
            rng = np.random.default_rng([variant, *crystal.id.encode()])
            numbers, positions, cell = self._varied(crystal, rng) if variant else _content(crystal)
            try:
                yield Structure.checked(
                    numbers=numbers,
                    positions=positions,
                    cell=cell,
                    pbc=crystal.pbc,
                    energy=0.0,
                    id=f"{crystal.id}-{variant}",
                    group=crystal.id,
                )
            except InvalidStructure as error:
                yield InvalidStructure(f"{crystal.id}-{variant}: {error}")

    def _varied(self, crystal: Structure, rng: np.random.Generator) -> Content:
        """Return the atomic numbers, positions and cell of a variant."""
        numbers, positions, cell = _content(crystal)
        factor = 1.0
        if rng.random() < self.substituted:
            numbers, factor = self._substituted(numbers, rng)
        deformation = np.cbrt(factor) * random_deformation(rng, self.largest_strain, self.volumes)
        rattle = rng.normal(0.0, rng.uniform(0.0, self.largest_rattle), positions.shape)
        return numbers, positions @ deformation + rattle, cell @ deformation

    def _substituted(self, numbers: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float]:
        """Return atomic numbers with one element replaced by another, and the factor of volume that fits the radii."""
        old = rng.choice(np.unique(numbers))
        new = atomic_numbers[str(rng.choice(self.elements))]
        changed = np.where(numbers == old, new, numbers)
        return changed, float((RADII[changed] ** 3).sum() / (RADII[numbers] ** 3).sum())


def _content(crystal: Structure) -> Content:
    return crystal.numbers, crystal.positions, crystal.cell


@cache
def _oracle(word: str, arguments: tuple[str, ...]) -> Oracle:
    """Return the oracle of a word, made once in each process, since that may take seconds.

    Raises:
        ValueError: there is none.
    """
    return made_of("oracle", word, arguments, "foundation.finetuning.generated:PotentialOracle")
