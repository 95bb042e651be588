"""The sinks other than the file: Weights & Biases, TensorBoard, plain lines."""

import importlib.util
import io
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import lightning
import pytest
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from rich.console import Console

from data_pipeline.store.manifest import Manifest
from foundation.models.equivariant import EquivariantConfig
from foundation.pretrain import PretrainConfig, pretrain
from foundation.training.fit_config import FitConfig
from foundation.training.machine import MachineConfig
from foundation.training.monitoring.loggers import (
    Forecast,
    JsonLines,
    PlainLines,
    Progress,
    check_loggers,
    duration_in_words,
    log_row,
    make_loggers,
)
from tests.conftest import REPOSITORY

ROW = {"train/loss": 0.25, "train/force_mae": 0.05, "speed/atoms_per_second": 1234.5, "run/remaining_seconds": 3725.0}


def loggers(out: Path, first_step: int = 0, **wanted: object) -> list[Logger]:
    return make_loggers(FitConfig(steps=10, **wanted), out, first_step, {"a": {"b": 1}})


def test_where_there_is_no_terminal_a_logged_step_is_a_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        sinks = loggers(tmp_path)
        log_row(sinks, "start", 0, {"processes": 1})
        log_row(sinks, "train", 4, ROW)
        log_row(sinks, "validation", 4, {"val/force_mae": 0.07, "val/frames": 3.0, "val/by_element": {"Al": {}}})
    assert [record.getMessage() for record in caplog.records] == [
        "step 4 of 10: loss 0.25, force 50.00 meV/Å, 1,234 atoms/s, 1:02:05 to go",
        "step 4 of 10: validation, force 70.00 meV/Å",
    ]


def test_a_run_of_wandb_goes_on_under_its_id(tmp_path: Path) -> None:
    identities = []
    for first_step in (0, 4):
        (logger,) = [x for x in loggers(tmp_path, first_step=first_step, wandb="offline") if isinstance(x, WandbLogger)]
        log_row([logger], "train", first_step + 2, ROW)
        identities.append(logger.version)
        assert logger.experiment.config["a"] == {"b": 1}
        assert logger.experiment.offline
        logger.experiment.finish()
    assert identities[0] == identities[1] == (tmp_path / "logs" / "wandb-id.txt").read_text().strip()
    assert list((tmp_path / "wandb").glob(f"offline-run-*-{identities[0]}"))


def test_two_runs_of_wandb_have_two_ids(tmp_path: Path) -> None:
    names = set()
    for name in ("one", "two"):
        (tmp_path / name / "logs").mkdir(parents=True)
        (logger,) = [x for x in loggers(tmp_path / name, wandb="offline") if isinstance(x, WandbLogger)]
        names.add(logger.version)
        logger.experiment.finish()
    assert len(names) == 2


def test_tensorboard_that_is_not_installed_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "tensorboard" else find(name))
    with pytest.raises(ValueError, match=r"pip install 'foundation\[tensorboard\]'"):
        check_loggers(FitConfig(steps=1, tensorboard=True))


def test_tensorboard_shows_a_resumed_step_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first_step, last_step in ((0, 6), (4, 8)):
        sinks = loggers(tmp_path, first_step=first_step, tensorboard=True)
        (logger,) = [x for x in sinks if isinstance(x, TensorBoardLogger)]
        for step in range(first_step + 1, last_step + 1):
            log_row([logger], "train", step, ROW)
        logger.finalize("success")
    events = EventAccumulator(str(tmp_path / "logs" / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 9))


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_line_that_moves_fits_the_terminal_and_shows_the_last_logged_step(tmp_path: Path, width: int) -> None:
    (file,) = [logger for logger in loggers(tmp_path) if isinstance(logger, JsonLines)]
    trainer = lightning.Trainer(logger=[file], accelerator="cpu", enable_progress_bar=False, max_steps=2_000_000)
    shown = io.StringIO()
    progress = Progress(Console(file=shown, force_terminal=True, width=width, _environ={}))
    progress.on_train_start(trainer, lightning.LightningModule())
    log_row(trainer.loggers, "train", 4, ROW)
    log_row(trainer.loggers, "validation", 4, {"val/force_mae": 0.07})
    progress.on_train_batch_end(trainer, lightning.LightningModule(), None, None, 4)
    progress.teardown(trainer, lightning.LightningModule(), "fit")
    lines = [line for line in re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.getvalue())) if line]
    assert max(map(len, lines)) <= width
    assert "0/2000000" in lines[0]
    if width > 60:
        assert "loss 0.25, force 50.0 meV/Å" in lines[-1]
    progress.teardown(trainer, lightning.LightningModule(), "fit")  # nothing happens twice


def test_a_terminal_gets_a_line_per_validation_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for steps in (True, False):
        caplog.clear()
        lines = PlainLines(8, steps=steps)
        lines.log_metrics(ROW, 4)
        lines.log_metrics({"val/frames": 3.0, "val/force_mae": 0.07}, 4)
        assert [record.message[:15] for record in caplog.records] == ["step 4 of 8: lo"] * steps + ["step 4 of 8: va"]


def forecasts(caplog: pytest.LogCaptureFixture, seconds: list[float], *, first_step: int, max_steps: int) -> list[str]:
    """Return what is said, and after which step, if the steps take these times."""
    now, said = 0.0, []
    forecast, trainer = Forecast(clock=lambda: now), Mock(spec=lightning.Trainer, max_steps=max_steps)
    trainer.global_step = first_step
    forecast.on_train_start(trainer, lightning.LightningModule())
    for each in seconds:
        now, trainer.global_step = now + each, trainer.global_step + 1
        caplog.clear()
        forecast.on_train_batch_end(trainer, lightning.LightningModule(), None, None, trainer.global_step)
        said += [f"{trainer.global_step}: {record.getMessage()}" for record in caplog.records]
    return said


@pytest.mark.parametrize(
    ("seconds", "first_step", "max_steps", "said"),
    [
        ([60.0] + 40 * [1.2], 0, 5600, ["21: 5,600 steps will take about 1 h 50 min here; --fit.steps N shortens it"]),
        ([60.0] + 5 * [40.0], 0, 100, ["2: 100 steps will take about 1 h 7 min here; --fit.steps N shortens it"]),
        ([9.0] + 40 * [1.0], 2600, 5600, ["2621: 3,000 more steps will take about 50 min here"]),
        ([9.0] + 40 * [1.0], 0, 50, []),  # less than a minute
        ([9.0] + 10 * [1.0], 0, 11, []),  # over before
    ],
)
def test_the_duration_is_said_once_when_the_pace_is_known(
    seconds: list[float], first_step: int, max_steps: int, said: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert forecasts(caplog, seconds, first_step=first_step, max_steps=max_steps) == said


def test_a_duration_is_in_words() -> None:
    seconds = [1.0, 89.0, 3540.0, 3600.0, 5400.0, 6720.0, 86_400.0, 100_000.0, 1e6]
    words = ["1 min", "1 min", "59 min", "1 h", "1 h 30 min", "1 h 50 min", "1 d", "1 d 4 h", "11 d 14 h"]
    assert [duration_in_words(each) for each in seconds] == words


def test_a_run_says_its_duration(
    emt_manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("foundation.training.monitoring.loggers.WORTH_SAYING", 0.0)
    monkeypatch.setattr("foundation.training.monitoring.loggers.STEPS_OF_PACE", 2)
    config = PretrainConfig(
        data=emt_manifest.root,
        out=tmp_path / "run",
        model=EquivariantConfig(irreps="4x0e", num_blocks=1),
        fit=FitConfig(steps=4, lanes=1, edge_budget=1500),
        machine=MachineConfig(accelerator="cpu", num_workers=0),
    )
    caplog.set_level(logging.INFO)
    pretrain(config)
    assert [record.message for record in caplog.records if "will take" in record.message] == [
        "4 steps will take about 1 min here; --fit.steps N shortens it"
    ]


def test_lightning_says_nothing_in_a_run(tmp_path: Path, emt_manifest: Manifest) -> None:
    words = ["pretrain", "--data", str(emt_manifest.root), "--out", "run", "--irreps", "4x0e", "--steps", "2"]
    small = ["--model.num_blocks", "1", "--lanes", "1", "--num_workers", "0", "--accelerator", "cpu"]
    command = [sys.executable, "-m", "launch", *words, *small, "--fit.validate_every", "1", "--fit.log_every", "1"]
    variables = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=True)
    said = done.stdout + done.stderr
    for word in ("INFO", "Tip", "GPU", "Trainer", "weights_only", "Warning"):
        assert word not in said, said
    starts = [
        "data: ",
        "weights: ",
        "convolution: ",
        "matrix products: ",
        "step 1 of 2: loss",
        "step 1 of 2: validation",
    ]
    lines = said.splitlines()
    assert [start for start in starts if not any(line.startswith(start) for line in lines)] == []
    assert 'foundation.Calculator("run")' in done.stdout
