"""Levels of theory of a trained potential: keep one of them, or add one, without changing other predictions.

A network may round its weights anew for another number of levels; then predictions in float32 change by that rounding.
"""

import logging
from collections.abc import Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from foundation.potential import Potential

log = logging.getLogger(__name__)


def theory_of_data(potential: Potential, described: str, named: str | None = None) -> int:
    """Return the index of the level of theory of data among those of a potential.

    Args:
        potential: The potential.
        described: Level in the data set's provenance, possibly unknown to the potential.
        named: The potential's name of the level; None: the described one if the potential knows it, else its only one.

    Raises:
        ValueError: the potential does not know the named level, or one of several must be named.
    """
    number = potential.theory_number(named or (described if described in potential.theories else None))
    if named is None and described not in potential.theories:
        known = potential.theories[number]
        log.info("data described as %r are taken to be at %r, the potential's only level", described, known)
    return number


def keep_theory(potential: Potential, theory: str) -> Potential:
    """Return a potential with one level of theory and unchanged predictions at it.

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
    """Return a potential with one more level of theory and unchanged predictions at the others.

    Args:
        potential: The potential to extend; it is not modified.
        name: The new level.
        like: The level whose biases and references the new one starts from; None: their mean over all levels.
        reference_energies: Energies of the potential's elements at the new level [eV]; None: as for `like`.

    Raises:
        ValueError: the potential already knows the new level, or does not know `like`.
    """
    if name in potential.theories:
        raise ValueError(f"the potential already has a level of theory {name}")
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
    """Return the potential with other levels of theory, each a mixture of the old ones."""
    mixed = Potential(potential.network.with_theories(mixture), potential.elements, tuple(theories))
    mixed.get_buffer("scale").copy_(potential.get_buffer("scale"))
    references = potential.get_buffer("reference_energies")
    mixed.get_buffer("reference_energies").copy_(mixture.to(references) @ references)
    return mixed.to(potential.device).train(potential.training)
