"""Quantities of held-out errors by hand, and the paired bootstrap against what it has to be."""

from dataclasses import replace

import numpy as np
import pytest

from foundation.evaluation.comparison import (
    MIN_FRAMES,
    RESAMPLES,
    Bootstrap,
    Estimate,
    Statistic,
    bootstrap,
    change,
    check_pair,
    difference,
    mean_over_seeds,
)
from foundation.evaluation.frame_errors import FrameErrors
from foundation.evaluation.held_out import Measurement, Role, SetErrors
from foundation.evaluation.quantities import QUANTITIES, weighted_median


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
    energy = np.abs(error * rng.normal(size=num_frames) * 0.01)
    stress = error * labelled * rng.gamma(2.0, 1e-3, size=num_frames)
    errors = FrameErrors(
        ids=tuple(f"{number:04d}" for number in range(num_frames)),
        num_atoms=atoms,
        elements=("Al", "Cu", "Au"),
        sums={
            "frames": np.ones(num_frames),
            "energy_sum": energy,
            "energy_square": energy**2,
            "force_sum": element_sum.sum(axis=1),
            "force_error_square": element_sum.sum(axis=1) ** 2,
            "force_count": 3 * atoms * labelled,
            "force_product": 0.8 * square,
            "force_square": square,
            "stress_sum": stress,
            "stress_count": 9 * labelled,
        },
        of_elements={"force_sum": element_sum, "force_count": 3.0 * of_element},
    )
    return SetErrors(
        name=name,
        role=role,
        split="test",
        fingerprint="f" * 64,
        theory="PBE",
        num_skipped=0,
        errors=errors,
    )


def with_sums(whole: SetErrors, **sums: np.ndarray) -> SetErrors:
    """Return the errors with other sums of some terms."""
    return replace(whole, errors=replace(whole.errors, sums=whole.errors.sums | sums))


def bare(whole: SetErrors, *labels: str) -> SetErrors:
    """Return the errors without any label of 'force' or 'stress'."""
    none = {name: np.zeros_like(sums) for name, sums in whole.errors.sums.items() if name.startswith(labels)}
    errors = replace(whole.errors, sums=whole.errors.sums | none)
    if "force" in labels:
        nothing = np.zeros((len(errors.ids), 0))
        errors = replace(errors, elements=(), of_elements=dict.fromkeys(errors.of_elements, nothing))
    return replace(whole, errors=errors)


def found_in(errors: SetErrors, *, elements: bool = True) -> Bootstrap:
    return bootstrap(errors.errors, elements=elements)


def test_statistics_are_those_by_hand() -> None:
    three = with_sums(
        make_set(3),
        energy_sum=np.array([0.1, 0.3, 0.2]),
        energy_square=np.array([0.01, 0.09, 0.04]),
        force_error_square=np.array([3.0, 33.0, 0.0]),
        force_sum=np.array([3.0, 12.0, 0.0]),
        force_count=np.array([3.0, 6.0, 0.0]),
        force_product=np.array([1.0, 3.0, 0.0]),
        force_square=np.array([2.0, 6.0, 0.0]),
        stress_sum=np.array([0.0, 0.09, 0.0]),
        stress_count=np.array([0.0, 9.0, 0.0]),
    )
    of_elements = {
        "force_sum": np.array([[3.0, 0.0, 0.0], [2.0, 10.0, 0.0], [0.0, 0.0, 0.0]]),
        "force_count": np.array([[3.0, 0.0, 0.0], [2.0, 4.0, 0.0], [0.0, 0.0, 0.0]]),
    }
    three = replace(three, errors=replace(three.errors, of_elements=of_elements))
    found = {name: statistic.value for name, statistic in found_in(three).items()}
    assert np.isnan(found.pop("force_mae/Au"))
    assert found == pytest.approx(
        {
            "energy_mae": 0.2,
            "energy_rmse": (0.14 / 3) ** 0.5,
            "energy_median": 0.2,
            "force_mae": 15.0 / 9.0,
            "force_rmse": 2.0,
            "force_median": 1.5,  # of 1 and 2; the third frame has no forces
            "softening": 0.5,
            "stress_mae": 0.01,
            "force_mae/Al": 1.0,
            "force_mae/Cu": 2.5,
        }
    )


def test_what_has_no_labels_has_no_statistic() -> None:
    whole = make_set()
    assert found_in(bare(whole, "force")).keys() == {"energy_mae", "energy_rmse", "energy_median", "stress_mae"}
    assert found_in(bare(whole, "stress"), elements=False).keys() == QUANTITIES.keys() - {"stress_mae"}


def test_sums_that_an_old_file_lacks_leave_out_what_needs_them() -> None:
    whole = make_set()
    kept = {name: sums for name, sums in whole.errors.sums.items() if name != "force_error_square"}
    old = bootstrap(replace(whole.errors, sums=kept), elements=False)
    assert old.keys() == QUANTITIES.keys() - {"force_rmse"}
    assert change(old, found_in(whole)).keys() == old.keys()


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
    found = change(found_in(make_set(), elements=False), found_in(make_set(), elements=False))
    assert found.keys() == QUANTITIES.keys()
    assert all(statistic.value == 0.0 for statistic in found.values())
    assert all(statistic.interval == (0.0, 0.0) for statistic in found.values())


def test_errors_that_grow_alike_in_all_frames_have_a_change_without_width() -> None:
    found = change(found_in(make_set()), found_in(make_set(error=1.25)))
    for name in (
        "energy_mae",
        "energy_rmse",
        "energy_median",
        "force_mae",
        "force_median",
        "stress_mae",
        "force_mae/Al",
    ):
        assert found[name].value == pytest.approx(0.25)
        assert found[name].interval == pytest.approx((0.25, 0.25))
    assert found["softening"].value == 0.0


def test_the_softening_slope_changes_by_its_difference() -> None:
    before = make_set()
    after = with_sums(before, force_product=0.95 * before.errors.sums["force_square"])
    found = change(found_in(before), found_in(after))["softening"]
    assert found.value == pytest.approx(0.15)
    assert found.interval == pytest.approx((0.15, 0.15))


def test_the_interval_of_a_mean_is_as_wide_as_theory_says() -> None:
    errors = make_set(2000)
    found = found_in(errors, elements=False)["energy_mae"]
    assert found.interval is not None
    expected = 2 * 1.96 * errors.errors.sums["energy_sum"].std() / np.sqrt(2000)
    assert found.interval[1] - found.interval[0] == pytest.approx(expected, rel=0.1)
    assert found.interval[0] < found.value < found.interval[1]


def test_many_frames_are_resampled_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = found_in(make_set())["force_mae"]
    monkeypatch.setattr("foundation.evaluation.comparison.CHUNK", 40 * 7)
    parts = found_in(make_set())["force_mae"]
    np.testing.assert_allclose(parts.samples, whole.samples, rtol=1e-12)
    assert len(parts.samples) == RESAMPLES


def test_few_frames_have_no_interval_and_a_report_says_none() -> None:
    few = found_in(make_set(MIN_FRAMES))
    assert few["energy_mae"].interval is not None
    assert few["force_mae"].interval is None  # one of the frames has no forces
    assert few["force_mae"].estimate == Estimate(value=few["force_mae"].value, low=None, high=None)
    diverged = found_in(with_sums(make_set(), energy_sum=np.full(40, np.nan)))["energy_mae"]
    assert diverged.estimate == Estimate(value=None, low=None, high=None)


def test_the_difference_of_two_runs_is_surer_than_either() -> None:
    first, second = found_in(make_set())["force_mae"], found_in(make_set(error=1.02))["force_mae"]
    assert first.interval is not None
    assert second.interval is not None
    assert first.interval[1] > second.interval[0]
    between = difference(first, second).interval
    assert between is not None
    assert between[0] > 0.0


def test_the_mean_over_seeds_varies_with_seeds_and_frames() -> None:
    runs = [found_in(make_set(error=error))["force_mae"] for error in (0.8, 1.0, 1.2)]
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
        ({"errors": replace(make_set().errors, ids=tuple("abcdefghij" * 4))}, "has other frames or another role"),
        ({"role": "target"}, "has other frames or another role"),
        ({"fingerprint": "0" * 64}, "comes from other data"),
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
