"""The contract of a suite: a physical property, computed by a subject and compared with references.

A subject is a potential of this project, or any ASE calculator: both are judged by the same code.
"""

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
from ase.calculators.calculator import Calculator
from jaxtyping import Float64

from data_pipeline.structure import SYMBOLS, Structure
from foundation.potential import Potential


@dataclass(frozen=True, kw_only=True, eq=False)
class Predicted:
    """Prediction for one structure."""

    energy: float
    """Total energy [eV]."""
    forces: Float64[np.ndarray, "atoms 3"]
    """Forces [eV/Å]."""
    stress: Float64[np.ndarray, "3 3"]
    """Stress [eV/Å³], positive in tension; zeros without a volume."""


class Subject(ABC):
    """The judged: it predicts structures, and drives molecular dynamics."""

    name: str
    """Name in reports."""
    potential: Potential | None
    """Potential in float64, for suites that look inside; None for a calculator of another program."""
    elements: Collection[int] | None
    """Atomic numbers that it knows; None if it does not say."""
    kept: Path | None = None
    """Folder for what takes a suite long, until it is finished; None: nothing is kept."""

    @abstractmethod
    def predict(self, structures: Sequence[Structure]) -> list[Predicted]:
        """Return predictions in float64 in order, because suites differentiate along curves."""

    @abstractmethod
    def calculator(self) -> Calculator:
        """Return a calculator for molecular dynamics, in the fastest form that conserves energy."""

    @abstractmethod
    def exact_calculator(self) -> Calculator | None:
        """Return a calculator that computes in float64 without tables; None if the subject has but one."""

    @abstractmethod
    def another(self, word: str) -> "Subject":
        """Return a second subject to compare with: a potential by name or folder, or module:Class of a calculator.

        Raises:
            FileNotFoundError: the word names no potential.
            ValueError: the calculator cannot be made, or the potential has several levels of theory.
        """


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A quantity that a suite has found."""

    value: float | None
    """Value; None: the quantity could not be determined."""
    unit: str = ""
    """Unit as shown; empty for a count or a ratio."""
    reference: float | None = None
    """Value to compare with, from an experiment or another method."""
    interval: tuple[float, float] | None = None
    """Limits of the 95 % confidence interval of the value; None: unknown."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A curve of a chart."""

    x: tuple[float, ...]
    """Abscissas."""
    y: tuple[float | None, ...]
    """Ordinates; None where undetermined."""
    low: tuple[float | None, ...] = ()
    """Lower limits of the ordinates' 95 % confidence intervals; (): unknown."""
    high: tuple[float | None, ...] = ()
    """Upper limits."""
    reference: bool = False
    """True for what the subject should have found: the same for every subject, and drawn in grey."""
    points: bool = False
    """True for separate points instead of a line."""
    texts: tuple[str, ...] = ()
    """Text beside each point; (): none."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Curves over one abscissa, by label."""

    x: str
    """Quantity and unit of the abscissa."""
    y: str
    """Quantity and unit of the ordinate."""
    curves: dict[str, Curve]
    """Curves by label; '' for the subject's own if there is one."""
    log_x: bool = False
    """True for a logarithmic abscissa."""
    log_y: bool = False
    """True for a logarithmic ordinate."""


@dataclass(frozen=True, kw_only=True)
class HeatMap:
    """Numbers of all pairs of things, drawn as a square of colours; things of one group stand together."""

    values: tuple[tuple[float, ...], ...]
    """Number of each pair."""
    labels: tuple[str, ...]
    """Name of each thing."""
    groups: tuple[str, ...]
    """Name of each thing's group; equal ones are neighbours, and '' belongs to none."""
    quantity: str
    """Quantity and unit of the numbers."""
    limits: tuple[float, float]
    """Numbers of the darkest colours at both ends."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Everything that a suite has found for a subject."""

    quantities: dict[str, Finding]
    """Quantities by name."""
    charts: dict[str, Chart] = field(default_factory=dict)
    """Charts by title."""
    maps: dict[str, HeatMap] = field(default_factory=dict)
    """Heat maps by title."""


class Suite(ABC):
    """Configuration of a suite, and its code. Suites are distinguished by their first field, which has no default."""

    name: ClassVar[str]
    """Name in reports."""

    @abstractmethod
    def elements(self) -> set[int]:
        """Return the atomic numbers that a subject must know."""

    @abstractmethod
    def run(self, subject: Subject) -> Findings:
        """Return the findings; the same subject has the same findings.

        Raises:
            ValueError: the subject cannot be judged by this suite.
        """


def check_suites(suites: Iterable[Suite], elements: Collection[int] | None) -> None:
    """Refuse suites with elements unknown to a subject, or two of one name.

    Raises:
        ValueError: naming suite and elements.
    """
    names: set[str] = set()
    for suite in suites:
        if suite.name in names:
            raise ValueError(f"suites: {suite.name} occurs twice; put everything it measures into one")
        names.add(suite.name)
        unknown = sorted(suite.elements() - set(elements)) if elements is not None else []
        if unknown:
            raise ValueError(
                f"suites: {suite.name} has {', '.join(SYMBOLS[z] for z in unknown)}, unknown to the potential; leave "
                "them out"
            )


def run_suites(suites: Sequence[Suite], subject: Subject) -> dict[str, Findings]:
    """Return the findings of suites for a subject, by name of the suite.

    Raises:
        ValueError: a suite has elements unknown to the subject, occurs twice, or cannot judge this subject.
    """
    check_suites(suites, subject.elements)
    return {suite.name: _finite(suite.run(subject)) for suite in suites}


def _finite(findings: Findings) -> Findings:
    """Return findings without the values and limits that are not numbers."""
    quantities = {}
    for name, each in findings.quantities.items():
        value = _number(each.value)
        interval = each.interval if value is not None and all(map(math.isfinite, each.interval or ())) else None
        quantities[name] = dataclasses.replace(each, value=value, interval=interval)
    charts = {
        title: dataclasses.replace(chart, curves={label: _numbers(curve) for label, curve in chart.curves.items()})
        for title, chart in findings.charts.items()
    }
    return Findings(quantities=quantities, charts=charts, maps=findings.maps)


def _numbers(curve: Curve) -> Curve:
    y, low, high = (tuple(map(_number, values)) for values in (curve.y, curve.low, curve.high))
    return dataclasses.replace(curve, x=tuple(map(float, curve.x)), y=y, low=low, high=high)


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)
