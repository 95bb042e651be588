"""Optimizer and learning-rate schedule."""

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """AdamW with linear warm-up and cosine decay."""

    learning_rate: float = 2e-3
    """Highest learning rate."""
    final_fraction: float = 0.01
    """Learning rate at the last step, as a fraction of the highest."""
    warmup_steps: int = 100
    """Steps over which the learning rate rises from zero."""
    weight_decay: float = 1e-3
    """Decoupled weight decay of the weight matrices; the radial basis is never decayed."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of Adam's two moments."""
    clip_norm: float = 10.0
    """Largest norm of the gradient of a step; larger ones are scaled down."""
    ema_decay: float = 0.999
    """Decay per step of the moving average of the weights, which is what is validated and released."""

    def __post_init__(self) -> None:
        if self.learning_rate <= 0 or self.clip_norm <= 0 or self.warmup_steps < 0 or self.weight_decay < 0:
            raise ValueError("learning_rate and clip_norm must be positive, warmup_steps and weight_decay not negative")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must be in [0, 1), not {self.ema_decay}")


def make_optimizer(config: OptimConfig, module: torch.nn.Module, num_elements: int) -> torch.optim.AdamW:
    """Return AdamW with decay on weight matrices only (parameters named 'weight').

    The element embedding learns sqrt(elements) times faster: that layer divides its weights by this root, and Adam's
    steps do not depend on the size of the gradient, so it would otherwise learn the slower the more elements there are.
    """
    rate = config.learning_rate
    groups = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            decay = config.weight_decay if name.endswith("weight") else 0.0
            factor = num_elements**0.5 if name.endswith("embedding.weight") else 1.0
            # decay is taken as a fraction of the learning rate, so the factor must not reach it
            groups.append({"params": [parameter], "lr": rate * factor, "weight_decay": decay / factor, "name": name})
    return torch.optim.AdamW(groups, lr=rate, betas=config.betas)


def make_schedule(
    config: OptimConfig, optimizer: torch.optim.Optimizer, num_steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Return warm-up and cosine decay over a run of num_steps steps."""

    def factor(step: int) -> float:
        if step < config.warmup_steps:
            return (step + 1) / config.warmup_steps
        progress = min(1.0, (step - config.warmup_steps) / max(1, num_steps - config.warmup_steps))
        cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
        return config.final_fraction + (1.0 - config.final_fraction) * cosine

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
