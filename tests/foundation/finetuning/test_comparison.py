"""Statistics of held-out errors by hand, and the paired bootstrap against what it has to be."""

from dataclasses import replace

import numpy as np
import pytest

from foundation.finetuning.comparison import (
    METRICS,
    MIN_FRAMES,
    RESAMPLES,
    Statistic,
    change,
    check_pair,
    difference,
    mean_over_seeds,
    statistics,
    weighted_median,
)
from foundation.finetuning.forgetting import Measurement, Role, SetErrors


def make_set(
    num_frames: int = 40, *, error: float = 1.0, seed: int = 0, role: Role = "retained", name: str = "set"
) -> SetErrors:
    """Return errors that are `error` times those of the seed: of three elements, the last frame without labels."""
    rng = np.random.default_rng(seed)
    atoms = rng.integers(1, 9, size=num_frames).astype(float)
    labelled = np.ones(num_frames)
    labelled[-1] = 0.0
    of_element = rng.multinomial(1, [0.6, 0.3, 0.1], size=num_frames) * (atoms * labelled)[:, np.newaxis]
    element_sum = error * 3 * of_element * rng.gamma(2.0, 0.02, size=(num_frames, 1))
    square = labelled * atoms * rng.gamma(2.0, 1.0, size=num_frames)
    return SetErrors(
        name=name,
        role=role,
        split="test",
        fingerprint="f" * 64,
        theory="PBE",
        num_skipped=0,
        elements=("Al", "Cu", "Au"),
        ids=tuple(f"{number:04d}" for number in range(num_frames)),
        num_atoms=atoms,
        energy_error=error * rng.normal(size=num_frames) * 0.01,
        force_sum=element_sum.sum(axis=1),
        force_count=3 * atoms * labelled,
        force_product=0.8 * square,
        force_square=square,
        stress_sum=error * labelled * rng.gamma(2.0, 1e-3, size=num_frames),
        stress_count=9 * labelled,
        element_sum=element_sum,
        element_count=3.0 * of_element,
    )


def test_statistics_are_those_by_hand() -> None:
    three = replace(
        make_set(3),
        energy_error=np.array([0.1, -0.3, 0.2]),
        force_sum=np.array([3.0, 12.0, 0.0]),
        force_count=np.array([3.0, 6.0, 0.0]),
        force_product=np.array([1.0, 3.0, 0.0]),
        force_square=np.array([2.0, 6.0, 0.0]),
        stress_sum=np.array([0.0, 0.09, 0.0]),
        stress_count=np.array([0.0, 9.0, 0.0]),
        element_sum=np.array([[3.0, 0.0, 0.0], [2.0, 10.0, 0.0], [0.0, 0.0, 0.0]]),
        element_count=np.array([[3.0, 0.0, 0.0], [2.0, 4.0, 0.0], [0.0, 0.0, 0.0]]),
    )
    found = {name: statistic.value for name, statistic in statistics(three).items()}
    assert np.isnan(found.pop("force_mae/Au"))
    assert found == pytest.approx(
        {
            "energy_mae": 0.2,
            "energy_median": 0.2,
            "force_mae": 15.0 / 9.0,
            "force_median": 1.5,  # of 1 and 2; the third frame has no forces
            "softening": 0.5,
            "stress_mae": 0.01,
            "force_mae/Al": 1.0,
            "force_mae/Cu": 2.5,
        }
    )


def test_what_has_no_labels_has_no_statistic() -> None:
    whole = make_set()
    zeros = np.zeros_like(whole.force_sum)
    nothing = np.zeros((len(zeros), 0))
    parts = {"force_sum": zeros, "force_count": zeros, "force_product": zeros, "force_square": zeros}
    bare = replace(whole, **parts, elements=(), element_sum=nothing, element_count=nothing)
    assert statistics(bare).keys() == {"energy_mae", "energy_median", "stress_mae"}
    assert "stress_mae" not in statistics(replace(whole, stress_sum=zeros, stress_count=zeros))


def test_weighted_medians_are_those_of_repeated_values() -> None:
    rng = np.random.default_rng(1)
    values = np.append(rng.normal(size=12).round(1), np.nan)
    weights = rng.integers(3, size=(50, 13)).astype(float)
    weights[0] = 0.0
    weights[0, -1] = 13.0  # a resample in which nothing is known
    found = weighted_median(values, weights)
    assert np.isnan(found[0])
    for median, row in zip(found[1:], weights[1:], strict=True):
        assert median == np.nanmedian(np.repeat(values, row.astype(int)))


def test_the_change_of_a_run_against_itself_is_zero_without_width() -> None:
    found = change(statistics(make_set(), elements=False), statistics(make_set(), elements=False))
    assert found.keys() == METRICS.keys()
    assert all(statistic.value == 0.0 for statistic in found.values())
    assert all(statistic.interval == (0.0, 0.0) for statistic in found.values())


def test_errors_that_grow_alike_in_all_frames_have_a_change_without_width() -> None:
    found = change(statistics(make_set()), statistics(make_set(error=1.25)))
    for name in ("energy_mae", "energy_median", "force_mae", "force_median", "stress_mae", "force_mae/Al"):
        assert found[name].value == pytest.approx(0.25)
        assert found[name].interval == pytest.approx((0.25, 0.25))
    assert found["softening"].value == 0.0


def test_the_softening_slope_changes_by_its_difference() -> None:
    before = make_set()
    after = replace(before, force_product=0.95 * before.force_square)
    found = change(statistics(before), statistics(after))["softening"]
    assert found.value == pytest.approx(0.15)
    assert found.interval == pytest.approx((0.15, 0.15))


def test_the_interval_of_a_mean_is_as_wide_as_theory_says() -> None:
    errors = make_set(2000)
    found = statistics(errors, elements=False)["energy_mae"]
    assert found.interval is not None
    expected = 2 * 1.96 * np.abs(errors.energy_error).std() / np.sqrt(2000)
    assert found.interval[1] - found.interval[0] == pytest.approx(expected, rel=0.1)
    assert found.interval[0] < found.value < found.interval[1]


def test_many_frames_are_resampled_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = statistics(make_set())["force_mae"]
    monkeypatch.setattr("foundation.finetuning.comparison.CHUNK", 40 * 7)
    parts = statistics(make_set())["force_mae"]
    np.testing.assert_allclose(parts.samples, whole.samples, rtol=1e-12)
    assert len(parts.samples) == RESAMPLES


def test_few_frames_have_no_interval_and_json_says_null() -> None:
    few = statistics(make_set(MIN_FRAMES))
    assert few["energy_mae"].interval is not None
    assert few["force_mae"].interval is None  # one of the frames has no forces
    assert few["force_mae"].as_json() == {"value": few["force_mae"].value, "low": None, "high": None}
    diverged = statistics(replace(make_set(), energy_error=np.full(40, np.nan)))["energy_mae"]
    assert diverged.as_json() == {"value": None, "low": None, "high": None}


def test_the_difference_of_two_runs_is_surer_than_either() -> None:
    first, second = statistics(make_set())["force_mae"], statistics(make_set(error=1.02))["force_mae"]
    assert first.interval is not None
    assert second.interval is not None
    assert first.interval[1] > second.interval[0]
    between = difference(first, second).interval
    assert between is not None
    assert between[0] > 0.0


def test_the_mean_over_seeds_varies_with_seeds_and_frames() -> None:
    runs = [statistics(make_set(error=error))["force_mae"] for error in (0.8, 1.0, 1.2)]
    mean = mean_over_seeds(runs)
    assert mean.value == pytest.approx(runs[1].value)
    assert mean_over_seeds(runs[1:2]).samples == pytest.approx(runs[1].samples)
    constant = [Statistic(value=float(v), samples=np.full(RESAMPLES, float(v)), num_frames=9) for v in (1, 2, 3)]
    samples = mean_over_seeds(constant).samples
    # of three seeds drawn three times the mean has a third of their variance, 2/3
    assert samples.var() == pytest.approx(2 / 9, rel=0.1)
    assert mean.samples.std() > runs[1].samples.std()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ids": tuple("abcdefghij" * 4)}, "has other frames or another role"),
        ({"role": "target"}, "has other frames or another role"),
        ({"fingerprint": "0" * 64}, "is of other data"),
    ],
)
def test_other_frames_are_not_compared(changes: dict, words: str) -> None:
    ours = Measurement(weights_sha256="a" * 64, sets={"set": make_set()})
    theirs = Measurement(weights_sha256="b" * 64, sets={"set": replace(make_set(), **changes)})
    check_pair(ours, ours, "the result")
    with pytest.raises(ValueError, match=f"the result cannot be compared: the held-out set 'set' {words}"):
        check_pair(ours, theirs, "the result")
    with pytest.raises(ValueError, match="only one of the two measured set"):
        check_pair(ours, Measurement(weights_sha256="b" * 64, sets={}), "the result")
