"""Variants of random crystals: as many as asked for, within their limits, the same in any part, with labels."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice, pairwise

import numpy as np
import pytest

from data_pipeline.sources import CrystalVariants, Frame
from data_pipeline.sources.crystal_variants import PART_CRYSTALS
from data_pipeline.structure import InvalidStructure, Structure
from foundation.finetuning.generated import PotentialOracle
from foundation.naming import resolve

HERE = "tests.data_pipeline.sources.test_crystal_variants:Volumes"
OPTIONS = {"num_relaxed": 4, "elements": ("Na", "Cl", "Mg", "O"), "variants": 12, "oracle": HERE, "arguments": ()}


class Volumes:
    """An oracle that relaxes nothing but every third crystal away, and whose energy is the volume."""

    def relaxed(self, structures: Iterator[Structure], seed: int) -> Iterator[Structure]:
        return (structure for number, structure in enumerate(structures) if number % 3 != 2)

    def labelled(self, structures: Sequence[Structure]) -> list[Frame]:
        return [
            replace(each, energy=each.volume, forces=np.full((each.num_atoms, 3), 0.1 * each.num_atoms, np.float32))
            for each in structures
        ]


def source(**options: object) -> CrystalVariants:
    return CrystalVariants(**{**OPTIONS, **options})


def test_every_crystal_that_stays_has_its_variants() -> None:
    frames = list(source())
    assert len(frames) == 3 * 13
    assert len({frame.id for frame in frames}) == len(frames)
    assert [frame.group for frame in frames[::13]] == ["random-0-0", "random-0-1", "random-0-3"]
    for crystal in range(3):
        first, *others = frames[13 * crystal : 13 * crystal + 13]
        assert first.id.endswith("-0")
        for other in others:
            assert other.group == first.group
            assert other.energy == pytest.approx(other.volume)
            assert other.num_atoms == first.num_atoms
            if np.array_equal(other.numbers, first.numbers):
                assert 0.75 <= other.volume / first.volume <= 1.3
    assert any(not np.array_equal(a.numbers, b.numbers) for a, b in pairwise(frames[:13]))


def test_without_strain_rattle_and_substitution_variants_are_the_crystal() -> None:
    still = source(volumes=(1.0, 1.0), largest_strain=0.0, largest_rattle=0.0, substituted=0.0)
    first, *others = list(still)[:13]
    for other in others:
        assert np.allclose(other.positions, first.positions, atol=1e-12)
        assert np.allclose(other.cell, first.cell, atol=1e-12)


def test_a_substitution_keeps_the_places_of_one_element() -> None:
    still = source(volumes=(1.0, 1.0), largest_strain=0.0, largest_rattle=0.0, substituted=1.0)
    first, *others = list(still)[:13]
    for other in others:
        changed = first.numbers != other.numbers
        assert len(np.unique(first.numbers[changed])) <= 1
        assert len(np.unique(other.numbers[changed])) <= 1
        assert np.allclose(other.positions @ np.linalg.inv(other.cell), first.positions @ np.linalg.inv(first.cell))


def test_parts_are_the_whole_and_hard_frames_are_refused_with_a_reason() -> None:
    parts = source(num_relaxed=2 * PART_CRYSTALS + 3, variants=1).parts()
    assert [part.size for part in parts] == [2 * PART_CRYSTALS, 2 * PART_CRYSTALS, 6]
    again = list(islice(parts[0].read(), 8))
    assert [frame.id for frame in again] == [frame.id for frame in islice(source(num_relaxed=300, variants=1), 8)]
    (part,) = source(max_force=0.1).parts()
    reasons = [frame for frame in part.read() if isinstance(frame, InvalidStructure)]
    assert reasons
    assert all("eV/Å is above 0.1" in str(reason) for reason in reasons)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_relaxed": 0}, "at least 1"),
        ({"elements": ("Xx",)}, "chemical symbols"),
        ({"volumes": (1.2, 1.0)}, "volumes must be positive and rise"),
        ({"variants": -1}, "at least 0"),
        ({"largest_rattle": -0.1}, "must not be negative"),
    ],
)
def test_wrong_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        source(**options)


def test_an_oracle_that_is_none_is_named() -> None:
    (part,) = source(oracle="ase:Nothing").parts()
    with pytest.raises(ValueError, match=r"oracle ase:Nothing: nothing can be made of it"):
        next(part.read())


def test_the_potential_labels_with_its_own_predictions_and_refuses_what_is_too_near() -> None:
    oracle, potential = PotentialOracle("sevennet-0"), resolve("sevennet-0").load()
    frames = [frame for frame in islice(source(num_relaxed=2, variants=3), 6) if isinstance(frame, Structure)]
    crushed = replace(frames[0], positions=0.3 * frames[0].positions, cell=0.3 * frames[0].cell, id="crushed")
    *found, refused = oracle.labelled([*frames, crushed])
    assert isinstance(refused, InvalidStructure)
    assert "crushed: atoms are too near" in str(refused)
    for frame, label, expected in zip(frames, found, potential.predict(frames), strict=True):
        if isinstance(label, InvalidStructure):
            continue
        assert label.id == frame.id
        assert label.energy == pytest.approx(float(expected.energy), abs=1e-3)
        assert np.allclose(label.forces, expected.forces.numpy(), atol=1e-3)
    assert any(isinstance(label, Structure) for label in found)
    relaxed = list(oracle.relaxed(iter(frames[:1]), 0))
    assert all(each.num_atoms == frames[0].num_atoms for each in relaxed)


def test_atoms_at_the_same_place_are_one_frame_left_out() -> None:
    oracle = PotentialOracle("sevennet-0")
    good, bad = (
        Structure.checked(
            numbers=[11, 17], positions=[[0, 0, 0], [0, 0, z]], cell=5.6 * np.eye(3), pbc=[True] * 3, energy=0.0, id=id
        )
        for z, id in ((2.8, "good"), (0.05, "bad"))
    )
    found = oracle.labelled([bad, good, bad])
    assert [isinstance(each, InvalidStructure) for each in found] == [True, False, True]
    assert "same place" in str(found[0])
    assert all(isinstance(each, InvalidStructure) for each in oracle.labelled([bad]))
