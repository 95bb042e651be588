"""Displacements: random walks of known diffusivity, tables, images across a cell, pair distances."""

import math
from pathlib import Path

import numpy as np
import pytest

from foundation.evaluation.displacements import (
    Msd,
    bin_centres,
    block_diffusivities,
    diffusivity,
    displaced_share,
    height,
    mean_squared_displacement,
    nearest_image,
    overlap,
    pair_distribution,
    read_msd,
    unwrapped,
    without_drift,
)
from foundation.evaluation.intervals import interval_over

CELL = np.array([[8.0, 0.0, 0.0], [1.0, 9.0, 0.0], [0.0, 2.0, 10.0]])


def walk(frames: int, atoms: int, expected: float, interval: float, seed: int = 0) -> np.ndarray:
    """Return random walks of a diffusivity [cm²/s]."""
    width = math.sqrt(2 * expected / 1e-4 * interval)
    steps = np.random.default_rng(seed).normal(scale=width, size=(frames, atoms, 3))
    return 100.0 + np.cumsum(steps, axis=0)


def test_all_origins_take_part() -> None:
    tracks = walk(17, 3, 2e-5, 0.02)
    found = mean_squared_displacement(tracks, 0.02)
    for lag in range(17):
        pairs = [((tracks[start + lag] - tracks[start]) ** 2).sum(axis=1) for start in range(17 - lag)]
        assert found.values[lag] == pytest.approx(np.mean(pairs), abs=1e-9)
    assert found.lags[-1] == pytest.approx(0.32)


@pytest.mark.parametrize("expected", [1.59e-5, 8e-5])
def test_diffusivity_of_random_walks_is_found_within_five_percent(expected: float) -> None:
    tracks = walk(500, 1500, expected, 0.02)
    assert diffusivity(mean_squared_displacement(tracks, 0.02)) == pytest.approx(expected, rel=0.05)
    blocks = block_diffusivities(tracks, 0.02, 5)
    assert blocks.shape == (5,)
    assert blocks.mean() == pytest.approx(expected, rel=0.05)
    low, high = interval_over(np.mean, blocks)
    assert low < blocks.mean() < high


def test_diffusivity_is_the_slope_whatever_happens_at_short_lags() -> None:
    lags = np.linspace(0.0, 10.0, 101)
    values = 6 * 0.5 * lags + 3.0 * (1 - np.exp(-lags / 0.05))
    assert diffusivity(Msd(lags, values)) == pytest.approx(0.5e-4, rel=1e-3)
    assert math.isnan(diffusivity(Msd(lags[:2], values[:2])))


def test_a_table_is_read_with_its_heading(tmp_path: Path) -> None:
    file = tmp_path / "dft.dat"
    file.write_text("dft data\n0 0.0\n10 1.5\n20 3.5\n\n")
    found = read_msd(file, 2.0)
    assert found.lags.tolist() == pytest.approx([0.0, 0.02, 0.04])
    assert found.at(0.03) == pytest.approx(2.5)
    assert found.at(0.05) is None
    assert found.to(0.02).values.tolist() == [0.0, 1.5]


def test_the_published_table_has_the_published_diffusivity(real_data: Path) -> None:
    found = read_msd(real_data / "lpsc-aimd" / "dft.dat", 2.0)
    assert found.lags[-1] == pytest.approx(10.0)
    assert diffusivity(found) == pytest.approx(1.59e-5, rel=0.03)


@pytest.mark.parametrize(
    "text",
    ["", "0 0\n", "0 0\n10 1\nx\n20 2\n", "0 0\n10 nan\n20 1\n", "10 0\n20 1\n30 2\n", "0 0\n20 1\n10 2\n"],
)
def test_what_is_no_table_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "table.dat"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"table\.dat"):
        read_msd(file, 2.0)


def test_wrapped_trajectories_are_unwrapped() -> None:
    tracks = walk(40, 5, 5e-4, 0.02)
    wrapped = (tracks @ np.linalg.inv(CELL) % 1.0) @ CELL
    found = unwrapped(wrapped, CELL)
    assert found - found[0] == pytest.approx(tracks - tracks[0], abs=1e-9)
    assert np.linalg.norm(nearest_image(CELL.sum(axis=0) + 0.1, CELL)) == pytest.approx(np.sqrt(0.03))
    assert height(np.diag([3.0, 4.0, 5.0])) == pytest.approx(3.0)


def test_displaced_atoms_are_counted_in_the_second_half_without_drift() -> None:
    basins = np.random.default_rng(0).uniform(size=(10, 3)) @ CELL
    tracks = np.repeat(basins[None], 8, axis=0) + np.linspace(0.0, 3.0, 8)[:, None, None]
    assert displaced_share(tracks + CELL[1], basins, CELL, 0.5) == 0.0
    tracks[6:, 3] += [2.0, 0.0, 0.0]
    assert displaced_share(tracks, basins, CELL, 1.0) == pytest.approx(2 / 40)


def test_pair_distances_of_the_same_structure_overlap_and_others_do_not() -> None:
    random = np.random.default_rng(0)
    cubic = np.diag([9.0, 9.0, 9.0])
    grid = 3.0 * np.array([[i, j, k] for i in range(3) for j in range(3) for k in range(3)], dtype=np.float64)
    crystal = grid + random.normal(scale=0.05, size=(10, 27, 3))
    same = grid + random.normal(scale=0.05, size=(10, 27, 3))
    gas = random.uniform(0.0, 9.0, size=(10, 27, 3))
    one, other, third = (pair_distribution(each, cubic, 4.0) for each in (crystal, same, gas))
    shells = 4 / 3 * np.pi * np.diff(np.linspace(0.0, 4.0, 101) ** 3)
    # six at 3 Å for each of 27 atoms, and no others
    assert (one * shells)[:90].sum() * 26 / 9.0**3 == pytest.approx(6.0)
    assert third[50:].mean() == pytest.approx(1.0, abs=0.1)
    assert overlap(one, one) == pytest.approx(1.0)
    assert overlap(one, other) > 0.9
    assert overlap(one, third) < 0.5
    assert math.isnan(overlap(one, pair_distribution(crystal, cubic, 2.0)))
    assert bin_centres(4.0)[one.argmax()] == pytest.approx(3.0, abs=0.1)


def test_pairs_of_two_kinds_are_those_of_one_and_the_other() -> None:
    cubic = np.diag([9.0, 9.0, 9.0])
    tracks = np.array([[[0, 0, 0], [1, 0, 0], [3, 0, 0], [3, 2, 0]]], dtype=np.float64)
    first, second = np.array([True, False, False, False]), np.array([False, False, True, True])
    found = pair_distribution(tracks, cubic, 4.0, (first, second))
    expected = pair_distribution(tracks[:, [0, 2]], cubic, 4.0) + pair_distribution(tracks[:, [0, 3]], cubic, 4.0)
    assert np.allclose(found, expected / 2)
    assert np.count_nonzero(found) == 2
    assert np.allclose(found, pair_distribution(tracks, cubic, 4.0, (second, first)))
    assert np.allclose(pair_distribution(tracks, cubic, 4.0, (second, second)).nonzero(), [[50]])


def test_the_centre_of_mass_stays() -> None:
    tracks = np.array([[[0, 0, 0], [1, 0, 0]], [[1, 0, 0], [2, 0, 0]], [[2, 3, 0], [2, 0, 0]]], dtype=np.float64)
    found = without_drift(tracks, np.array([1.0, 2.0]))
    assert np.allclose(found[:2], tracks[0])
    assert np.allclose(found[2], [[2 - 4 / 3, 2, 0], [2 - 4 / 3, -1, 0]])
