"""Sums of squared derivatives of the loss of single structures, for a diagonal Fisher.

The squared gradient of a batch would differ, because derivatives of different signs cancel in it. Structures differ in
their number of atoms and edges, and the operators of foundation.kernels have no vmap rule, so each structure needs its
own backward pass, at the cost of a training step of batch size one. Sums are float64 for any float type of the
potential, and those of several processes add up to those of one.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from data_pipeline.building.duplicates import content_key
from data_pipeline.graphs.batch import GraphBatch, collate
from data_pipeline.loading.datasets import BlockCache, Dataset, Frames
from data_pipeline.structure import Structure
from foundation.potential import Potential
from foundation.training.loss import LossConfig, label_counts, loss


@dataclass(frozen=True, kw_only=True, eq=False)
class SquaredGradients:
    """Sums over the structures of one process; those of all processes add up to the Fisher."""

    sums: Float64[Tensor, " weights"]
    """Sum of the squared derivatives, with parameters concatenated in the order of named_parameters()."""
    counts: Float64[Tensor, " 3"]
    """Number of structures used, with a loss above the threshold, and with an unknown element."""
    keys: Int64[Tensor, " structures"]
    """Content key of each chosen structure, in order; zero for those that this process did not use."""

    def __add__(self, other: "SquaredGradients") -> "SquaredGradients":
        return SquaredGradients(
            sums=self.sums + other.sums, counts=self.counts + other.counts, keys=self.keys + other.keys
        )


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
    """Return a process's share of the sums of squared derivatives of single structures' losses.

    The choice of structures depends on neither rank nor world size. Repeats of a data set in training are ignored: each
    structure counts once.

    Args:
        potential: The potential, including frozen parameters; mode and flags are restored afterwards.
        datasets: Splits of data, with their level of theory and weight in the loss.
        loss_config: The loss.
        rank: Number of this process.
        world_size: Number of processes.
        max_structures: Number of structures to choose at random; None: all.
        loss_threshold: Loss above which a structure is left out; None: no threshold.
        seed: Seed of the choice.

    Raises:
        ValueError: invalid rank, split or option, or a derivative is not finite; the message names the structure.
    """
    check_choice(max_structures, loss_threshold)
    if not 0 <= rank < world_size:
        raise ValueError(f"rank {rank} is not one of {world_size} processes (0 to {world_size - 1})")
    sums = torch.zeros(sum(p.numel() for p in potential.parameters()), dtype=torch.float64, device=potential.device)
    counts = torch.zeros(3, dtype=torch.float64, device=potential.device)
    frames, chosen = _choice(datasets, max_structures, seed)
    keys = torch.zeros(len(chosen), dtype=torch.int64, device=potential.device)
    own = range(rank, len(chosen), world_size)
    with whole_in_training(potential):
        for place, found in zip(own, _structures(potential, datasets, frames, chosen[rank::world_size]), strict=True):
            if found is None:
                counts[2] += 1
                continue
            structure, batch = found
            value = loss(loss_config, potential(batch), batch, label_counts(batch))
            if loss_threshold is not None and float(value.detach()) > loss_threshold:
                counts[1] += 1
                continue
            gradients = torch.autograd.grad(value, list(potential.parameters()), materialize_grads=True)
            flat = torch.cat([gradient.double().flatten() for gradient in gradients])
            if not bool(flat.isfinite().all()):
                raise ValueError(f"structure {batch.ids[0]!r}: a derivative of its loss is not finite; leave it out")
            sums += flat.square()
            counts[0] += 1
            keys[place] = content_key(structure)
    return SquaredGradients(sums=sums, counts=counts, keys=keys)


@contextlib.contextmanager
def whole_in_training(potential: Potential) -> Iterator[None]:
    """Enable gradients of all parameters and training mode within the block."""
    flags, training = [parameter.requires_grad for parameter in potential.parameters()], potential.training
    potential.train().requires_grad_(True)
    try:
        yield
    finally:
        potential.train(training)
        for parameter, flag in zip(potential.parameters(), flags, strict=True):
            parameter.requires_grad_(flag)


def check_choice(max_structures: int | None, loss_threshold: float | None) -> None:
    """Check the options that select structures.

    Raises:
        ValueError: a number is not positive.
    """
    if max_structures is not None and max_structures < 1:
        raise ValueError(f"max_structures must be at least 1, not {max_structures}")
    if loss_threshold is not None and not loss_threshold > 0:
        raise ValueError(f"loss_threshold must be positive, not {loss_threshold}")


def _choice(
    datasets: Sequence[Dataset], max_structures: int | None, seed: int
) -> tuple[list[Frames], Int64[np.ndarray, " chosen"]]:
    """Return the frames of each data set, and the chosen ones, numbered one data set after another."""
    cache = BlockCache()
    frames = [each.frames(cache) for each in datasets]
    chosen = np.arange(sum(map(len, frames)))
    if max_structures is not None and max_structures < len(chosen):
        chosen = np.sort(np.random.default_rng(seed).choice(len(chosen), max_structures, replace=False))
    return frames, chosen


def _structures(
    potential: Potential, datasets: Sequence[Dataset], frames: Sequence[Frames], numbers: Int64[np.ndarray, " some"]
) -> Iterator[tuple[Structure, GraphBatch] | None]:
    """Yield structures by number, each with its batch of one, or None for one with unknown elements."""
    first = np.cumsum([0, *map(len, frames)])
    for number in numbers.tolist():
        which = int(np.searchsorted(first, number, side="right")) - 1
        structure, dataset = frames[which][number - int(first[which])], datasets[which]
        if not np.isin(structure.numbers, potential.elements).all():
            yield None
            continue
        batch = collate([structure], potential.cutoff, potential.dtype, [dataset.theory_number])
        weight = torch.full((1,), dataset.weight, dtype=torch.float64, device=potential.device)
        yield structure, replace(batch.to(potential.device), weight=weight)
