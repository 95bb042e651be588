"""evaluate(): where reports go, what they are of, and what is refused."""

import dataclasses
import json
import logging
import shutil
from pathlib import Path

import pytest

from data_pipeline.store.manifest import Manifest
from foundation.checkpoint import describe, load, save
from foundation.evaluate import EvaluateConfig, evaluate
from foundation.evaluation.predictions import predict
from foundation.evaluation.quantities import summary
from foundation.models import EquivariantConfig
from foundation.models.equivariant import EquivariantNetwork
from foundation.potential import Potential
from foundation.pretrain import PretrainConfig, pretrain
from foundation.training.fit_config import FitConfig
from tests.machine import CPU

MODEL = EquivariantConfig(irreps="4x0e+2x1e", num_blocks=1, max_degree=1, radial_sizes=(8,), readout_channels=4)
FIT = FitConfig(steps=3, lanes=1, edge_budget=1500, validate_every=3, log_every=1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, emt_manifest: Manifest) -> Path:
    """A finished run without a report; do not write to it."""
    run = tmp_path_factory.mktemp("evaluated") / "run"
    pretrain(PretrainConfig(data=emt_manifest.root, out=run, fit=FIT, machine=CPU, model=MODEL))
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def test_the_report_goes_to_the_run_and_says_what_it_is_of(run: Path, emt_manifest: Manifest) -> None:
    values = evaluate(EvaluateConfig(model=run, data=emt_manifest.root))
    report = run / "report"
    assert sorted(path.name for path in report.iterdir()) == ["evaluation.json", "index.html", "parity.png"]
    assert json.loads((report / "evaluation.json").read_text()) == dataclasses.asdict(values)
    assert values.dataset == "emt-test"
    assert values.split == "test"
    assert values.manifest_fingerprint == emt_manifest.fingerprint
    assert values.weights_sha256 == describe(run / "potential").weights_sha256
    assert values.errors["num_frames"] == emt_manifest.split("test").statistics.num_frames


def test_errors_are_those_of_the_potential_on_the_split(run: Path, emt_manifest: Manifest) -> None:
    values = evaluate(EvaluateConfig(model=run, data=emt_manifest.root, split="val", out=run / "val"))
    expected = summary(predict(load(run), emt_manifest, "val", edge_budget=20000).errors())
    assert {key: values.errors[key] for key in expected} == pytest.approx(expected, rel=1e-12)
    assert not (run / "report").exists()


def test_small_batches_give_the_same_errors(run: Path, emt_manifest: Manifest) -> None:
    large, small = (
        evaluate(EvaluateConfig(model=run, data=emt_manifest.root, edge_budget=budget)).errors for budget in (20000, 10)
    )
    assert small == pytest.approx(large, rel=1e-4)


def test_a_release_inside_a_run_shares_the_runs_report(run: Path, emt_manifest: Manifest) -> None:
    shutil.copytree(run / "potential", run / "release")
    evaluate(EvaluateConfig(model=run / "release", data=emt_manifest.root))
    assert (run / "report" / "index.html").is_file()


def test_a_release_not_exported_yet_stands_for_its_run(
    run: Path, emt_manifest: Manifest, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        evaluate(EvaluateConfig(model=run / "release", data=emt_manifest.root))
    assert "is not exported yet: evaluating the potential of its run" in caplog.text
    assert (run / "report" / "evaluation.json").is_file()


def test_a_release_outside_of_a_run_reports_here_and_not_into_its_neighbourhood(
    run: Path, emt_manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = Path(shutil.copytree(run / "potential", run.parent / "downloads" / "mine"))
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    evaluate(EvaluateConfig(model=release, data=emt_manifest.root))
    assert [path.name for path in release.parent.iterdir()] == ["mine"]
    assert (here / "mine-report" / "index.html").is_file()


def test_wrong_inputs_are_named(run: Path, emt_manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no potential there"):
        evaluate(EvaluateConfig(model=tmp_path / "nowhere" / "run", data=emt_manifest.root))
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        evaluate(EvaluateConfig(model=run, data=tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="no split 'exam'; it has test, train, val"):
        evaluate(EvaluateConfig(model=run, data=emt_manifest.root, split="exam"))


def test_frames_of_unknown_elements_are_counted_in_the_log(
    tmp_path: Path, emt_manifest: Manifest, caplog: pytest.LogCaptureFixture
) -> None:
    known = (13, 28, 29, 46)
    save(Potential(EquivariantNetwork(MODEL, known, mean_neighbors=10.0), known, ("EMT",)), tmp_path / "narrow", {})
    with caplog.at_level(logging.WARNING):
        values = evaluate(EvaluateConfig(model=tmp_path / "narrow", data=emt_manifest.root, out=tmp_path / "report"))
    number, total = int(values.errors["num_skipped"]), emt_manifest.split("test").statistics.num_frames
    assert 0 < number < total
    assert f"emt-test (test): {number} of {total} frames are left out, the potential does not know Ag" in caplog.text
