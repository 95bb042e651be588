"""Unfinished runs are potentials: of the newest, the best or any checkpoint, built from the checkpoint alone."""

import dataclasses
import json
import shutil
from pathlib import Path

import pytest
import torch

import foundation
from data_pipeline.store.manifest import Manifest
from data_pipeline.store.shards import sha256
from foundation import checkpoint
from foundation.checkpoint import CorruptCheckpoint
from foundation.evaluate import EvaluateConfig, evaluate
from foundation.finetune import AdapterConfig, FinetuneConfig, finetune
from foundation.finetuning.penalties import PenaltyConfig
from foundation.models import EquivariantConfig
from foundation.naming import resolve
from foundation.pretrain import PretrainConfig, pretrain
from foundation.training.fault_tolerance.reading import newest_checkpoint, read_best
from foundation.training.fit_config import FitConfig
from foundation.training.module import TrainingModule
from foundation.training.optim import OptimConfig
from tests.machine import CPU

MODEL = EquivariantConfig(irreps="4x0e+2x1e", num_blocks=1, max_degree=1, radial_sizes=(8,), readout_channels=4)
FIT = FitConfig(steps=8, lanes=1, edge_budget=3000, validate_every=2, checkpoint_every=2, log_every=1)
OPTIM = OptimConfig(learning_rate=0.01, warmup_steps=0, ema_decay=0.5)


class Killed(RuntimeError):
    """The end of a process, as far as its files are concerned."""


@pytest.fixture(scope="module")
def killed(emt_manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretraining that ended in its sixth step."""
    out = tmp_path_factory.mktemp("killed") / "run"
    config = PretrainConfig(data=emt_manifest.root, out=out, model=MODEL, optim=OPTIM, fit=FIT, machine=CPU)
    with pytest.MonkeyPatch.context() as patch:
        kill_in_step(patch, 5)
        with pytest.raises(Killed):
            pretrain(config)
    assert not (out / "potential").exists()
    return out


def kill_in_step(patch: pytest.MonkeyPatch, step: int) -> None:
    real = TrainingModule.training_step

    def training_step(module: TrainingModule, parts: list, number: int) -> None:
        if number == step:
            raise Killed
        real(module, parts, number)

    patch.setattr(TrainingModule, "training_step", training_step)


@pytest.fixture
def run(killed: Path, tmp_path: Path) -> Path:
    """A copy of it, to be spoilt."""
    return Path(shutil.copytree(killed, tmp_path / "run"))


def averaged(run: Path, step: int) -> dict[str, torch.Tensor]:
    state = torch.load(run / "checkpoints" / f"step={step:09d}.ckpt", weights_only=True)["state_dict"]
    return {name.removeprefix("potential."): value for name, value in state.items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def test_a_killed_run_is_the_potential_of_its_newest_checkpoint(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    potential = foundation.load(run)
    assert f"{run} is unfinished: its checkpoint of step 5 is taken, the newest" in caplog.text
    assert same(potential.state_dict(), averaged(run, 5))
    assert not potential.training
    described = resolve(run).describe()
    assert described.weights_sha256 == checkpoint.weights_sha256(potential)
    origin = described.origin
    assert (origin.method, origin.datasets[0]["name"]) == ("pretraining", "emt-test")
    assert origin.checkpoint is not None
    assert (origin.checkpoint.step, origin.checkpoint.steps, origin.checkpoint.finished) == (5, 8, False)


def test_a_checkpoint_can_be_chosen(run: Path) -> None:
    best = read_best(run / "checkpoints")
    assert best is not None
    assert same(foundation.load(run, checkpoint="best").state_dict(), averaged(run, best["step"]))
    assert same(foundation.load(run, checkpoint=4).state_dict(), averaged(run, 4))
    assert same(foundation.load(run, checkpoint="newest").state_dict(), averaged(run, 5))
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 3; there are: (\d, )+5"):
        foundation.load(run, checkpoint=3)
    (run / "checkpoints" / "best.json").unlink()
    with pytest.raises(FileNotFoundError, match="none is the best; take --checkpoint newest"):
        foundation.load(run, checkpoint="best")


def test_without_a_checkpoint_there_is_no_potential_yet(run: Path, tmp_path: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(FileNotFoundError, match="no potential there: the run has no checkpoint yet"):
        foundation.load(run)
    with pytest.raises(ValueError, match=r"checkpoint best: sevennet-0 is no run folder, .* leave it out"):
        foundation.load("sevennet-0", checkpoint="best")


def edited(run: Path, step: int, **changes: object) -> None:
    """Rewrite a checkpoint, with a right checksum."""
    path = run / "checkpoints" / f"step={step:09d}.ckpt"
    state = torch.load(path, weights_only=True)
    state = {name: value for name, value in (state | changes).items() if value is not None}
    torch.save(state, path)
    path.with_name(path.name + ".sha256").write_text(f"{sha256(path)}  {path.name}\n")


def test_a_checkpoint_of_an_older_version_says_what_to_do(run: Path) -> None:
    edited(run, 5, potential=None)
    with pytest.raises(CorruptCheckpoint, match=r"written by an older version .* continue the run with --fit\.resume"):
        foundation.load(run)


def test_a_checkpoint_of_another_network_is_refused(run: Path) -> None:
    described = torch.load(newest_checkpoint(run).path, weights_only=True)["potential"]
    edited(run, 5, potential=described | {"model": described["model"] | {"readout_channels": 2}})
    with pytest.raises(CorruptCheckpoint, match="does not describe its potential"):
        foundation.load(run)


def test_an_unfinished_run_is_evaluated_and_fine_tuned(run: Path, emt_manifest: Manifest, tmp_path: Path) -> None:
    found = evaluate(EvaluateConfig(model=run, data=emt_manifest.root, checkpoint=4))
    assert found.weights_sha256 == resolve(run, 4).describe().weights_sha256
    fit = dataclasses.replace(FIT, steps=2)
    out = tmp_path / "tuned"
    finetune(FinetuneConfig(start=run, checkpoint="best", data=emt_manifest.root, out=out, fit=fit, machine=CPU))
    start = checkpoint.describe(out / "potential").origin.start
    assert start.weights_sha256 == resolve(run, "best").describe().weights_sha256
    assert start.checkpoint is not None
    assert (start.checkpoint.finished, start.checkpoint.reason[:8]) == (False, "the best")


@pytest.mark.long
def test_a_resumed_run_takes_the_checkpoint_that_it_began_with(
    run: Path, emt_manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = sorted((run / "checkpoints").glob("step=000000005*"))
    for path in later:
        path.rename(tmp_path / path.name)
    whole = FinetuneConfig(
        start=run,
        data=emt_manifest.root,
        out=tmp_path / "whole",
        fit=FIT,
        machine=CPU,
        penalty=PenaltyConfig(weight=1e3),
    )
    finetune(whole)
    stopped = dataclasses.replace(whole, out=tmp_path / "stopped")
    with monkeypatch.context() as patch:
        kill_in_step(patch, 3)
        with pytest.raises(Killed):
            finetune(stopped)
    for path in later:  # the start goes on
        (tmp_path / path.name).rename(path)
    resumed = dataclasses.replace(stopped, fit=dataclasses.replace(FIT, resume=True))
    finetune(resumed)
    ours, theirs = (checkpoint.describe(each.out / "potential") for each in (resumed, whole))
    assert ours.weights_sha256 == theirs.weights_sha256
    assert ours.origin.start.checkpoint is not None
    assert ours.origin.start.checkpoint.step == 4
    record = json.loads((resumed.out / "run.json").read_text())
    expected = {"weights_sha256": ours.origin.start.weights_sha256, "checkpoint_step": 4}
    assert record["start_weights"] == expected
    for path in (run / "checkpoints").glob("step=000000004*"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 4; .*The run began with .*another --out"):
        finetune(resumed)


def test_a_start_of_other_weights_is_refused_on_resume(emt_manifest: Manifest, run: Path, tmp_path: Path) -> None:
    start, (potential, described) = tmp_path / "start", resolve(run).read()
    checkpoint.save(potential, start, described.provenance)
    config = PretrainConfig(
        start=start, data=emt_manifest.root, out=tmp_path / "out", model=MODEL, fit=FIT, machine=CPU
    )
    pretrain(config)
    resumed = dataclasses.replace(config, fit=dataclasses.replace(FIT, resume=True))
    pretrain(resumed)
    checkpoint.save(resolve(run, 4).load(), start, described.provenance)
    with pytest.raises(ValueError, match="start has other weights than those that the run began with: put it back"):
        pretrain(resumed)


def test_a_killed_fine_tuning_with_adapters_is_a_potential_without(
    run: Path, emt_manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill_in_step(monkeypatch, 3)
    config = FinetuneConfig(
        start=run, data=emt_manifest.root, out=tmp_path / "tuned", fit=FIT, machine=CPU, adapters=AdapterConfig(rank=2)
    )
    with pytest.raises(Killed):
        finetune(config)
    potential = foundation.load(config.out)
    assert potential.state_dict().keys() == foundation.load(run).state_dict().keys()
    origin = resolve(config.out).describe().origin
    assert origin.num_parameters == sum(p.numel() for p in potential.parameters())
    assert origin.start.weights_sha256 == resolve(run).describe().weights_sha256
    monkeypatch.undo()
    finetune(dataclasses.replace(config, fit=dataclasses.replace(FIT, resume=True, steps=8)))
    saved = checkpoint.describe(config.out / "potential")
    assert saved.origin.checkpoint is not None
    assert resolve(config.out, saved.origin.checkpoint.step).describe().weights_sha256 == saved.weights_sha256


@pytest.fixture(scope="module")
def finished(emt_manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretraining whose rate grows too large, so that its best step is not the last."""
    out = tmp_path_factory.mktemp("finished") / "run"
    optim = OptimConfig(learning_rate=0.3, warmup_steps=7, ema_decay=0.0)
    fit = dataclasses.replace(FIT, steps=7)
    pretrain(PretrainConfig(data=emt_manifest.root, out=out, model=MODEL, optim=optim, fit=fit, machine=CPU))
    return out


def test_a_finished_run_releases_its_best_checkpoint_and_says_so(finished: Path) -> None:
    best = read_best(finished / "checkpoints")
    assert best is not None
    assert best["step"] < 7
    assert same(foundation.load(finished).state_dict(), averaged(finished, best["step"]))
    facts = checkpoint.describe(finished / "potential").provenance
    assert facts["checkpoint"]["step"] == best["step"]
    assert facts["checkpoint"]["reason"].startswith("the best by val/force_mae, ")
    assert facts["validation"]["val/force_mae"] == best["error"]


def test_the_last_step_is_validated_whatever_the_interval(finished: Path) -> None:
    rows = [json.loads(line) for line in (finished / "logs" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if row["kind"] == "validation"] == [2, 4, 6, 7]


def test_a_damaged_best_checkpoint_leaves_the_last_step(
    finished: Path, emt_manifest: Manifest, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    best = read_best(run / "checkpoints")
    assert best is not None
    (run / "checkpoints" / best["file"]).write_bytes(b"damaged")
    optim = OptimConfig(learning_rate=0.3, warmup_steps=7, ema_decay=0.0)
    fit = dataclasses.replace(FIT, steps=7, resume=True)
    pretrain(PretrainConfig(data=emt_manifest.root, out=run, model=MODEL, optim=optim, fit=fit, machine=CPU))
    assert "the potential stays that of the last step" in caplog.text
    assert same(foundation.load(run).state_dict(), averaged(run, 7))
