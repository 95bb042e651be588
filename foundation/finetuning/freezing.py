"""Which parameters a fine-tuning may change, and how fast each of them learns.

Parameters are chosen by presets or by shell patterns over the names of Potential.named_parameters(); a '*' also stands
for dots. What is frozen is left out of the optimizer, so not even weight decay moves it: it keeps every bit. Buffers
(reference energies, scale, denominators) are not parameters and never change in training, frozen or not.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from foundation.potential import Potential

PRESETS = ("embedding", "blocks:K", "all-but-readout")
"""Named choices: the element embedding; embedding, radial basis and the first K blocks; all below the readout."""


def freeze(potential: Potential, patterns: Sequence[str]) -> list[str]:
    """Keep parameters as they are in training from now on, and return their names.

    Args:
        potential: What to freeze parts of, in place; left alone if a pattern is refused.
        patterns: Presets (PRESETS) and patterns over parameter names.

    Raises:
        ValueError: a pattern matches no parameter, or nothing would be left to train.
    """
    frozen = matching(potential, patterns, [name for name, _ in potential.named_parameters()])
    trained = {name for name, parameter in potential.named_parameters() if parameter.requires_grad}
    if trained <= set(frozen):
        raise ValueError(f"freezing {', '.join(patterns)} leaves no parameter to train: freeze less")
    for name in frozen:
        potential.get_parameter(name).requires_grad_(False)
    return frozen


def rate_factors(potential: Potential, factors: Mapping[str, float]) -> dict[str, float]:
    """Return for every parameter that is trained what its learning rate is multiplied with.

    Args:
        potential: Whose parameters, after freezing.
        factors: Factors by preset or pattern; where several match, the last one counts, and where none does, it is 1.
            What is frozen stays frozen, also where a pattern matches it.

    Raises:
        ValueError: a pattern matches no parameter, or a factor is not a positive number.
    """
    names = [name for name, _ in potential.named_parameters()]
    trained = {name for name, parameter in potential.named_parameters() if parameter.requires_grad}
    found = dict.fromkeys(names, 1.0)
    for pattern, factor in factors.items():
        if not (factor > 0 and math.isfinite(factor)):
            raise ValueError(f"the learning-rate factor of {pattern!r} must be positive, not {factor}; to stop, freeze")
        found |= dict.fromkeys(matching(potential, [pattern], names), float(factor))
    return {name: factor for name, factor in found.items() if name in trained}


def matching(potential: Potential, patterns: Iterable[str], names: Sequence[str]) -> list[str]:
    """Return those of some parameters of a potential that presets or patterns choose, in their order.

    Raises:
        ValueError: a pattern matches none of them, or a preset asks for more blocks than there are.
    """
    chosen: set[str] = set()
    for pattern in patterns:
        shells = _expanded(pattern, len(potential.network.blocks))
        found = {name for name in names if any(fnmatchcase(name, shell) for shell in shells)}
        if not found:
            near = get_close_matches(pattern, [*PRESETS, *names], n=5, cutoff=0.0)
            raise ValueError(f"{pattern!r} matches none of {len(names)} parameters; near it are {', '.join(near)}")
        chosen |= found
    return [name for name in names if name in chosen]


def _expanded(pattern: str, num_blocks: int) -> list[str]:
    """Return the patterns that a preset stands for; any other pattern stands for itself."""
    below = ["network.embedding.*", "network.radial_basis.*"]
    if pattern == "embedding":
        return below[:1]
    if pattern == "all-but-readout":
        return [*below, "network.blocks.*"]
    preset, colon, count = pattern.partition(":")
    if preset != "blocks" or not colon:
        return [pattern]
    if not count.isdecimal() or int(count) > num_blocks:
        raise ValueError(f"{pattern!r}: write blocks:K with K from 0 to {num_blocks}, the blocks that there are")
    return below + [f"network.blocks.{number}.*" for number in range(int(count))]
