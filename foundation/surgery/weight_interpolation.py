"""Interpolation between the start and the result of a fine-tuning (WiSE-FT; Wortsman et al., CVPR 2022).

All parameters are interpolated linearly. Fine-tuned weights often lie in the same basin as the start's, and a potential
between them may avoid more forgetting than it loses accuracy; this costs no training but is not certain: measure it.
"""

import copy
from dataclasses import asdict

import torch
from torch import Tensor

from foundation.potential import Potential


def interpolate(start: Potential, tuned: Potential, alpha: float) -> Potential:
    """Return (1 - alpha) start + alpha tuned, computed in float64: 0 is the start and 1 the tuned, bit for bit.

    Parameters and reference energies are interpolated; all other buffers are the same in both.

    Args:
        start: The potential before the fine-tuning; it is not modified.
        tuned: The same potential after it, adapters merged.
        alpha: Position between the two, from 0 to 1.

    Raises:
        ValueError: alpha is outside 0 to 1, or the potentials differ in more than the weights.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be from 0 (the start) to 1 (the tuned), not {alpha}")
    theirs = tuned.state_dict()
    differences = _differences(start, tuned)
    if differences:
        raise ValueError(f"the two potentials cannot be interpolated: {'; '.join(differences)}")
    mixed = copy.deepcopy(start)
    with torch.no_grad():
        for name, ours in mixed.state_dict(keep_vars=True).items():
            # lerp, because it is exact at both ends and where the two are equal
            ours.copy_(torch.lerp(ours.double(), theirs[name].to(ours.device).double(), alpha))
    return mixed


def _differences(start: Potential, tuned: Potential) -> list[str]:
    """Return descriptions of the differences that prevent interpolation."""
    ours, theirs = _facts(start), _facts(tuned)
    different = [name for name in ours if ours[name] != theirs.get(name)]
    found = [f"{name} is {ours[name]} in the start and {theirs.get(name)} in the tuned" for name in different]
    left, right = start.state_dict(), tuned.state_dict()
    found += [f"only one has {name} (merge adapters first)" for name in sorted(left.keys() ^ right.keys())]
    if not found:
        moving = {name for name, _ in start.named_parameters()} | {"reference_energies"}
        fixed = [name for name in left if name not in moving]
        found = [f"{name} differs" for name in fixed if not _equal(left[name], right[name])]
    return found


def _facts(potential: Potential) -> dict[str, object]:
    facts = {"elements": potential.elements, "theories": potential.theories, "dtype": potential.dtype}
    config = potential.network.config
    return facts | {"architecture": config.architecture} | asdict(config)


def _equal(left: Tensor, right: Tensor) -> bool:
    return torch.equal(left, right.to(left.device))
