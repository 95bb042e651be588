"""Distillation: a short form from cells to release; acceptance decides; the steps are those of a study."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

import foundation
from foundation.reports.study_report import StudyRecord
from launch.distill import DistillConfig, accepted, distill, is_current, read_distillation, release_jobs
from launch.jobs import Job, Processes
from launch.verbs import parse
from tests.launch.test_packaged_studies import work_here

PACKAGED = Path(__file__).parents[2] / "configs/distill"
EASY = {"subject": "student", "suite": "errors", "quantity": "dynamics of the teacher: force MAE", "at_most": 1e9}


@pytest.mark.parametrize("name", sorted(path.stem for path in PACKAGED.glob("*.yaml")))
def test_packaged_ones_are_whole(name: str) -> None:
    for quick in (False, True):
        plan = read_distillation(PACKAGED / f"{name}.yaml", quick=quick)
        steps = plan.study()
        assert list(steps.runs)[-1] == "student"
        assert len(steps.runs) == plan.rounds + 1
        assert steps.runs["student"]["data"] == ["explored", *(f"round-{number + 1}" for number in range(plan.rounds))]
        assert steps.data["round-1"]["source"]["driver"] == "student-0"
        assert steps.data["held-out"]["source"]["seed"] != steps.data["explored"]["source"].get("seed", 0)
        assert Path(steps.data["explored"]["source"]["explored"][0]).is_file()


def test_the_short_form_goes_from_cells_to_a_release_and_is_not_done_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[str] = []

    def work(processes: Processes, todo: list[Job]) -> dict[Job, int]:
        jobs.extend(f"{job.verb} {job.name}" for job in todo)
        return work_here(processes, todo)

    monkeypatch.setattr(Processes, "work", work)
    logging.getLogger("lightning").setLevel(logging.ERROR)
    values = yaml.safe_load((PACKAGED / "silicon.yaml").read_text())
    values["structures"]["explored"] = values["likeness"]["starts"] = ["si.xyz"]
    cells = (PACKAGED / "silicon.xyz").read_text().splitlines(keepends=True)
    (tmp_path / "si.xyz").write_text("".join(cells[:10]))  # diamond alone
    (tmp_path / "si.yaml").write_text(yaml.safe_dump({**values, "bars": [EASY]}))
    config = DistillConfig(name=str(tmp_path / "si.yaml"), out=tmp_path / "out", quick=True)
    assert distill(config, parse) == 0
    assert jobs == [
        *("build explored", "build held-out", "pretrain student-0", "build round-1", "evaluate student-0"),
        *("pretrain student", "evaluate student", "evaluate report", "export release"),
        *("merge training", "uncertainty uncertainty"),
    ]
    student = foundation.load(tmp_path / "out/release")
    assert student.elements == (14,)
    assert student.theories == ("predictions of sevennet-0",)
    card = (tmp_path / "out/release/README.md").read_text()
    assert "likeness, si, 300 K: likeness of pair distances" in card
    labels = json.loads((tmp_path / "out/data/round-1/manifest.json").read_text())["provenance"]
    assert labels["level_of_theory"] == "predictions of sevennet-0"
    jobs.clear()
    assert distill(config, parse) == 0
    assert jobs == []
    # what would be done for a student that was trained again
    out = tmp_path / "out"
    report, export, merge, _ = release_jobs(read_distillation(tmp_path / "si.yaml", quick=True).study(), out, parse)
    assert all(is_current(job, out / "runs/student") for job in (report, export, merge))
    assert not is_current(export, out / "runs/student-0")
    with pytest.raises(ValueError, match=r"training was made with other options than training has now: remove it"):
        is_current(replace(merge, record={**merge.record, "manifests": []}), out / "runs/student")
    (tmp_path / "si.yaml").write_text(yaml.safe_dump({**values, "bars": [{**EASY, "at_most": 0.0}]}))
    assert distill(config, parse) == 1


def test_a_limit_that_is_missed_or_unknown_is_no_acceptance(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plan = read_distillation(PACKAGED / "silicon.yaml", quick=False)
    record = StudyRecord(title="x", question="x", subjects={}, bars=plan.bars)
    assert not accepted(record)
    assert caplog.text.count("not accepted: student") == len(plan.bars)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bars": []}, "bars must name at least one limit"),
        ({"bars": [{**EASY, "subject": "teacher"}]}, "all of them the subject student"),
        ({"rounds": -1}, "rounds must be at least 0"),
        ({"colour": "red"}, "it cannot have 'colour'"),
        ({"teacher": None}, "teacher"),
    ],
)
def test_a_wrong_file_is_refused_with_its_own_name(changes: dict, message: str, tmp_path: Path) -> None:
    values = yaml.safe_load((PACKAGED / "silicon.yaml").read_text())
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({**values, **changes}))
    with pytest.raises(ValueError, match=rf"mine.yaml: .*{message}"):
        read_distillation(tmp_path / "mine.yaml", quick=False)
