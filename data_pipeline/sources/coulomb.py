"""Point charges in a random medium: an oracle whose law of force is known at every distance.

Two probes of one elementary charge stand some distance apart in a medium of random particles, which are charged or
neutral (S. Kang, J. Chem. Phys. 161, 244102 (2024)). Nothing acts but Coulomb's law, and nothing is periodic. A
potential that is trained at short probe distances can be asked about long ones, where the answer is k/d².
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64

from data_pipeline.sources.source import Part, Source
from data_pipeline.structure import SYMBOLS, Structure

COULOMB = 14.399645
"""Coulomb's constant k [eV Å/e²]."""
CHARGES = {"Na": 1.0, "Cl": -1.0, "K": 0.5, "Br": -0.5, "Ar": 0.0}
"""Charge [e] that each element stands for: a potential sees elements, not charges."""
PROBES = ("Na", "Cl")
"""Elements of the probes."""
MEDIA = {"charged": ("K", "Br"), "neutral": ("Ar",)}
"""Elements of a medium, in equal numbers."""
PART_FRAMES = 1024
"""Number of frames in a part."""
MAX_PACKING = 0.3
"""Largest fraction of the volume in spheres of the least distance; random placing ends at 0.38."""
MAX_ROUNDS = 1000
"""Largest number of times that random places are tried; a usual medium needs five."""

Medium = Literal["charged", "neutral"]
Partner = Literal["opposite", "alike", "removed"]
"""Second probe: of the opposite or the same charge as the first, or missing."""


@dataclass(frozen=True, kw_only=True)
class CoulombMedia(Source):
    """Two probes along x in a box of random particles, each frame with a new medium; energies and forces, no stress."""

    medium: Medium
    """Particles of ±0.5 e in equal numbers (K and Br) or neutral ones (Ar) around the probes of ±1 e (Na and Cl)."""
    num_media: int
    """Number of frames to make, each with its own medium."""
    probe_distances: tuple[float, ...] = (4.0, 5.0, 6.0, 7.0, 8.0)
    """Distances of the probes [Å], drawn uniformly; one that is given twice is drawn twice as often."""
    removed: float = 0.25
    """Fraction of the frames with one probe only."""
    alike: float = 0.0
    """Fraction of the frames with probes of the same charge."""
    box: tuple[float, float, float] = (34.0, 9.0, 9.0)
    """Lengths of the box of the medium [Å], the first along the pair; the pair is at its centre."""
    box_grows: bool = False
    """Add the probe distance to the first length of the box."""
    density: float = 0.06
    """Number of particles of the medium per volume of the box [1/Å³]."""
    min_distance: float = 2.0
    """Least distance of two particles [Å]."""
    seed: int = 0
    """Random seed; a frame depends only on the options and on its number."""

    def __post_init__(self) -> None:
        if self.num_media < 1 or not self.probe_distances:
            raise ValueError("num_media must be at least 1, and probe_distances must name at least one")
        if min(self.probe_distances) < self.min_distance:
            raise ValueError(f"probe_distances must be at least min_distance, {self.min_distance:g} Å")
        if min(self.removed, self.alike) < 0 or self.removed + self.alike > 1:
            raise ValueError("removed and alike are fractions, and at most 1 together")
        if min(*self.box, self.density) <= 0 or self.min_distance < 0.5:
            raise ValueError("box and density must be positive, min_distance at least 0.5 Å")
        packing = self.density * np.pi / 6 * self.min_distance**3
        if packing > MAX_PACKING:
            raise ValueError(
                f"density {self.density:g} and min_distance {self.min_distance:g} Å fill {packing:.2f} of the volume, "
                f"more than random places can ({MAX_PACKING:g}); reduce one of them"
            )

    def parts(self) -> Sequence[Part]:
        """Return ranges of frames."""
        bounds = [*range(0, self.num_media, PART_FRAMES), self.num_media]
        return [
            Part(name=f"frames {first}-{last - 1}", size=last - first, read=partial(self._make, first, last))
            for first, last in itertools.pairwise(bounds)
        ]

    def _make(self, start: int, stop: int) -> Iterator[Structure]:
        for number in range(start, stop):
            rng = np.random.default_rng([self.seed, number])
            distance = float(rng.choice(self.probe_distances))
            chances = (1 - self.removed - self.alike, self.alike, self.removed)
            partner = ("opposite", "alike", "removed")[int(rng.choice(3, p=chances))]
            yield self.frame(number, distance, partner)

    def frame(self, number: int, distance: float, partner: Partner) -> Structure:
        """Return the frame of a number with its probes at a distance [Å]; the first probe is the first atom, at -x.

        The medium and the first probe do not depend on the partner.

        Raises:
            ValueError: the box is too small for its particles.
        """
        rng = np.random.default_rng([self.seed, number, 1])
        first = int(rng.integers(2))
        probes = np.array([[-distance / 2, 0.0, 0.0], [distance / 2, 0.0, 0.0]])
        lengths = np.array(self.box) + np.array([distance * self.box_grows, 0.0, 0.0])
        elements = MEDIA[self.medium]
        count = round(self.density * float(lengths.prod()) / len(elements))
        places = _placed(probes, count * len(elements), lengths, self.min_distance, rng)
        symbols = [PROBES[first], PROBES[first if partner == "alike" else 1 - first], *(elements * count)]
        kept = np.array([each for each in range(len(symbols)) if each != 1 or partner != "removed"])
        charges = np.array([CHARGES[symbol] for symbol in symbols])[kept]
        energy, forces = coulomb(places[kept], charges)
        return Structure.checked(
            numbers=[SYMBOLS.index(symbols[each]) for each in kept],
            positions=places[kept],
            cell=np.zeros((3, 3)),
            pbc=[False] * 3,
            energy=energy,
            forces=forces,
            id=f"coulomb-{self.medium}-{self.seed}-{number}",
            group=f"{self.medium}-{number}",
        )


def coulomb(
    positions: Float64[np.ndarray, "particles 3"], charges: Float64[np.ndarray, " particles"]
) -> tuple[float, Float64[np.ndarray, "particles 3"]]:
    """Return the energy [eV] and the forces [eV/Å] of point charges [e] at positions [Å] without a boundary."""
    vectors = positions[:, None] - positions[None]
    distances = np.linalg.norm(vectors, axis=-1)
    np.fill_diagonal(distances, np.inf)
    energies = COULOMB * charges[:, None] * charges[None] / distances
    return 0.5 * float(energies.sum()), np.einsum("ij,ijx->ix", energies / distances**2, vectors)


def _placed(
    fixed: Float64[np.ndarray, "fixed 3"],
    count: int,
    lengths: Float64[np.ndarray, " 3"],
    least: float,
    rng: np.random.Generator,
) -> Float64[np.ndarray, "all 3"]:
    """Return fixed places and others at random in a box around the origin, all at least a distance apart [Å].

    Raises:
        ValueError: there is no room left in the box.
    """
    placed = fixed
    for _ in range(MAX_ROUNDS):
        if len(placed) == len(fixed) + count:
            return placed
        tries = (rng.random((count, 3)) - 0.5) * lengths
        tries = tries[~_near(tries, placed, least).any(axis=1)]
        # of two tries that are near each other, the first is taken
        mutual = np.tril(_near(tries, tries, least), -1).any(axis=1)
        placed = np.concatenate([placed, tries[~mutual]])[: len(fixed) + count]
    sides = " x ".join(f"{length:g}" for length in lengths)
    raise ValueError(f"a box of {sides} Å has no room for {count} particles {least:g} Å apart; enlarge it")


def _near(
    some: Float64[np.ndarray, "some 3"], others: Float64[np.ndarray, "others 3"], least: float
) -> Bool[np.ndarray, "some others"]:
    """Return True for places less than a distance apart [Å]."""
    return (some**2).sum(axis=1)[:, None] + (others**2).sum(axis=1) - 2 * some @ others.T < least**2
