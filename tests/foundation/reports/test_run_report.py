"""The report of training: what it says of a run, and that every curve is drawn."""

import json
from pathlib import Path

import numpy as np
import pytest

from foundation.reports.curves import smooth
from foundation.reports.run_report import facts_of, read_run, remarks, summary_table, write_run_report
from foundation.training.monitoring.metrics_file import MetricsFile

SPEED = {
    "speed/atoms_per_second": 1000.0,
    "speed/edges_per_second": 30000.0,
    "speed/data_wait": 0.01,
    "speed/budget_fill": 0.97,
    "speed/imbalance_edges": 1.01,
    "speed/imbalance_seconds": 1.02,
    "speed/peak_memory": 2.0,
}


def a_run(folder: Path, *, steps: int = 200, **changes: float) -> Path:
    """Write a run that was stopped half way and went on, with a metric changed in all rows."""
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"fit": {"steps": 200}}))
    for first in (0, 100):
        file = MetricsFile(folder / "logs", first)
        file.append("start", first, {"processes": 2, "device": "cpu"})
        for step in range(first + 1, min(first + 100, steps) + 1):
            row = {name: 1.0 + 10.0 / step for name in ("train/loss", "train/energy_mae", "train/force_mae")}
            row |= {f"train/loss_{name}": row["train/loss"] / 3 for name in ("energy", "forces", "stress")}
            row |= {"train/gradient_norm": 5.0, "train/learning_rate": 0.01, "train/skipped_steps": 0.0}
            row |= {"seen/frames": 16.0 * step, "seen/atoms": 80.0 * step, "seen/edges": 4000.0 * step}
            file.append("train", step, row | SPEED | {"run/device_hours": step / 100} | changes)
            if step % 50 == 0:
                elements = {"Al": {"force_mae": 0.02, "energy_mae": 0.01, "atoms": 30.0, "frames": 7.0}}
                errors = {"val/force_mae": 2.0 / step, "val/energy_mae": 0.01, "val/by_element": elements}
                file.append("validation", step, errors | {"val/bulk/force_mae": 0.1})
    return folder


def test_the_facts_are_those_of_the_log(tmp_path: Path) -> None:
    facts = facts_of(read_run(a_run(tmp_path / "run")))
    assert (facts.step, facts.num_steps, facts.num_resumes, facts.processes) == (200, 200, 1, 2)
    assert facts.last["seen/edges"] == 800_000.0
    assert facts.means["speed/data_wait"] == pytest.approx(0.01)
    assert facts.validation["val/force_mae"] == 0.01
    rows = dict(summary_table([facts]))
    assert rows["frames seen"] == ["3,200"]
    assert rows["waiting for data, mean [%]"] == ["1.0"]
    assert rows["validation force MAE [meV/Å], last"] == ["10.00"]
    assert rows["validation stress MAE [GPa], last"] == ["–"]
    assert remarks(facts) == []


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("train/skipped_steps", 3.0, "3 steps were skipped"),
        ("seen/quarantined_frames", 256.0, "256 frames were left out"),
        ("speed/data_wait", 0.25, "waited for data 25% of the time"),
        ("speed/budget_fill", 0.5, "filled to 50%"),
        ("speed/imbalance_seconds", 1.4, "1.40 times as long"),
    ],
)
def test_what_deserves_a_look_is_said(name: str, value: float, words: str, tmp_path: Path) -> None:
    (remark,) = remarks(facts_of(read_run(a_run(tmp_path / "run", **{name: value}))))
    assert words in remark


def test_a_run_that_has_not_ended_is_reported_as_far_as_it_is(tmp_path: Path) -> None:
    (remark,) = remarks(facts_of(read_run(a_run(tmp_path / "run", steps=120))))
    assert "120 of 200 steps" in remark


def test_the_page_holds_all_it_needs(tmp_path: Path) -> None:
    write_run_report([a_run(tmp_path / "one run")], tmp_path / "page")
    files = {path.stem for path in (tmp_path / "page").glob("*.png")}
    assert files == {"loss", "errors", "optimizer", "speed", "balance", "elements"}
    page = (tmp_path / "page" / "index.html").read_text()
    assert page.count("data:image/png;base64,") == len(files)
    assert "http" not in page
    for words in (
        "<h1>one run</h1>",
        "3,200",
        "No remarks on",
        "meV/atom, validation",
        "<td>Al</td><td>30</td>",
    ):
        assert words in page
    assert json.loads((tmp_path / "page" / "training.json").read_text())[0]["name"] == "one run"


def test_several_runs_share_a_page(tmp_path: Path) -> None:
    runs = [a_run(tmp_path / "first"), a_run(tmp_path / "second", **{"train/skipped_steps": 2.0})]
    write_run_report(runs, tmp_path / "page")
    page = (tmp_path / "page" / "index.html").read_text()
    assert "<th>first</th><th>second</th>" in page
    assert "Remarks: second" in page
    assert {"elements-1.png", "elements-2.png"} <= {path.name for path in (tmp_path / "page").iterdir()}


def test_metrics_that_were_not_finite_leave_gaps(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    file = MetricsFile(run / "logs", 200)
    file.append("train", 201, read_run(run).train[-1] | {"train/loss": float("nan"), "train/force_mae": float("nan")})
    (facts,) = write_run_report([run], tmp_path / "page")
    assert facts.last["train/loss"] is None
    assert dict(summary_table([facts]))["training loss, last"] == ["–"]


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no run\.json"):
        read_run(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({"fit": {"steps": 5}}))
    with pytest.raises(ValueError, match="not logged a step yet"):
        read_run(tmp_path)


def test_smoothing_is_the_mean_of_the_neighbours_there_are() -> None:
    values = np.array([1.0, 2.0, 6.0, 4.0])
    np.testing.assert_allclose(smooth(values, 1), [1.5, 3.0, 4.0, 5.0])
    np.testing.assert_allclose(smooth(np.full(100, 7.0), 9), 7.0)
