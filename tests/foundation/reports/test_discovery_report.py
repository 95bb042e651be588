"""The report of a discovery benchmark: metrics of known predictions, sets of materials, missing predictions."""

from pathlib import Path

import numpy as np
import pytest

from data_pipeline.store.untrusted import CorruptFile
from foundation.reports import discovery_report
from foundation.reports.discovery_report import (
    DiscoveryRecord,
    Prediction,
    discovery_rows,
    stability_of,
    summary_rows,
    write_discovery,
)

RECORD = DiscoveryRecord(
    subject="x", max_force=0.05, max_steps=500, date="2026-01-02", num_materials=4, num_converged=3, num_steps=80
)


def predictions(count: int, *, unique: bool | None = True) -> list[Prediction]:
    random = np.random.default_rng(0)
    true = random.normal(0.05, 0.1, count)
    return [
        Prediction(true=float(each), predicted=float(each + shift), unique=unique)
        for each, shift in zip(true, random.normal(0, 0.02, count), strict=True)
    ]


def test_sets_are_all_unique_and_the_most_stable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery_report, "MOST_STABLE", 20)
    found = stability_of([*predictions(100), *predictions(60, unique=False)])
    assert {name: each.num_materials for name, each in found.items()} == {
        "all materials": 160,
        "unique prototypes": 100,
        "20 predicted most stable": 20,
    }
    first, unique = found["20 predicted most stable"], found["unique prototypes"]
    stable = sum(each.true <= 0 for each in predictions(100)) / 100
    assert first.precision is not None
    assert first.acceleration == pytest.approx(first.precision / stable)
    assert unique.acceleration == pytest.approx(unique.precision / stable)  # pyright: ignore[reportOptionalOperand]


def test_without_the_column_there_are_no_unique_prototypes() -> None:
    assert list(stability_of(predictions(5, unique=None))) == ["all materials"]
    assert stability_of([]) == {}


def test_materials_without_predictions_have_no_errors(tmp_path: Path) -> None:
    missing = [Prediction(true=0.1, predicted=float("nan"), unique=None)]
    found = stability_of(missing)["all materials"]
    assert (found.num_missing, found.mae, found.f1, found.precision) == (1, None, None, None)
    write_discovery(RECORD, missing, tmp_path)
    assert (tmp_path / "discovery.png").is_file()


def test_the_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    known = predictions(30)
    record = DiscoveryRecord(
        **{**vars(RECORD), "stability": stability_of(known), "failures": {"<b>x</b>": "why"}, "deviation": 0.02}
    )
    write_discovery(record, known, tmp_path)
    assert DiscoveryRecord.from_json(tmp_path / "discovery.json") == record
    page = (tmp_path / "index.html").read_text()
    assert "<b>x</b>" not in page
    assert "&lt;b&gt;x&lt;/b&gt;" in page
    assert dict(summary_rows(record))["RMSD [(V/N)^(1/3)]"] == "0.02"
    rows = {title: cells for title, *cells in discovery_rows(record)}
    errors = 1000 * np.mean([abs(each.predicted - each.true) for each in known])
    assert float(rows["mean absolute error [meV/atom]"][0]) == pytest.approx(errors, rel=1e-3)
    (tmp_path / "discovery.json").write_text("{}")
    with pytest.raises(CorruptFile, match="run it again"):
        DiscoveryRecord.from_json(tmp_path / "discovery.json")
