"""Pretraining, forgetting-aware fine-tuning and release of universal interatomic potentials.

potential = foundation.load("runs/quickstart/release")
atoms.calc = foundation.Calculator(potential)
"""

from foundation.checkpoint import load
from foundation.interop.calculator import Calculator
from foundation.potential import Potential, Prediction

__all__ = ["Calculator", "Potential", "Prediction", "load"]
