"""`foundation report`, from the command line."""

from pathlib import Path

import pytest

from launch.__main__ import main, parse
from tests.foundation.reports.test_run_report import a_run


def test_a_run_is_named_with_or_without_the_option(tmp_path: Path) -> None:
    one, two = str(tmp_path / "one, or so"), str(tmp_path / "two")
    assert parse(["report", one])[1].run == Path(one)
    assert parse(["report", "--run", one, "--out", two])[1].run == Path(one)
    assert parse(["report", one, two, "--out", "page"])[1].run == (Path(one), Path(two))


def test_the_report_is_in_the_folder_of_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = a_run(tmp_path / "run", **{"speed/data_wait": 0.25})
    assert main(["report", str(run)]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "training energy MAE [meV/atom], last" in printed
    assert "remark: run: processes waited for data 25% of the time" in printed
    assert (run / "curves" / "index.html").is_file()
    assert (run / "logs" / "metrics.csv").read_text().count("\n") == 1 + 200 + 4


def test_several_runs_need_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [str(a_run(tmp_path / name)) for name in ("one", "two")]
    assert main(["report", *runs]) == 2
    assert "name one with --out" in capsys.readouterr().err
    assert main(["report", *runs, "--out", str(tmp_path / "page")]) == 0
    assert (tmp_path / "page" / "index.html").is_file()


def test_what_is_no_run_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(tmp_path)]) == 2
    assert "no run.json" in capsys.readouterr().err
