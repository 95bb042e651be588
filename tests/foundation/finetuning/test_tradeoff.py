"""The trade-off of methods: seeds grouped, who dominates whom, and what cannot be compared."""

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from foundation.evaluation.comparison import RESAMPLES, Statistic
from foundation.evaluation.held_out import Measurement, save
from foundation.finetuning.tradeoff import dominates, read_tuned_run, seconds_per_step, write_tradeoff
from foundation.reports.tradeoff_figures import plane
from foundation.reports.tradeoff_record import Method, Tradeoff
from launch.__main__ import main, parse
from tests.foundation.evaluation.test_comparison import found_in, make_set


def measured(sha: str, *, target: float, retained: float) -> Measurement:
    sets = [
        make_set(error=target, seed=0, name="new", role="target"),
        make_set(error=retained, seed=1, name="old", role="retained"),
        make_set(error=target, seed=2, name="hot", role="transfer"),
    ]
    return Measurement(weights_sha256=sha * 64, sets={errors.name: errors for errors in sets})


START = measured("a", target=1.0, retained=1.0)


def a_run(
    folder: Path, *, target: float, retained: float, seed: int = 0, rate: float = 0.001, alphas: tuple[float, ...] = ()
) -> Path:
    """Write what a finished fine-tuning leaves behind."""
    (folder / "logs").mkdir(parents=True)
    settings = {"out": str(folder), "fit": {"steps": 200, "seed": seed}, "optim": {"rate": rate}}
    (folder / "run.json").write_text(json.dumps(settings))
    rows = [
        {"kind": "train", "step": step, "seen/atoms": 1000.0 * step, "speed/atoms_per_second": 500.0}
        for step in (100, 200)
    ]
    (folder / "logs" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    save(START, folder / "forgetting" / "before.safetensors")
    save(measured("b", target=target, retained=retained), folder / "forgetting" / "after.safetensors")
    for alpha in alphas:
        point = measured("c", target=1 + alpha * (target - 1), retained=1 + alpha**2 * (retained - 1))
        save(point, folder / "forgetting" / "curve" / f"alpha-{alpha:g}.safetensors")
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Return three methods: 'good' learns more and forgets less than 'bad', and 'timid' learns little."""
    good = [
        a_run(tmp_path / f"good-seed{seed}", target=0.4 + 0.01 * seed, retained=1.05, seed=seed) for seed in (1, 2, 3)
    ]
    bad = [a_run(tmp_path / "bad" / f"seed{s}", target=0.6, retained=1.2, seed=s, rate=0.01) for s in (1, 2)]
    return [*good, *bad, a_run(tmp_path / "timid", target=0.9, retained=1.01, rate=0.0001, alphas=(0.5,))]


def by_name(found: Tradeoff) -> dict[str, Method]:
    return {method.name: method for method in found.methods}


def test_runs_that_differ_in_their_seed_are_one_method(tmp_path: Path, runs: list[Path]) -> None:
    found = write_tradeoff([runs[1], runs[0], *runs[2:]], tmp_path / "page")
    methods = by_name(found)
    assert {name: method.seeds for name, method in methods.items()} == {"good": (1, 2, 3), "bad": (1, 2), "timid": (0,)}
    target = methods["good"].points[0].sets["new"]
    start = found.start.errors["new"]["force_mae"].value
    assert start is not None
    assert target.errors["force_mae"].value == pytest.approx(0.42 * start)
    assert target.range["force_mae"] == pytest.approx((0.41 * start, 0.43 * start))
    # all frames change alike, so what is left of the interval is the seeds'
    change = target.change["force_mae"]
    assert change.value == pytest.approx(-0.58)
    assert (change.low, change.high) == pytest.approx((-0.59, -0.57), abs=0.004)
    assert methods["good"].steps == 200
    assert methods["good"].seconds_per_step == pytest.approx(2.0)


def test_a_dominated_method_is_found_with_what_dominates_it(tmp_path: Path, runs: list[Path]) -> None:
    found = write_tradeoff(runs, tmp_path / "page")
    methods = by_name(found)
    assert methods["bad"].points[0].dominated_by == ("good",)
    assert found.non_dominated == ("good", "timid, α = 0.5", "timid")
    (pair,) = (row for row in found.differences if (row.first, row.second) == ("good", "bad"))
    assert pair.forgetting["old"].value == pytest.approx(0.15)
    assert (pair.target["new"].low or 0.0) > 0.0


def test_a_lead_within_the_interval_dominates_nothing() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=RESAMPLES)

    def at(value: float, samples: np.ndarray) -> Statistic:
        return Statistic(value=value, samples=value + samples, num_frames=9)

    worse = [at(1.0, noise), at(1.0, noise)]
    assert dominates([at(0.9, noise), at(0.9, noise)], worse)  # the same frames, always ahead
    assert not dominates([at(0.9, -noise), at(0.9, noise)], worse)  # on one axis ahead by chance
    assert not dominates([at(0.9, noise), at(1.1, noise)], worse)
    assert not dominates(worse, worse)
    few = [replace(statistic, num_frames=2) for statistic in worse]
    assert not dominates([at(0.9, noise), at(0.9, noise)], few)


def test_the_page_the_planes_and_the_numbers_are_written(tmp_path: Path, runs: list[Path]) -> None:
    out = tmp_path / "deep" / "page"
    found = write_tradeoff(runs, out)
    assert json.loads((out / "tradeoff.json").read_text()) == json.loads(json.dumps(asdict(found)))
    assert sorted(path.name for path in out.glob("*.png")) == ["plane-1.png", "plane-2.png"]
    page = re.sub(r'src="data:[^"]*"', "", (out / "index.html").read_text())
    for leftover in ("{{", "{%", "Undefined", "None", "nan", "&lt;br"):
        assert leftover not in page
    force = 1000 * found_in(START.sets["new"])["force_mae"].value
    assert f"<td>{0.6 * force:.1f}<small>−40 % [−40, −40]</small></td>" in page
    assert "good ●" in page
    assert "α = 0.5 ●" in page
    assert str(runs[0]) in page
    write_tradeoff(runs, tmp_path / "again")
    assert (tmp_path / "again" / "index.html").read_bytes() == (out / "index.html").read_bytes()


def test_the_table_has_a_row_for_every_method_and_interpolation(tmp_path: Path, runs: list[Path]) -> None:
    write_tradeoff(runs, tmp_path)
    head, line, *rows = (tmp_path / "table.md").read_text().split("\n\n")[0].splitlines()
    assert {row.count("|") for row in (head, line, *rows)} == {5 + 3 + 2 + 1}
    assert [row.split("|")[1].strip() for row in rows] == ["start", "good ●", "bad", "timid ●", "timid, α = 0.5 ●"]
    force = 1000 * found_in(START.sets["new"])["force_mae"].value
    assert rows[2].startswith(f"| bad | 2 | 200 | 2 | {0.6 * force:.1f} |")
    assert "| +20 % [+20, +20] |" in rows[2]
    assert rows[4].startswith("| timid, α = 0.5 ● |  |  |  |")


@pytest.mark.parametrize(("forgotten", "scale"), [(1.3, "linear"), (8.0, "symlog")])
def test_what_forgets_everything_does_not_hide_the_others(tmp_path: Path, forgotten: float, scale: str) -> None:
    runs = [
        a_run(tmp_path / "good", target=0.5, retained=1.02),
        a_run(tmp_path / "lost", target=0.4, retained=forgotten, rate=1.0),
    ]
    axes = plane(write_tradeoff(runs, tmp_path / "page"), "old", "new").axes[0]
    assert axes.get_xscale() == scale
    assert axes.get_xlim()[1] > 100 * (forgotten - 1)


def test_interpolations_count_where_all_seeds_have_them(tmp_path: Path) -> None:
    runs = [
        a_run(tmp_path / "m-seed1", target=0.5, retained=1.1, seed=1, alphas=(0.5, 0.8)),
        a_run(tmp_path / "m-seed2", target=0.5, retained=1.1, seed=2, alphas=(0.5,)),
    ]
    (method,) = write_tradeoff(runs, tmp_path / "page").methods
    assert [point.alpha for point in method.points] == [0.5, 1.0]


def test_the_time_of_a_step_leaves_out_what_is_no_training_and_a_run_that_was_suspended() -> None:
    rows = [
        {"kind": "start", "step": 0},
        {"kind": "train", "step": 10, "seen/atoms": 100.0, "speed/atoms_per_second": 10.0},
        {"kind": "validation", "step": 10},
        {"kind": "train", "step": 30, "seen/atoms": 200.0, "speed/atoms_per_second": 5.0},
        {"kind": "train", "step": 40, "seen/atoms": 300.0, "speed/atoms_per_second": 0.001},
        {"kind": "train", "step": 50, "seen/atoms": 500.0, "speed/atoms_per_second": 10.0},
        {"kind": "train", "step": 60, "seen/atoms": 700.0, "speed/atoms_per_second": 10.0},
    ]
    assert seconds_per_step(rows) == pytest.approx(2.0)
    assert seconds_per_step(rows[:4]) == pytest.approx(1.0)
    assert seconds_per_step([]) is None


@pytest.mark.parametrize(
    ("folder", "name"),
    [("reewc-1e5-seed3", "reewc-1e5"), ("reewc-1e5/seed3", "reewc-1e5"), ("plain", "plain"), ("a_seed-12", "a")],
)
def test_a_method_is_called_as_its_folder_without_the_seed(tmp_path: Path, folder: str, name: str) -> None:
    assert read_tuned_run(a_run(tmp_path / folder, target=0.5, retained=1.1)).method == name


def test_what_cannot_be_compared_is_refused(tmp_path: Path, runs: list[Path]) -> None:
    with pytest.raises(ValueError, match="no runs to compare"):
        write_tradeoff([], tmp_path / "page")
    with pytest.raises(FileNotFoundError, match=r"has no run\.json"):
        write_tradeoff([tmp_path], tmp_path / "page")
    same = a_run(tmp_path / "good-seed9", target=0.4, retained=1.0, seed=1)
    with pytest.raises(ValueError, match=r"good-seed1 and .*good-seed9 are the same run"):
        write_tradeoff([*runs, same], tmp_path / "page")
    other = a_run(tmp_path / "elsewhere" / "good-seed4", target=0.4, retained=1.0, seed=4, rate=0.5)
    with pytest.raises(ValueError, match=r"both named 'good' but differ in optim\.rate"):
        write_tradeoff([*runs, other], tmp_path / "page")


def test_runs_of_another_start_or_other_sets_are_refused(tmp_path: Path, runs: list[Path]) -> None:
    save(replace(START, weights_sha256="d" * 64), runs[0] / "forgetting" / "before.safetensors")
    with pytest.raises(ValueError, match="started from the weights dddddddddddd…"):
        write_tradeoff(list(reversed(runs)), tmp_path / "page")
    only = replace(START, sets={"new": START.sets["new"]})
    save(only, runs[0] / "forgetting" / "before.safetensors")
    with pytest.raises(ValueError, match="only one of the two measured hot, old"):
        write_tradeoff(list(reversed(runs)), tmp_path / "page")
    save(only, runs[0] / "forgetting" / "after.safetensors")
    with pytest.raises(ValueError, match="measured no retained set"):
        write_tradeoff(runs[:1], tmp_path / "page")
    (runs[1] / "forgetting" / "after.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="no measurement there"):
        write_tradeoff(runs[1:], tmp_path / "page")


def test_the_verb_prints_a_table_and_where_the_page_is(
    tmp_path: Path, runs: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    names = [str(run) for run in runs]
    assert parse(["tradeoff", *names, "--out", "page"])[1].runs == tuple(runs)
    assert parse(["tradeoff", "--runs", json.dumps(names[:1]), "--out", "page"])[1].runs == (runs[0],)
    assert main(["tradeoff", *names, "--out", str(tmp_path / "page")]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "force MAE [meV/Å]; of retained sets its change" in printed
    assert "+5.0 %" in printed
    assert "not dominated: good; timid, α = 0.5; timid" in printed
    assert (tmp_path / "page" / "index.html").is_file()
    assert main(["tradeoff", str(tmp_path), "--out", str(tmp_path / "page")]) == 2
    assert "no run.json" in capsys.readouterr().err
