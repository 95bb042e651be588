"""All uses of private parts of Lightning and DeepSpeed.

Each function states why no public way exists. After an upgrade of either, only this file needs review.
"""

import contextlib
from typing import Any, TypeVar

import lightning
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, WeightAveraging
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DeepSpeedStrategy

from foundation.training.schedule_free import ScheduleFree

Kind = TypeVar("Kind")


def callbacks_of(trainer: lightning.Trainer, kind: type[Kind]) -> list[Kind]:
    """Return a trainer's callbacks of a kind; Lightning sets the attribute without declaring it."""
    inside: Any = trainer
    return [callback for callback in inside.callbacks if isinstance(callback, kind)]


def datamodule_of(trainer: lightning.Trainer) -> Any:
    """Return the data of a trainer; Lightning sets the attribute without declaring it."""
    inside: Any = trainer
    return inside.datamodule


def set_counted_batches(trainer: lightning.Trainer) -> None:
    """Correct Lightning's batch counter, which decides when it validates, to the number of steps.

    After a checkpoint saved in the middle of a step it is one too high, and validation would be one step early until
    the end of the run.
    """
    total: Any = trainer.fit_loop.epoch_loop.batch_progress.total
    total.ready = trainer.global_step + 1
    total.started = total.processed = total.completed = trainer.global_step


def expect_batches(trainer: lightning.Trainer) -> None:
    """Let a run that is made longer go on: the last batch of its checkpoint is no longer the last.

    Lightning takes this from the checkpoint until it reads a batch, and reads none after a last one.
    """
    trainer.fit_loop.epoch_loop.batch_progress.is_last_batch = False


def count_step(optimizer: LightningOptimizer) -> None:
    """Let Lightning count a skipped step: its data have been read, and step and data must agree.

    Lightning counts steps only when an optimizer takes one.
    """
    optimizer._on_before_step()
    optimizer._on_after_step()


def ask_no_rank_for_sigterm(trainer: lightning.Trainer) -> None:
    """Stop Lightning from asking all ranks for SIGTERM twice a step, which waits for the GPU each time."""
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None


def averaged_steps(trainer: lightning.Trainer) -> list[int]:
    """Return the last step in each moving average of the weights, which Lightning does not expose."""
    return [callback._latest_update_step for callback in callbacks_of(trainer, WeightAveraging)]


def state_without_barrier(trainer: lightning.Trainer) -> dict[str, Any]:
    """Return the content of a checkpoint; save_checkpoint() would wait for all processes, even if one is failing."""
    return trainer._checkpoint_connector.dump_checkpoint(weights_only=False)


class Averaging(EMAWeightAveraging):
    """Lightning's moving average, which also restores the training weights if validation is interrupted.

    Its swap of the two sets of weights has no hook.
    """

    _swapped = False

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Average the weights; use the average of an optimizer that has its own."""
        optimizer = trainer.optimizers[0]
        with optimizer.averaged() if isinstance(optimizer, ScheduleFree) else contextlib.nullcontext():
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Leave the average in the module, also in a run that is resumed after its last step."""
        self._copy_average_to_current(pl_module)

    def _swap_models(self, pl_module: lightning.LightningModule) -> None:
        super()._swap_models(pl_module)
        self._swapped = not self._swapped

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        """Restore the training weights before the checkpoint on exception is written."""
        if self._swapped:
            self._swap_models(pl_module)


def start_processes_on_cpu(strategy: DeepSpeedStrategy) -> None:
    """Start DeepSpeed's process group on CPUs, which Lightning's public way refuses."""
    from deepspeed import ops

    # its first build takes minutes, and a killed build leaves a lock for which all later runs wait
    ops.__compatible_ops__["deepspeed_shm_comm"] = False
    assert strategy.accelerator is not None
    strategy.accelerator.setup_device(strategy.root_device)
    strategy.set_world_ranks()
    strategy._init_deepspeed_distributed()


def sum_gradients_as(zero: Any, dtype: torch.dtype) -> None:
    """Make DeepSpeed's optimizer sum gradients in a float type; its options have no float64.

    Args:
        zero: DeepSpeed's optimizer.
        dtype: The float type.
    """
    zero.communication_data_type = zero.gradient_accumulation_dtype = dtype
    zero.use_grad_accum_attribute = False
    (bucket,) = zero.ipg_buckets.values()
    zero.ipg_buckets = {dtype: bucket}


def shard_of(parameter: Any) -> tuple[slice, slice] | None:
    """Return the slice of a parameter that this process holds under ZeRO, and its place in the partition.

    None if it holds none. DeepSpeed only offers whole states one by one, each with its own communication.
    """
    if parameter._hp_mapping is None:
        return None
    places = (parameter._hp_mapping.lp_fragment_address, parameter._hp_mapping.hp_fragment_address)
    of_parameter, of_partition = (slice(place.start, place.start + place.numel) for place in places)
    return of_parameter, of_partition
