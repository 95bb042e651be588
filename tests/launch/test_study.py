"""Studies: one command builds, trains, judges and draws; what is finished is kept; a wrong file is refused by name."""

import logging
from pathlib import Path

import pytest
import yaml

from foundation.evaluation.suites import Chart, Curve, Finding, Findings
from foundation.evaluation.suites.seeds import averaged
from foundation.reports.study_report import Bar, Judged, StudyRecord, bar_rows
from launch.study import Stages, StudyConfig, read_study, study
from launch.verbs import parse

SUITE = {"crystals": [{"elements": ["Cu"], "prototype": "fcc", "lattice_constant": 3.6}]}
QUANTITY = "Cu fcc: bulk modulus"
FILE = {
    "title": "Metals",
    "question": "Is copper stiff?",
    "data": {"metals": {"source.num_frames": 60, "cutoffs": [4.0], "val_fraction": 0.1}},
    "pretrain": {
        "data": "metals",
        "model": {"irreps": "4x0e+2x1e", "max_degree": 1, "radial_sizes": [8], "cutoff": 4.0, "cutoff_onset": 3.5},
        "model.num_blocks": 1,
        "fit": {"steps": 30, "lanes": 1, "edge_budget": 2000},
    },
    "runs": {"ours": {"optim.learning_rate": 0.01}},
    "seeds": [0, 1],
    "jobs": 2,
    "calculators": {"EMT": "ase.calculators.emt:EMT"},
    "suites": [SUITE],
    "bars": [{"subject": "EMT", "suite": "equation of state", "quantity": QUANTITY, "at_least": 100, "at_most": 200}],
    "quick": {"pretrain.fit.steps": 2, "seeds": [0], "data.metals.source.num_frames": 30},
}


def written(folder: Path, **changes: object) -> Path:
    """Return the file of a study."""
    file = folder / "metals.yaml"
    file.write_text(yaml.safe_dump(FILE | changes))
    return file


@pytest.mark.long
def test_one_command_answers_and_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.INFO)
    config = StudyConfig(name=str(written(tmp_path)), quick=True)
    assert study(config, parse) == 0
    out = tmp_path / "runs/study/metals-quick"
    record = StudyRecord.from_json(out / "study.json")
    assert record.quick
    assert list(record.subjects["ours"].seeds) == ["seed0"]
    assert record.subjects["ours"].training_seconds["seed0"] > 1
    (row,) = bar_rows(record)
    assert row.kept
    page = (out / "index.html").read_text()
    assert "Is copper stiff?" in page
    assert f"equation of state, {QUANTITY} [GPa]" in page
    # a judgement is lost: only it is done again
    (out / "judged/EMT/suites.json").unlink()
    caplog.clear()
    assert study(config, parse) == 0
    started = [each.getMessage() for each in caplog.records if " starts; " in each.getMessage()]
    assert len(started) == 1
    assert started[0].startswith("EMT starts")
    assert StudyRecord.from_json(out / "study.json").subjects == record.subjects
    # a step of before an option existed is a step with the option's default
    configuration = next(out.glob("runs/configs/*.yaml"))
    before = yaml.safe_load(configuration.read_text())
    del before["optim"]["ema_decay"]
    configuration.write_text(yaml.safe_dump(before))
    assert study(config, parse) == 0
    changed = written(tmp_path, pretrain={**FILE["pretrain"], "optim.learning_rate": 0.5}, runs={"ours": {}})
    with pytest.raises(ValueError, match=r"ours-seed0 was made with other options: optim.learning_rate was"):
        study(StudyConfig(name=str(changed), quick=True), parse)


def test_a_step_that_fails_is_missing_and_the_others_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    subjects = {"subjects": {"lost": str(tmp_path / "nowhere")}, "data": {}, "runs": {}, "pretrain": None}
    file = written(tmp_path, **subjects)
    assert study(StudyConfig(name=str(file), out=tmp_path / "out"), parse) == 1
    record = StudyRecord.from_json(tmp_path / "out/study.json")
    assert record.missing == ("evaluate lost",)
    assert record.subjects["EMT"].values("equation of state", QUANTITY)[0] == pytest.approx(140, abs=20)
    assert "evaluate lost failed and is missing" in (tmp_path / "out/index.html").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pretrain": None}, "runs need pretrain or finetune"),
        ({"finetune": {"start": "x"}}, "only one of them"),
        ({"runs": {}, "calculators": {}}, "must name something to judge"),
        ({"runs": {"EMT": {}}}, "EMT names two subjects"),
        ({"calculators": {"a/b": "c:d"}}, "nothing can be named 'a/b'"),
        ({"colour": "red"}, "it cannot have 'colour'"),
        ({"data": [1]}, "data must map names to options"),
        ({"seeds": ["a"]}, "seeds"),
        ({"own_suites": {"theirs": ["eos"]}}, "own_suites names 'theirs', which is no run or subject"),
        ({"bars": [{"subject": "x"}]}, "bars"),
    ],
)
def test_a_wrong_file_is_refused_with_its_name(changes: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"metals.yaml: .*{message}"):
        read_study(written(tmp_path, **changes), quick=False)


def test_a_wrong_option_of_a_step_is_refused_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = written(tmp_path, runs={"ours": {"fit.step": 3}})
    with pytest.raises(ValueError, match=r"pretrain ours-seed0: unknown option 'fit.step'"):
        study(StudyConfig(name=str(file)), parse)
    with pytest.raises(FileNotFoundError, match="study/coulumb: no such file"):
        study(StudyConfig(name="coulumb"), parse)
    assert not (tmp_path / "runs").exists()


def test_a_subject_may_have_suites_of_its_own_which_read_data_of_the_study(tmp_path: Path) -> None:
    own = {
        "EMT": [
            {
                "spheres": [{"frozen_radii": [4.0]}, {"frozen_radii": [4.0], "temperature": 9}],
                "data": ["metals", "elsewhere"],
            }
        ]
    }
    plan = read_study(written(tmp_path, own_suites=own), quick=True)
    judging = {job.name: job.record["suites"] for job in Stages(plan, tmp_path / "out", parse).judging}
    assert judging.keys() == {"ours-seed0", "EMT"}
    assert [suite["crystals"][0]["elements"] for suite in judging["ours-seed0"]] == [["Cu"]]
    assert judging["EMT"][0]["data"] == [str(tmp_path / "out/data/metals"), "elsewhere"]


def test_the_short_form_leaves_out_what_it_has_as_null(tmp_path: Path) -> None:
    runs = {"ours": {}, "others": {"data": "alloys"}}
    short = {"runs.others": None, "data": {"alloys": None}, "own_suites.others": None}
    changes = {"runs": runs, "own_suites": {"others": ["eos"]}, "data": FILE["data"] | {"alloys": {}}, "quick": short}
    file = written(tmp_path, **changes)
    plan = read_study(file, quick=True)
    assert (plan.runs.keys(), plan.data.keys(), plan.own_suites) == ({"ours"}, {"metals"}, {})
    assert read_study(file, quick=False).runs.keys() == runs.keys()


def finding(value: float | None) -> Findings:
    curve = Curve(x=(1.0, 2.0), y=(value, 1.0))
    same = Curve(x=(1.0, 2.0), y=(5.0, 5.0), reference=True)
    chart = Chart(x="x", y="y", curves={"": curve, "exact": same})
    return Findings(quantities={"depth": Finding(value=value, unit="eV")}, charts={"Depth": chart})


def test_seeds_become_means_with_ranges() -> None:
    mean = averaged([finding(1.0), finding(2.0), finding(6.0)])
    assert mean.quantities["depth"] == Finding(value=3.0, unit="eV", interval=(1.0, 6.0))
    curve = mean.charts["Depth"].curves[""]
    assert (curve.y, curve.low, curve.high) == ((3.0, 1.0), (1.0, 1.0), (6.0, 1.0))
    assert mean.charts["Depth"].curves["exact"].y == (5.0, 5.0)
    assert averaged([finding(1.0)]) == finding(1.0)
    lost = averaged([finding(1.0), finding(None)])
    assert lost.quantities["depth"].value is None
    assert lost.charts["Depth"].curves[""].y == (None, 1.0)


def test_limits_are_absolute_or_relative_to_another_subject_and_unknown_without_a_value() -> None:
    subjects = {
        "deep": Judged(seeds={"seed0": {"wells": finding(2.0)}, "seed1": {"wells": finding(3.0)}}),
        "flat": Judged(seeds={"": {"wells": finding(10.0)}}),
        "lost": Judged(seeds={"": {"wells": finding(None)}}),
    }
    limits = [
        ("deep", {"at_least": 2.5}, True),
        ("deep", {"at_least": 2.6}, False),
        ("deep", {"at_most": 0.25, "times": "flat"}, True),
        ("deep", {"at_most": 0.2, "times": "flat"}, False),
        ("deep", {"at_most": 1.0, "times": "lost"}, None),
        ("lost", {"at_most": 1.0}, None),
        ("nobody", {"at_most": 1.0}, None),
    ]
    bars = tuple(Bar(subject=name, suite="wells", quantity="depth", **limit) for name, limit, _ in limits)
    rows = bar_rows(StudyRecord(title="t", question="q", subjects=subjects, bars=bars))
    assert [row.kept for row in rows] == [kept for _, _, kept in limits]
    assert rows[0].found == "2.5 (2, 3)"
    assert rows[2].limit == "≤ 0.25 × flat"
