"""Optimizer and learning-rate schedule."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import torch

from foundation.configuration import DECIDES
from foundation.nn.matrices import Matrices
from foundation.training.muon import Muon
from foundation.training.schedule_free import ScheduleFree

WARMUP_FRACTION, MAX_WARMUP = 0.05, 2000
"""Warm-up of a run that does not give it, as a fraction of its steps, and the largest number of steps."""
EMA_FRACTION, MAX_EMA_DECAY = 0.05, 0.999
"""Steps in the moving average of a run that does not give its decay, as a fraction of all, and the largest decay."""


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimizer, learning rate over the run, and averaging of the weights; AdamW with warm-up and cosine by default."""

    optimizer: Literal["adamw", "muon", "schedule_free"] = field(default="adamw", metadata=DECIDES)
    """AdamW; Muon for the weight matrices inside the network with AdamW for the rest; or schedule-free AdamW, which
    needs `schedule: constant` and `ema_decay: 0`, because its own average takes the place of both."""
    learning_rate: float = field(default=2e-3, metadata=DECIDES)
    """Highest learning rate; Muon's updates are of the size of Adam's, so that it means the same for all optimizers."""
    schedule: Literal["cosine", "wsd", "constant"] = field(default="cosine", metadata=DECIDES)
    """Learning rate after the warm-up: half a cosine to the end; wsd (warm-up, stable, decay; Hu et al.,
    arXiv:2404.06395): constant, then falling over the last decay_fraction; or constant."""
    final_fraction: float = field(default=0.01, metadata=DECIDES)
    """Learning rate at the last step, as a fraction of the highest; ignored by constant."""
    warmup_steps: int | None = field(default=None, metadata=DECIDES)
    """Number of steps over which the learning rate rises from zero; None: 5 % of the run, at most 2,000."""
    decay_fraction: float = field(default=0.2, metadata=DECIDES)
    """Last fraction of the run, in which the learning rate of wsd falls."""
    decay_shape: Literal["1-sqrt", "linear"] = field(default="1-sqrt", metadata=DECIDES)
    """Shape of the decay: by the square root of the progress (Hägele et al., arXiv:2405.18392), or linear."""
    embedding_rate: Literal["sqrt_elements", "plain"] = field(default="sqrt_elements", metadata=DECIDES)
    """Learning rate of the element embedding: the common one times the square root of the number of elements, because
    the layer divides its weights by this root and Adam's steps do not depend on the size of the gradient; or the common
    one (plain)."""
    weight_decay: float = field(default=1e-3, metadata=DECIDES)
    """Decoupled weight decay of the weight matrices; the radial basis is never decayed."""
    betas: tuple[float, float] = field(default=(0.9, 0.999), metadata=DECIDES)
    """Decay of Adam's two moments; schedule_free's first is the share of its average in the weights in training."""
    momentum: float = field(default=0.95, metadata=DECIDES)
    """Decay of Muon's momentum."""
    clip_norm: float = field(default=10.0, metadata=DECIDES)
    """Largest norm of the gradient of a step; larger ones are scaled down."""
    ema_decay: float | None = field(default=None, metadata=DECIDES)
    """Decay per step of the moving average of the weights, which is validated and released. None: an average over 5 %
    of the run, at most 1,000 steps."""

    def __post_init__(self) -> None:
        if self.learning_rate <= 0 or self.clip_norm <= 0 or (self.warmup_steps or 0) < 0 or self.weight_decay < 0:
            raise ValueError("learning_rate and clip_norm must be positive, warmup_steps and weight_decay not negative")
        first, second = self.betas
        decays = (
            ("ema_decay", self.ema_decay or 0.0),
            ("momentum", self.momentum),
            ("betas", first),
            ("betas", second),
        )
        for name, value in decays:
            if not 0 <= value < 1:
                raise ValueError(f"{name} must be in [0, 1), not {value}")
        if not 0 < self.decay_fraction <= 1 or not 0 <= self.final_fraction <= 1:
            raise ValueError(
                "decay_fraction must be in (0, 1] and final_fraction in [0, 1], "
                f"not {self.decay_fraction} and {self.final_fraction}"
            )
        if self.optimizer == "schedule_free" and (self.schedule != "constant" or self.ema_decay != 0):
            raise ValueError(
                "schedule_free averages the weights itself, instead of a schedule: set schedule to constant and "
                f"ema_decay to 0, not {self.schedule} and {self.ema_decay}"
            )


def make_optimizer(
    config: OptimConfig,
    module: torch.nn.Module,
    num_elements: int,
    rate_factors: Mapping[str, float] = MappingProxyType({}),
) -> torch.optim.Optimizer:
    """Return the optimizer, with decay on weight matrices only (parameters named 'weight').

    Args:
        config: Section optim.
        module: Module whose parameters with gradients are optimised.
        num_elements: Number of elements of the embedding.
        rate_factors: Additional factors of learning rates by parameter name; the default is one.
    """
    rate = config.learning_rate
    embedding_factor = num_elements**0.5 if config.embedding_rate == "sqrt_elements" else 1.0
    groups: list[dict[str, Any]] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            decay = config.weight_decay if name.endswith("weight") else 0.0
            factor = embedding_factor if name.endswith("embedding.weight") else 1.0
            # decay is taken as a fraction of the learning rate, so the factor must not reach it
            own_rate = rate * rate_factors.get(name, 1.0) * factor
            groups.append({"params": [parameter], "lr": own_rate, "weight_decay": decay / factor, "name": name})
    if config.optimizer == "schedule_free":
        return ScheduleFree(groups, lr=rate, betas=config.betas)
    if config.optimizer == "muon":
        shapes = matrix_shapes(module)
        groups = [group | {"shapes": shapes.get(group["name"], ())} for group in groups]
        return Muon(groups, lr=rate, momentum=config.momentum, betas=config.betas)
    on_cpu = all(parameter.device.type == "cpu" for group in groups for parameter in group["params"])
    # a group is one weight: unfused, a step is ten small operations for each
    return torch.optim.AdamW(groups, lr=rate, betas=config.betas, fused=True if on_cpu else None)


def matrix_shapes(module: torch.nn.Module) -> dict[str, list[tuple[int, int]]]:
    """Return the matrix shapes of the weights between hidden channels, for Muon.

    Without the embedding, of which a step may use only a few rows, the last layer of the readout, which has one output,
    and the biases of levels of theory.
    """
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, Matrices)}
    shapes = {f"{name}.weight": layer.matrix_shapes for name, layer in layers.items() if not name.endswith("embedding")}
    return {name: parts for name, parts in shapes.items() if max(min(part) for part in parts) > 1}


def warmup_of(num_steps: int) -> int:
    """Return the number of steps of the warm-up of a run that does not give it."""
    return min(math.ceil(WARMUP_FRACTION * num_steps), MAX_WARMUP)


def ema_decay_of(num_steps: int) -> float:
    """Return the decay of the moving average of a run that does not give it.

    Its memory of 1 / (1 - decay) steps is a small part of the run: a longer one would release the initial weights.
    """
    return max(0.0, min(MAX_EMA_DECAY, 1 - 1 / (EMA_FRACTION * num_steps)))


def make_schedule(
    config: OptimConfig, optimizer: torch.optim.Optimizer, num_steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Return the schedule over a run of num_steps steps."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_at(config, step, num_steps))


def rate_at(config: OptimConfig, step: int, num_steps: int) -> float:
    """Return the learning rate at a step of a run of num_steps steps, as a fraction of the highest."""
    warmup = warmup_of(num_steps) if config.warmup_steps is None else config.warmup_steps
    if step < warmup:
        return (step + 1) / warmup
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "cosine":
        progress = min(1.0, (step - warmup) / max(1, num_steps - warmup))
        kept = 0.5 * (1.0 + math.cos(math.pi * progress))
    else:
        length = config.decay_fraction * num_steps
        progress = min(1.0, max(0.0, (step - (num_steps - length)) / length))
        kept = 1.0 - (progress if config.decay_shape == "linear" else progress**0.5)
    return config.final_fraction + (1.0 - config.final_fraction) * kept


def same_rates(config: OptimConfig, step: int, num_steps: int, others: int) -> bool:
    """Return whether two lengths of a run have the same learning rates up to a step, the one that comes next."""
    return all(rate_at(config, each, num_steps) == rate_at(config, each, others) for each in range(step + 1))
