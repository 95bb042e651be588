"""Pretraining, forgetting-aware fine-tuning and release of universal interatomic potentials.

potential = foundation.load("runs/quickstart/release")
atoms.calc = foundation.Calculator(potential)
"""

from pathlib import Path

import torch

from foundation import checkpoint
from foundation.interop.calculator import Calculator
from foundation.interop.published import find_published
from foundation.interop.sevennet import from_sevennet
from foundation.potential import Potential, Prediction
from foundation.theories import add_theory, keep_theory

__all__ = ["Calculator", "Potential", "Prediction", "add_theory", "keep_theory", "load"]


def load(source: Path | str) -> Potential:
    """Return a potential, ready to predict: of a folder, of a SevenNet checkpoint (.pth), or "sevennet-0" by name.

    The names are those of the models that the sevenn package carries; it has to be installed for them.

    Raises:
        FileNotFoundError: there is no such folder, file or model.
        ValueError: what is there is damaged, refused, or newer than this program.
    """
    path = Path(source)
    with torch.inference_mode(False):  # weights made in inference mode could not be differentiated through
        if path.is_dir():
            return checkpoint.load(path)
        return from_sevennet(path if path.is_file() or path.suffix == ".pth" else find_published(str(source)))
