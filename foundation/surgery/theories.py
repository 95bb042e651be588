"""Levels of theory of a trained potential: keep one of them, or add one, without changing what the potential says.

A network may round its weights anew for another number of levels; then predictions in float32 move by that rounding.
"""

import logging
from collections.abc import Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from foundation.potential import Potential

log = logging.getLogger(__name__)


def theory_of_data(potential: Potential, described: str, named: str | None = None) -> int:
    """Return the place among a potential's levels of theory of the one that data are at.

    Args:
        potential: Whose levels.
        described: What the data set is described as, which need not be a name that the potential knows.
        named: The level by the potential's name for it; when absent it is the described one if the potential knows
            that, or else the only one there is.

    Raises:
        ValueError: the potential does not know the named level, or it has to be named which of several it is.
    """
    number = potential.theory_number(named or (described if described in potential.theories else None))
    if named is None and described not in potential.theories:
        known = potential.theories[number]
        log.info("data described as %r are taken to be at %r, all that the potential knows", described, known)
    return number


def keep_theory(potential: Potential, theory: str) -> Potential:
    """Return a potential that knows one level of theory, at which it predicts the same.

    Raises:
        ValueError: the potential does not know the level.
    """
    chosen = torch.zeros(1, len(potential.theories), dtype=torch.float64)
    chosen[0, potential.theory_number(theory)] = 1.0
    return _mixed(potential, (theory,), chosen)


def add_theory(
    potential: Potential,
    name: str,
    *,
    like: str | None = None,
    reference_energies: Float64[Tensor, " elements"] | None = None,
) -> Potential:
    """Return a potential that knows one more level of theory and predicts the same at those it has.

    Args:
        potential: What to add to; it is left alone.
        name: The new level.
        like: The level whose biases and references the new one starts from; when absent, their mean over all levels.
        reference_energies: Energies of the potential's elements at the new level [eV], if others.

    Raises:
        ValueError: the potential knows the new level already, or does not know the one to start from.
    """
    if name in potential.theories:
        raise ValueError(f"the potential has a level of theory {name} already")
    count = len(potential.theories)
    start = torch.full((1, count), 1.0 / count, dtype=torch.float64)
    if like is not None:
        start = torch.nn.functional.one_hot(torch.tensor([potential.theory_number(like)]), count).double()
    mixture = torch.cat([torch.eye(count, dtype=torch.float64), start])
    grown = _mixed(potential, (*potential.theories, name), mixture)
    if reference_energies is not None:
        grown.get_buffer("reference_energies")[-1] = reference_energies
    return grown


def _mixed(potential: Potential, theories: Sequence[str], mixture: Float64[Tensor, "new old"]) -> Potential:
    """Return the potential with other levels of theory, each made up of the old ones."""
    mixed = Potential(potential.network.with_theories(mixture), potential.elements, tuple(theories))
    mixed.get_buffer("scale").copy_(potential.get_buffer("scale"))
    references = potential.get_buffer("reference_energies")
    mixed.get_buffer("reference_energies").copy_(mixture.to(references) @ references)
    return mixed.to(potential.device).train(potential.training)
