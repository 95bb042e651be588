"""A signal stops a run behind a step, with one checkpoint from which it continues to the same bits."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import lightning
import pytest
import torch

from data_pipeline.store.manifest import Manifest
from foundation.pretrain import pretrain
from foundation.training.fault_tolerance.checkpoints import Checkpoints
from foundation.training.fault_tolerance.preemption import PreemptedError
from foundation.training.module import TrainingModule
from tests.foundation.training.test_fit import config, state


@pytest.fixture(autouse=True)
def _handlers_and_mask_as_before() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def signal_in_step(monkeypatch: pytest.MonkeyPatch, step: int, number: signal.Signals) -> None:
    as_written = TrainingModule.training_step

    def step_with_signal(module: TrainingModule, batches: list, current: int) -> None:
        if current == step:
            os.kill(os.getpid(), number)
        as_written(module, batches, current)

    monkeypatch.setattr(TrainingModule, "training_step", step_with_signal)


def saved_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    steps: list[int] = []
    as_written = Checkpoints.save

    def save(checkpoints: Checkpoints, trainer: lightning.Trainer) -> None:
        steps.append(trainer.global_step)
        as_written(checkpoints, trainer)

    monkeypatch.setattr(Checkpoints, "save", save)
    return steps


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_stops_behind_the_next_step_and_the_run_continues_to_the_same_bits(
    number: signal.Signals, emt_manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretrain(config(emt_manifest, tmp_path / "undisturbed"))
    with monkeypatch.context() as patch:
        signal_in_step(patch, 3, number)
        steps = saved_steps(patch)
        with pytest.raises(PreemptedError, match=f"stopped by {number.name} after step 5 with a checkpoint"):
            pretrain(config(emt_manifest, tmp_path / "run", checkpoint_every=100, validate_every=100))
    assert steps == [5]
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("*.ckpt")] == ["step=000000005.ckpt"]
    pretrain(config(emt_manifest, tmp_path / "run", resume="auto"))
    expected, found = state(tmp_path / "undisturbed"), state(tmp_path / "run")
    for key in ("state_dict", "current_model_state"):
        for name, tensor in expected[key].items():
            assert torch.equal(tensor, found[key][name]), f"{key} {name}"


def test_usr1_that_was_held_back_before_training_stops_it_at_once(emt_manifest: Manifest, tmp_path: Path) -> None:
    # blocked, as the command line does it when it starts; to this thread, since others of the tests' may not block it
    signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)
    with pytest.raises(PreemptedError, match="stopped by SIGUSR1 after step 2"):
        pretrain(config(emt_manifest, tmp_path / "run"))


def test_a_signal_in_the_last_step_lets_the_run_end(
    emt_manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signal_in_step(monkeypatch, 7, signal.SIGUSR1)
    pretrain(config(emt_manifest, tmp_path / "run"))
    assert (tmp_path / "run" / "potential").is_dir()


def test_usr1_does_no_harm_after_training(emt_manifest: Manifest, tmp_path: Path) -> None:
    pretrain(config(emt_manifest, tmp_path / "run"))
    # ignored by the system, not by a handler: Python takes those away while it ends
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN
    os.kill(os.getpid(), signal.SIGUSR1)


def test_sigterm_means_again_after_training_what_it_meant_before(emt_manifest: Manifest, tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    pretrain(config(emt_manifest, tmp_path / "run"))
    assert signal.getsignal(signal.SIGTERM) is before


def test_auto_starts_where_there_is_nothing_to_continue(emt_manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    pretrain(config(emt_manifest, tmp_path / "run", resume="auto"))
    assert (tmp_path / "run" / "potential").is_dir()
