"""Physics beside errors: deviations from references, and methods that win by one and lose by the other."""

from pathlib import Path

import pytest

from foundation.evaluation.suites import Finding, Findings
from foundation.finetuning.physics import START, contradictions, deviations, physics_axes
from foundation.finetuning.tradeoff import write_tradeoff
from foundation.reports.forgetting_record import SuiteEnds
from tests.foundation.finetuning.test_tradeoff import a_run


def solid(copper: float | None, salt: float = 24.0) -> dict[str, Findings]:
    """Return the findings of a suite whose references are 100 and 20 GPa."""
    return {
        "solids": Findings(
            quantities={
                "Cu fcc: bulk modulus": Finding(value=copper, unit="GPa", reference=100.0),
                "NaCl rocksalt: bulk modulus": Finding(value=salt, unit="GPa", reference=20.0),
                "Cu fcc: volume": Finding(value=12.0, unit="Å³"),
                "sites: displaced": Finding(value=0.1, reference=0.0),
            }
        )
    }


def test_deviations_are_means_over_everything_that_has_a_reference() -> None:
    assert deviations(solid(90.0)) == {("solids", "bulk modulus"): pytest.approx((0.1 + 0.2) / 2)}


def test_one_undetermined_value_leaves_a_quantity_undetermined() -> None:
    assert deviations(solid(None)) == {("solids", "bulk modulus"): None}


def test_axes_are_means_over_seeds_with_their_range() -> None:
    ends = [SuiteEnds(before=solid(110.0, 20.0), after=solid(value, 20.0)) for value in (120.0, 140.0)]
    (axis,) = physics_axes({"two": ends, "one": ends[:1], "none": [SuiteEnds()]})
    assert axis.title == "solids, bulk modulus"
    assert axis.start == pytest.approx(0.05)
    two = axis.methods["two"]
    assert (two.value, two.low, two.high) == pytest.approx((0.15, 0.1, 0.2))
    assert axis.methods["one"].low is None
    assert axis.methods["none"].value is None


def test_without_suites_there_are_no_axes() -> None:
    assert physics_axes({"plain": [SuiteEnds()]}) == ()


@pytest.mark.parametrize(("seeds", "contradicted"), [((120.0, 125.0), True), ((120.0, 101.0), False)])
def test_a_contradiction_needs_all_seeds_of_both(seeds: tuple[float, float], contradicted: bool) -> None:
    methods = {
        "errors": [SuiteEnds(after=solid(value, 20.0)) for value in seeds],
        "physics": [SuiteEnds(after=solid(value, 20.0)) for value in (103.0, 104.0)],
    }
    found = contradictions(physics_axes(methods), {("errors", "physics")})
    assert [(each.by_errors, each.by_physics) for each in found] == [("errors", "physics")] * contradicted
    assert contradictions(physics_axes(methods), {("physics", "errors")}) == ()


def test_the_page_shows_physics_and_says_where_it_contradicts_the_errors(tmp_path: Path) -> None:
    runs = [
        a_run(tmp_path / "bold", target=0.4, retained=1.1),
        a_run(tmp_path / "timid", target=0.9, retained=1.0, rate=0.1),
    ]
    start = solid(100.0, 20.0)
    judged = {
        runs[0]: SuiteEnds(before=start, after=solid(150.0, 20.0)),
        runs[1]: SuiteEnds(before=start, after=solid(104.0, 20.0)),
    }
    found = write_tradeoff(runs, tmp_path / "page", judged)
    pairs = {(each.by_errors, each.by_physics) for each in found.contradictions}
    assert pairs == {("bold", "timid"), ("bold", START), ("timid", START)}
    page = (tmp_path / "page" / "index.html").read_text()
    assert "bold has smaller errors of the target than timid, and is further from the references" in page
    assert (tmp_path / "page" / "physics.png").is_file()
    assert write_tradeoff(runs, tmp_path / "plain").physics == ()
    assert "<h2>Physics</h2>" not in (tmp_path / "plain" / "index.html").read_text()
