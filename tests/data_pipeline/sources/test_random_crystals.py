"""Random crystals are the same every time, of the given elements, neutral where ionic, and physically sensible."""

from pathlib import Path

import numpy as np
import pytest

from data_pipeline.building.build import BuildConfig, build
from data_pipeline.graphs.batch import neighbor_list
from data_pipeline.sources import RandomCrystals
from data_pipeline.sources.random_crystals import ANIONS, CHARGES, NEAREST, RADII
from data_pipeline.store.manifest import Provenance
from data_pipeline.structure import SYMBOLS, Structure

SALTS = ("Li", "Mg", "Al", "P", "S", "Cl", "O", "Fe")


def symbols(structure: Structure) -> list[str]:
    return [SYMBOLS[z] for z in structure.numbers]


def test_a_crystal_depends_on_seed_and_number_only() -> None:
    source = RandomCrystals(num_crystals=30, elements=SALTS, seed=3)
    everything, again = list(source), list(source.make(20, 30))
    for one, other in zip(everything[20:], again, strict=True):
        assert one.id == other.id
        assert np.array_equal(one.positions, other.positions)
        assert np.array_equal(one.cell, other.cell)
    others = list(RandomCrystals(num_crystals=30, elements=SALTS, seed=4))
    assert not any(np.array_equal(a.cell, b.cell) for a, b in zip(everything, others, strict=True))
    assert len({each.id for each in everything + others}) == 60


@pytest.mark.parametrize("elements", [SALTS, ("Cu",), ("He",), ("O",), ("Al", "Cu", "Ni"), ("C", "H", "N", "O")])
def test_crystals_have_the_given_elements_each_in_turn_and_few_atoms(elements: tuple[str, ...]) -> None:
    source = RandomCrystals(num_crystals=4 * len(elements), elements=elements, max_atoms=12)
    for number, structure in enumerate(source):
        assert set(symbols(structure)) <= set(elements)
        assert elements[number % len(elements)] in symbols(structure)
        assert structure.num_atoms <= 12
        assert structure.pbc.all()


def test_most_crystals_of_metals_and_nonmetals_are_neutral() -> None:
    def neutral(structure: Structure) -> bool:
        sums = {0}
        for symbol in symbols(structure):
            charges = [*CHARGES.get(symbol, ()), *([ANIONS[symbol][0]] if symbol in ANIONS else [])]
            sums = {total + charge for total in sums for charge in charges}
        return 0 in sums and len(set(symbols(structure))) > 1

    found = [neutral(structure) for structure in RandomCrystals(num_crystals=200, elements=SALTS)]
    assert np.mean(found) > 0.6


def test_atoms_are_not_too_near_and_volumes_those_of_solids() -> None:
    elements = tuple(SYMBOLS[1:95])
    volumes = []
    for structure in RandomCrystals(num_crystals=188, elements=elements):
        edges = neighbor_list(structure, 3.0)
        radii = RADII[structure.numbers]
        least = NEAREST * (radii[edges.senders] + radii[edges.receivers])
        assert (edges.distances >= least - 1e-9).all(), structure.group
        volumes.append(structure.volume / structure.num_atoms)
    assert 10 < np.median(volumes) < 40
    assert min(volumes) >= 5 - 1e-9
    assert max(volumes) < 150


def test_they_are_built_as_a_data_set_without_labels(provenance: Provenance, tmp_path: Path) -> None:
    source = RandomCrystals(num_crystals=20, elements=SALTS)
    manifest = build(BuildConfig(source=source, provenance=provenance, out=tmp_path / "data"))
    assert not manifest.labelled
    assert sum(split.statistics.num_frames for split in manifest.splits.values()) == 20


def test_what_is_no_element_is_refused() -> None:
    for elements in (("Xx",), ()):
        with pytest.raises(ValueError, match="elements must be chemical symbols"):
            RandomCrystals(num_crystals=1, elements=elements)
    with pytest.raises(ValueError, match="at least 1"):
        RandomCrystals(num_crystals=0, elements=("Li",))
