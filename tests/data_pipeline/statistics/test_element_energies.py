"""Element energies: least squares, whatever constant is added per atom of an element."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipeline.statistics.element_energies import element_energies, undetermined

ELEMENTS = 5
CONSTANTS = st.lists(st.floats(-3e4, 3e4), min_size=ELEMENTS, max_size=ELEMENTS).map(np.array)


def fitted(fractions: np.ndarray, energies: np.ndarray, centre: np.ndarray | None = None) -> np.ndarray:
    centre = np.full(ELEMENTS, energies.mean()) if centre is None else centre
    return element_energies(fractions.T @ fractions, fractions.T @ energies, centre)


def compositions(seed: int, *, rare: bool) -> np.ndarray:
    """Fractions of frames of up to 60 atoms; a rare element is one atom of one frame."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 13, (80, ELEMENTS)).astype(float)
    counts[:, 0] += 1
    if rare:
        counts[:, -1] = np.arange(len(counts)) == 7
    return counts / counts.sum(axis=1, keepdims=True)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), CONSTANTS, st.booleans())
def test_a_constant_per_element_is_added_to_its_energy_and_changes_nothing_else(
    seed: int, constants: np.ndarray, rare: bool
) -> None:
    fractions = compositions(seed, rare=rare)
    energies = np.random.default_rng(seed).normal(-5.0, 2.0, len(fractions))
    before, after = fitted(fractions, energies), fitted(fractions, energies + fractions @ constants)
    np.testing.assert_allclose(after, before + constants, atol=1e-6)
    left = energies - fractions @ before
    np.testing.assert_allclose(energies + fractions @ constants - fractions @ after, left, atol=1e-7)
    expected = np.linalg.lstsq(fractions, energies, rcond=None)[0]
    np.testing.assert_allclose(before, expected, atol=1e-8)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), CONSTANTS)
def test_residuals_do_not_change_where_compositions_leave_elements_open(seed: int, constants: np.ndarray) -> None:
    fractions = compositions(seed, rare=False)
    fractions[:, 2] = 2 * fractions[:, 1]  # always in the same proportion
    fractions[:, 4] = 0.0
    fractions /= fractions.sum(axis=1, keepdims=True)
    gram = fractions.T @ fractions
    assert undetermined(gram).tolist() == [False, True, True, False, False]
    energies = np.random.default_rng(seed).normal(-5.0, 2.0, len(fractions))
    moved = energies + fractions @ constants
    before, after = fitted(fractions, energies), fitted(fractions, moved)
    np.testing.assert_allclose(moved - fractions @ after, energies - fractions @ before, atol=1e-7)
    np.testing.assert_allclose((after - before)[[0, 3]], constants[[0, 3]], atol=1e-6)
    # around a centre that moves with the constants, all do
    centred = fitted(fractions, energies, np.zeros(ELEMENTS))
    np.testing.assert_allclose(fitted(fractions, moved, constants), centred + constants, atol=1e-6)


def test_what_the_frames_leave_open_stays_at_the_centre() -> None:
    fractions = np.tile([0.25, 0.75, 0.0, 0.0, 0.0], (20, 1))
    centre = np.array([-3.0, -1.0, -8.0, 0.0, 2.0])
    found = fitted(fractions, np.full(20, -1.5), centre)
    np.testing.assert_allclose(found, centre, atol=1e-12)  # it explains everything already
    np.testing.assert_allclose(fitted(fractions, np.full(20, -7.0)), -7.0, rtol=1e-12)


def test_one_frame_in_a_million_still_says_what_its_element_is_worth() -> None:
    # a trajectory of one compound with totals of -10⁴ eV per atom, and one frame with an atom of another element
    usual, other = np.array([0.5, 0.5, 0.0, 0.0, 0.0]), np.array([0.5, 0.49, 0.01, 0.0, 0.0])
    energies = np.array([-20000.0, -100.0, -5000.0, 0.0, 0.0])
    gram = 1e6 * np.outer(usual, usual) + np.outer(other, other)
    projection = gram @ energies
    found = element_energies(gram, projection, np.full(ELEMENTS, -10050.0))
    assert undetermined(gram).tolist() == [True, True, True, False, False]
    assert other @ found == pytest.approx(other @ energies, abs=1e-3)
    assert usual @ found == pytest.approx(usual @ energies, abs=1e-9)
