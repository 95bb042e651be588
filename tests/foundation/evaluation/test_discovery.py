"""Metrics of Matbench Discovery: published counts and scores of its leaderboard, and rules for what is missing."""

import math

import numpy as np
import pytest

from foundation.evaluation.discovery import (
    Confusion,
    combined_score,
    conductivity_error,
    confusion,
    energies_above_hull,
    mean_conductivity_error,
    mean_deviation,
    regression,
)

OMNI = Confusion(true_positives=30084, false_positives=2969, true_negatives=179145, false_negatives=3290)
"""SevenNet-Omni-i12 on the unique prototypes."""
LEADERBOARD = {
    "tece-oam-rra": (0.929, 0.0927, 0.0575, 0.908),
    "equiformer-v3-oam": (0.931, 0.1178, 0.0595, 0.902),
    "grace-3l-oam-l": (0.925, 0.1211, 0.0575, 0.900),
    "esen-30m-oam": (0.925, 0.1704, 0.0608, 0.888),
    "nequip-oam-l": (0.893, 0.1657, 0.0647, 0.870),
    "sevennet-omni-i12": (0.906, 0.1917, 0.0618, 0.874),
    "orb-v3": (0.905, 0.2102, 0.0750, 0.861),
    "sevennet-mf-ompa": (0.901, 0.3171, 0.0639, 0.845),
    "dpa-4.0.1-pro-mptrj": (0.857, 0.2114, 0.0687, 0.840),
}
"""F1, κ_SRME, RMSD and the combined score."""
FACTORS = {"orb-v3": (0.904, 5.912), "esen-30m-oam": (0.928, 6.069), "sevennet-mf-ompa": (0.890, 5.825)}
"""Precision, and the discovery acceleration factor."""


def test_published_counts_give_the_published_metrics() -> None:
    assert OMNI.total == 215_488
    assert round(OMNI.precision, 3) == 0.910
    assert round(OMNI.recall, 3) == 0.901
    assert round(OMNI.f1, 3) == 0.906
    assert round(OMNI.accuracy, 3) == 0.971
    assert OMNI.acceleration(0.1529) == pytest.approx(5.954, abs=2e-3)
    assert OMNI.prevalence == pytest.approx(0.15488, abs=5e-6)
    assert round(OMNI.acceleration(), 3) == 5.877


@pytest.mark.parametrize("model", FACTORS)
def test_acceleration_is_precision_over_the_prevalence(model: str) -> None:
    precision, factor = FACTORS[model]
    found = round(1e6 * precision)
    counts = Confusion(true_positives=found, false_positives=10**6 - found, true_negatives=0, false_negatives=0)
    assert counts.acceleration(0.1529) == pytest.approx(factor, abs=6e-3)


@pytest.mark.parametrize("model", LEADERBOARD)
def test_combined_scores_are_those_of_the_leaderboard(model: str) -> None:
    f1, conductivity, deviation, score = LEADERBOARD[model]
    # the parts are given to three digits
    assert combined_score(f1, conductivity, deviation) == pytest.approx(score, abs=6e-4)


def test_combined_score_has_limits_and_needs_all_parts() -> None:
    assert combined_score(1.0, 0.0, 0.0) == pytest.approx(1.0)
    assert combined_score(0.0, 2.0, 0.15) == pytest.approx(0.0)
    assert combined_score(0.0, 2.0, 1.0) == pytest.approx(0.0)
    assert combined_score(0.9, None, 0.1) is None
    assert combined_score(None, 0.1, 0.1) is None
    assert combined_score(0.9, 0.1, None) is None


def test_counts_take_the_threshold_as_stable_and_what_is_missing_as_unstable() -> None:
    true = np.array([-0.1, 0.0, -0.2, 0.1, 0.2, 0.3])
    predicted = np.array([0.0, -0.3, np.nan, np.nan, -0.01, 0.5])
    assert confusion(true, predicted) == Confusion(
        true_positives=2, false_positives=1, true_negatives=2, false_negatives=1
    )
    with pytest.raises(ValueError, match="must be finite"):
        confusion(np.array([np.nan]), np.array([0.0]))


def test_nothing_found_has_no_precision() -> None:
    none = Confusion(true_positives=0, false_positives=0, true_negatives=5, false_negatives=2)
    assert math.isnan(none.precision)
    assert none.recall == 0.0
    assert none.f1 == 0.0


def test_errors_leave_missing_predictions_out() -> None:
    found = regression(np.array([0.0, 1.0, 2.0, 5.0]), np.array([0.1, 0.9, 2.2, np.nan]))
    assert found.missing == 1
    assert found.mae == pytest.approx(0.4 / 3)
    assert found.rmse == pytest.approx(math.sqrt(0.06 / 3))
    assert found.r2 == pytest.approx(1 - 0.06 / 2)
    with pytest.raises(ValueError, match="no crystal"):
        regression(np.array([1.0]), np.array([np.nan]))


def test_failed_relaxations_count_as_one() -> None:
    assert mean_deviation(np.array([0.1, np.nan, 0.2])) == pytest.approx(1.3 / 3)


def test_error_of_conductivity_sums_modes_that_would_cancel() -> None:
    true, weights = np.array([[1.0, 2.0], [3.0, 0.0]]), np.array([1.0, 3.0])
    assert conductivity_error(true, true, weights) == 0.0
    # the total over modes is the same, 12, but two modes are wrong: 2 (1·|2-1| + 1·|1-2|) / (12 + 12)
    assert conductivity_error(true[:, ::-1] * [[1], [0]] + true * [[0], [1]], true, weights) == pytest.approx(4 / 24)
    assert conductivity_error(0 * true, true, weights) == 2.0
    assert conductivity_error(np.nan * true, true, weights) == 2.0
    assert mean_conductivity_error([0.5, None, math.nan]) == pytest.approx(1.5)
    with pytest.raises(ValueError, match="no crystal"):
        mean_conductivity_error([])


def test_the_hull_stays_that_of_the_reference() -> None:
    found = energies_above_hull([0.1, -0.05], [-1.0, -2.0], [-1.2, np.nan])
    assert found[0] == pytest.approx(-0.1)
    assert math.isnan(found[1])
