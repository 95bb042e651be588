"""Pretraining, forgetting-aware fine-tuning and release of universal interatomic potentials.

atoms.calc = foundation.Calculator("runs/quickstart/release")
potential = foundation.load("sevennet-0")
"""

import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from foundation.interop.calculator import Calculator
    from foundation.potential import Potential, Prediction
    from foundation.surgery.theories import add_theory, keep_theory

# before torch loads its OpenMP runtime: a thread that waits for another keeps its core busy for milliseconds, and
# beside another program two threads are then half as fast as one
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

__all__ = ["Calculator", "Potential", "Prediction", "add_theory", "keep_theory", "load"]
_HOMES = {
    "Calculator": "foundation.interop.calculator",
    "Potential": "foundation.potential",
    "Prediction": "foundation.potential",
    "add_theory": "foundation.surgery.theories",
    "keep_theory": "foundation.surgery.theories",
}
"""Module of each name, imported when the name is first used: torch and e3nn take seconds."""


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def load(source: Path | str, checkpoint: Literal["best", "newest"] | int | None = None) -> "Potential":
    """Return a potential, ready to predict, from a folder, a SevenNet checkpoint (.pth), a name or an address.

    Names are those of docs/potentials.md, such as "sevennet-0" or "sevennet-0@1"; addresses are
    "hf:org/name@revision" and "https://...".

    Args:
        source: Release folder, run folder, file, name or address.
        checkpoint: Checkpoint of a run: the best by its validation, the newest, or that of a step; None: the potential
            of a finished run, and the newest checkpoint of an unfinished one.

    Raises:
        FileNotFoundError: no such folder, file, name or checkpoint; the message says what may have been meant.
        OSError: no address gave it.
        ValueError: the file is damaged, refused, or newer than this program.
    """
    import torch

    from foundation.naming import resolve

    with torch.inference_mode(False):  # weights made in inference mode could not be differentiated through
        return resolve(source, checkpoint).load()
