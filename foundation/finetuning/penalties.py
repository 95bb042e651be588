"""Penalties that hold a fine-tuning near the weights it began with, each weight as firmly as it matters.

Elastic weight consolidation (EWC) adds (lambda/2) Σ_i F_i (θ_i - θ*_i)² to the loss, with the diagonal Fisher F of the
pretraining data (Kirkpatrick et al., PNAS 114, 3521 (2017), equation 3); L2-SP is the same with F = 1 (Li et al., ICML
2018). Parameters are found by the names of Potential.named_parameters(), so the potential has to be the bare one: under
a wrapper every name has a prefix, and a penalty that looked for them and passed over what it does not find would be
zero. Here every name has to be found, in both directions. The sum is in float64, because the differences are small
beside the weights; it costs two float64 copies of the parameters and, each step, one pass over them.
"""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from foundation.potential import Potential

Normalization = Literal["none", "mean"]
"""'none': the importance as it is, for which a good lambda depends on loss and model, by orders of magnitude;
'mean': divided by its mean over all weights, frozen ones too, so that one lambda is of the same order for other models
and losses, and L2-SP's lambda is comparable."""


class EwcPenalty:
    """(lambda/2) Σ_i F_i (θ_i - θ*_i)² over the parameters that are trained; frozen ones are left out."""

    def __init__(
        self,
        potential: Potential,
        importance: Mapping[str, Tensor],
        theta_star: Mapping[str, Tensor],
        *,
        weight: float,
        normalization: Normalization = "none",
    ) -> None:
        """Prepare the penalty for a potential whose parameters are frozen already, where any shall be.

        Args:
            potential: What will be trained, without a wrapper.
            importance: F by parameter name, at least zero; Fisher.values.
            theta_star: θ* by parameter name; Fisher.theta_star.
            weight: lambda, in units of the loss where F is that of a loss.
            normalization: What F is divided by.

        Raises:
            ValueError: the weight is negative, a parameter that is trained is not in F or θ*, one of these is not in
                the potential or has another shape, F is negative or not finite, or nothing is protected.
        """
        if not (weight >= 0 and math.isfinite(weight)):
            raise ValueError(f"the weight of the penalty (lambda) must be zero or more, not {weight}")
        trained = [name for name, parameter in potential.named_parameters() if parameter.requires_grad]
        troubles = mismatches(potential, importance, "the importance") + mismatches(potential, theta_star, "theta*")
        missing = [name for name in trained if name not in importance or name not in theta_star]
        troubles += [f"{name} is trained and not in the importance or theta*" for name in missing]
        if troubles:
            raise ValueError(f"the penalty does not belong to this potential: {'; '.join(troubles)}")
        if not trained:
            raise ValueError("every parameter is frozen, so the penalty protects nothing: freeze less or leave it out")
        self._names, self._weight = trained, weight
        scale = _scale(importance, normalization)
        self._importance = torch.cat([importance[name].detach().double().flatten() for name in trained]) / scale
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
    """(lambda/2) Σ_i (θ_i - θ*_i)², where θ* are the weights that the potential has now (L2-SP)."""

    def __init__(self, potential: Potential, *, weight: float) -> None:
        """Hold a potential near its present weights.

        Args:
            potential: What will be trained, without a wrapper.
            weight: lambda, in units of the loss.

        Raises:
            ValueError: the weight is negative, or every parameter is frozen.
        """
        theta_star = {name: parameter.detach().clone() for name, parameter in potential.named_parameters()}
        ones = {name: torch.ones_like(value, dtype=torch.float64) for name, value in theta_star.items()}
        super().__init__(potential, ones, theta_star, weight=weight)


def mismatches(potential: Potential, tensors: Mapping[str, Tensor], what: str) -> list[str]:
    """Return in words which of some tensors by parameter name are of no parameter, or of one of another shape."""
    parameters = dict(potential.named_parameters())
    found = [f"{what} has {name}, which the potential has not" for name in tensors if name not in parameters]
    for name, tensor in tensors.items():
        if name in parameters and tensor.shape != parameters[name].shape:
            theirs, ours = tuple(tensor.shape), tuple(parameters[name].shape)
            found.append(f"{name} has shape {theirs} in {what} and {ours} in the potential")
    return found


def _scale(importance: Mapping[str, Tensor], normalization: Normalization) -> float:
    """Return what the importance is divided by."""
    values = torch.cat([value.detach().double().flatten() for value in importance.values()])
    if not bool((values >= 0).all() and values.isfinite().all()):
        raise ValueError("the importance has negative or not finite entries: it is no Fisher; compute it again")
    if normalization == "none":
        return 1.0
    mean = float(values.mean())
    if mean == 0:
        raise ValueError("the importance of every weight is zero, so the penalty protects nothing")
    return mean
