"""Penalties that hold a fine-tuning near its initial weights, each weight according to its importance.

Elastic weight consolidation (EWC) adds (lambda/2) Σ_i F_i (θ_i - θ*_i)² to the loss, with the diagonal Fisher F of the
pretraining data (Kirkpatrick et al., PNAS 114, 3521 (2017), equation 3); L2-SP is the same with F = 1 (Li et al., ICML
2018). Parameters are found by the names of Potential.named_parameters(), so the potential must not be wrapped: a
wrapper prefixes every name, and a penalty that ignored missing names would be zero. Here every name must be found, in
both directions. The sum is in float64, because the differences are small compared with the weights; it costs two
float64 copies of the parameters and one pass over them per step.
"""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from foundation.configuration import DECIDES
from foundation.potential import Potential

Normalization = Literal["none", "mean", "tensor"]


@dataclass(frozen=True, kw_only=True)
class PenaltyConfig:
    """A penalty on moving away from the start: EWC with a Fisher, L2-SP without one.

    power, normalization and damping go beyond the paper: in SevenNet-0, 80 % of the trace is on the eight Bessel wave
    numbers (as printed by `foundation fisher`), so the raw Fisher constrains almost nothing else.
    """

    weight: float = field(metadata=DECIDES)
    """Lambda, in units of the loss if the Fisher is not normalised."""
    fisher: Literal["start"] | Path | None = field(default=None, metadata=DECIDES)
    """File written by `foundation fisher` for the start with the loss of this run; or `start` for the one that the
    start carries, of generated structures and for any loss (`foundation protect`), which the run makes if it is
    missing; None weights all parameters equally."""
    power: float = field(default=1.0, metadata=DECIDES)
    """Exponent applied to the Fisher first: below one, weights differ less; 0.5 gives the sensitivity of the loss
    itself."""
    normalization: Normalization = field(default="none", metadata=DECIDES)
    """Divisor of the Fisher: 'none', for which a good lambda differs by orders of magnitude between models and losses;
    its 'mean' over all weights, including frozen ones; or the mean of each 'tensor', so that none outweighs the others
    by its scale."""
    damping: float = field(default=0.0, metadata=DECIDES)
    """Constant added to each entry, in units of the mean: a share of L2-SP, which holds weights with zero Fisher, such
    as those of elements missing from its data."""

    def __post_init__(self) -> None:
        for name, value in {"weight (lambda)": self.weight, "damping": self.damping}.items():
            if not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"penalty.{name} must be zero or more, not {value}")
        if not (self.power > 0 and math.isfinite(self.power)):
            raise ValueError(f"penalty.power must be positive, not {self.power}")
        if self.fisher is None and (self.power, self.normalization, self.damping) != (1.0, "none", 0.0):
            raise ValueError("penalty.power, normalization and damping need a Fisher: name its file in penalty.fisher")


def scaled_importance(importance: Mapping[str, Tensor], config: PenaltyConfig) -> dict[str, Tensor]:
    """Return the scaled Fisher for a penalty, float64.

    Raises:
        ValueError: it has negative or non-finite entries, or none above zero.
    """
    powers = {name: value.detach().double() for name, value in importance.items()}
    everything = torch.cat([value.flatten() for value in powers.values()])
    if not bool((everything >= 0).all() and everything.isfinite().all()):
        raise ValueError("the importance has negative or non-finite entries, so it is not a Fisher; compute it again")
    if not bool((everything > 0).any()):
        raise ValueError("the importance of every weight is zero, so the penalty protects nothing")
    if config.power != 1.0:
        powers = {name: value**config.power for name, value in powers.items()}
    if config.normalization == "tensor":
        powers = {name: value / value.mean().clamp(min=1e-300) for name, value in powers.items()}
    mean = torch.cat([value.flatten() for value in powers.values()]).mean()
    if config.normalization == "mean":
        powers, mean = {name: value / mean for name, value in powers.items()}, torch.ones_like(mean)
    return {name: value + config.damping * mean for name, value in powers.items()}


def carried_importance(
    importance: Mapping[str, Tensor], start: Potential, grow: Callable[[Potential], Potential]
) -> dict[str, Tensor]:
    """Return the importance of the weights of a potential that has grown, float64; zero for weights that are new.

    A new element or level of theory adds weights, and may change the factor of all weights of a layer, with the
    predictions as they were. So F of a weight θ is F/s² of its successor s θ. Copies of a weight are new: no structure
    that the start knows depends on them.

    Args:
        importance: F by parameter name of the start.
        start: The potential before.
        grow: Function that makes it grow; each new weight is linear in the old ones, and successors come before copies.
    """
    shapes = {name: parameter.shape for name, parameter in start.named_parameters()}
    before = torch.cat([importance[name].detach().double().flatten().cpu() for name in shapes])

    def grown(values: Tensor) -> dict[str, Tensor]:
        probe = copy.deepcopy(start).cast(torch.float64)
        parts = values.split([shape.numel() for shape in shapes.values()])
        with torch.no_grad():
            for parameter, part in zip(probe.parameters(), parts, strict=True):
                parameter.copy_(part.view_as(parameter))
        return {name: parameter.detach().cpu() for name, parameter in grow(probe).named_parameters()}

    # two weights of one, and of their own numbers, tell the factor and the origin of each weight
    factors = grown(torch.ones_like(before))
    factor = torch.cat([each.flatten() for each in factors.values()])
    numbers = torch.arange(1, len(before) + 1, dtype=torch.float64)
    origin = torch.cat([each.flatten() for each in grown(numbers).values()]) / factor
    single = ((origin - origin.round()).abs() < 1e-3).nonzero().flatten()  # not mixed of several, nor of none
    origins, places = np.unique(origin[single].round().long().numpy() - 1, return_index=True)
    after, first = torch.zeros_like(factor), single[torch.from_numpy(places)]
    after[first] = before[torch.from_numpy(origins)] / factor[first].square()
    sizes = [each.numel() for each in factors.values()]
    return {name: part.view_as(each) for (name, each), part in zip(factors.items(), after.split(sizes), strict=True)}


class EwcPenalty:
    """(lambda/2) Σ_i F_i (θ_i - θ*_i)² over the trained parameters, without frozen ones."""

    def __init__(
        self,
        potential: Potential,
        importance: Mapping[str, Tensor],
        theta_star: Mapping[str, Tensor],
        *,
        weight: float,
    ) -> None:
        """Prepare the penalty for a potential, after any freezing.

        Args:
            potential: Potential to train, not wrapped.
            importance: F by parameter name, at least zero; Fisher.values.
            theta_star: θ* by parameter name; Fisher.theta_star.
            weight: lambda, in units of the loss if F is that of a loss.

        Raises:
            ValueError: the weight is negative, a trained parameter is missing from F or θ*, one of these is not in the
                potential or has another shape, or nothing is protected.
        """
        if not (weight >= 0 and math.isfinite(weight)):
            raise ValueError(f"the weight of the penalty (lambda) must be zero or more, not {weight}")
        trained = [name for name, parameter in potential.named_parameters() if parameter.requires_grad]
        troubles = mismatches(potential, importance, "the importance") + mismatches(potential, theta_star, "theta*")
        missing = [name for name in trained if name not in importance or name not in theta_star]
        troubles += [f"{name} is trained but not in the importance or theta*" for name in missing]
        if troubles:
            raise ValueError(f"the penalty does not belong to this potential: {'; '.join(troubles)}")
        if not trained:
            raise ValueError("every parameter is frozen, so the penalty protects nothing: freeze less or leave it out")
        self._names, self._weight = trained, weight
        self._importance = torch.cat([importance[name].detach().double().flatten() for name in trained])
        self._theta_star = torch.cat([theta_star[name].detach().double().flatten() for name in trained])
        if not bool((self._importance > 0).any()):
            raise ValueError("the importance of every trained weight is zero, so the penalty protects nothing")

    def __call__(self, potential: Potential) -> Float64[Tensor, ""]:
        """Return the penalty; its gradient is lambda F (θ - θ*)."""
        if self._importance.device != potential.device:
            self._importance = self._importance.to(potential.device)
            self._theta_star = self._theta_star.to(potential.device)
        theta = torch.cat([potential.get_parameter(name).double().flatten() for name in self._names])
        return 0.5 * self._weight * (self._importance * (theta - self._theta_star).square()).sum()


class L2Penalty(EwcPenalty):
    """(lambda/2) Σ_i (θ_i - θ*_i)², where θ* are the potential's present weights (L2-SP)."""

    def __init__(self, potential: Potential, *, weight: float) -> None:
        """Hold a potential near its present weights.

        Args:
            potential: Potential to train, not wrapped.
            weight: lambda, in units of the loss.

        Raises:
            ValueError: the weight is negative, or every parameter is frozen.
        """
        theta_star = {name: parameter.detach().clone() for name, parameter in potential.named_parameters()}
        ones = {name: torch.ones_like(value, dtype=torch.float64) for name, value in theta_star.items()}
        super().__init__(potential, ones, theta_star, weight=weight)


def mismatches(potential: Potential, tensors: Mapping[str, Tensor], what: str) -> list[str]:
    """Return messages on tensors, by parameter name, that belong to no parameter or have another shape."""
    parameters = dict(potential.named_parameters())
    found = [f"{what} has {name}, the potential does not" for name in tensors if name not in parameters]
    for name, tensor in tensors.items():
        if name in parameters and tensor.shape != parameters[name].shape:
            theirs, ours = tuple(tensor.shape), tuple(parameters[name].shape)
            found.append(f"{name} has shape {theirs} in {what} and {ours} in the potential")
    return found
