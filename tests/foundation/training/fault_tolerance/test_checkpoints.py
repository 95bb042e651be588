"""Checkpoints: whole or not at all, checked before use, and exact however often and wherever a run is killed."""

import dataclasses
import glob
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
import torch

from data_pipeline.store.manifest import Manifest
from data_pipeline.store.shards import sha256
from foundation.models import EquivariantConfig
from foundation.pretrain import PretrainConfig, pretrain
from foundation.training.fault_tolerance.checkpoints import CheckpointFiles
from foundation.training.fault_tolerance.guard import GuardConfig
from foundation.training.fault_tolerance.reading import newest_checkpoint
from foundation.training.fit_config import FitConfig
from foundation.training.module import TrainingModule
from foundation.training.optim import OptimConfig
from tests.machine import CPU
from tests.same_state import same_state

MODEL = EquivariantConfig(irreps="4x0e+2x1e", num_blocks=1, max_degree=1, radial_sizes=(8,), readout_channels=4)
FIT = FitConfig(
    steps=8,
    lanes=2,
    edge_budget=1500,
    validate_every=3,
    checkpoint_every=2,
    keep_checkpoints=3,
    log_every=2,
)


def config(manifest: Manifest, out: Path, **changes: object) -> PretrainConfig:
    overwrite = bool(changes.pop("overwrite", False))
    machine = dataclasses.replace(CPU, num_workers=changes.pop("num_workers", 0))
    fit, optim = dataclasses.replace(FIT, **changes), OptimConfig(warmup_steps=2)
    return PretrainConfig(
        data=manifest.root, out=out, model=MODEL, optim=optim, fit=fit, machine=machine, overwrite=overwrite
    )


@pytest.fixture(scope="module")
def finished(emt_manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("finished") / "run"
    pretrain(config(emt_manifest, out))
    return out


def test_what_a_checkpoint_holds(finished: Path) -> None:
    state = torch.load(newest_checkpoint(finished).path, weights_only=True)
    assert state["global_step"] == 8
    assert state["config"]["fit"]["steps"] == 8
    assert state["config"]["model"]["irreps"] == MODEL.irreps
    assert state["TrainingData"]["fingerprint"]["seed"] == 0
    assert {"state_dict", "current_model_state", "averaging_state", "optimizer_states", "lr_schedulers"} <= set(state)


@pytest.mark.parametrize("damage", ["truncated", "a flipped bit", "no checksum"])
def test_a_damaged_newest_checkpoint_is_skipped_and_the_run_ends_in_the_same_bits(
    damage: str, finished: Path, emt_manifest: Manifest, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    newest = newest_checkpoint(out).path
    content = bytearray(newest.read_bytes())
    if damage == "truncated":
        newest.write_bytes(content[: len(content) // 2])
    elif damage == "a flipped bit":
        content[len(content) // 2] ^= 1
        newest.write_bytes(content)
    else:
        newest.with_name(newest.name + ".sha256").unlink()
    assert newest_checkpoint(out).path.name == "step=000000006.ckpt"
    assert f"{newest}: " in caplog.text
    assert "using the previous checkpoint" in caplog.text
    pretrain(config(emt_manifest, out, resume=True))
    assert same_state(finished, out)


def beside(newest: Path, step: int) -> Path:
    return newest.with_name(f"step={step:09d}.ckpt")


def seal(path: Path) -> None:
    path.with_name(path.name + ".sha256").write_text(f"{sha256(path)}  {path.name}\n")


def stray_name(newest: Path) -> None:
    shutil.copy(newest, newest.with_name("step=copy.ckpt"))


def stray_folder(newest: Path) -> None:
    newest.with_name("step=000000099.ckpt").mkdir()
    newest.with_name("step=old.ckpt").mkdir()


def empty_with_its_checksum(newest: Path) -> None:
    beside(newest, 99).write_bytes(b"")
    seal(beside(newest, 99))


def text_with_its_checksum(newest: Path) -> None:
    beside(newest, 99).write_text("step 99\n" * 1000)
    seal(beside(newest, 99))


def something_else_of_torch(newest: Path) -> None:
    torch.save({"global_step": 99, "state_dict": [1]}, beside(newest, 99))
    seal(beside(newest, 99))


def broken_link(newest: Path) -> None:
    beside(newest, 97).symlink_to("nowhere")
    beside(newest, 98).symlink_to(beside(newest, 98))


def checksum_that_cannot_be_read(newest: Path) -> None:
    shutil.copy(newest, beside(newest, 99))
    (newest.parent / "step=000000099.ckpt.sha256").write_bytes(b"\xff" * 100)


def pipe_that_nobody_writes_to(newest: Path) -> None:
    os.mkfifo(beside(newest, 99))
    beside(newest, 99).with_name("step=000000099.ckpt.sha256").write_text("0")


def step_of_the_future(newest: Path) -> None:
    shutil.copy(newest, beside(newest, 99))
    seal(beside(newest, 99))


def step_of_a_longer_run(newest: Path) -> None:
    state = torch.load(newest, weights_only=True)
    torch.save(state | {"global_step": 99}, beside(newest, 99))
    seal(beside(newest, 99))


def code_in_a_pickle(newest: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple:
            return os.system, (f"touch {newest.parent / 'ran'}",)

    torch.save({"global_step": 99, "state_dict": Evil()}, beside(newest, 99))
    seal(beside(newest, 99))


@pytest.mark.parametrize(
    "put",
    [
        stray_name,
        stray_folder,
        empty_with_its_checksum,
        text_with_its_checksum,
        something_else_of_torch,
        broken_link,
        checksum_that_cannot_be_read,
        pipe_that_nobody_writes_to,
        step_of_the_future,
        step_of_a_longer_run,
        code_in_a_pickle,
    ],
)
def test_what_is_no_checkpoint_of_the_run_is_passed_over_with_a_warning(
    put: Callable[[Path], None], finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    newest = newest_checkpoint(out).path
    put(newest)
    assert newest_checkpoint(out).path == newest
    assert "step=" in caplog.text
    assert not (newest.parent / "ran").exists()


def test_strays_do_not_count_among_those_that_are_kept_and_are_left_alone(
    finished: Path, emt_manifest: Manifest, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    newest = newest_checkpoint(out).path
    stray_name(newest)
    stray_folder(newest)
    broken_link(newest)
    (newest.parent / "best.json").write_text("{")
    for path in (newest, newest.with_name(newest.name + ".sha256")):
        path.unlink()
    pretrain(config(emt_manifest, out, resume=True, keep_checkpoints=1))
    left = {path.name for path in (out / "checkpoints").glob("step=*.ckpt")}
    assert {"step=000000008.ckpt", "step=copy.ckpt", "step=old.ckpt", "step=000000099.ckpt"} <= left
    assert same_state(finished, out)


def test_another_backend_is_refused_by_what_auto_came_to(
    finished: Path, emt_manifest: Manifest, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "run"
    shutil.copytree(finished, out)
    newest = newest_checkpoint(out).path
    state = torch.load(newest, weights_only=True)
    other = "torch" if state["backend"] == "c" else "c"
    torch.save(state | {"backend": other}, newest)
    seal(newest)
    written = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=rf"were computed by {other}, but now by {state['backend']}"):
        pretrain(config(emt_manifest, out, resume=True))
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == written
    del state["backend"], state["config"]  # as an older version wrote it
    torch.save(state, newest)
    seal(newest)
    pretrain(config(emt_manifest, out, resume=True, backend=other if other == "torch" else "auto"))
    assert "does not name the backend of its convolutions" in caplog.text
    assert "does not contain its configuration" in caplog.text


@pytest.mark.parametrize("change", [{"precision": "bf16"}, {"radial_table": 64}, {"recompute": True}])
def test_what_would_change_the_bits_is_not_resumed(
    change: dict, finished: Path, emt_manifest: Manifest, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    with pytest.raises(ValueError, match=rf"another configuration: fit\.{next(iter(change))} was"):
        pretrain(config(emt_manifest, tmp_path / "run", resume=True, **change))


def test_no_whole_checkpoint_is_an_error(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    for path in (tmp_path / "run" / "checkpoints").glob("*.ckpt"):
        path.write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="all checkpoints are damaged"):
        newest_checkpoint(tmp_path / "run")


def test_the_best_checkpoint_is_kept_and_named(finished: Path) -> None:
    best = json.loads((finished / "checkpoints" / "best.json").read_text())
    assert best["by"] == "val/force_mae"
    assert best["step"] % 3 == 0 or best["step"] == FIT.steps
    state = torch.load(finished / "checkpoints" / best["file"], weights_only=True)
    assert state["global_step"] == best["step"]


def test_resuming_from_a_checkpoint_after_validation_is_exact(
    finished: Path, emt_manifest: Manifest, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    for path in folder.glob("step=*.ckpt"):
        if path.name != json.loads((folder / "best.json").read_text())["file"]:
            path.unlink()
    pretrain(config(emt_manifest, tmp_path / "run", resume=True))
    assert same_state(finished, tmp_path / "run")


@contextmanager
def full_disk(num_bytes: int) -> Iterator[None]:
    """No file may grow beyond a size, as on a full disk: writing fails in the middle of a checkpoint."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def fill_disk_at(step: int, until: int, monkeypatch: pytest.MonkeyPatch) -> None:
    as_written = TrainingModule.training_step

    def limited(module: TrainingModule, batches: list, number: int) -> None:
        soft = 20_000 if step <= number < until else resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
        as_written(module, batches, number)

    monkeypatch.setattr(TrainingModule, "training_step", limited)


def test_a_full_disk_ends_the_run_and_spoils_nothing(
    finished: Path, emt_manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with full_disk(resource.RLIM_INFINITY), monkeypatch.context() as patch:
        fill_disk_at(3, 100, patch)
        with pytest.raises(OSError, match="could not be written"):
            pretrain(config(emt_manifest, tmp_path / "run"))
    assert newest_checkpoint(tmp_path / "run").path.name in ("step=000000002.ckpt", "step=000000003.ckpt")
    assert not list((tmp_path / "run" / "checkpoints").glob("*.partial"))
    pretrain(config(emt_manifest, tmp_path / "run", resume=True))
    assert same_state(finished, tmp_path / "run")


class NotPlain(float):
    """A number that only a program that knows its class can read."""


def test_what_could_not_be_read_again_is_not_written(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    newest = newest_checkpoint(tmp_path / "run")
    state = torch.load(newest.path, weights_only=True) | {"global_step": 9, "more": NotPlain(1.0)}
    files = CheckpointFiles(keep=1)
    files.save_checkpoint(state, beside(newest.path, 9))
    assert "NotPlain" in str(files.failure)
    assert newest_checkpoint(tmp_path / "run") == newest
    assert not beside(newest.path, 9).exists()
    files.save_checkpoint(state | {"more": 1.0}, beside(newest.path, 9))
    assert files.failure is None
    assert beside(newest.path, 9).exists()


def test_a_full_disk_may_be_waited_for(
    finished: Path, emt_manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with full_disk(resource.RLIM_INFINITY), monkeypatch.context() as patch:
        fill_disk_at(3, 6, patch)
        pretrain(config(emt_manifest, tmp_path / "run", guard=GuardConfig(save_errors="continue")))
    assert same_state(finished, tmp_path / "run")


@pytest.mark.parametrize("kills", [2, pytest.param(30, marks=pytest.mark.long)])
def test_killed_at_many_moments_a_run_ends_in_the_same_bits(kills: int, emt_manifest: Manifest, tmp_path: Path) -> None:
    changes = {"steps": 150, "checkpoint_every": 3, "validate_every": 10, "num_workers": 1}
    pretrain(config(emt_manifest, tmp_path / "whole", **changes))
    out, chance, newest = tmp_path / "run", random.Random(0), 0
    for number in range(kills):
        resume = bool(saves(out, ""))
        kill_a_run(config(emt_manifest, out, resume=resume, overwrite=not resume, **changes), number, chance)
        if saves(out, ""):
            found = int(newest_checkpoint(out).path.stem.removeprefix("step="))
            assert found >= newest
            newest = found
    assert 0 < newest < 150
    pretrain(config(emt_manifest, out, resume=True, **changes))
    assert same_state(tmp_path / "whole", out)


def kill_a_run(config: PretrainConfig, number: int, chance: random.Random) -> None:
    """Start a run and kill it in its first half second, or after a checkpoint: during a save, or at any time."""
    context = multiprocessing.get_context("fork")
    begun = context.Event()
    run = context.Process(target=train, args=(config, begun))
    before = set(saves(config.out, ""))
    run.start()
    if number % 5 == 4:
        time.sleep(chance.uniform(0.0, 0.5))
    else:
        assert begun.wait(60)
        wait_for(lambda: set(saves(config.out, "")) - before, run)
        if number % 2 == 0:
            wait_for(lambda: saves(config.out, ".partial"), run)
        else:
            time.sleep(chance.uniform(0.0, 0.4))
    os.kill(run.pid, signal.SIGKILL)
    run.join()


def train(config: PretrainConfig, begun: Event) -> None:
    as_written = TrainingModule.on_fit_start

    def tell(module: TrainingModule) -> None:
        as_written(module)
        begun.set()

    TrainingModule.on_fit_start = tell
    pretrain(config)


def saves(out: Path, suffix: str) -> list[str]:
    return glob.glob(str(out / "checkpoints" / f"step=*.ckpt{suffix}"))


def wait_for(what: Callable[[], object], run: multiprocessing.process.BaseProcess) -> None:
    deadline = time.monotonic() + 20
    while run.is_alive() and time.monotonic() < deadline and not what():
        pass
