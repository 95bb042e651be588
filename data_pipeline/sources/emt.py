"""Alloys and surfaces of seven metals labelled with effective medium theory: a data set that needs no download.

The labels are those of ASE's EMT (Jacobsen, Stoltze and Nørskov, Surf. Sci. 366, 394 (1996)). It is a cheap
classical potential, not density functional theory: training on it tests the program, but the result is useless for
materials.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import ase
import numpy as np
from ase.build import bulk, fcc111, make_supercell
from ase.calculators.emt import EMT

from data_pipeline.sources.ase_files import AseFiles
from data_pipeline.sources.source import Part, Source
from data_pipeline.structure import Structure

METALS = {"Al": 4.05, "Ni": 3.52, "Cu": 3.61, "Pd": 3.89, "Ag": 4.09, "Pt": 3.92, "Au": 4.08}
"""The elements with their fcc lattice constants [Å] (experiment, as in ase.data)."""


PART_FRAMES = 1024
"""Number of frames in a part."""


@dataclass(frozen=True, kw_only=True)
class EmtAlloys(Source):
    """Strained and rattled bulk alloys, vacancies and (111) slabs of the EMT metals, with energy, forces and stress.

    The group is composition and kind, so that a held-out frame is a composition never trained on.
    """

    num_frames: int
    """Number of frames to make."""
    seed: int = 0
    """Random seed; a frame depends only on this and on its number."""
    max_strain: float = 0.05
    """Largest strain component, drawn uniformly from both signs."""
    max_rattle: float = 0.15
    """Largest standard deviation of the random displacements [Å], drawn uniformly."""

    def parts(self) -> Sequence[Part]:
        """Return ranges of frames, which cycle over pairs of elements, compositions and kinds of structure."""
        bounds = [*range(0, self.num_frames, PART_FRAMES), self.num_frames]
        return [
            Part(name=f"frames {first}-{last - 1}", size=last - first, read=partial(self._make, first, last))
            for first, last in itertools.pairwise(bounds)
        ]

    def _make(self, start: int, stop: int) -> Iterator[Structure]:
        reader = AseFiles(files=(), group_key="group")
        recipes = _recipes()
        for number in range(start, stop):
            first, second, kind, minority = recipes[number % len(recipes)]
            rng = np.random.default_rng([self.seed, number])
            atoms = _alloy(first, second, kind, minority, rng)
            self._disturb(atoms, rng)
            atoms.calc = EMT()
            atoms.get_forces()
            atoms.get_stress()
            atoms.info["group"] = f"{kind}-{atoms.get_chemical_formula()}"
            yield reader.convert(atoms, default_id=f"emt-{self.seed}-{number}")

    def _disturb(self, atoms: ase.Atoms, rng: np.random.Generator) -> None:
        strain = rng.uniform(-self.max_strain, self.max_strain, (3, 3))
        atoms.set_cell(np.asarray(atoms.cell) @ (np.eye(3) + (strain + strain.T) / 2), scale_atoms=True)
        atoms.positions += rng.normal(0.0, rng.uniform(0.01, self.max_rattle), (len(atoms), 3))


def _recipes() -> list[tuple[str, str, str, int]]:
    """Return every (host, guest, kind, number of guest atoms), in a fixed order that mixes the pairs."""
    pairs = list(itertools.permutations(METALS, 2))
    kinds = [(kind, minority) for minority in (1, 2, 0) for kind in ("bulk", "vacancy", "slab", "primitive")]
    order = np.random.default_rng(0).permutation(len(pairs) * len(kinds))
    return [(*pairs[index % len(pairs)], *kinds[index // len(pairs)]) for index in order]


def _alloy(first: str, second: str, kind: str, minority: int, rng: np.random.Generator) -> ase.Atoms:
    """Build the undisturbed structure: an fcc host with `minority` guests, at Vegard's lattice constant."""
    num_sites = {"bulk": 4, "vacancy": 7, "slab": 6, "primitive": 2}[kind]
    fraction = minority / num_sites
    constant = (1 - fraction) * METALS[first] + fraction * METALS[second]
    primitive = bulk(first, "fcc", a=constant)
    if kind == "bulk":
        atoms = bulk(first, "fcc", a=constant, cubic=True)
    elif kind == "vacancy":
        atoms = make_supercell(primitive, 2 * np.eye(3))
        del atoms[int(rng.integers(len(atoms)))]
    elif kind == "slab":
        atoms = fcc111(first, size=(2, 1, 3), a=constant, vacuum=6.0, periodic=True)
    else:
        atoms = make_supercell(primitive, np.diag([1, 1, 2]))
    atoms.symbols[rng.permutation(len(atoms))[:minority]] = second
    return atoms
