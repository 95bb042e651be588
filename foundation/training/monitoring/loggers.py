"""Loggers of a run: a file, Weights & Biases and TensorBoard if requested, and the terminal.

Lightning's CSVLogger is not used: it starts another file in another folder whenever a run is resumed. A terminal shows
a progress bar; other outputs, such as the log of a SLURM job, get one plain line per logged step.
"""

import datetime
import importlib.util
import logging
import secrets
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import lightning
from lightning.pytorch.callbacks import Callback, RichProgressBar
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from data_pipeline.store import durable
from foundation.evaluation.quantities import QUANTITIES
from foundation.training.fit_config import FitConfig
from foundation.training.monitoring.metrics_file import MetricsFile, write_csv
from foundation.training.strategy import is_rank_zero

log = logging.getLogger(__name__)

LINE_ENDS = (
    ("train/learning_rate", "rate", 1.0, ".3g", ""),
    ("speed/atoms_per_second", "", 1.0, ",.0f", " atoms/s"),
    ("speed/data_wait", "wait", 100.0, ".1f", " %"),
)
"""End of a plain line, after loss and errors: metric, its name, factor, format, unit."""


class JsonLines(Logger):
    """Lightning logger of the run's metrics.jsonl and metrics.csv; only the first process writes."""

    def __init__(self, folder: Path, first_step: int) -> None:
        super().__init__()
        self.folder, self.first_step = folder, first_step
        self._file: MetricsFile | None = None
        self.last: dict[str, Any] = {}
        """Metrics of the last logged step of training."""

    @property
    def name(self) -> str:
        """Return the logger's name for Lightning."""
        return "logs"

    @property
    def version(self) -> str:
        """Return '': a run has one file, however often it is resumed."""
        return ""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing: run.json has them."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Append a row."""
        assert step is not None
        if self._file is None:
            self._file = MetricsFile(self.folder, self.first_step)
        values = dict(metrics)
        kind = values.pop("kind")
        if kind == "train":
            self.last = values
        self._file.append(kind, step, values)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write metrics.csv."""
        if self._file is not None:
            try:
                write_csv(self.folder)
            except OSError as error:  # must not replace the error that ends the run
                log.warning("%s: metrics.csv is not written: %s", self.folder, error)


class PlainLines(Logger):
    """Logger of one line per logged step."""

    def __init__(self, num_steps: int) -> None:
        super().__init__()
        self._num_steps = num_steps

    @property
    def name(self) -> str:
        """Return the logger's name for Lightning."""
        return "lines"

    @property
    def version(self) -> str:
        """Return nothing."""
        return ""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Do nothing."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Write a line."""
        parts = [f"loss {metrics['train/loss']:.4g}"] if "train/loss" in metrics else []
        parts += [
            f"{each.short} {each.text(metrics[f'{kind}/{key}'], 4)} {each.unit.name}"
            for kind in ("train", "val")
            for key, each in QUANTITIES.items()
            if each.short and f"{kind}/{key}" in metrics
        ]
        parts += [
            f"{title} {factor * metrics[name]:{form}}{unit}".strip()
            for name, title, factor, form, unit in LINE_ENDS
            if name in metrics
        ]
        if "run/remaining_seconds" in metrics:
            parts.append(f"{datetime.timedelta(seconds=round(metrics['run/remaining_seconds']))} to go")
        what = "validation, " if "val/frames" in metrics else ""
        log.info("step %d of %d: %s%s", step, self._num_steps, what, ", ".join(parts))


class Progress(RichProgressBar):
    """Lightning's progress bar with the last logged metrics, which do not pass through Lightning's log."""

    SHOWN: ClassVar = {"train/loss": "loss", "train/force_mae": "force_mae", "speed/atoms_per_second": "atoms/s"}
    """Metrics with their labels."""

    def get_metrics(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> dict[str, Any]:
        """Return the metrics to show."""
        (file,) = [logger for logger in trainer.loggers if isinstance(logger, JsonLines)]
        return {called: file.last[name] for name, called in self.SHOWN.items() if name in file.last}


def make_progress() -> list[Callback]:
    """Return a progress bar on a terminal, else nothing."""
    return [Progress()] if sys.stdout.isatty() else []


def check_loggers(config: FitConfig) -> None:
    """Check that the packages of the requested loggers are installed.

    Raises:
        ValueError: one is not; the message names it.
    """
    if config.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise ValueError("fit.tensorboard needs a package: pip install 'foundation[tensorboard]', or set it false")


def make_loggers(config: FitConfig, out: Path, first_step: int, record: dict[str, Any]) -> list[Logger]:
    """Return the loggers of a run.

    Args:
        config: Section fit.
        out: The run folder.
        first_step: Number of steps already taken.
        record: The resolved configuration.

    Raises:
        ValueError: Weights & Biases cannot be reached.
    """
    loggers: list[Logger] = [JsonLines(out / "logs", first_step)]
    if not sys.stdout.isatty():
        loggers.append(PlainLines(config.steps))
    if config.wandb != "off":
        loggers.append(_wandb(out, config.wandb == "online", record))
    if config.tensorboard:
        # rows after the resumed checkpoint are hidden
        purge_step = first_step + 1 if first_step else None
        loggers.append(TensorBoardLogger(out / "logs", name="tensorboard", version="", purge_step=purge_step))
    return loggers


def _wandb(out: Path, online: bool, record: dict[str, Any]) -> WandbLogger:
    """Return the logger of a Weights & Biases run, the same one after every resume."""
    identity = out / "logs" / "wandb-id.txt"
    name = identity.read_text().strip() if identity.is_file() else secrets.token_hex(4)
    logger = WandbLogger(
        project="foundation", name=out.resolve().name, save_dir=out, offline=not online, version=name, config=record
    )
    if is_rank_zero():
        identity.parent.mkdir(parents=True, exist_ok=True)
        durable.write_whole(identity, name + "\n")
        try:
            _ = logger.experiment
        except Exception as error:
            raise ValueError(
                f"Weights & Biases could not start ({error}): `wandb login` on a machine with a network, or "
                "--fit.wandb offline and `wandb sync` later"
            ) from error
    return logger


def log_row(loggers: Iterable[Logger], kind: str, step: int, values: dict[str, Any]) -> None:
    """Pass a row to every logger; values that are not numbers go only to the file."""
    numbers = {name: value for name, value in values.items() if isinstance(value, float)}
    for logger in loggers:
        if isinstance(logger, JsonLines):
            logger.log_metrics({"kind": kind, **values}, step)
        elif kind != "start":
            logger.log_metrics(numbers, step)
