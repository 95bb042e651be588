"""Finished runs: the potential is saved before anything is measured, and nothing after it can cost a run."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
import torch

import foundation
from data_pipeline.building.build import BuildConfig, build
from data_pipeline.sources import EmtAlloys
from data_pipeline.store.manifest import Manifest, Provenance
from foundation.evaluate import EvaluateConfig, evaluate
from foundation.evaluation.suites import Dimers
from foundation.finetune import FinetuneConfig, finetune, lacks_report
from foundation.finetuning.forgetting import ForgettingConfig, HeldOutConfig
from foundation.models import EquivariantConfig
from foundation.pretrain import PretrainConfig, pretrain
from foundation.run_folder import ReportFailed
from foundation.training.fit_config import FitConfig
from foundation.training.optim import OptimConfig
from launch.__main__ import main
from launch.verbs import REPORT_FAILED
from tests.machine import CPU

MODEL = EquivariantConfig(irreps="4x0e+2x1e", num_blocks=1, max_degree=1, radial_sizes=(8,), readout_channels=4)
FIT = FitConfig(steps=4, lanes=1, edge_budget=3000, validate_every=2, checkpoint_every=2, log_every=1)
OPTIM = OptimConfig(learning_rate=3e-3, warmup_steps=0, weight_decay=0.0, ema_decay=0.0)


BROKEN = ["measure", *(pytest.param(name, marks=pytest.mark.long) for name in ("write_forgetting", "run_suites"))]
LOST = [
    *("forgetting", "checkpoints"),
    *(pytest.param(f"forgetting/{name}", marks=pytest.mark.long) for name in ("index.html", "after.safetensors")),
]


@pytest.fixture(scope="module")
def whole(provenance: Provenance, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """One small set of which nothing is held out, like a few frames of one material."""
    out = tmp_path_factory.mktemp("whole") / "data"
    source = EmtAlloys(num_frames=24, seed=5)
    config = BuildConfig(source=source, provenance=provenance, out=out, val_fraction=0.0, test_fraction=0.0)
    built = build(config)
    assert not built.split("val").shards
    assert not built.split("test").shards
    return built


@pytest.fixture(scope="module")
def start(whole: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of which nothing could be validated."""
    out = tmp_path_factory.mktemp("start") / "run"
    pretrain(PretrainConfig(data=whole.root, out=out, model=MODEL, optim=OPTIM, fit=FIT, machine=CPU))
    return out


@pytest.fixture
def config(start: Path, whole: Manifest, tmp_path: Path) -> FinetuneConfig:
    return FinetuneConfig(start=start, data=whole.root, out=tmp_path / "run", fit=FIT, machine=CPU, optim=OPTIM)


def state(folder: Path) -> dict[str, torch.Tensor]:
    return foundation.load(folder).state_dict()


@pytest.mark.parametrize("alphas", [(), (0.5,)])
def test_a_run_without_held_out_frames_is_finished_and_says_so(
    config: FinetuneConfig, alphas: tuple[float, ...], caplog: pytest.LogCaptureFixture
) -> None:
    tuned = finetune(dataclasses.replace(config, forgetting=ForgettingConfig(alphas=alphas)))
    assert "no held-out frames, neither of the target nor others" in caplog.text
    saved = state(config.out)
    assert all(torch.equal(saved[name], value) for name, value in tuned.state_dict().items())
    report = json.loads((config.out / "forgetting" / "forgetting.json").read_text())
    assert report["sets"] == {}
    page = (config.out / "forgetting" / "index.html").read_text()
    assert "No held-out frames of the target were measured, so learning is unknown." in page


def test_an_empty_retained_set_is_left_out_and_named(
    config: FinetuneConfig, emt_manifest: Manifest, whole: Manifest, caplog: pytest.LogCaptureFixture
) -> None:
    target = (HeldOutConfig(path=emt_manifest.root),)
    retained = (HeldOutConfig(path=whole.root, split="test", name="nothing"),)
    finetune(dataclasses.replace(config, forgetting=ForgettingConfig(target=target, retained=retained)))
    assert f"{whole.root}: its split test is empty, so nothing is measured on it" in caplog.text
    report = json.loads((config.out / "forgetting" / "forgetting.json").read_text())
    assert [row["role"] for row in report["sets"].values()] == ["target"]


def test_an_evaluation_on_an_empty_split_names_those_with_frames(start: Path, whole: Manifest) -> None:
    with pytest.raises(ValueError, match=r"its split test is empty; choose --split train$"):
        evaluate(EvaluateConfig(model=start, data=whole.root))


def forgetting(run: Path) -> dict:
    """Return the numbers of a report."""
    return json.loads((run / "forgetting" / "forgetting.json").read_text()) | {"facts": None}


@pytest.mark.parametrize("broken", BROKEN)
def test_an_error_after_training_costs_the_report_alone_and_it_can_be_made_again(
    config: FinetuneConfig, emt_manifest: Manifest, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets = ForgettingConfig(target=(HeldOutConfig(path=emt_manifest.root),), alphas=(0.5,))
    config = dataclasses.replace(config, forgetting=sets, suites=(Dimers(pairs=(("Cu", "Cu"),), step=0.5),))
    reported = dataclasses.replace(config, out=config.out.with_name("reported"))
    finetune(reported)
    real = getattr(__import__("foundation.finetune", fromlist=[broken]), broken)

    def fails(*arguments: object, **options: object) -> object:
        if (config.out / "potential").is_dir():
            raise ZeroDivisionError("integer division by zero")
        return real(*arguments, **options)

    monkeypatch.setattr(f"foundation.finetune.{broken}", fails)
    with pytest.raises(
        ReportFailed,
        match=rf"potential is saved .*ZeroDivisionError.*: foundation report {re.escape(str(config.out))}$",
    ):
        finetune(config)
    saved = {file.name: file.read_bytes() for file in (config.out / "potential").iterdir()}
    monkeypatch.undo()
    assert main(["report", str(config.out)]) == 0
    assert {file.name: file.read_bytes() for file in (config.out / "potential").iterdir()} == saved
    assert forgetting(config.out) == forgetting(reported.out)


def test_the_command_line_says_how_to_make_a_report_again_and_that_command_works(
    config: FinetuneConfig, emt_manifest: Manifest, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    words = ["finetune", "--start", str(config.start), "--data", str(config.data), "--out", str(config.out)]
    words += ["--fit.steps", "2", "--fit.lanes", "1", "--fit.edge_budget", "3000", "--fit.validate_every", "2"]
    words += ["--fit.log_every", "1", "--machine.accelerator", "cpu", "--optim.warmup_steps", "0"]
    words += ["--forgetting.target", json.dumps([{"path": str(emt_manifest.root)}])]

    def fails(*arguments: object) -> object:
        raise OSError("no space left on the device")

    monkeypatch.setattr("foundation.finetune.write_forgetting", fails)
    assert main(words) == REPORT_FAILED == 3
    assert "no space left" in caplog.text
    said = caplog.text.partition("without training: foundation ")[2].split("\n")[0]
    assert main(said.split()) == REPORT_FAILED
    monkeypatch.undo()
    assert main(said.split()) == 0
    assert (config.out / "forgetting" / "index.html").is_file()
    assert (config.out / "curves" / "index.html").is_file()


@pytest.mark.parametrize("lost", LOST)
def test_a_report_is_made_again_where_it_is_missing_or_of_other_weights(
    config: FinetuneConfig, lost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    finetune(config)
    path, whole = config.out / lost, forgetting(config.out)
    if lost == "checkpoints":  # with a report of the weights before more steps
        shutil.copyfile(config.out / "forgetting" / "before.safetensors", config.out / "forgetting/after.safetensors")
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    assert lacks_report(config.out)
    assert main(["report", str(config.out)]) == 0
    assert forgetting(config.out) == whole
    assert not lacks_report(config.out)
    # what is there is not measured again, nor that of a run of another kind
    monkeypatch.setattr("foundation.finetune.measure", None)
    assert main(["report", str(config.out)]) == 0
    assert not lacks_report(config.start)
