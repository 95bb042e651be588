"""The contract of a suite: a physical property, computed from predictions and compared with references.

A suite sees structures and their predicted energies, forces and stresses and nothing else, so every potential, and any
other program behind the same function, is judged by the same code.
"""

import copy
import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float64

from data_pipeline.graphs.batch import collate
from data_pipeline.quoting import abbreviated
from data_pipeline.structure import SYMBOLS, Structure
from foundation.potential import Potential

BATCH = 64
"""Largest number of structures that are predicted together."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Predicted:
    """Prediction for one structure."""

    energy: float
    """Total energy [eV]."""
    forces: Float64[np.ndarray, "atoms 3"]
    """Forces [eV/Å]."""
    stress: Float64[np.ndarray, "3 3"]
    """Stress [eV/Å³], positive in tension; zeros without a volume."""


Predict = Callable[[Sequence[Structure]], list[Predicted]]
"""Function that predicts structures, in order."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A quantity that a suite has found."""

    value: float | None
    """Value; None: the quantity could not be determined."""
    unit: str = ""
    """Unit as shown; empty for a count or a ratio."""
    reference: float | None = None
    """Value to compare with, from an experiment or another method."""


Findings = dict[str, Finding]
"""Findings by name."""


class Suite(ABC):
    """Configuration of a suite, and its code. Suites are distinguished by their first field, which has no default."""

    name: ClassVar[str]
    """Name in reports."""

    @abstractmethod
    def elements(self) -> set[int]:
        """Return the atomic numbers that occur in the suite's structures."""

    @abstractmethod
    def run(self, predict: Predict) -> Findings:
        """Return the findings; the same function gives the same findings."""


def atomic_number(symbol: str) -> int:
    """Return the atomic number of a symbol.

    Raises:
        ValueError: there is no such element.
    """
    if symbol not in SYMBOLS[1:]:
        raise ValueError(f"{abbreviated(symbol)} is not the symbol of an element")
    return SYMBOLS.index(symbol)


def check_suites(suites: Iterable[Suite], elements: Sequence[int]) -> None:
    """Refuse suites with elements unknown to a potential, or two of one name.

    Raises:
        ValueError: naming suite and elements.
    """
    names: set[str] = set()
    for suite in suites:
        if suite.name in names:
            raise ValueError(f"suites: {suite.name} occurs twice; put everything it measures into one")
        names.add(suite.name)
        if unknown := sorted(suite.elements() - set(elements)):
            raise ValueError(
                f"suites: {suite.name} has {', '.join(SYMBOLS[z] for z in unknown)}, unknown to the potential; leave "
                "them out"
            )


def run_suites(suites: Sequence[Suite], potential: Potential, theory: int = 0) -> dict[str, Findings]:
    """Return the findings of suites for a potential at one of its levels of theory, by name of the suite.

    Raises:
        ValueError: a suite has elements unknown to the potential, or occurs twice.
    """
    check_suites(suites, potential.elements)
    predict = predictor(potential, theory)
    return {suite.name: {name: _finite(each) for name, each in suite.run(predict).items()} for suite in suites}


def _finite(finding: Finding) -> Finding:
    """Return a finding without its value if that is not a number."""
    undetermined = finding.value is None or not math.isfinite(finding.value)
    return dataclasses.replace(finding, value=None) if undetermined else finding


def predictor(potential: Potential, theory: int = 0) -> Predict:
    """Return a function that predicts structures in float64, because suites differentiate along curves."""
    exact = copy.deepcopy(potential).cast(torch.float64).eval()

    def predict(structures: Sequence[Structure]) -> list[Predicted]:
        found = []
        for first in range(0, len(structures), BATCH):
            some = structures[first : first + BATCH]
            batch = collate(some, exact.cutoff, torch.float64, [theory] * len(some)).to(exact.device)
            prediction = exact(batch)
            forces = prediction.forces.cpu().numpy()
            ends = np.cumsum([structure.num_atoms for structure in some])
            found += [
                Predicted(energy=float(energy), forces=forces[end - structure.num_atoms : end], stress=stress)
                for energy, stress, structure, end in zip(
                    prediction.energy, prediction.stress.cpu().numpy(), some, ends, strict=True
                )
            ]
        return found

    return predict
