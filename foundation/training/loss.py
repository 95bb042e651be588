"""Loss as sums over a whole optimizer step, divided by the global counts of its labels.

Normalised that way, the gradient does not depend on how a step is cut into micro-batches or spread over processes.
"""

from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from data_pipeline.graph import GraphBatch
from foundation.potential import Prediction


@dataclass(frozen=True, kw_only=True)
class TermConfig:
    """One term of the loss."""

    weight: float
    """Factor of the term; zero leaves it out."""
    kind: Literal["mae", "mse", "huber", "l2"] = "mae"
    """Mean absolute, squared or Huber error over components, or 'l2': the mean Euclidean norm over vectors (or, for
    stress, matrices)."""
    delta: float = 0.01
    """Where the Huber error turns from square to linear, in the unit of the label."""

    def __post_init__(self) -> None:
        if self.weight < 0 or self.delta <= 0:
            raise ValueError(f"a loss term needs weight >= 0 and delta > 0, not {self.weight} and {self.delta}")


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Loss of energy per atom [eV], forces [eV/Å] and stress [eV/Å³].

    The defaults are those of Nequix (arXiv:2508.16067): MAE, L2, MAE weighted 20:20:5.
    """

    energy: TermConfig = field(default_factory=lambda: TermConfig(weight=20.0))
    """Energy per atom."""
    forces: TermConfig = field(default_factory=lambda: TermConfig(weight=20.0, kind="l2"))
    """Forces; an L2 term counts atoms, the others components."""
    stress: TermConfig = field(default_factory=lambda: TermConfig(weight=5.0))
    """Stress; an L2 term counts structures, the others all nine components."""


def label_counts(batch: GraphBatch) -> Float64[Tensor, " 3"]:
    """Return how many energies, atoms with forces and structures with stress a batch has labels for."""
    atoms = batch.num_atoms[batch.has_forces].sum()
    return torch.stack([batch.num_atoms.new_tensor(batch.num_graphs), atoms, batch.has_stress.sum()]).double()


def loss(
    config: LossConfig, prediction: Prediction, batch: GraphBatch, counts: Float64[Tensor, " 3"]
) -> Float64[Tensor, ""]:
    """Return a batch's share of the loss of an optimizer step.

    Args:
        config: The terms.
        prediction: What the potential said of the batch.
        batch: The labels.
        counts: Sum of label_counts over the whole step: all micro-batches of all processes.
    """
    energy_error = ((prediction.energy - batch.energy) / batch.num_atoms).unsqueeze(1)
    force_error = (prediction.forces - batch.forces)[batch.has_forces[batch.graph_of_atom]]
    stress_error = (prediction.stress - batch.stress)[batch.has_stress].flatten(1)
    terms = (config.energy, energy_error), (config.forces, force_error), (config.stress, stress_error)
    total = torch.zeros((), dtype=torch.float64, device=counts.device)
    for (term, error), count in zip(terms, counts, strict=True):
        if term.weight > 0:
            total = total + term.weight * _sum(term, error) / count.clamp(min=1)
    return total


def _sum(term: TermConfig, error: Float[Tensor, "rows components"]) -> Float64[Tensor, ""]:
    """Return the sum over rows of the row's norm, or of the mean of its components' errors."""
    if term.kind == "l2":
        values = torch.linalg.vector_norm(error, dim=1)
    elif term.kind == "mae":
        values = error.abs().mean(dim=1)
    elif term.kind == "mse":
        values = error.square().mean(dim=1)
    else:
        values = torch.nn.functional.huber_loss(error, torch.zeros_like(error), reduction="none", delta=term.delta)
        values = values.mean(dim=1)
    return values.double().sum()
