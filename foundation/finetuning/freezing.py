"""Choice of the parameters that a fine-tuning may change, and of their learning rates.

Parameters are chosen by stages of the network or by shell patterns over the names of Potential.named_parameters(); a
'*' also stands for dots. Frozen parameters are left out of the optimizer, so not even weight decay moves them. Buffers
(reference energies, scale, denominators) are not parameters and never change in training.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from foundation.models import EnergyModel
from foundation.potential import Potential

BLOCK = "block "
"""Prefix of the names of repeating stages."""


def freeze(potential: Potential, patterns: Sequence[str]) -> list[str]:
    """Exclude parameters from training, and return their names.

    Args:
        potential: Potential to freeze in part, in place; unchanged after an error.
        patterns: Presets (see presets()) and patterns over parameter names.

    Raises:
        ValueError: a pattern matches no parameter, or no parameter would remain trainable.
    """
    frozen = matching(potential, patterns, [name for name, _ in potential.named_parameters()])
    trained = {name for name, parameter in potential.named_parameters() if parameter.requires_grad}
    if trained <= set(frozen):
        raise ValueError(f"freezing {', '.join(patterns)} leaves no parameter to train: freeze less")
    for name in frozen:
        potential.get_parameter(name).requires_grad_(False)
    return frozen


def rate_factors(potential: Potential, factors: Mapping[str, float]) -> dict[str, float]:
    """Return the learning-rate factor of every trained parameter.

    Args:
        potential: The potential, after freezing.
        factors: Factors by preset or pattern; if several match, the last one applies, and if none does, the factor is
            1. Frozen parameters stay frozen, also if a pattern matches.

    Raises:
        ValueError: a pattern matches no parameter, or a factor is not a positive number.
    """
    names = [name for name, _ in potential.named_parameters()]
    trained = {name for name, parameter in potential.named_parameters() if parameter.requires_grad}
    found = dict.fromkeys(names, 1.0)
    for pattern, factor in factors.items():
        if not (factor > 0 and math.isfinite(factor)):
            raise ValueError(f"the learning-rate factor of {pattern!r} must be positive, not {factor}; or freeze it")
        found |= dict.fromkeys(matching(potential, [pattern], names), float(factor))
    return {name: factor for name, factor in found.items() if name in trained}


def matching(potential: Potential, patterns: Iterable[str], names: Sequence[str]) -> list[str]:
    """Return the parameters among `names` that match presets or patterns, in their order.

    Raises:
        ValueError: a pattern matches none of them, or a preset names more blocks than the network has.
    """
    chosen: set[str] = set()
    for pattern in patterns:
        shells = [f"network.{shell}" for shell in _of_preset(pattern, potential.network)] or [pattern]
        found = {name for name in names if any(fnmatchcase(name, shell) for shell in shells)}
        if not found:
            near = get_close_matches(pattern, [*presets(potential.network), *names], n=5, cutoff=0.0)
            raise ValueError(f"{pattern!r} matches none of {len(names)} parameters; similar are {', '.join(near)}")
        chosen |= found
    return [name for name in names if name in chosen]


def presets(network: EnergyModel) -> list[str]:
    """Return the presets for a network's parameters.

    They are each stage by its name, 'blocks:K' for the first K blocks and all stages before them, and
    'all-but-readout'.
    """
    stages = list(network.parameter_stages())
    return [*stages, *["blocks:K"] * any(stage.startswith(BLOCK) for stage in stages), "all-but-readout"]


def _of_preset(pattern: str, network: EnergyModel) -> list[str]:
    """Return the patterns of a preset, over the network's own names; [] if it is not a preset."""
    stages = network.parameter_stages()
    names = list(stages)
    preset, colon, count = pattern.partition(":")
    if pattern in stages:
        names = [pattern]
    elif pattern == "all-but-readout":
        names = names[:-1]
    elif preset == "blocks" and colon:
        blocks = [place for place, name in enumerate(names) if name.startswith(BLOCK)]
        if not blocks:
            raise ValueError(f"{pattern!r}: the network has no blocks; its stages are {', '.join(names)}")
        if not count.isdecimal() or int(count) > len(blocks):
            raise ValueError(f"{pattern!r}: write blocks:K with K from 0 to {len(blocks)}, the number of blocks")
        names = names[: blocks[0] + int(count)]
    else:
        names = []
    return [shell for name in names for shell in stages[name]]
