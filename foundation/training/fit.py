"""fit(): the only place that makes a Trainer."""

import ctypes
import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Checkpoint, EMAWeightAveraging, RichProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_only

from data_pipeline.graph import GraphBatch
from data_pipeline.plan import Oversize
from data_pipeline.stream import Corrupt, Dataset, Stream, Sweep, differences, sweep
from foundation.kernels.convolution import Backend, backend_in_words, set_backend
from foundation.potential import Potential
from foundation.training.loss import LossConfig
from foundation.training.module import TrainingModule
from foundation.training.optim import OptimConfig

log = logging.getLogger(__name__)

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Options of glibc's mallopt()."""


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """The loop: how long, in what batches, on what machine. Nothing here changes what a step means."""

    steps: int
    """Optimizer steps of the whole run."""
    lanes: int = 8
    """Micro-batches per optimizer step; the number of processes must divide it."""
    edge_budget: int = 20000
    """Directed edges of a micro-batch."""
    atom_budget: int | None = None
    """Atoms of a micro-batch."""
    oversize: Oversize = "error"
    """What happens to a structure larger than the budget: an error, a micro-batch of its own, or it is left out."""
    corrupt: Corrupt = "error"
    """What happens to a block of frames that cannot be read: an error, or 'quarantine': its frames are left out, with a
    warning and a count."""
    seed: int = 0
    """Seed of the weights and of the order of the data."""
    num_workers: int = 1
    """Worker processes per rank that read shards and build graphs; 0 does it in the training process."""
    validate_every: int = 500
    """Steps between validations."""
    checkpoint_every: int = 500
    """Steps between checkpoints."""
    keep_checkpoints: int = 3
    """How many of the newest checkpoints are kept."""
    log_every: int = 10
    """Steps between logged metrics."""
    accelerator: str = "auto"
    """Lightning's name of the accelerator: auto, cpu, gpu."""
    devices: int = 1
    """Processes per node."""
    num_nodes: int = 1
    """Nodes."""
    backend: Backend = "auto"
    """What computes the convolution: generated C on CPUs (c), OpenEquivariance on CUDA (openequivariance), plain torch
    (torch), or the best that works here (auto)."""
    wandb: bool = False
    """Write a Weights & Biases run as well, offline; `wandb sync` uploads it."""
    resume: bool = False
    """Continue from the newest checkpoint of the run folder."""

    def __post_init__(self) -> None:
        numbers = {name: getattr(self, name) for name in ("steps", "lanes", "edge_budget", "validate_every")}
        numbers |= {name: getattr(self, name) for name in ("checkpoint_every", "log_every", "keep_checkpoints")}
        for name, value in numbers.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        world_size = self.devices * self.num_nodes
        if world_size < 1 or self.lanes % world_size:
            sizes = [size for size in range(1, self.lanes + 1) if self.lanes % size == 0]
            raise ValueError(f"{self.lanes} lanes cannot be shared by {world_size} processes; use one of {sizes}")


def fit(
    potential: Potential,
    datasets: Sequence[Dataset],
    *,
    config: FitConfig,
    loss: LossConfig,
    optim: OptimConfig,
    out: Path,
) -> dict[str, Any]:
    """Train a potential in place and return facts: the errors of the last validation, what computed the convolutions.

    The potential ends with the moving average of the weights. Checkpoints and logs go to the run folder.

    Raises:
        FileNotFoundError: resume is asked for and there is no checkpoint.
        ValueError: a checkpoint belongs to other data or another plan, or what Stream refuses.
    """
    keep_freed_memory()
    set_backend(potential, config.backend)
    module = TrainingModule(potential, loss, optim, config.steps, config.log_every)
    averaging = _Averaging(use_buffers=False, decay=optim.ema_decay)
    checkpoints = _Checkpoints(out / "checkpoints", config.checkpoint_every, config.keep_checkpoints)
    trainer = lightning.Trainer(
        accelerator=config.accelerator,
        devices=config.devices,
        num_nodes=config.num_nodes,
        strategy=_FlatGradientStrategy() if config.devices * config.num_nodes > 1 else "auto",
        max_steps=config.steps,
        max_epochs=1,  # the whole run is one epoch, so that the progress bar shows the whole run
        val_check_interval=config.validate_every,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        log_every_n_steps=config.log_every,
        inference_mode=False,  # forces need autograd in validation too
        callbacks=[averaging, checkpoints, _Progress()],
        logger=_loggers(config, out),
        use_distributed_sampler=False,
        enable_model_summary=False,
    )
    convolution = backend_in_words(potential, trainer.strategy.root_device)
    if trainer.is_global_zero:
        log.info("convolution: %s", convolution)
    checkpoint = newest_checkpoint(out) if config.resume else None
    data = _Data(datasets, potential, config)
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    if trainer.interrupted:
        raise KeyboardInterrupt(f"stopped at step {trainer.global_step}; continue with --fit.resume true")
    module.cpu()
    validation = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
    return {"validation": validation, "convolution": convolution}


def keep_freed_memory() -> None:
    """Make the C library keep what it frees: every step asks for the same again, and new pages cost a tenth of it."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc
        return
    mallopt(M_MMAP_THRESHOLD, 1 << 30)
    mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


def newest_checkpoint(out: Path) -> Path:
    """Return the newest checkpoint of a run folder.

    Raises:
        FileNotFoundError: there is none.
    """
    found = sorted((out / "checkpoints").glob("step=*.ckpt"))
    if not found:
        raise FileNotFoundError(f"{out / 'checkpoints'}: no checkpoint to resume from; start with --fit.resume false")
    return found[-1]


class _Data(lightning.LightningDataModule):
    """Streams for training, sweeps for validation; its state is the fingerprint of the stream."""

    def __init__(self, datasets: Sequence[Dataset], potential: Potential, config: FitConfig) -> None:
        super().__init__()
        self.datasets, self.config = datasets, config
        self.cutoff, self.elements = potential.cutoff, potential.elements
        # made once here, before any process starts, so that a wrong budget is an error at once
        stream = self._stream()
        self.fingerprint = stream.fingerprint
        if stream.plan.num_skipped and is_rank_zero():
            log.warning("%d structures are larger than the budget and left out", stream.plan.num_skipped)

    def _stream(self, rank: int = 0, world_size: int = 1, num_workers: int = 0) -> Stream:
        config = self.config
        return Stream(
            self.datasets,
            cutoff=self.cutoff,
            lanes=config.lanes,
            edge_budget=config.edge_budget,
            atom_budget=config.atom_budget,
            seed=config.seed,
            oversize=config.oversize,
            corrupt=config.corrupt,
            rank=rank,
            world_size=world_size,
            num_workers=num_workers,
            pin_memory=True,
        )

    def train_dataloader(self) -> "_Run":
        """Return the steps from the trainer's current one to the last."""
        assert self.trainer is not None
        stream = self._stream(self.trainer.global_rank, self.trainer.world_size, self.config.num_workers)
        return _Run(stream, self.trainer.global_step, self.config.steps)

    def val_dataloader(self) -> "_Sweeps | list":
        """Return every validation frame whose elements the potential knows, once over all ranks."""
        assert self.trainer is not None
        sweeps = [
            self._sweep(dataset, self.trainer) for dataset in self.datasets if dataset.manifest.split("val").shards
        ]
        return _Sweeps(sweeps) if sweeps else []

    def _sweep(self, dataset: Dataset, trainer: lightning.Trainer) -> Sweep:
        return sweep(
            dataset.manifest,
            "val",
            cutoff=self.cutoff,
            edge_budget=self.config.edge_budget,
            elements=self.elements,
            theory=dataset.theory_number,
            corrupt=self.config.corrupt,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            pin_memory=True,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what must be the same on resume."""
        return {"fingerprint": self.fingerprint}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse to go on with another stream.

        Raises:
            ValueError: data, split, cutoff, seed, lanes or budgets differ from the checkpoint's.
        """
        theirs = state_dict["fingerprint"]
        if not isinstance(theirs, dict):
            raise ValueError("cannot resume: the checkpoint is of an older version of this program; start a new run")
        different = differences(self.fingerprint, theirs)
        if different:
            raise ValueError(
                f"cannot resume with another stream of data. {'; '.join(different)}. "
                "Restore the configuration that the checkpoint was made with, or start a new run."
            )


class _Run:
    """The steps of a run as Lightning wants a loader: its length is the whole run's, so progress and resume agree."""

    def __init__(self, stream: Stream, first_step: int, last_step: int) -> None:
        self.steps, self.last_step = stream.from_step(first_step, last_step), last_step

    def __len__(self) -> int:
        return self.last_step

    def __iter__(self) -> Iterator[list[GraphBatch]]:
        return iter(self.steps)

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the step is the trainer's."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do nothing: the step is the trainer's."""


class _Sweeps:
    """The validation batches of all data sets, one after another."""

    def __init__(self, sweeps: Sequence[Sweep]) -> None:
        self.sweeps = sweeps

    def __len__(self) -> int:
        return sum(len(sweep) for sweep in self.sweeps)

    def __iter__(self) -> Iterator[GraphBatch]:
        return itertools.chain.from_iterable(self.sweeps)


class _Averaging(EMAWeightAveraging):
    """Lightning's moving average, which also takes its weights back if validation is interrupted."""

    _swapped = False

    def _swap_models(self, pl_module: lightning.LightningModule) -> None:
        super()._swap_models(pl_module)
        self._swapped = not self._swapped

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Put the weights in training back before the checkpoint on exception is written."""
        if self._swapped:
            self._swap_models(pl_module)


class _Progress(RichProgressBar):
    """Lightning's progress bar without the number of the log."""

    def get_metrics(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> dict[str, Any]:
        """Return the metrics to show."""
        metrics = super().get_metrics(trainer, pl_module)
        return {name: value for name, value in metrics.items() if name != "v_num"}


class _FlatGradientStrategy(DDPStrategy):
    """DDP's process group and launcher without its wrapper: the module itself sums the gradient, in one flat buffer."""

    def configure_ddp(self) -> None:
        """Leave the module as it is."""


class _Checkpoints(Checkpoint):
    """Saves a checkpoint every so many steps, at the end and on an exception, and keeps the newest few.

    Lightning's ModelCheckpoint expects automatic optimization: with manual it wants the weights from before the step.
    """

    def __init__(self, folder: Path, every: int, keep: int) -> None:
        self.folder, self.every, self.keep = folder, every, keep

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save if it is time."""
        if trainer.global_step % self.every == 0 or trainer.global_step == trainer.max_steps:
            self._save(trainer)

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Save what there is, if any step has been taken.

        Without Lightning's barrier: the other processes may not be failing, and would never come to it.
        """
        if trainer.global_step > 0 and trainer.is_global_zero:
            state = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
            trainer.strategy.save_checkpoint(state, self._path(trainer))

    def _path(self, trainer: lightning.Trainer) -> Path:
        return self.folder / f"step={trainer.global_step:09d}.ckpt"

    def _save(self, trainer: lightning.Trainer) -> None:
        trainer.save_checkpoint(self._path(trainer))
        if trainer.is_global_zero:
            for old in sorted(self.folder.glob("step=*.ckpt"))[: -self.keep]:
                old.unlink()


def _loggers(config: FitConfig, out: Path) -> list[Logger]:
    loggers: list[Logger] = [CSVLogger(out, name="logs", flush_logs_every_n_steps=config.log_every)]
    if config.wandb:
        loggers.append(WandbLogger(project="foundation", name=out.name, save_dir=out, offline=True))
    return loggers


def is_rank_zero() -> bool:
    """Return whether this process is the one that writes to the run folder, before or after any process group is up."""
    return getattr(rank_zero_only, "rank", 0) == 0


def seed_everything(seed: int) -> None:
    """Seed every random number generator, so that all processes start from the same weights."""
    lightning.seed_everything(seed, workers=True, verbose=False)
