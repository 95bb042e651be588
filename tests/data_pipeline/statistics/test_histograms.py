"""Histograms with fixed bins: counts as numpy's, quantiles to the width of a bin, signs folded away."""

import numpy as np
import pytest

from data_pipeline.statistics.histograms import BINS, magnitudes


def values_for(name: str, number: int = 5000) -> np.ndarray:
    rng = np.random.default_rng(1)
    sizes = 10.0 ** rng.uniform(-6.0, 6.0, number)
    if name == "size":
        return np.rint(1 + 10.0 ** rng.uniform(0.0, 4.5, number))
    return sizes if name == "force" else sizes * rng.choice([-1.0, 1.0], number)


@pytest.mark.parametrize("name", BINS)
def test_counts_are_those_of_numpy(name: str) -> None:
    bins, values = BINS[name], values_for(name)
    assert (np.diff(bins.edges) > 0).all()
    counts = bins.count(values)
    everything = np.concatenate([[-np.inf], bins.edges, [np.inf]])
    np.testing.assert_array_equal(counts, np.histogram(values, everything)[0])
    assert counts.sum() == len(values)


@pytest.mark.parametrize("name", BINS)
def test_an_edge_belongs_to_the_bin_above(name: str) -> None:
    bins = BINS[name]
    np.testing.assert_array_equal(bins.count(bins.edges), [0] + [1] * len(bins.edges))


@pytest.mark.parametrize("name", BINS)
@pytest.mark.parametrize("fraction", [0.01, 0.3, 0.5, 0.99])
def test_quantiles_are_right_to_the_width_of_a_bin(name: str, fraction: float) -> None:
    bins, values = BINS[name], np.clip(values_for(name), BINS[name].edges[0], BINS[name].edges[-2])
    exact = float(np.quantile(values, fraction))
    place = int(np.searchsorted(bins.edges, exact, side="right"))
    low, high = bins.edges[max(place - 2, 0)], bins.edges[min(place + 1, len(bins.edges) - 1)]
    assert low <= bins.quantile(bins.count(values), fraction) <= high


def test_whole_numbers_have_whole_quantiles() -> None:
    bins = BINS["size"]
    for number in range(1, 10):
        counts = bins.count(np.full(7, float(number)))
        assert {bins.quantile(counts, fraction) for fraction in (0.01, 0.5, 0.99)} == {number}


def test_beyond_the_edges_there_is_the_edge_and_below_a_logarithmic_axis_zero() -> None:
    force, energy = BINS["force"], BINS["energy"]
    assert force.quantile(force.count(np.zeros(3)), 0.5) == 0.0
    assert force.quantile(force.count(np.full(3, 1e9)), 0.5) == force.edges[-1]
    assert energy.quantile(energy.count(np.full(3, -1e9)), 0.5) == energy.edges[0]
    assert np.isnan(force.quantile(force.count(np.zeros(0)), 0.5))


def test_numbers_from_an_edge_are_exact() -> None:
    bins, values = BINS["force"], values_for("force")
    for edge in (0.01, 1.0, 10.0**1.7, 100.0):
        assert bins.number_from(bins.count(values), edge) == int((values >= edge).sum())


@pytest.mark.parametrize("name", ["stress", "stress_ratio"])
def test_folding_gives_the_histogram_of_the_magnitudes(name: str) -> None:
    values = values_for(name)
    folded, counts = magnitudes(BINS[name], BINS[name].count(values))
    np.testing.assert_array_equal(counts, folded.count(np.abs(values)))


def test_one_is_the_middle_of_its_bin_and_a_factor_of_the_root_of_ten_an_edge() -> None:
    edges = BINS["stress_ratio"].edges
    assert {10**0.5, 10**-0.5} <= set(edges.tolist())
    place = int(np.searchsorted(edges, 1.0))
    assert edges[place - 1] * edges[place] == pytest.approx(1.0)
