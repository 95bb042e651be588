"""Coulomb media: labels obey Coulomb's law, and frames depend on the options and their number only."""

from itertools import islice

import numpy as np
import pytest

from data_pipeline.sources import CoulombMedia
from data_pipeline.sources.coulomb import CHARGES, COULOMB, Medium, coulomb
from data_pipeline.structure import SYMBOLS, Structure

SMALL = (20.0, 6.0, 6.0)


def charges_of(structure: Structure) -> np.ndarray:
    return np.array([CHARGES[SYMBOLS[number]] for number in structure.numbers])


def least(structure: Structure) -> float:
    distances = np.linalg.norm(structure.positions[:, None] - structure.positions, axis=-1)
    return float(distances[np.triu_indices(structure.num_atoms, 1)].min())


def test_two_charges_have_the_energy_and_force_of_coulombs_law() -> None:
    energy, forces = coulomb(np.array([[0.0, 0.0, 0.0], [3.0, 4.0, 0.0]]), np.array([1.0, -0.5]))
    assert energy == pytest.approx(-COULOMB * 0.5 / 5, abs=1e-14)
    assert forces[0] == pytest.approx(COULOMB * 0.5 / 25 * np.array([0.6, 0.8, 0.0]), abs=1e-14)


@pytest.mark.parametrize("medium", ["charged", "neutral"])
def test_forces_are_minus_the_derivative_of_the_energy_and_sum_to_zero(medium: Medium) -> None:
    frame = CoulombMedia(medium=medium, num_media=1, box=(10.0, 6.0, 6.0), density=0.03).frame(0, 5.0, "opposite")
    charges, step = charges_of(frame), 1e-4
    energy, forces = coulomb(frame.positions, charges)
    numeric = np.zeros_like(forces)
    for index in np.ndindex(*numeric.shape):
        change = np.zeros_like(numeric)
        change[index] = step
        above, below = (coulomb(frame.positions + s * change, charges)[0] for s in (1, -1))
        numeric[index] = (below - above) / (2 * step)
    np.testing.assert_allclose(forces, numeric, atol=1e-7)
    np.testing.assert_allclose(forces.sum(axis=0), 0.0, atol=1e-12)
    np.testing.assert_allclose(frame.forces, forces, atol=1e-6)
    assert frame.energy == energy
    assert np.abs(forces).max() > 0.1


@pytest.mark.parametrize("medium", ["charged", "neutral"])
def test_the_pair_is_the_difference_of_frames_with_and_without_the_partner(medium: Medium) -> None:
    source = CoulombMedia(medium=medium, num_media=1, box=SMALL)
    for number in range(4):
        pair, alike, alone = (source.frame(number, 7.0, partner) for partner in ("opposite", "alike", "removed"))
        assert pair.numbers[0] == alike.numbers[0] == alike.numbers[1] == alone.numbers[0]
        np.testing.assert_array_equal(pair.positions, alike.positions)
        np.testing.assert_array_equal(np.delete(pair.positions, 1, axis=0), alone.positions)
        expected = np.array([COULOMB / 49, 0.0, 0.0])
        np.testing.assert_allclose(pair.forces[0] - alone.forces[0], expected, atol=2e-6)
        np.testing.assert_allclose(pair.forces[0] - alike.forces[0], 2 * expected, atol=2e-6)


def test_media_are_neutral_as_dense_as_asked_for_and_nobody_is_too_near() -> None:
    source = CoulombMedia(medium="charged", num_media=10, removed=0.0, box=(16.0, 8.0, 7.0), min_distance=2.1)
    for frame in source:
        assert charges_of(frame).sum() == 0
        assert frame.num_atoms == 2 + 2 * round(0.06 * 16 * 8 * 7 / 2)
        assert least(frame) >= 2.1
        assert (np.abs(frame.positions[2:]) <= np.array([8.0, 4.0, 3.5])).all()
        assert not frame.pbc.any()


def test_a_box_that_grows_has_the_same_margin_around_every_pair() -> None:
    source = CoulombMedia(medium="neutral", num_media=1, box=(10.0, 6.0, 6.0), box_grows=True)
    for distance in (4.0, 16.0):
        medium = source.frame(0, distance, "opposite").positions[2:]
        assert len(medium) == round(0.06 * (10 + distance) * 36)
        assert (distance + 10) / 2 - 3 < np.abs(medium[:, 0]).max() <= (distance + 10) / 2


def test_distances_and_partners_are_drawn_as_often_as_asked_for() -> None:
    options = {"probe_distances": (4.0, 8.0, 8.0, 8.0), "removed": 0.2, "alike": 0.3, "density": 0.01}
    frames = list(CoulombMedia(medium="neutral", num_media=400, box=SMALL, **options))
    pairs = [frame for frame in frames if (np.abs(charges_of(frame)) == 1).sum() == 2]
    assert len(pairs) == pytest.approx(320, abs=40)
    assert np.mean([charges_of(frame).sum() != 0 for frame in pairs]) == pytest.approx(3 / 8, abs=0.1)
    far = [np.linalg.norm(frame.positions[1] - frame.positions[0]) > 6 for frame in pairs]
    assert np.mean(far) == pytest.approx(0.75, abs=0.1)
    signs = [charges_of(frame)[0] for frame in frames]
    assert abs(np.mean(signs)) < 0.2


def test_a_frame_depends_on_the_options_and_its_number_only() -> None:
    source = CoulombMedia(medium="charged", num_media=20, box=SMALL, seed=3)
    few = list(CoulombMedia(medium="charged", num_media=5, box=SMALL, seed=3))
    for one, other in zip(few, islice(source, 5), strict=True):
        assert one.id == other.id
        assert one.energy == other.energy
        np.testing.assert_array_equal(one.positions, other.positions)
    others = list(CoulombMedia(medium="charged", num_media=5, box=SMALL, seed=4))
    assert not any(np.array_equal(a.positions, b.positions) for a, b in zip(few, others, strict=True))
    assert len({frame.group for frame in source}) == 20


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_media": 0}, "num_media"),
        ({"probe_distances": ()}, "probe_distances"),
        ({"probe_distances": (1.0,)}, "at least min_distance"),
        ({"removed": 0.8, "alike": 0.3}, "at most 1 together"),
        ({"box": (10.0, 0.0, 5.0)}, "positive"),
        ({"density": 0.2}, "random places"),
    ],
)
def test_options_without_a_medium_are_refused(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        CoulombMedia(**{"medium": "charged", "num_media": 1, **options})


def test_a_box_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="has no room for 2 particles 2 Å apart; enlarge it"):
        CoulombMedia(medium="charged", num_media=1, probe_distances=(2.0,), box=(3.0, 2.4, 2.4)).frame(
            0, 2.0, "removed"
        )
