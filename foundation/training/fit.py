"""fit(): the only place that makes a Trainer."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.io import AsyncCheckpointIO

from data_pipeline.loading.datasets import Dataset
from foundation.kernels.backend import backend_of, describe_backend
from foundation.kernels.memory import keep_freed_memory
from foundation.nn.computation import Computation
from foundation.nn.matmul import describe_precision
from foundation.potential import Potential
from foundation.training.additions import NO_ADDITIONS, Additions, Rehearsal
from foundation.training.data import TrainingData
from foundation.training.fault_tolerance.checkpoints import Checkpoints, refuse_other_backend, validation_errors
from foundation.training.fault_tolerance.guard import Guard
from foundation.training.fault_tolerance.preemption import Preemption
from foundation.training.fault_tolerance.reading import CHECKPOINTS, WholeCheckpoint
from foundation.training.fault_tolerance.watchdog import Watchdog
from foundation.training.fit_config import FitConfig, computation_of
from foundation.training.lightning_internals import Averaging
from foundation.training.loss import LossConfig
from foundation.training.machine import MachineConfig, check_lanes
from foundation.training.module import TrainingModule
from foundation.training.monitoring.loggers import check_loggers, make_loggers, make_progress
from foundation.training.monitoring.monitor import Monitor
from foundation.training.optim import OptimConfig, ema_decay_of
from foundation.training.replay import check_recording
from foundation.training.strategy import device_type, is_rank_zero, make_strategy, plugins_for

log = logging.getLogger(__name__)


def fit(
    potential: Potential,
    datasets: Sequence[Dataset],
    *,
    config: FitConfig,
    machine: MachineConfig,
    loss: LossConfig,
    optim: OptimConfig,
    out: Path,
    record: dict[str, Any],
    provenance: Mapping[str, Any] = MappingProxyType({}),
    checkpoint: WholeCheckpoint | None = None,
    additions: Additions = NO_ADDITIONS,
    begin: Callable[[], object] = lambda: None,
) -> dict[str, Any]:
    """Train a potential in place and return facts: the errors of the last validation and the convolution backend.

    The potential ends with the moving average of the weights. Checkpoints and logs go to the run folder.

    Args:
        potential: Potential to train.
        datasets: Training data.
        config: Section fit.
        machine: Hardware to run on.
        loss: Loss terms.
        optim: Optimizer and schedule.
        out: The run folder.
        record: The resolved configuration, as JSON; checkpoints carry it.
        provenance: Origin of the potential, as JSON; checkpoints carry it, so that each of them can be released.
        checkpoint: Checkpoint to resume from.
        additions: Additions of a fine-tuning.
        begin: Called in the first process after the checks, before anything is written.

    Raises:
        ValueError: the checkpoint belongs to another backend, other data or another plan, the optimizer does not work
            with the strategy, or Stream refuses.
        PreemptedError: a signal stopped the run.
        Diverged: the loss or gradient stayed unusable.
        OSError: a checkpoint could not be written.
    """
    _check(potential, config, machine, optim, additions, checkpoint)
    keep_freed_memory()
    checkpoints = Checkpoints(out / CHECKPOINTS, config.checkpoint_every, config.keep_checkpoints, config.best_by)
    guard = Guard(config.guard, checkpoints)
    monitor = Monitor(config, potential, work=additions.work, extras=additions.parts_of_loss)
    module = TrainingModule(potential, loss, optim, config, guard, monitor, record, additions, dict(provenance))
    # the order matters: a checkpoint must have the average of its weights
    averaging, watchdog = _averaging(optim, config), Watchdog(config.guard.stall_after)
    callbacks = [averaging, guard, monitor, checkpoints, watchdog, Preemption(checkpoints)]
    data = TrainingData(datasets, potential, config, additions, num_workers=machine.num_workers)
    if is_rank_zero():
        begin()
    potential.compute_as(computation_of(config))
    loggers = make_loggers(config, out, 0 if checkpoint is None else checkpoint.step, record)
    trainer = _trainer(config, machine, optim, callbacks, checkpoints.writer, loggers, validated=bool(data.validated))
    convolution = _announce(potential, datasets, config, trainer, checkpoint)
    trainer.fit(module, datamodule=data, ckpt_path=checkpoint and checkpoint.path, weights_only=True)
    module.cpu()
    potential.compute_as(Computation())
    return {"validation": validation_errors(trainer), "convolution": convolution}


def _averaging(optim: OptimConfig, config: FitConfig) -> Averaging:
    decay = ema_decay_of(config.steps) if optim.ema_decay is None else optim.ema_decay
    return Averaging(use_buffers=False, decay=decay)


def _announce(
    potential: Potential,
    datasets: Sequence[Dataset],
    config: FitConfig,
    trainer: lightning.Trainer,
    checkpoint: WholeCheckpoint | None,
) -> str:
    """Log data, size and backend of a run and the resumed step, and return the description of the backend."""
    convolution = describe_backend(potential, trainer.strategy.root_device)
    if trainer.is_global_zero:
        for dataset in datasets:
            log.info("%s", _sizes(dataset))
        numbers = [
            sum(each.numel() for each in potential.parameters() if each.requires_grad or every) for every in (0, 1)
        ]
        log.info("weights: %s trained of %s", *(f"{number:,}" for number in numbers))
        log.info("convolution: %s", convolution)
        log.info("matrix products: %s", describe_precision(config.precision, trainer.strategy.root_device))
        if checkpoint is not None:
            log.info("continuing from %s", checkpoint.path)
    return convolution


def _sizes(dataset: Dataset) -> str:
    """Return the sizes of a data set in words."""
    trained = dataset.manifest.split(dataset.split).statistics
    validated = dataset.manifest.splits.get("val")
    val = validated.statistics.num_frames if validated else 0
    name, to_train = dataset.manifest.provenance.name, f"{trained.num_frames:,} frames ({trained.num_atoms:,} atoms)"
    return f"data: {name}, {to_train} to train on, {f'{val:,}' if val else 'none'} to validate"


def _check(
    potential: Potential,
    config: FitConfig,
    machine: MachineConfig,
    optim: OptimConfig,
    additions: Additions,
    checkpoint: WholeCheckpoint | None,
) -> None:
    """Check that the options fit each other and this machine."""
    check_lanes(config.lanes, machine)
    if machine.accelerator == "gpu" and not torch.cuda.is_available():
        raise ValueError("machine.accelerator gpu: torch finds no GPU here; set cpu, or start on a machine with a GPU")
    device = torch.device(device_type(machine.accelerator))
    if device.type == "cuda" and machine.devices > torch.cuda.device_count():
        raise ValueError(f"machine.devices {machine.devices}: torch finds {torch.cuda.device_count()} GPUs here")
    check_recording(config, machine, potential, device.type)
    # tried here and undone: begin() measures the start with default options
    potential.compute_as(computation_of(config))
    backend = backend_of(potential, device)
    potential.compute_as(Computation())
    if checkpoint is not None:
        refuse_other_backend(checkpoint, backend)
    check_loggers(config)
    check_processes(machine, optim, additions.rehearsal)


def check_processes(machine: MachineConfig, optim: OptimConfig, rehearsal: Rehearsal | None) -> None:
    """Check that optimizer and rehearsal work with several processes.

    Raises:
        ValueError: one does not.
    """
    if machine.strategy != "ddp" and optim.optimizer != "adamw":
        raise ValueError(
            f"optim.optimizer {optim.optimizer} needs whole parameters, but machine.strategy {machine.strategy} "
            "parts them: use adamw, or ddp"
        )
    if rehearsal is not None and rehearsal.mode == "reference" and machine.world_size > 1:
        raise ValueError(
            "rehearsal.mode reference adds to the gradient of the previous step, which needs a single process: use "
            "joint or alternate, or one process"
        )


def _trainer(
    config: FitConfig,
    machine: MachineConfig,
    optim: OptimConfig,
    callbacks: list[Callback],
    writer: AsyncCheckpointIO,
    loggers: list[Logger],
    *,
    validated: bool,
) -> lightning.Trainer:
    for name in ("lightning.pytorch", "lightning.fabric"):  # advertisements, and what this program says itself
        logging.getLogger(name).setLevel(logging.WARNING)
    return lightning.Trainer(
        accelerator=machine.accelerator,
        devices=machine.devices,
        num_nodes=machine.num_nodes,
        strategy=make_strategy(machine.strategy, machine.world_size, optim.clip_norm),
        plugins=[*plugins_for(machine.strategy), writer],
        max_steps=config.steps,
        max_epochs=1,  # the whole run is one epoch
        val_check_interval=config.validate_every,
        limit_val_batches=None if validated else 0,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        log_every_n_steps=min(config.log_every, config.steps),
        inference_mode=False,  # forces need autograd in validation too
        callbacks=[*callbacks, *make_progress()],
        enable_progress_bar=False,
        logger=loggers,
        use_distributed_sampler=False,
        enable_model_summary=False,
    )


def seed_everything(seed: int) -> None:
    """Seed every random number generator, so that all processes start from the same weights."""
    lightning.seed_everything(seed, workers=True, verbose=False)
