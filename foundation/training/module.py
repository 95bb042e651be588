"""The LightningModule: one training step is one optimizer step over all of a rank's micro-batches, nothing clever."""

import time

import lightning
import torch
from jaxtyping import Float
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from data_pipeline.graph import GraphBatch
from data_pipeline.stream import Steps
from foundation.potential import Potential
from foundation.training.loss import LossConfig, label_counts, loss
from foundation.training.metrics import ErrorSums
from foundation.training.optim import OptimConfig, make_optimizer, make_schedule


class TrainingModule(lightning.LightningModule):
    """A potential in training.

    Optimization is manual because the unit of the stream is a whole step: a batch index then is a step index, also
    after a resume, and the gradient is summed over processes once, in one flat buffer.
    """

    def __init__(
        self, potential: Potential, loss_config: LossConfig, optim_config: OptimConfig, num_steps: int, log_every: int
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.potential = potential
        self.loss_config, self.optim_config = loss_config, optim_config
        self.num_steps, self.log_every = num_steps, log_every
        self.training_errors, self.validation_errors = ErrorSums(), ErrorSums()
        self._atoms_since, self._time_since, self._waited_since = 0.0, time.perf_counter(), 0.0

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimizer and its schedule, which is stepped by hand."""
        optimizer = make_optimizer(self.optim_config, self.potential, len(self.potential.elements))
        return {"optimizer": optimizer, "lr_scheduler": make_schedule(self.optim_config, optimizer, self.num_steps)}

    def training_step(self, micro_batches: list[GraphBatch], step: int) -> None:
        """Take one optimizer step."""
        optimizer, schedule = self.optimizers(), self.lr_schedulers()
        assert isinstance(optimizer, LightningOptimizer)
        assert isinstance(schedule, torch.optim.lr_scheduler.LambdaLR)
        optimizer.zero_grad()
        counts = self._sum_over_ranks(torch.stack([label_counts(batch) for batch in micro_batches]).sum(dim=0))
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for batch in micro_batches:
            if batch.num_graphs == 0:
                continue
            prediction = self.potential(batch)
            share = loss(self.loss_config, prediction, batch, counts)
            self.manual_backward(share)
            total += share.detach()
            self.training_errors.update(prediction, batch)
        norm = self._reduce_gradients()
        optimizer.step()
        schedule.step()
        self._atoms_since += sum(len(batch.numbers) for batch in micro_batches)
        if self.trainer.global_step % self.log_every == 0:
            self._log_step(
                self._sum_over_ranks(total),
                norm,
                self.optim_config.learning_rate * schedule.lr_lambdas[0](schedule.last_epoch),
            )

    def _reduce_gradients(self) -> Float[Tensor, ""]:
        """Sum the gradient over processes, scale it down to clip_norm, and return its norm before."""
        parameters = [p for p in self.potential.parameters() if p.requires_grad]
        for parameter in parameters:
            if parameter.grad is None:  # a rank whose micro-batches are all empty
                parameter.grad = torch.zeros_like(parameter)
        if self.trainer.world_size > 1:
            gradients = [p.grad for p in parameters if p.grad is not None]
            flat = self._sum_over_ranks(torch.cat([gradient.flatten() for gradient in gradients]))
            for gradient, reduced in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(reduced.view_as(gradient))
        return torch.nn.utils.clip_grad_norm_(parameters, self.optim_config.clip_norm)

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
