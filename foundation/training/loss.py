"""Loss as sums over a whole optimizer step, divided by the global counts of its labels.

Normalised so, the gradient does not depend on the division of a step into micro-batches or processes. Counts are of
labels, regardless of their structures' weights: a weight of two then equals two copies of the structure, and a step is
an unbiased estimate of the weighted loss over all data. Divided by the sum of weights, a structure would count less
with heavier structures in the same step.

Structures without a label have an error of zero instead of being left out: their number would have to be asked of the
device, which waits for it.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from data_pipeline.graphs.batch import GraphBatch
from data_pipeline.loading.datasets import Dataset
from foundation.configuration import DECIDES
from foundation.potential import Potential, Prediction

log = logging.getLogger(__name__)

STRATA = (100.0, 200.0, 300.0)
"""Sizes of a reference force [eV/Å] that separate the strata of the stratified Huber error."""
STRATUM_FACTORS = (1.0, 0.7, 0.4, 0.1)
"""Factors of its delta from the weakest to the strongest forces (Batatia et al., arXiv:2401.00096)."""


@dataclass(frozen=True, kw_only=True)
class TermConfig:
    """One term of the loss."""

    weight: float = field(metadata=DECIDES)
    """Weight of the term; zero leaves it out."""
    kind: Literal["mae", "mse", "huber", "l2", "stratified_huber"] = field(default="mae", metadata=DECIDES)
    """Mean absolute, squared or Huber error over components, or 'l2': the mean Euclidean norm over vectors (or, for
    stress, matrices). 'stratified_huber', for forces only: Huber with a delta that shrinks for large reference forces,
    so that strongly distorted structures count like outliers (MACE's conditional Huber)."""
    delta: float = field(default=0.01, metadata=DECIDES)
    """Error at which the Huber loss turns from quadratic to linear, in the unit of the label."""

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

    def __post_init__(self) -> None:
        for name, term in (("energy", self.energy), ("stress", self.stress)):
            if term.kind == "stratified_huber":
                raise ValueError(f"loss.{name}: stratified_huber depends on the size of forces; use huber")


@runtime_checkable
class Penalty(Protocol):
    """A term added to the loss of every step that depends only on the potential, such as EWC."""

    def __call__(self, potential: Potential) -> Float64[Tensor, ""]:
        """Return the penalty, in units of the loss."""
        ...


Counts = dict[str, Float64[Tensor, ""]]
"""Numbers of labels by name of the term, or the terms themselves."""


@dataclass(frozen=True, kw_only=True)
class LossTerm:
    """A term of the loss: a field of LossConfig of the same name weights it."""

    label: Literal["energy", "forces", "stress"]
    """Required label."""
    count: Callable[[GraphBatch], Tensor]
    """Number of labels in a batch that it is averaged over."""
    sum: Callable[[TermConfig, Prediction, GraphBatch], Float64[Tensor, ""]]
    """Weighted sum over the labels of a batch, given its configuration."""


def _energy(term: TermConfig, prediction: Prediction, batch: GraphBatch) -> Float64[Tensor, ""]:
    error = ((prediction.energy - batch.energy) / batch.num_atoms).unsqueeze(1)
    return _sum(term, error, batch.weight)


def _forces(term: TermConfig, prediction: Prediction, batch: GraphBatch) -> Float64[Tensor, ""]:
    labelled = batch.has_forces[batch.graph_of_atom].unsqueeze(1)
    error = torch.where(labelled, prediction.forces - batch.forces, 0.0)
    factors = _stratum_factors(batch.forces) if term.kind == "stratified_huber" else None
    return _sum(term, error, batch.weight[batch.graph_of_atom], factors)


def _stress(term: TermConfig, prediction: Prediction, batch: GraphBatch) -> Float64[Tensor, ""]:
    error = torch.where(batch.has_stress.view(-1, 1, 1), prediction.stress - batch.stress, 0.0)
    return _sum(term, error.flatten(1), batch.weight)


TERMS: dict[str, LossTerm] = {
    "energy": LossTerm(label="energy", count=lambda batch: batch.num_atoms.new_tensor(batch.num_graphs), sum=_energy),
    "forces": LossTerm(label="forces", count=lambda batch: (batch.num_atoms * batch.has_forces).sum(), sum=_forces),
    "stress": LossTerm(label="stress", count=lambda batch: batch.has_stress.sum(), sum=_stress),
}
"""Terms by name. A new one is an entry here and a field of LossConfig; logs, figures and label checks follow."""


def label_counts(batch: GraphBatch) -> Counts:
    """Return the number of labels of each term in a batch: energies, atoms with forces, structures with stress."""
    return {name: term.count(batch).double() for name, term in TERMS.items()}


def loss_terms(config: LossConfig, prediction: Prediction, batch: GraphBatch, counts: Counts) -> Counts:
    """Return a batch's share of each term of the loss of an optimizer step.

    Args:
        config: The terms.
        prediction: Predictions for the batch.
        batch: The labels, and the weight of each structure.
        counts: Sum of label_counts over the whole step: all micro-batches of all processes.
    """
    return {
        name: term.sum(getattr(config, name), prediction, batch) / counts[name].clamp(min=1)
        for name, term in TERMS.items()
    }


def summed(terms: Counts) -> Float64[Tensor, ""]:
    """Return the sum of terms."""
    return torch.stack(tuple(terms.values())).sum()


def loss(config: LossConfig, prediction: Prediction, batch: GraphBatch, counts: Counts) -> Float64[Tensor, ""]:
    """Return a batch's share of the loss of an optimizer step: the sum of loss_terms()."""
    return summed(loss_terms(config, prediction, batch, counts))


def _sum(
    term: TermConfig,
    error: Float[Tensor, "rows components"],
    weights: Float64[Tensor, " rows"],
    stratum_factors: Float[Tensor, "rows 1"] | None = None,
) -> Float64[Tensor, ""]:
    """Return the term's factor times the weighted sum over rows of the row's norm or mean error of its components."""
    if term.weight == 0:  # nothing is computed, not even a zero gradient
        return weights.new_zeros(())
    if term.kind == "l2":
        values = torch.linalg.vector_norm(error, dim=1)
    elif term.kind == "mae":
        values = error.abs().mean(dim=1)
    elif term.kind == "mse":
        values = error.square().mean(dim=1)
    elif term.kind == "huber" or stratum_factors is None:
        values = _huber(error, torch.full_like(error[:, :1], term.delta))
    else:
        values = _huber(error, term.delta * stratum_factors)
    return term.weight * (weights * values).sum()


def _huber(error: Float[Tensor, "rows components"], delta: Float[Tensor, "rows 1"]) -> Float[Tensor, " rows"]:
    """Return the mean over components of the Huber error, with a delta for each row."""
    size = error.abs()
    return torch.where(size <= delta, 0.5 * size.square(), delta * (size - 0.5 * delta)).mean(dim=1)


def _stratum_factors(reference: Float[Tensor, "atoms 3"]) -> Float[Tensor, "atoms 1"]:
    """Return the factor of delta for each reference force [eV/Å]."""
    sizes = torch.linalg.vector_norm(reference, dim=1, keepdim=True)
    factors = torch.full_like(sizes, STRATUM_FACTORS[-1])
    # from constants of the host a GPU would have to copy them, and could not record it
    for limit, factor in reversed(list(zip(STRATA, STRATUM_FACTORS, strict=False))):
        factors = torch.where(sizes < limit, factor, factors)
    return factors


def without_labels(dataset: Dataset, loss: LossConfig, split: str | None = None) -> dict[str, str]:
    """Return, by term of the loss, a sentence on each weighted term without labels in a split of a data set."""
    statistics = dataset.manifest.split(split or dataset.split).statistics
    numbers = {"energy": statistics.num_frames, "forces": statistics.num_force_frames}
    numbers["stress"] = statistics.num_stress_frames
    where = f" in split {split}" if split else ""
    return {
        name: f"{dataset.manifest.provenance.name} has no {term.label}{where}, but loss.{name}.weight is "
        f"{getattr(loss, name).weight:g}"
        for name, term in TERMS.items()
        if getattr(loss, name).weight and not numbers[term.label]
    }


def refuse_idle_terms(datasets: Sequence[Dataset], loss: LossConfig) -> None:
    """Refuse a weighted loss term without labels in any data set; warn if only held-out frames lack them.

    Raises:
        ValueError: a term lacks labels; the message names it and the data sets.
    """
    missing = [without_labels(dataset, loss) for dataset in datasets]
    for term in TERMS:
        if all(term in each for each in missing):
            said = "; ".join(each[term] for each in missing)
            raise ValueError(f"{said}: nothing would be learnt from {term}. Set --loss.{term}.weight 0 to confirm")
    for dataset in datasets:
        if dataset.manifest.split("val").statistics.num_frames:
            for term, sentence in without_labels(dataset, loss, "val").items():
                log.warning("%s: its validation does not measure %s", sentence, term)
