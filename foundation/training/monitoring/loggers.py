"""Where a run's metrics go: a file always, Weights & Biases and TensorBoard if wanted, the screen.

Lightning's CSVLogger is not used: it starts another file in another folder whenever a run goes on. On a terminal there
is a progress bar; elsewhere, as in the log of a SLURM job, one plain line per logged step.
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
"""End of a plain line, behind loss and errors: metric, its name there, factor, format, unit."""


class JsonLines(Logger):
    """The run's metrics.jsonl and metrics.csv as a logger of Lightning's; only the first process writes."""

    def __init__(self, folder: Path, first_step: int) -> None:
        super().__init__()
        self.folder, self.first_step = folder, first_step
        self._file: MetricsFile | None = None
        self.last: dict[str, Any] = {}
        """Metrics of the last logged step of training."""

    @property
    def name(self) -> str:
        """Return what Lightning calls the logger."""
        return "logs"

    @property
    def version(self) -> str:
        """Return nothing: there is one file, however often a run goes on."""
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
            except OSError as error:  # not in place of the error that ends the run
                log.warning("%s: metrics.csv is not written: %s", self.folder, error)


class PlainLines(Logger):
    """One line in the log for every logged step."""

    def __init__(self, num_steps: int) -> None:
        super().__init__()
        self._num_steps = num_steps

    @property
    def name(self) -> str:
        """Return what Lightning calls the logger."""
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
    """Lightning's progress bar with the last logged metrics, which need not pass through Lightning's log for it."""

    SHOWN: ClassVar = {"train/loss": "loss", "train/force_mae": "force_mae", "speed/atoms_per_second": "atoms/s"}
    """Metrics, and what they are called."""

    def get_metrics(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> dict[str, Any]:
        """Return the metrics to show."""
        (file,) = [logger for logger in trainer.loggers if isinstance(logger, JsonLines)]
        return {called: file.last[name] for name, called in self.SHOWN.items() if name in file.last}


def make_progress() -> list[Callback]:
    """Return a progress bar where somebody can see it."""
    return [Progress()] if sys.stdout.isatty() else []


def check_loggers(config: FitConfig) -> None:
    """Refuse a logger whose package is not installed.

    Raises:
        ValueError: naming the package.
    """
    if config.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise ValueError("fit.tensorboard needs a package: pip install 'foundation[tensorboard]', or set it false")


def make_loggers(config: FitConfig, out: Path, first_step: int, record: dict[str, Any]) -> list[Logger]:
    """Return the sinks of a run.

    Args:
        config: Which are wanted.
        out: The run folder.
        first_step: Steps that have been taken already.
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
        # what a run wrote after the checkpoint that it goes on from is hidden
        purge_step = first_step + 1 if first_step else None
        loggers.append(TensorBoardLogger(out / "logs", name="tensorboard", version="", purge_step=purge_step))
    return loggers


def _wandb(out: Path, online: bool, record: dict[str, Any]) -> WandbLogger:
    """Return the logger of a Weights & Biases run, the same one whenever the run goes on."""
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
    """Hand a row to every sink; what is not a number goes to the file only."""
    numbers = {name: value for name, value in values.items() if isinstance(value, float)}
    for logger in loggers:
        if isinstance(logger, JsonLines):
            logger.log_metrics({"kind": kind, **values}, step)
        elif kind != "start":
            logger.log_metrics(numbers, step)
