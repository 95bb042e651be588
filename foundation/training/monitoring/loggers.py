"""Loggers of a run: a file, Weights & Biases and TensorBoard if requested, and the terminal.

Lightning's CSVLogger is not used: it starts another file in another folder whenever a run is resumed. A terminal shows
one line that moves, and above it a plain line for each validation; other outputs, such as the log of a SLURM job, get a
plain line per logged step as well.
"""

import datetime
import importlib.util
import logging
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

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
SHOWN = 3
"""Number of the loss and errors in the line that moves, which has to fit 80 columns."""
STEPS_OF_PACE, SECONDS_OF_PACE = 20, 30.0
"""Numbers of steps and of seconds [s], the earlier of which shows the pace of a run."""
WORTH_SAYING = 60.0
"""Duration of a run above which it is said in advance [s]."""


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
    """Logger of one line per validation and, unless a terminal shows them otherwise, per logged step."""

    def __init__(self, num_steps: int, *, steps: bool = True) -> None:
        super().__init__()
        self._num_steps, self._steps = num_steps, steps

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
        validation = "val/frames" in metrics
        if not (validation or self._steps):
            return
        parts = errors_in_words(metrics)
        parts += [
            f"{title} {factor * metrics[name]:{form}}{unit}".strip()
            for name, title, factor, form, unit in LINE_ENDS
            if name in metrics
        ]
        if "run/remaining_seconds" in metrics:
            parts.append(f"{datetime.timedelta(seconds=round(metrics['run/remaining_seconds']))} to go")
        what = "validation, " if validation else ""
        log.info("step %d of %d: %s%s", step, self._num_steps, what, ", ".join(parts))


def errors_in_words(metrics: Mapping[str, float], significant: int = 4) -> list[str]:
    """Return the loss and the main errors of a row of metrics as words with their units."""
    parts = [f"loss {metrics['train/loss']:.{significant}g}"] if "train/loss" in metrics else []
    return parts + [
        f"{each.short} {each.text(metrics[f'{kind}/{key}'], significant)} {each.unit.name}"
        for kind in ("train", "val")
        for key, each in QUANTITIES.items()
        if each.short and f"{kind}/{key}" in metrics
    ]


class Progress(Callback):
    """Line in a terminal that moves with every step: step, loss and errors of the last logged one, and time left."""

    def __init__(self, console: Console | None = None) -> None:
        columns = ("step", MofNCompleteColumn(), BarColumn(bar_width=12), TextColumn("{task.fields[said]}"))
        ends = (TimeRemainingColumn(compact=True, elapsed_when_finished=True),)
        # its own window, 30 s, would forget steps as long as that
        self._lines = RichProgress(*columns, *ends, console=console, transient=True, speed_estimate_period=600.0)
        self._task: TaskID | None = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Show the line."""
        if trainer.is_global_zero:
            total, done = trainer.max_steps, trainer.global_step
            self._task = self._lines.add_task("steps", total=total, completed=done, said="")
            self._lines.start()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move on, with the errors of the last logged step."""
        if self._task is not None:
            (file,) = [logger for logger in trainer.loggers if isinstance(logger, JsonLines)]
            said = ", ".join(errors_in_words(file.last, 3)[:SHOWN])
            self._lines.update(self._task, completed=trainer.global_step, said=said)

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Remove the line, also after an error."""
        self._lines.stop()


class Forecast(Callback):
    """Line that says once, after the first steps, how long the run will take on this machine."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._first_step = self._counted_from = 0
        self._since: float | None = None
        self._said = False

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Note the step from which the run starts or continues."""
        self._first_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Say the duration as soon as the pace is known; the first step, which prepares much, is not counted."""
        if self._said or not trainer.is_global_zero:
            return
        if self._since is None:
            self._since, self._counted_from = self._clock(), trainer.global_step
            return
        counted, seconds = trainer.global_step - self._counted_from, self._clock() - self._since
        if counted < 1 or (counted < STEPS_OF_PACE and seconds < SECONDS_OF_PACE):
            return
        self._said, number = True, trainer.max_steps - self._first_step
        total = number * seconds / counted
        if total > WORTH_SAYING:
            advice = "" if self._first_step else "; --fit.steps N shortens it"
            more = "more " if self._first_step else ""
            log.info("%s %ssteps will take about %s here%s", f"{number:,}", more, duration_in_words(total), advice)


def duration_in_words(seconds: float) -> str:
    """Return a duration [s] in days, hours and minutes, to two figures: `1 h 50 min`."""
    minutes = max(1, round(seconds / 60))
    if minutes >= 100:
        minutes = 10 * round(minutes / 10)
    if minutes < 60:
        return f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {rest} min" if rest else f"{hours} h"
    days, hours = divmod(round(minutes / 60), 24)
    return f"{days} d {hours} h" if hours else f"{days} d"


def make_progress() -> list[Callback]:
    """Return the line of the duration and, in a terminal, the line that moves."""
    return [Forecast(), *([Progress()] if sys.stdout.isatty() else [])]


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
    loggers.append(PlainLines(config.steps, steps=not sys.stdout.isatty()))
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
