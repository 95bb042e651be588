"""Sums of squared derivatives of the loss, structure by structure: what a diagonal Fisher is made of.

A square of the gradient of a batch would be something else, because derivatives of different signs cancel in it.
Structures differ in their number of atoms and edges, and the operators of foundation.kernels have no rule for vmap, so
that each structure is a backward pass of its own, at the cost of a training step of batch size one. Sums are float64
whatever the potential's type, and those of several processes add up to those of one.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from data_pipeline.graph import GraphBatch, collate
from data_pipeline.stream import BlockCache, Dataset, Frames
from foundation.potential import Potential
from foundation.training.loss import LossConfig, label_counts, loss


@dataclass(frozen=True, kw_only=True, eq=False)
class SquaredGradients:
    """Sums over the structures of one process; those of all processes add up to the Fisher."""

    sums: Float64[Tensor, " weights"]
    """Sum of the squared derivatives, all parameters one after another in the order of named_parameters()."""
    counts: Float64[Tensor, " 3"]
    """Structures that were used, had a loss above the threshold, and had an unknown element."""

    def __add__(self, other: "SquaredGradients") -> "SquaredGradients":
        return SquaredGradients(sums=self.sums + other.sums, counts=self.counts + other.counts)


def squared_gradients(
    potential: Potential,
    datasets: Sequence[Dataset],
    loss_config: LossConfig,
    *,
    rank: int = 0,
    world_size: int = 1,
    max_structures: int | None = None,
    loss_threshold: float | None = None,
    seed: int = 0,
) -> SquaredGradients:
    """Return a process's share of the sums of squared derivatives of the loss of single structures.

    Which structures are used depends on neither rank nor world size. How often training repeats a data set does not
    matter here: each structure counts once.

    Args:
        potential: Whose parameters, frozen ones too; mode and flags are as before afterwards.
        datasets: Splits of data, with their level of theory and weight in the loss.
        loss_config: The loss.
        rank: Number of this process.
        world_size: Number of processes.
        max_structures: How many structures to choose at random; all when None.
        loss_threshold: Loss above which a structure is left out; none is when None.
        seed: Seed of the choice.

    Raises:
        ValueError: no such rank, split or choice, or a derivative is not finite; the message names the structure.
    """
    check_choice(max_structures, loss_threshold)
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} is not one of {world_size} processes (0 to {world_size - 1})")
    parameters = list(potential.parameters())
    flags, training = [parameter.requires_grad for parameter in parameters], potential.training
    sums = torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64, device=potential.device)
    counts = torch.zeros(3, dtype=torch.float64, device=potential.device)
    potential.train().requires_grad_(True)
    try:
        for batch in _structures(potential, datasets, max_structures, seed, rank, world_size):
            if batch is None:
                counts[2] += 1
                continue
            value = loss(loss_config, potential(batch), batch, label_counts(batch))
            if loss_threshold is not None and float(value.detach()) > loss_threshold:
                counts[1] += 1
                continue
            gradients = torch.autograd.grad(value, parameters, materialize_grads=True)
            flat = torch.cat([gradient.double().flatten() for gradient in gradients])
            if not bool(flat.isfinite().all()):
                raise ValueError(f"structure {batch.ids[0]!r}: a derivative of its loss is not finite; leave it out")
            sums += flat.square()
            counts[0] += 1
    finally:
        potential.train(training)
        for parameter, flag in zip(parameters, flags, strict=True):
            parameter.requires_grad_(flag)
    return SquaredGradients(sums=sums, counts=counts)


def check_choice(max_structures: int | None, loss_threshold: float | None) -> None:
    """Refuse a choice of structures that is none.

    Raises:
        ValueError: a number is not positive.
    """
    if max_structures is not None and max_structures < 1:
        raise ValueError(f"max_structures must be at least 1, not {max_structures}")
    if loss_threshold is not None and not loss_threshold > 0:
        raise ValueError(f"loss_threshold must be positive, not {loss_threshold}")


def _structures(
    potential: Potential, datasets: Sequence[Dataset], max_structures: int | None, seed: int, rank: int, world_size: int
) -> Iterator[GraphBatch | None]:
    """Yield a process's share of the structures, each as a batch of one; None stands for one of unknown elements."""
    cache = BlockCache()
    frames = [Frames(each.manifest, each.split, cache) for each in datasets]
    first = np.cumsum([0, *map(len, frames)])
    chosen = np.arange(first[-1])
    if max_structures is not None and max_structures < len(chosen):
        chosen = np.sort(np.random.default_rng(seed).choice(len(chosen), max_structures, replace=False))
    for number in itertools.islice(chosen.tolist(), rank, None, world_size):
        which = int(np.searchsorted(first, number, side="right")) - 1
        structure, dataset = frames[which][number - int(first[which])], datasets[which]
        if not np.isin(structure.numbers, potential.elements).all():
            yield None
            continue
        batch = collate([structure], potential.cutoff, potential.dtype, [dataset.theory_number])
        weight = torch.full((1,), dataset.weight, dtype=torch.float64, device=potential.device)
        yield replace(batch.to(potential.device), weight=weight)
