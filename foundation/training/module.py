"""The LightningModule: one training step is one optimizer step over all of a rank's micro-batches, nothing clever."""

from typing import Any

import lightning
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from data_pipeline.graph import GraphBatch
from data_pipeline.stream import Steps
from foundation.potential import Potential
from foundation.training.data import Sweeps
from foundation.training.fit_config import FitConfig
from foundation.training.gradients import gradients_for
from foundation.training.guard import Guard
from foundation.training.loss import LossConfig, loss_terms
from foundation.training.metrics import ValidationErrors
from foundation.training.monitor import Monitor, step_counts
from foundation.training.optim import OptimConfig, make_optimizer, make_schedule
from foundation.training.sinks import log_row
from foundation.training.strategy import sum_over_ranks


class TrainingModule(lightning.LightningModule):
    """A potential in training.

    Optimization is manual because the unit of the stream is a whole step: a batch index then is a step index, also
    after a resume, and the gradient is summed over processes once, in one flat buffer.
    """

    def __init__(
        self,
        potential: Potential,
        loss_config: LossConfig,
        optim_config: OptimConfig,
        fit_config: FitConfig,
        guard: Guard,
        monitor: Monitor,
        record: dict[str, Any],
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.potential = potential
        self.loss_config, self.optim_config, self.fit_config = loss_config, optim_config, fit_config
        self.guard, self.monitor, self._record = guard, monitor, record

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimizer and its schedule, which is stepped by hand."""
        optimizer = make_optimizer(self.optim_config, self.potential, len(self.potential.elements))
        schedule = make_schedule(self.optim_config, optimizer, self.fit_config.steps)
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the resolved configuration into a checkpoint."""
        checkpoint["config"] = self._record

    def on_fit_start(self) -> None:
        """Prepare for the gradient, in the way of the strategy."""
        parameters = [parameter for parameter in self.potential.parameters() if parameter.requires_grad]
        self._gradients = gradients_for(self.trainer.strategy, parameters, self.optim_config.clip_norm)

    def on_train_batch_start(self, batch: list[GraphBatch], batch_idx: int) -> None:
        """Put right how many batches Lightning thinks to have begun, by which it validates.

        It counts one too many after a checkpoint that was saved in the middle of a step, and would validate one step
        early to the end of the run.
        """
        total: Any = self.trainer.fit_loop.epoch_loop.batch_progress.total
        total.ready = self.trainer.global_step + 1
        total.started = total.processed = total.completed = self.trainer.global_step

    def training_step(self, micro_batches: list[GraphBatch], step: int) -> None:
        """Take one optimizer step, or skip it if its loss or gradient is unusable."""
        optimizer, schedule = self.optimizers(), self.lr_schedulers()
        assert isinstance(optimizer, LightningOptimizer)
        assert isinstance(schedule, torch.optim.lr_scheduler.LambdaLR)
        optimizer.zero_grad()
        counts, sizes = self._sum_over_ranks(step_counts(micro_batches, self.device)).split(3)
        self.monitor.start_step(micro_batches, sizes)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for place, batch in enumerate(micro_batches):
            self._seed(step, place)
            share = self._share(batch, counts)
            total += share.detach()
            self._gradients.add(share, last=place == len(micro_batches) - 1)
        self.monitor.stop_computing()
        failed = total.new_tensor(float(self.guard.save_failure))
        norm, (total, failed) = self._gradients.reduce(torch.stack([total, failed]))
        if failed > 0:
            raise OSError("a checkpoint could not be written, as the log says; make room and resume the run")
        trouble = self.guard.trouble(float(total), float(norm))
        if trouble is None:
            self._gradients.clip(norm)
            optimizer.step()
            self.guard.good_step(float(total))
        else:
            self._gradients.discard()
            self._count_step(optimizer)
            self.guard.bad_step(self.trainer, self.potential, micro_batches, trouble)
        self.monitor.end_step(taken=trouble is None)
        if self.trainer.global_step % self.fit_config.log_every == 0:
            self._log_step(norm, optimizer.param_groups[0]["lr"])
        schedule.step()

    def _share(self, batch: GraphBatch, counts: Tensor) -> Tensor:
        """Return a micro-batch's share of the loss of the step."""
        if batch.num_graphs == 0:
            return torch.zeros((), dtype=torch.float64, device=self.device)
        prediction = self.potential(batch)
        terms = loss_terms(self.loss_config, prediction, batch, counts)
        self.monitor.add(prediction, batch, terms)
        return terms.sum()

    def _seed(self, step: int, place: int) -> None:
        """Make random numbers depend on the step and the lane only: not on what ran before, nor on how many ranks."""
        lane = self.trainer.global_rank * (self.fit_config.lanes // self.trainer.world_size) + place
        torch.manual_seed(((self.fit_config.seed * 0x9E3779B97F4A7C15 + step) * self.fit_config.lanes + lane) % 2**63)

    @staticmethod
    def _count_step(optimizer: LightningOptimizer) -> None:
        """Let Lightning count a step that was not taken: its data have been read, and step and data go together."""
        optimizer._on_before_step()
        optimizer._on_after_step()

    def _sum_over_ranks(self, tensor: Tensor) -> Tensor:
        return sum_over_ranks(tensor.to(self.device, copy=True))

    @property
    def _steps(self) -> Steps:
        assert self.trainer.train_dataloader is not None
        return self.trainer.train_dataloader.steps

    def _log_step(self, norm: Tensor, learning_rate: float) -> None:
        values = self.monitor.compute(self.trainer, self._steps, self._sum_over_ranks)
        values |= {
            "train/gradient_norm": float(norm),
            "train/learning_rate": learning_rate,
            "train/skipped_steps": float(self.guard.num_skipped),
            "train/rollbacks": float(self.guard.num_rollbacks),
        }
        log_row(self.trainer.loggers, "train", self.trainer.global_step, values)

    def on_validation_epoch_start(self) -> None:
        """Forget the last validation."""
        assert isinstance(self.trainer.val_dataloaders, Sweeps)
        self._validation_errors = ValidationErrors(self.trainer.val_dataloaders.names)

    def validation_step(self, batch: GraphBatch, number: int) -> None:
        """Add the errors of a batch."""
        if batch.num_graphs:
            assert isinstance(self.trainer.val_dataloaders, Sweeps)
            dataset = self.trainer.val_dataloaders.dataset_of(number)
            self._validation_errors.update(self.potential(batch), batch, dataset)

    def on_validation_epoch_end(self) -> None:
        """Log the errors over every validation frame."""
        errors, by_element = self._validation_errors.compute(self._sum_over_ranks)
        values = {f"val/{name}": value for name, value in errors.items()}
        # what decides which checkpoint is best; the same in all processes
        self.log_dict(values, logger=False)
        log_row(self.trainer.loggers, "validation", self.trainer.global_step, {**values, "val/by_element": by_element})
