"""Gradient of an optimizer step: added up over micro-batches, summed over processes once, measured and clipped.

Every process gets the same norm and the same few sums with the gradient, so decisions based on them agree without
further communication.
"""

import torch
from jaxtyping import Float
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch import Tensor

from foundation.training.strategy import ZeroStrategy, sum_over_ranks


class FlatGradients:
    """The gradient of an optimizer step, summed over all processes in one flat buffer."""

    def __init__(self, strategy: Strategy, parameters: list[torch.nn.Parameter], clip_norm: float) -> None:
        self._strategy, self._parameters, self._clip_norm = strategy, parameters, clip_norm

    def add(self, share: Tensor, *, last: bool) -> None:
        """Add the gradient of a micro-batch's share of the loss; an empty one has none."""
        assert self._strategy.lightning_module is not None
        if share.requires_grad:
            self._strategy.lightning_module.manual_backward(share)

    def reduce(self, sums: Float[Tensor, " sums"]) -> tuple[Float[Tensor, ""], Float[Tensor, " sums"]]:
        """Sum the gradient over processes, and a few numbers with it; return the gradient's norm and the numbers."""
        for parameter in self._parameters:
            if parameter.grad is None:  # a process whose micro-batches are all empty
                parameter.grad = torch.zeros_like(parameter)
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        if isinstance(self._strategy, DDPStrategy):
            # float32 like the gradient; decisions are the same in every process
            flat = torch.cat([*(gradient.flatten() for gradient in gradients), sums.to(gradients[0].dtype)])
            *parts, sums = sum_over_ranks(flat).split([*(g.numel() for g in gradients), len(sums)])
            for gradient, reduced in zip(gradients, parts, strict=True):
                gradient.copy_(reduced.view_as(gradient))
        return torch.nn.utils.get_total_norm(gradients), sums

    def clip(self, norm: Float[Tensor, ""]) -> None:
        """Scale the gradient down to the largest norm."""
        torch.nn.utils.clip_grads_with_norm_(self._parameters, self._clip_norm, norm)

    def discard(self) -> None:
        """Discard the gradient of this step."""
        for parameter in self._parameters:
            parameter.grad = None


class ZeroGradients:
    """Gradient of an optimizer step, of which every process keeps the part for the weights that it updates."""

    def __init__(self, strategy: ZeroStrategy, parameters: list[torch.nn.Parameter]) -> None:
        self._strategy, self._parameters = strategy, parameters

    def add(self, share: Tensor, *, last: bool) -> None:
        """Add the gradient of a micro-batch's share of the loss.

        DeepSpeed takes the mean over processes, and expects the same number of calls, with all parameters, in each.
        """
        engine = self._strategy.deepspeed_engine
        engine.set_gradient_accumulation_boundary(last)
        if not share.requires_grad:
            share = share + sum(parameter.sum() * 0.0 for parameter in self._parameters)
        engine.backward(share * self._strategy.world_size)

    def reduce(self, sums: Float[Tensor, " sums"]) -> tuple[Float[Tensor, ""], Float[Tensor, " sums"]]:
        """Return the norm of the gradient summed by DeepSpeed, and a few numbers summed over processes."""
        parts = [part for group in self.partitions() for part in group]
        square = torch.stack([part.double().square().sum() for part in parts]).sum().to(self._strategy.root_device)
        reduced = sum_over_ranks(torch.cat([square.view(1), sums.double()]))
        return reduced[0].sqrt(), reduced[1:]

    def partitions(self) -> list[list[Tensor]]:
        """Return this process's parts of the gradient, by parameter group."""
        zero = self._strategy.zero
        if zero.cpu_offload:
            return [[partition.grad] for partition in zero.single_partition_of_fp32_groups]
        return [zero.averaged_gradients[number] for number in range(len(zero.bit16_groups))]

    def clip(self, norm: Float[Tensor, ""]) -> None:
        """Do nothing: DeepSpeed's step clips."""

    def discard(self) -> None:
        """Discard the gradient of this step."""
        zero = self._strategy.zero
        zero.zero_grad(set_to_none=True)
        if zero.cpu_offload:
            zero.reset_cpu_buffers()
        else:
            zero.averaged_gradients = dict.fromkeys(zero.averaged_gradients)


def gradients_for(
    strategy: Strategy, parameters: list[torch.nn.Parameter], clip_norm: float
) -> FlatGradients | ZeroGradients:
    """Return the object that accumulates the gradient under a strategy."""
    if isinstance(strategy, ZeroStrategy):
        return ZeroGradients(strategy, parameters)
    return FlatGradients(strategy, parameters, clip_norm)
