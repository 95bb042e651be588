"""The state in which a run ended, compared to the last bit."""

from pathlib import Path

import torch

from foundation.training.fault_tolerance.reading import newest_checkpoint


def same_state(one: Path, other: Path) -> bool:
    """Return whether two runs end in the same bits: weights, moving average, optimizer, schedule."""
    first, second = (torch.load(newest_checkpoint(run).path, weights_only=True) for run in (one, other))
    keys = ("global_step", "state_dict", "current_model_state", "averaging_state", "optimizer_states", "lr_schedulers")
    return all(same(first[key], second[key]) for key in keys)


def same(one: object, other: object) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(same(*pair) for pair in zip(one, other, strict=True))
    return one == other
