"""The LightningModule: one training step is one optimizer step over all of a rank's micro-batches, nothing clever."""

import time
from typing import Any

import lightning
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from data_pipeline.graph import GraphBatch
from data_pipeline.stream import Steps
from foundation.potential import Potential
from foundation.training.fit_config import FitConfig
from foundation.training.gradients import gradients_for
from foundation.training.guard import Guard
from foundation.training.loss import LossConfig, label_counts, loss
from foundation.training.metrics import ErrorSums
from foundation.training.optim import OptimConfig, make_optimizer, make_schedule


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
        record: dict[str, Any],
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.potential = potential
        self.loss_config, self.optim_config, self.fit_config = loss_config, optim_config, fit_config
        self.guard, self._record = guard, record
        self.training_errors, self.validation_errors = ErrorSums(), ErrorSums()
        self._atoms_since, self._time_since, self._waited_since = 0.0, time.perf_counter(), 0.0

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

    def training_step(self, micro_batches: list[GraphBatch], step: int) -> None:
        """Take one optimizer step, or skip it if its loss or gradient is unusable."""
        optimizer, schedule = self.optimizers(), self.lr_schedulers()
        assert isinstance(optimizer, LightningOptimizer)
        assert isinstance(schedule, torch.optim.lr_scheduler.LambdaLR)
        optimizer.zero_grad()
        counts = self._sum_over_ranks(torch.stack([label_counts(batch) for batch in micro_batches]).sum(dim=0))
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for place, batch in enumerate(micro_batches):
            self._seed(step, place)
            share = self._share(batch, counts)
            total += share.detach()
            self._gradients.add(share, last=place == len(micro_batches) - 1)
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
        schedule.step()
        self._atoms_since += sum(len(batch.numbers) for batch in micro_batches)
        if self.trainer.global_step % self.fit_config.log_every == 0:
            rate = optimizer.param_groups[0]["lr"]
            self._log_step(total, norm, rate)

    def _share(self, batch: GraphBatch, counts: Tensor) -> Tensor:
        """Return a micro-batch's share of the loss of the step."""
        if batch.num_graphs == 0:
            return torch.zeros((), dtype=torch.float64, device=self.device)
        prediction = self.potential(batch)
        self.training_errors.update(prediction, batch)
        return loss(self.loss_config, prediction, batch, counts)

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
        reduced = self.trainer.strategy.reduce(tensor.to(self.device), reduce_op="sum")
        assert isinstance(reduced, Tensor)
        return reduced

    @property
    def _steps(self) -> Steps:
        assert self.trainer.train_dataloader is not None
        return self.trainer.train_dataloader.steps

    def _log_step(self, total: Tensor, norm: Tensor, learning_rate: float) -> None:
        now = time.perf_counter()
        errors = self.training_errors.compute(self._sum_over_ranks)
        self.training_errors.reset()
        waited = self._steps.waited
        sums = torch.tensor([self._atoms_since, waited - self._waited_since], dtype=torch.float64)
        atoms, waiting = (self._sum_over_ranks(sums) / (now - self._time_since)).tolist()
        self._atoms_since, self._time_since, self._waited_since = 0.0, now, waited
        shown = {"loss": float(total), "force_mae": errors.get("force_mae", 0.0), "atoms/s": atoms}
        self.log_dict(shown, prog_bar=True)
        self.log_dict(
            {
                **{f"train/{name}": value for name, value in errors.items() if name != "force_mae"},
                "gradient_norm": float(norm),
                # share of the time that the average process waited for data
                "data_wait": waiting / self.trainer.world_size,
                "quarantined_frames": float(self._steps.num_quarantined_frames),
                "learning_rate": learning_rate,
            }
        )

    def on_validation_epoch_start(self) -> None:
        """Forget the last validation."""
        self.validation_errors.reset()

    def validation_step(self, batch: GraphBatch, number: int) -> None:
        """Add the errors of a batch."""
        if batch.num_graphs:
            self.validation_errors.update(self.potential(batch), batch)

    def on_validation_epoch_end(self) -> None:
        """Log the errors over every validation frame, and leave validation's time out of atoms/s."""
        errors = self.validation_errors.compute(self._sum_over_ranks)
        self.log_dict({f"val/{name}": value for name, value in errors.items()}, sync_dist=True)
        self._atoms_since, self._time_since = 0.0, time.perf_counter()
        self._waited_since = self._steps.waited
