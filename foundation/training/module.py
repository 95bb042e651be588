"""The LightningModule: one training step is one optimizer step over all of a rank's micro-batches."""

import logging
from collections.abc import Sequence
from functools import partial
from typing import Any

import lightning
import torch
from jaxtyping import Float64
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from data_pipeline.graphs.batch import GraphBatch
from foundation.kernels.backend import backend_of
from foundation.potential import Potential
from foundation.recording import CudaGraphs
from foundation.training.additions import Additions, Parts, StepLoader
from foundation.training.data import ValidationLoader
from foundation.training.fault_tolerance.guard import Guard
from foundation.training.fault_tolerance.reading import BACKEND
from foundation.training.fault_tolerance.stored_potential import POTENTIAL, described_for_checkpoint
from foundation.training.fit_config import FitConfig
from foundation.training.gradients import gradients_for
from foundation.training.lightning_internals import count_step, expect_batches, set_counted_batches
from foundation.training.loss import Counts, LossConfig, loss_terms, summed
from foundation.training.monitoring.loggers import log_row
from foundation.training.monitoring.metrics import ValidationErrors
from foundation.training.monitoring.monitor import Monitor, StepCounts, step_counts
from foundation.training.optim import OptimConfig, make_optimizer, make_schedule
from foundation.training.replay import Computed, Replay
from foundation.training.strategy import sum_over_ranks

log = logging.getLogger(__name__)


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
        additions: Additions,
        provenance: dict[str, Any],
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.potential = potential
        self.loss_config, self.optim_config, self.fit_config = loss_config, optim_config, fit_config
        self.guard, self.monitor, self._record, self._provenance = guard, monitor, record, provenance
        self._rehearsal, self._penalty = additions.rehearsal, additions.penalty
        self._rate_factors = additions.rate_factors
        self._kept_gradient: dict[str, Tensor] = {}
        self._validated = False
        self._replays: list[Replay] = []

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimizer and its schedule, which is stepped manually."""
        num_elements = len(self.potential.elements)
        optimizer = make_optimizer(self.optim_config, self.potential, num_elements, self._rate_factors)
        schedule = make_schedule(self.optim_config, optimizer, self.fit_config.steps)
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add configuration, description of the potential, backend, and the gradient if needed, to a checkpoint."""
        checkpoint["config"] = self._record
        checkpoint[POTENTIAL] = described_for_checkpoint(self.potential, self._provenance)
        checkpoint[BACKEND] = backend_of(self.potential, self.trainer.strategy.root_device)
        checkpoint["kept_gradient"] = self._kept_gradient

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the gradient that the next step needs."""
        self._kept_gradient = checkpoint.get("kept_gradient", {})

    def on_fit_start(self) -> None:
        """Prepare the accumulation of the gradient for the strategy, and recordings."""
        parameters = [parameter for parameter in self.potential.parameters() if parameter.requires_grad]
        self._gradients = gradients_for(self.trainer.strategy, parameters, self.optim_config.clip_norm)
        if self.fit_config.cuda_graphs:
            recorder, parts = CudaGraphs(), (0, 1)
            self._replays = [Replay(recorder, self.potential, partial(self._computed, part)) for part in parts]

    def on_train_start(self) -> None:
        """Read on in a run that was made longer."""
        expect_batches(self.trainer)

    def on_train_batch_start(self, batch: Parts, batch_idx: int) -> None:
        """Correct Lightning's number of batches, which decides when it validates."""
        set_counted_batches(self.trainer)

    def training_step(self, parts: Parts, step: int) -> None:
        """Take one optimizer step, or skip it if its loss or gradient is unusable."""
        optimizer, schedule = self.optimizers(), self.lr_schedulers()
        assert isinstance(optimizer, LightningOptimizer)
        assert isinstance(schedule, torch.optim.lr_scheduler.LambdaLR)
        optimizer.zero_grad()
        for name, gradient in self._kept_gradient.items():
            self.potential.get_parameter(name).grad = gradient.to(self.device, copy=True)
        parts = self._relabelled(parts)
        micro_batches = [batch for part in parts for batch in part]
        counts = step_counts(parts, self.device, self._sum_over_ranks)
        self.monitor.start_step(parts, counts)
        total = self._backward(parts, counts, step)
        self.monitor.stop_computing()
        failed = total.new_tensor(float(self.guard.save_failure))
        norm, sums = self._gradients.reduce(torch.stack([total, failed]))
        # the one question of a step to the device
        norm_value, loss_value, failures = torch.cat([norm.to(sums).view(1), sums]).tolist()
        if failures > 0:
            self.guard.refuse_lost()
            raise OSError("a checkpoint could not be written (see the log); fix the cause and resume the run")
        trouble = self.guard.trouble(loss_value, norm_value)
        if trouble is None:
            self._gradients.clip(norm)
            self._keep_gradient(step)
            optimizer.step()
            self.guard.good_step(loss_value)
        else:
            self._gradients.discard()
            self._kept_gradient = {}
            count_step(optimizer)
            self.guard.bad_step(self.trainer, self.potential, micro_batches, trouble)
        self.monitor.end_step(taken=trouble is None)
        if self.trainer.global_step % min(self.fit_config.log_every, self.fit_config.steps) == 0:
            # not a group's rate: parameters may have factors
            rate = self.optim_config.learning_rate * schedule.lr_lambdas[0](schedule.last_epoch)
            self._log_step(norm_value, rate * self.guard.rate_factor)
        schedule.step()

    def _backward(self, parts: Parts, counts: Sequence[StepCounts], step: int) -> Float64[Tensor, ""]:
        """Add up the gradient of this process's share of the loss of a step, and return the share."""
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        work = [(number, place, batch) for number, part in enumerate(parts) for place, batch in enumerate(part)]
        for left, (number, place, batch) in zip(reversed(range(len(work))), work, strict=True):
            last = left == 0
            self._seed(step, number, place)
            share = self._share(number, batch, counts[number].labels)
            if last and self._penalty is not None:
                penalty = self._penalty(self.potential) / self.trainer.world_size
                self.monitor.add_extra("penalty", penalty)
                share = share + penalty
            total += share.detach()
            self._gradients.add(share, last=last)
        return total

    def _share(self, number: int, batch: GraphBatch, counts: Counts) -> Tensor:
        """Return a micro-batch's share of the loss of the step; if it is replayed, its gradient has been added."""
        if batch.num_graphs == 0:
            return torch.zeros((), dtype=torch.float64, device=self.device)
        if self._replays:
            computed, gradients = self._replays[number](batch, counts)
            for parameter, gradient in zip(self._replays[number].parameters, gradients, strict=True):
                parameter.grad = gradient.clone() if parameter.grad is None else parameter.grad.add_(gradient)
        else:
            computed = self._computed(number, batch, counts)
        if number == 0:
            self.monitor.add(computed.prediction, batch, computed.terms)
        else:
            self.monitor.add_extra("rehearsal", computed.share)
        return computed.share

    def _computed(self, number: int, batch: GraphBatch, counts: Counts) -> Computed:
        """Return predictions and loss of a micro-batch: of the run's own data, or with number 1 of the rehearsal."""
        prediction = self.potential(batch)
        if number == 0:
            terms = loss_terms(self.loss_config, prediction, batch, counts)
            return Computed(summed(terms), terms, prediction)
        assert self._rehearsal is not None
        terms = loss_terms(self._rehearsal.loss or self.loss_config, prediction, batch, counts)
        return Computed(self._rehearsal.weight * summed(terms), terms, prediction)

    def _relabelled(self, parts: Parts) -> Parts:
        """Return the micro-batches with the labels for training, whose counts divide the loss."""
        if self._rehearsal is None or self._rehearsal.relabel is None:
            return parts
        target, rehearsed = parts
        return [target, [self._rehearsal.relabel(batch) if batch.num_graphs else batch for batch in rehearsed]]

    def _keep_gradient(self, step: int) -> None:
        """Keep the gradient of a target step for the next, rehearsal step in mode reference."""
        self._kept_gradient = {}
        if self._rehearsal is not None and self._rehearsal.mode == "reference" and step % 2 == 0:
            gradients = {name: parameter.grad for name, parameter in self.potential.named_parameters()}
            self._kept_gradient = {name: grad.clone() for name, grad in gradients.items() if grad is not None}

    def _seed(self, step: int, part: int, place: int) -> None:
        """Make random numbers depend only on step, part and lane, not on earlier work or the number of ranks."""
        lanes = self.fit_config.lanes
        lane = self.trainer.global_rank * (lanes // self.trainer.world_size) + place
        number = 2 * (self.fit_config.seed * 0x9E3779B97F4A7C15 + step) + part
        torch.manual_seed((number * lanes + lane) % 2**63)

    def _sum_over_ranks(self, tensor: Tensor) -> Tensor:
        return sum_over_ranks(tensor.to(self.device, copy=True))

    def _log_step(self, norm: float, learning_rate: float) -> None:
        assert isinstance(self.trainer.train_dataloader, StepLoader)
        values = self.monitor.compute(self.trainer, self.trainer.train_dataloader, self._sum_over_ranks)
        values |= {
            "train/gradient_norm": norm,
            "train/learning_rate": learning_rate,
            "train/skipped_steps": float(self.guard.num_skipped),
            "train/rollbacks": float(self.guard.num_rollbacks),
        }
        log_row(self.trainer.loggers, "train", self.trainer.global_step, values)

    def on_validation_epoch_start(self) -> None:
        """Reset the validation errors."""
        assert isinstance(self.trainer.val_dataloaders, ValidationLoader)
        passes = self.trainer.val_dataloaders
        self._validation_errors = ValidationErrors(passes.names, num_watched=passes.num_watched)

    def validation_step(self, batch: GraphBatch, number: int) -> None:
        """Add the errors of a batch."""
        if batch.num_graphs:
            assert isinstance(self.trainer.val_dataloaders, ValidationLoader)
            dataset = self.trainer.val_dataloaders.dataset_of(number)
            self._validation_errors.update(self.potential(batch), batch, dataset)

    def on_validation_epoch_end(self) -> None:
        """Log the errors over every validation frame."""
        assert isinstance(self.trainer.val_dataloaders, ValidationLoader)
        errors, by_element = self._validation_errors.compute(self._sum_over_ranks)
        if not self._validated and self.trainer.is_global_zero:
            for sentence in self.trainer.val_dataloaders.left_out(errors):
                log.warning("validation: %s", sentence)
        self._validated = True
        values = {f"val/{name}": value for name, value in errors.items()}
        # these decide the best checkpoint; the same in all processes
        self.log_dict(values, logger=False)
        log_row(self.trainer.loggers, "validation", self.trainer.global_step, {**values, "val/by_element": by_element})
