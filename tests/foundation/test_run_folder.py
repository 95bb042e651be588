"""A run folder is one run's: others are refused by name, nothing of a killed run is in the way, nothing is mixed."""

import dataclasses
import json
import multiprocessing
import os
import shutil
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.store import lock
from data_pipeline.store.lock import InUse
from data_pipeline.store.manifest import Manifest
from foundation.finetune import FinetuneConfig, finetune
from foundation.models import EquivariantConfig
from foundation.pretrain import PretrainConfig, pretrain
from foundation.training.fault_tolerance import reading
from foundation.training.fault_tolerance.checkpoints import CheckpointFiles
from foundation.training.fit_config import FitConfig
from foundation.training.machine import MACHINE_OPTIONS
from foundation.training.module import TrainingModule
from launch.__main__ import main
from tests.cluster.slurm import wait_until
from tests.machine import CPU

MODEL = EquivariantConfig(irreps="4x0e+2x1e", num_blocks=1, max_degree=1, radial_sizes=(8,), readout_channels=4)
FIT = FitConfig(
    steps=3,
    lanes=2,
    edge_budget=1500,
    validate_every=3,
    checkpoint_every=1,
    log_every=1,
)
context = multiprocessing.get_context("fork")


def config(manifest: Manifest, out: Path, *, overwrite: bool = False, **changes: Any) -> PretrainConfig:
    machine = dataclasses.replace(CPU, **{name: changes.pop(name) for name in MACHINE_OPTIONS if name in changes})
    fit = dataclasses.replace(FIT, **changes)
    return PretrainConfig(data=manifest.root, out=out, model=MODEL, fit=fit, machine=machine, overwrite=overwrite)


@pytest.fixture(autouse=True)
def short_of_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "PATIENCE_HERE", 0.2)


@pytest.fixture(scope="module")
def finished(emt_manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    pretrain(config(emt_manifest, out))
    return out


def at_step_two(config: PretrainConfig, arrived: Event, go_on: Event) -> None:
    """Train, and pause before the third step, when a checkpoint is there."""
    as_written = TrainingModule.training_step

    def pausing(module: TrainingModule, parts: list, step: int) -> None:
        if step == 2:
            arrived.set()
            go_on.wait(60)
        as_written(module, parts, step)

    TrainingModule.training_step = pausing
    pretrain(config)


@contextmanager
def running(config: PretrainConfig) -> Iterator[tuple[BaseProcess, Event]]:
    arrived, go_on = context.Event(), context.Event()
    process = context.Process(target=at_step_two, args=(config, arrived, go_on))
    process.start()
    assert arrived.wait(60)
    # a thread of its own writes it
    wait_until((config.out / "checkpoints" / "step=000000002.ckpt").exists, 60)
    try:
        yield process, go_on
    finally:
        process.kill()
        process.join()


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_second_start_of_any_kind_is_refused_and_touches_nothing(emt_manifest: Manifest, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with running(config(emt_manifest, out)) as (process, go_on):
        before = content(out)
        who = rf"run is in use by process {process.pid} on {socket.gethostname()} since"
        for changes in ({}, {"overwrite": True}, {"resume": "auto"}, {"resume": True}):
            with pytest.raises(InUse, match=who):
                pretrain(config(emt_manifest, out, **changes))
        assert content(out) == before
        go_on.set()
        process.join()
        assert process.exitcode == 0
    assert (out / "potential").is_dir()
    assert not (out / lock.NAME).exists()


def test_a_launcher_refuses_it_before_it_starts_a_process(
    emt_manifest: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with lock.hold(lock.inside(tmp_path / "run"), tmp_path / "run"):
        run = ["pretrain", "--data", str(emt_manifest.root), "--out", str(tmp_path / "run")]
        command = [*run, "--fit.steps", "1", "--model.irreps", "4x0e"]
        assert main(["launch", "local", "--processes", "2", "--", *command]) == 2
    assert "written to by this process" in capsys.readouterr().err


def test_after_a_kill_a_run_starts_again_or_goes_on_at_once(emt_manifest: Manifest, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with running(config(emt_manifest, out)) as (process, _):
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    assert (out / lock.NAME).exists()
    pretrain(config(emt_manifest, out, resume="auto"))
    assert (out / "potential").is_dir()


def test_a_run_that_was_killed_before_it_began_is_in_nobodys_way(emt_manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / lock.NAME).write_text("{}")
    pretrain(config(emt_manifest, tmp_path / "run"))


def test_replacing_a_run_leaves_nothing_of_it(finished: Path, emt_manifest: Manifest, tmp_path: Path) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    (out / "stray").write_text("old")
    (out / "checkpoints" / "step=000000099.ckpt").write_text("old")
    pretrain(config(emt_manifest, out, overwrite=True, steps=2))
    assert not (out / "stray").exists()
    assert json.loads((out / "run.json").read_text())["fit"]["steps"] == 2
    assert sorted(p.name for p in (out / "checkpoints").glob("*.ckpt"))[-1] == "step=000000002.ckpt"


def test_what_was_refused_leaves_no_folder(emt_manifest: Manifest, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint to resume from"):
        pretrain(config(emt_manifest, tmp_path / "run", resume=True))
    assert not (tmp_path / "run").exists()
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError, match="file is a file, but a run needs a folder"):
        pretrain(config(emt_manifest, tmp_path / "file", resume="auto"))


def remove(out: Path) -> None:
    shutil.rmtree(out)


def replace(out: Path) -> None:
    shutil.rmtree(out)
    (out / "checkpoints").mkdir(parents=True)
    (out / "run.json").write_text("another's")


@pytest.mark.parametrize("save_errors", ["stop", "continue"])
@pytest.mark.parametrize("how", [remove, replace])
def test_a_run_whose_folder_is_gone_ends_at_the_next_save_and_makes_no_half_of_one(
    how: Callable[[Path], None],
    save_errors: str,
    emt_manifest: Manifest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    out, as_written = tmp_path / "run", TrainingModule.training_step

    def losing(module: TrainingModule, parts: list, step: int) -> None:
        if step == 1:
            module.trainer.strategy.checkpoint_io.teardown()
            how(out)
        as_written(module, parts, step)

    monkeypatch.setattr(TrainingModule, "training_step", losing)
    guard = dataclasses.replace(FIT.guard, save_errors=save_errors)
    with pytest.raises(OSError, match=r"run was deleted, moved or replaced"):
        pretrain(config(emt_manifest, out, steps=20, guard=guard))
    assert f"{out} was deleted, moved or replaced while it was written to" in caplog.text
    if how is remove:
        assert not out.exists()
    else:
        assert content(out) == {"run.json": b"another's"}


REFUSED = {
    "fit.lanes": ({"lanes": 100_000}, "lanes"),
    "fit.edge_budget": ({"edge_budget": 1}, "larger than the budget"),
    "machine.accelerator": ({"accelerator": "gpu"}, "machine.accelerator gpu: torch finds no GPU here"),
    "fit.backend": ({"backend": "openequivariance"}, "works on cuda, not on cpu"),
    "fit.resume": ({"resume": True}, "no checkpoint"),
}


@pytest.mark.parametrize("option", REFUSED)
def test_a_refused_run_leaves_nothing_and_replaces_nothing(
    option: str, emt_manifest: Manifest, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    changes, message = REFUSED[option]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        pretrain(config(emt_manifest, tmp_path / "run", **changes))
    assert not (tmp_path / "run").exists()
    if not changes.get("resume"):
        old = shutil.copytree(finished, tmp_path / "old")
        before = content(old)
        with pytest.raises(ValueError, match=message):
            pretrain(config(emt_manifest, old, overwrite=True, **changes))
        assert content(old) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 10**20}, "steps must be at most 1,000,000,000,000"),
        ({"steps": 0}, "steps must be at least 1, not 0"),
        ({"edge_budget": 10**13}, "edge_budget must be at most 100,000,000"),
        ({"atom_budget": 0}, "atom_budget must be at least 1"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"radial_table": 10**8}, "a radial table has from 16 to 65,536 knots"),
    ],
)
def test_numbers_that_no_machine_could_follow_are_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(FIT, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_workers": -1}, "num_workers must be at least 0, not -1"),
        ({"devices": 0}, "devices must be at least 1"),
        ({"num_nodes": 10**9}, "num_nodes must be at most 1,000,000"),
    ],
)
def test_hardware_that_does_not_exist_is_refused(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CPU, **changes)


def test_what_a_run_reads_is_not_in_the_folder_that_it_empties(
    emt_manifest: Manifest, finished: Path, tmp_path: Path
) -> None:
    old = shutil.copytree(finished, tmp_path / "old")
    shutil.copytree(emt_manifest.root, old / "data")
    before = content(old)
    inside = dataclasses.replace(config(emt_manifest, old, overwrite=True), data=old / "data")
    for changed in (inside, dataclasses.replace(config(emt_manifest, old, overwrite=True), start=old / "potential")):
        with pytest.raises(
            FileExistsError, match=r"lies in .*old, which the result would replace; choose another --out"
        ):
            pretrain(changed)
    assert content(old) == before


def test_a_run_does_not_empty_the_folder_of_its_start(emt_manifest: Manifest, finished: Path, tmp_path: Path) -> None:
    old = shutil.copytree(finished, tmp_path / "old")
    before = content(old)
    with pytest.raises(FileExistsError, match=r"old lies in .*old, which the result would replace"):
        pretrain(dataclasses.replace(config(emt_manifest, old, overwrite=True), start=old))
    assert content(old) == before


def test_a_folder_without_a_record_of_a_run_is_not_emptied(emt_manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"home has no run\.json, so it is not a run and is not replaced"):
        pretrain(config(emt_manifest, tmp_path / "home", overwrite=True))
    assert content(tmp_path / "home") == {"thesis.tex": b"years of work"}


def test_a_run_that_goes_on_hashes_and_opens_its_checkpoint_once_and_loads_it_once(
    finished: Path, emt_manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = shutil.copytree(finished, tmp_path / "run")
    (out / "checkpoints" / "step=000000003.ckpt").unlink()
    calls: list[str] = []

    def note(owner: Any, name: str, place: int = 0) -> None:
        function = getattr(owner, name)

        def noting(*args: Any, **kwargs: Any) -> Any:
            if Path(args[place]).name == "step=000000002.ckpt":
                calls.append(name)
            return function(*args, **kwargs)

        monkeypatch.setattr(owner, name, noting)

    note(reading, "sha256")
    note(reading, "read_checkpoint")
    note(CheckpointFiles, "load_checkpoint", place=1)
    pretrain(config(emt_manifest, out, resume=True))
    assert (out / "checkpoints" / "step=000000003.ckpt").is_file()
    assert calls == ["sha256", "read_checkpoint", "load_checkpoint"]


def test_whether_a_run_may_begin_is_known_before_data_and_start_are_read(
    finished: Path, emt_manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: object) -> None:
        raise AssertionError("the data were read")

    old = shutil.copytree(finished, tmp_path / "old")
    before = content(old)
    monkeypatch.setattr("foundation.pretrain.open_datasets", read)
    monkeypatch.setattr("foundation.finetuning.preparation.open_datasets", read)
    for refused, message in (
        (config(emt_manifest, old), "already exists"),
        (config(emt_manifest, old, resume=True, precision="bf16"), r"another configuration: .*fit\.precision was"),
    ):
        tuned = FinetuneConfig(start=finished, data=emt_manifest.root, out=old, fit=refused.fit)
        for verb, asked in ((pretrain, refused), (finetune, tuned)):
            with pytest.raises((FileExistsError, ValueError), match=message):
                verb(asked)
    assert content(old) == before
