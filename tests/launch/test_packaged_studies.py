"""Packaged studies in their short form: every step works, in this process, and the page has every subject and limit."""

import logging
from collections.abc import Sequence
from pathlib import Path

import pytest

from foundation.reports.study_report import StudyRecord, bar_rows
from launch.__main__ import main
from launch.jobs import Job, Processes
from launch.study import StudyConfig, study
from launch.verbs import parse

STUDIES = sorted(path.stem for path in (Path(__file__).parents[2] / "configs/study").glob("*.yaml"))

LIKE_OTHERS = ("coulomb-variations", "disorder", "force-range", "grains", "ionic-metallic")
"""Studies whose steps are like those of others, which are run sooner."""


def work_here(_: Processes, jobs: Sequence[Job]) -> dict[Job, int]:
    """Do jobs in this process, because starting one takes longer than the work of the short form."""
    codes = {job: main([job.verb, "--config", str(job.config)]) for job in jobs}
    return {job: code for job, code in codes.items() if code}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long) if name in LIKE_OTHERS else name for name in STUDIES]
)
def test_the_short_form_answers(name: str, real_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOUNDATION_DATA", str(real_data))
    monkeypatch.setattr(Processes, "work", work_here)
    logging.getLogger("lightning").setLevel(logging.ERROR)
    assert study(StudyConfig(name=name, out=tmp_path / "out", quick=True), parse) == 0
    record = StudyRecord.from_json(tmp_path / "out/study.json")
    assert record.quick
    assert not record.missing
    for subject, judged in record.subjects.items():
        (findings,) = judged.seeds.values()
        values = [each.value for suite in findings.values() for each in suite.quantities.values()]
        assert any(value is not None for value in values), f"{subject} has no finding"
    # a limit whose subject or suite is misspelt is never found
    named = {(subject, suite) for subject, judged in record.subjects.items() for suite in judged.mean()}
    assert {(bar.subject, bar.suite) for bar in record.bars} <= named
    assert len(bar_rows(record)) == len(record.bars)
    assert (tmp_path / "out/index.html").is_file()
