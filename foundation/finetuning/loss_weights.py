"""Weights of the loss of a fine-tuning for which no label of the target should get worse than it is at the start.

At the start each term of the loss gets a gradient of the same length, in the mean over target structures. Energy and
stress are a few numbers of a structure that small changes of any weight move; forces are many, and move little. So the
gradients of relative errors differ by an order of magnitude (SevenNet-0 on Li6PS5Cl: energy 81, forces 5, stress 141),
and with fixed weights the largest decides alone and spoils what the others need. With gradients g_t of length one, the
loss falls along Σ g_t, and the error of label t falls with it as long as its angles with the others allow:
1 + Σ cos(g_t, g_s) > 0. GradNorm (Chen et al., arXiv:1711.02257) repeats this during a training; once is enough for a
fine-tuning, which goes a short way, and keeps the loss a fixed function.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from data_pipeline.loading.datasets import Dataset
from foundation.potential import Potential
from foundation.surgery.references import Choice
from foundation.training.loss import TERMS, LossConfig, label_counts, loss_terms

MAX_STRUCTURES = 32
"""Largest number of structures whose gradients are averaged."""
MAX_EDGES = 100_000
"""Number of directed edges after which no further structure is taken, so that large ones take no longer."""
DIGITS = 3
"""Significant digits of a weight: all that the sample gives, and the same on every machine."""


@dataclass(frozen=True, kw_only=True)
class Gradients:
    """Mean gradients of the terms of the loss at the start, each of weight one."""

    num_structures: int
    """Number of structures in the mean."""
    lengths: dict[str, float]
    """Lengths of the gradients of terms with labels, by name."""
    cosines: Float64[np.ndarray, "terms terms"]
    """Cosines between them, in the same order."""


def balanced_loss(
    start: Potential, datasets: Sequence[Dataset], kinds: LossConfig | None = None, seed: int = 0
) -> tuple[LossConfig, tuple[str, ...]]:
    """Return a loss whose terms have gradients of the same length at the start, and its reasons, one line each.

    The weight of forces (of energies, without forces) stays. A term without labels gets weight 0, which is said. A term
    whose gradient vanishes, because the start predicts its labels exactly, keeps its weight.

    Args:
        start: Potential before the first step; it is not modified.
        datasets: Training data, at the levels of theory of the start.
        kinds: Kinds of the terms and weight of the forces; None: the defaults.
        seed: Seed of the choice of structures.
    """
    kinds = kinds or LossConfig()
    found = gradients_at_start(start, datasets, kinds, seed)
    reference = "forces" if "forces" in found.lengths else "energy"
    weights, reasons = {}, list[str]()
    for name in TERMS:
        weight = getattr(kinds, name).weight
        if name not in found.lengths:
            weight = 0.0
            reasons.append(f"loss.{name}.weight 0: the data have no {TERMS[name].label}")
        elif found.lengths[name] > 0 and found.lengths[reference] > 0:
            scale = getattr(kinds, reference).weight * found.lengths[reference]
            weight = float(f"{scale / found.lengths[name]:.{DIGITS}g}")
        weights[name] = weight
    listed = ", ".join(f"{name} {weights[name]:g}" for name in found.lengths)
    reasons.insert(
        0,
        f"loss weights {listed}: gradients of the same length at the start ({found.num_structures} structures), so "
        "that no label gets worse for another",
    )
    terms = {name: replace(getattr(kinds, name), weight=weight) for name, weight in weights.items()}
    return LossConfig(**terms), tuple(reasons)


def gradients_at_start(start: Potential, datasets: Sequence[Dataset], kinds: LossConfig, seed: int = 0) -> Gradients:
    """Return the mean gradients of the terms of a loss over structures of data sets, chosen at random."""
    labelled = _labelled(datasets)
    unit = LossConfig(**{name: replace(getattr(kinds, name), weight=float(name in labelled)) for name in TERMS})
    training, parameters = start.training, [each for each in start.parameters() if each.requires_grad]
    one = {name: torch.ones((), dtype=torch.float64, device=start.device) for name in TERMS}
    sums = {name: [torch.zeros_like(each, dtype=torch.float64) for each in parameters] for name in labelled}
    counts, edges, number = dict.fromkeys(labelled, 0.0), 0, 0
    start.train()
    try:
        for batch in Choice(datasets, None, MAX_STRUCTURES, seed).batches(start):
            if edges > MAX_EDGES:
                break
            terms = loss_terms(unit, start(batch), batch, one)
            numbers = label_counts(batch)
            for name in labelled:
                counts[name] += float(numbers[name])
                _add_gradient(sums[name], terms[name], parameters)
            edges, number = edges + batch.num_edges, number + 1
    finally:
        start.train(training)
    means = {name: torch.cat([each.flatten() for each in sums[name]]) / max(1.0, counts[name]) for name in labelled}
    lengths = {name: float(mean.norm()) for name, mean in means.items()}
    units = torch.stack([mean / max(lengths[name], 1e-300) for name, mean in means.items()])
    return Gradients(num_structures=number, lengths=lengths, cosines=(units @ units.T).cpu().numpy())


def _labelled(datasets: Sequence[Dataset]) -> list[str]:
    """Return the terms with labels in data sets."""
    statistics = [dataset.manifest.split(dataset.split).statistics for dataset in datasets]
    numbers: Mapping[str, int] = {
        "energy": sum(each.num_frames for each in statistics),
        "forces": sum(each.num_force_frames for each in statistics),
        "stress": sum(each.num_stress_frames for each in statistics),
    }
    return [name for name, term in TERMS.items() if numbers[term.label]]


def _add_gradient(sums: list[Tensor], term: Float64[Tensor, ""], parameters: Sequence[Tensor]) -> None:
    """Add the gradient of a term to sums, parameter by parameter."""
    if not term.requires_grad:  # no labels in this structure
        return
    for total, gradient in zip(
        sums, torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True), strict=True
    ):
        if gradient is not None:
            total += gradient
