"""Potentials in the checkpoints of a run, with the moving average of their weights.

A checkpoint holds what config.json of a saved potential does, so that a potential is built from it alone: without the
run's data, which may be gone, and before the run has ended. A finished run releases the best of its checkpoints.
"""

import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from data_pipeline.store.untrusted import check_layout, refusing
from foundation.checkpoint import CorruptCheckpoint, Description, build, description_of, read_description
from foundation.checkpoint import weights_sha256 as checksum_of
from foundation.configuration import resolved
from foundation.potential import Potential, check_weights
from foundation.provenance import CheckpointFacts
from foundation.surgery.adapters import adapt, merge_adapters
from foundation.training.fault_tolerance.reading import (
    CHECKPOINTS,
    WholeCheckpoint,
    read_best,
    read_checkpoint,
    steps_in,
    whole_checkpoint,
)

log = logging.getLogger(__name__)

POTENTIAL = "potential"
"""Entry of a checkpoint with the description of its potential; and prefix of the names of its weights."""
UNKNOWN = "0" * 64
"""Checksum in this description: that of the weights is known when they are read."""
ADAPTER = ".adapter.down"
"""Ending of the name of a weight of an adapter."""


def described_for_checkpoint(potential: Potential, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Return the description of a potential in training for a checkpoint, as JSON.

    Args:
        potential: The potential.
        provenance: Its origin, as JSON, as far as it is known in training.
    """
    return resolved(description_of(potential, dict(provenance), UNKNOWN))


def potential_in(checkpoint: WholeCheckpoint) -> tuple[Potential, Description]:
    """Return the potential of a checkpoint, with the average of its weights and ready to predict, and its description.

    Raises:
        CorruptCheckpoint: an older version of the program wrote it, or it does not describe its potential.
    """
    state = read_checkpoint(checkpoint.path)
    if POTENTIAL not in state:
        raise CorruptCheckpoint(
            f"{checkpoint.path}: written by an older version of this program, which did not describe the potential; "
            "continue the run with --fit.resume true: its next checkpoint does"
        )
    with refusing(checkpoint.path, CorruptCheckpoint, "does not describe its potential ({})"):
        described = read_description(state[POTENTIAL], checkpoint.path)
        weights = _weights(state)
        adapted = [name.replace(ADAPTER, ".weight") for name in weights if name.endswith(ADAPTER)]
        potential = build(described, {name: (t.dtype, tuple(t.shape)) for name, t in weights.items()})
        if adapted:
            adapters = described.origin.finetuning.adapters
            if adapters is None:
                raise ValueError("weights of adapters without their options")
            adapt(potential, adapted, adapters.rank, adapters.alpha)
        expected = {name: (t.dtype, tuple(t.shape)) for name, t in potential.state_dict().items()}
        check_layout({name: (t.dtype, tuple(t.shape)) for name, t in weights.items()}, expected)
        potential.load_state_dict(weights)
        check_weights(potential)
    if adapted:
        merge_adapters(potential)
    provenance = described.provenance | {"num_parameters": sum(p.numel() for p in potential.parameters())}
    return potential.eval(), replace(described, provenance=provenance, weights_sha256=checksum_of(potential))


def take_best(potential: Potential, run: Path, steps: int) -> dict[str, Any]:
    """Give a trained potential the weights of its run's best checkpoint, and return facts for its provenance.

    The average of the weights is what was validated, and is taken. Without validation, or if the best checkpoint is
    damaged, the potential stays that of the last step.

    Args:
        potential: The potential after the last step, changed in place.
        run: The run folder.
        steps: Number of steps of the run.
    """
    best = read_best(run / CHECKPOINTS)
    if best is None:
        return _facts(steps, steps, "the last step; none was validated")
    reason = f"the best by {best['by']}, {best['error']:.4g}"
    if best["step"] == steps:
        return _facts(steps, steps, f"the last step and {reason}")
    path = run / CHECKPOINTS / best["file"]
    try:
        weights = _weights(read_checkpoint(whole_checkpoint(path, best["step"]).path))
        potential.load_state_dict(weights)
    except (ValueError, RuntimeError, OSError) as error:
        log.warning("%s, %s, cannot be read (%s): the potential stays that of the last step", path, reason, error)
        return _facts(steps, steps, "the last step; the best checkpoint is damaged")
    log.info("the potential is that of step %d of %d, %s", best["step"], steps, reason)
    validated = {"validation": best["errors"]} if isinstance(best.get("errors"), dict) else {}
    return _facts(best["step"], steps, reason) | validated


def best_checkpoint(run: Path) -> tuple[WholeCheckpoint, str]:
    """Return the best checkpoint of a run, and its merit.

    Raises:
        FileNotFoundError: none is known.
        ValueError: it is damaged.
    """
    best = read_best(run / CHECKPOINTS)
    if best is None:
        raise FileNotFoundError(f"{run}: no checkpoint was validated, so none is the best; take --checkpoint newest")
    return checkpoint_of_step(run, best["step"]), f"the best by {best['by']}, {best['error']:.4g}"


def checkpoint_of_step(run: Path, step: int) -> WholeCheckpoint:
    """Return the checkpoint of a step.

    Raises:
        FileNotFoundError: there is none; the message names those that there are.
        ValueError: it is damaged.
    """
    there = {found: path for path, found in steps_in(run / CHECKPOINTS).items()}
    if step not in there:
        found = ", ".join(map(str, sorted(there))) or "none"
        raise FileNotFoundError(f"{run}: no checkpoint of step {step}; there are: {found}")
    path = there[step]
    try:
        return whole_checkpoint(path, step)
    except ValueError as damage:
        raise ValueError(f"{path}: {damage}; choose another --checkpoint") from damage


def _facts(step: int, steps: int, reason: str) -> dict[str, Any]:
    return {"checkpoint": asdict(CheckpointFacts(step=step, steps=steps, reason=reason, finished=True))}


def _weights(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return the averaged weights of a checkpoint by their name in the potential."""
    prefix = f"{POTENTIAL}."
    return {name.removeprefix(prefix): t for name, t in state["state_dict"].items() if name.startswith(prefix)}
