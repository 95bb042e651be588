"""metrics.jsonl has every step once, whatever happened to the run."""

import csv
import json
import resource
import signal
from pathlib import Path

import pytest

from foundation.training.monitoring.metrics_file import MetricsFile, read_rows, write_csv


def written(folder: Path, steps: list[int], first_step: int = 0) -> MetricsFile:
    file = MetricsFile(folder, first_step)
    file.append("start", first_step, {"processes": 1})
    for step in steps:
        file.append("train", step, {"train/loss": 0.5 * step})
    return file


def steps(folder: Path) -> list[tuple[str, int]]:
    return [(row["kind"], row["step"]) for row in read_rows(folder)]


def test_a_row_can_be_read_as_soon_as_it_is_written(tmp_path: Path) -> None:
    written(tmp_path, [1, 2])
    assert steps(tmp_path) == [("start", 0), ("train", 1), ("train", 2)]
    assert read_rows(tmp_path)[2]["train/loss"] == 1.0


def test_rows_from_after_the_checkpoint_are_dropped_and_written_again(tmp_path: Path) -> None:
    written(tmp_path, [1, 2, 3, 4])
    written(tmp_path, [3, 4, 5], first_step=2)
    assert steps(tmp_path) == [
        ("start", 0),
        ("train", 1),
        ("train", 2),
        ("start", 2),
        *(("train", n) for n in (3, 4, 5)),
    ]


def test_a_torn_last_line_is_left_out_and_does_not_spoil_the_next(tmp_path: Path) -> None:
    written(tmp_path, [1, 2])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 3, "train/lo')
    assert steps(tmp_path)[-1] == ("train", 2)
    written(tmp_path, [3], first_step=2)
    assert steps(tmp_path)[-2:] == [("start", 2), ("train", 3)]
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line)


def test_a_validation_that_is_repeated_after_a_resume_is_not_there_twice(tmp_path: Path) -> None:
    written(tmp_path, [1, 2]).append("validation", 2, {"val/force_mae": 0.1})
    written(tmp_path, [], first_step=2).append("validation", 2, {"val/force_mae": 0.1})
    assert steps(tmp_path).count(("validation", 2)) == 1


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    MetricsFile(tmp_path, 0).append("train", 1, {"train/loss": float("nan"), "train/gradient_norm": float("inf")})
    (row,) = read_rows(tmp_path)
    assert row["train/loss"] is row["train/gradient_norm"] is None


def test_the_table_has_all_rows_and_leaves_empty_what_a_row_lacks(tmp_path: Path) -> None:
    file = written(tmp_path, [1])
    file.append("validation", 1, {"val/force_mae": 0.1, "val/by_element": {"Al": {"force_mae": 0.1}}})
    write_csv(tmp_path)
    with (tmp_path / "metrics.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    assert [row["kind"] for row in rows] == ["train", "validation"]
    assert [row["train/loss"] for row in rows] == ["0.5", ""]
    assert [row["val/force_mae"] for row in rows] == ["", "0.1"]
    assert "val/by_element" not in rows[0]


def test_a_full_disk_loses_the_rows_that_do_not_fit_and_no_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = written(tmp_path, [1])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        # room for a part of the next line
        resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / "metrics.jsonl").stat().st_size + 10, limits[1]))
        file.append("train", 2, {"train/loss": 1.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    file.append("train", 3, {"train/loss": 1.5})
    assert "the row of step 2 is lost" in caplog.text
    assert steps(tmp_path) == [("start", 0), ("train", 1), ("train", 3)]
