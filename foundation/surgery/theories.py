"""Levels of theory of a trained potential: keep one of them, or add one, without changing other predictions.

A network may round its weights anew for another number of levels; then predictions in float32 change by that rounding.
"""

import logging
import re
from collections.abc import Collection, Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from data_pipeline.store.manifest import NOT_STATED
from foundation.potential import Potential

log = logging.getLogger(__name__)

UNSTATED = ("", NOT_STATED, "unknown", "none")
"""Descriptions, in lower case, of data that do not state their level of theory."""


def theory_of_data(potential: Potential, described: str, named: str | None = None) -> int:
    """Return the index of the level of theory of data among those of a potential.

    Args:
        potential: The potential.
        described: Level in the data set's provenance, possibly unknown to the potential.
        named: The potential's name of the level; None: the meant one (matched_theory()), else its only one.

    Raises:
        ValueError: the potential does not know the named level, or one of several must be named.
    """
    meant = named or matched_theory(described, potential.theories)
    number = potential.theory_number(meant)
    if meant is None:
        known = potential.theories[number]
        log.info("data described as %r are taken to be at %r, the potential's only level", described, known)
    return number


def matched_theory(described: str, known: Sequence[str]) -> str | None:
    """Return the level of theory of a potential that the description of data means; None: none of them.

    In this order: a level of the same name; the one whose words occur in the description one after another, whatever
    their case, the longest first (`PBE, VASP, 520 eV` is PBE; PBE+U and PBE-D3 are words of their own, other than PBE);
    and for data that do not state theirs, the only level of the potential.

    Args:
        described: Level of theory in the data set's provenance.
        known: Levels of theory of the potential.

    Raises:
        ValueError: the data do not state their level, and the potential has several; or two are meant equally.
    """
    if described in known:
        return described
    if described.strip().lower() in UNSTATED:
        if len(known) == 1:
            return known[0]
        raise ValueError(
            f"the data do not state their level of theory, and the potential knows {', '.join(known)}: set --theory to "
            "one of them, or to a new name"
        )
    words = _words(described)
    found = [name for name in known if _words(name) and _occurs(_words(name), words)]
    longest = [name for name in found if len(_words(name)) == max(len(_words(each)) for each in found)]
    if len(longest) > 1:
        raise ValueError(
            f"the data are at {described!r}, which may be {' or '.join(longest)}: set --theory to the right one, or to "
            "a new name"
        )
    return longest[0] if longest else None


def theories_of_data(
    potential: Potential, theories: Sequence[str], named: Collection[str] = ()
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the levels of theory of data by the names of a potential, and a sentence on each understood or new one.

    Args:
        potential: Potential to train on them.
        theories: Levels of theory of the data: names, or descriptions in their provenance.
        named: Those of them that were named on purpose, which stay as they are.

    Raises:
        ValueError: a description may mean several levels.
    """
    found, reasons = list[str](), list[str]()
    for text in theories:
        meant = text if text in named else matched_theory(text, potential.theories)
        found.append(meant or text)
        if meant is None:
            known = ", ".join(potential.theories)
            reasons.append(
                f"level of theory: {text!r} is none of the start's ({known}) and is added; if it is compatible with "
                "one of them, name that with --theory"
            )
        elif meant != text:
            reasons.append(f"level of theory: {text!r} is taken as {meant!r}")
    return tuple(found), tuple(reasons)


def _words(text: str) -> list[str]:
    """Return the words of a description in lower case: letters, digits and the signs that join names."""
    return [word.strip("-+.") or word for word in re.findall(r"[\w+.\-]+", text.lower())]


def _occurs(words: Sequence[str], text: Sequence[str]) -> bool:
    """Return whether words occur in a text one after another."""
    return any(list(text[place : place + len(words)]) == list(words) for place in range(len(text)))


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
    mixed.repulsion = potential.repulsion
    return mixed.to(potential.device).train(potential.training)
