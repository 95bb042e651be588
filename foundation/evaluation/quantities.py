"""The quantities by which potentials are judged: name, unit, digits and formula of each are defined only here.

The training log, evaluations, comparisons, model cards and tables iterate over QUANTITIES: a new entry appears in all
of them. Numbers are stored in eV, eV/Å and eV/Å³, also in files, and shown in the unit of the quantity.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float64
from torch import Tensor

from foundation.evaluation.frame_errors import FrameErrors, LabelledPrediction, Term, unique


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A unit in which numbers are shown."""

    name: str
    """Its symbol."""
    factor: float = 1.0
    """Number of these units in the stored one."""


MILLI_EV_PER_ATOM = Unit(name="meV/atom", factor=1e3)
MILLI_EV_PER_ATOM_PS = Unit(name="meV/atom/ps", factor=1e3)
MILLI_EV_PER_ANGSTROM = Unit(name="meV/Å", factor=1e3)
GPA = Unit(name="GPa", factor=160.2176634)
"""Unit in which stress [eV/Å³] is shown."""
JOULE_PER_SQUARE_METRE = Unit(name="J/m²", factor=16.02176634)
"""Unit in which surface energies [eV/Å²] are shown."""
NUMBER = Unit(name="")
LABEL_UNITS = {"energy": Unit(name="eV/atom"), "force": Unit(name="eV/Å"), "stress": GPA}
"""Units in which labels, unlike their errors, are shown."""


Totals = TypeVar("Totals", float, np.ndarray)
"""A sum over some frames, or the sums over the frames of many resamples."""


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """Ratio of two sums, such as of absolute errors over their number, or its square root."""

    top: Term
    """Dividend."""
    bottom: Term
    """Divisor; zero means no labels."""
    root: bool = False
    """Take the square root."""

    def of(self, totals: Mapping[str, Totals]) -> Totals:
        """Return the ratio from the totals of a set of frames, by name of the term."""
        power: Any = 0.5 if self.root else 1.0
        return (totals[self.top.name] / totals[self.bottom.name]) ** power


@dataclass(frozen=True, kw_only=True)
class Median:
    """The median over frames of a ratio of each frame's own sums."""

    top: Term
    """Dividend."""
    bottom: Term
    """Divisor; frames where it is zero are ignored."""


@dataclass(frozen=True, kw_only=True)
class Trivial:
    """The same error of a trivial predictor."""

    key: str
    """Name in files."""
    name: str
    """Predicted quantity."""
    top: Term
    """Sum of its errors; the divisor is that of the quantity."""


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """A number by which a potential is judged."""

    name: str
    """Name for people."""
    unit: Unit
    """Unit in which it is shown."""
    formula: Ratio | Median
    """Formula from sums over frames. Only a ratio can be logged in training, where frames are not kept."""
    short: str = ""
    """Name in log lines; empty: not logged."""
    trivial: Trivial | None = None
    """Trivial predictor for comparison in the evaluation of one potential."""
    by_element: bool = False
    """Report it by element too: forces of its atoms, energies of structures that contain it."""
    median: str = ""
    """Key of the corresponding quantity of the median frame."""
    ideal: float = 0.0
    """Value for a perfect potential. Changes are relative if it is zero (errors), else differences."""
    decimals: int | None = None
    """Number of decimals; None: as many as the significant digits require."""
    headline: bool = True
    """Show it in tables with few quantities."""
    note: str = ""
    """Remark to show with it."""

    @property
    def title(self) -> str:
        """Name and unit."""
        return f"{self.name} [{self.unit.name}]" if self.unit.name else self.name

    @property
    def is_error(self) -> bool:
        """True if smaller is better."""
        return self.ideal == 0.0

    def text(self, value: float | None, significant: int = 3) -> str:
        """Return a number in the quantity's unit, or a dash if it is missing."""
        if value is None or not math.isfinite(value):
            return "–"
        shown = self.unit.factor * value
        # smaller ones would be a row of zeros; of a fixed number of decimals these are wanted
        least = 10.0**-significant if self.decimals is None else 1e-5
        if shown and not least <= abs(shown) < 1e7:
            return f"{shown:.{significant - 1}e}".replace("-", "−")
        digits = self.decimals
        if digits is None:
            leading = math.floor(math.log10(abs(shown))) if shown else 0
            digits = min(max(significant - 1 - leading, 0), significant + 1)
        return f"{round(shown, digits) + 0.0:,.{digits}f}".replace("-", "−")


def _composition_error(labelled: LabelledPrediction) -> Float64[Tensor, " frames"]:
    assert labelled.composition_error is not None
    return labelled.composition_error.abs()


FRAMES = Term(name="frames", per="frame", of=lambda x: x.energy_error.new_ones(len(x.num_atoms)))
ENERGY_SUM = Term(name="energy_sum", per="frame", of=lambda x: x.energy_error.abs())
ENERGY_SQUARE = Term(name="energy_square", per="frame", of=lambda x: x.energy_error.square())
FORCE_SUM = Term(name="force_sum", per="atom", of=lambda x: x.force_error.abs().sum(1))
FORCE_ERROR_SQUARE = Term(name="force_error_square", per="atom", of=lambda x: x.force_error.square().sum(1))
FORCE_COUNT = Term(name="force_count", per="atom", of=lambda x: 3.0 * x.has_forces.double())
FORCE_PRODUCT = Term(name="force_product", per="atom", of=lambda x: (x.labelled_forces * x.predicted_forces).sum(1))
FORCE_SQUARE = Term(name="force_square", per="atom", of=lambda x: x.labelled_forces.square().sum(1))
STRESS_SUM = Term(name="stress_sum", per="frame", of=lambda x: x.stress_error.abs().sum((1, 2)))
STRESS_COUNT = Term(name="stress_count", per="frame", of=lambda x: 9.0 * x.has_stress.double())
COMPOSITION_SUM = Term(name="composition_energy_sum", per="frame", of=_composition_error)
ZERO_FORCE_SUM = Term(name="zero_force_sum", per="atom", of=lambda x: x.labelled_forces.abs().sum(1))
ZERO_STRESS_SUM = Term(name="zero_stress_sum", per="frame", of=lambda x: x.labelled_stress.abs().sum((1, 2)))

QUANTITIES: dict[str, Quantity] = {
    "energy_mae": Quantity(
        name="energy MAE",
        short="energy",
        unit=MILLI_EV_PER_ATOM,
        formula=Ratio(top=ENERGY_SUM, bottom=FRAMES),
        trivial=Trivial(key="composition_energy_mae", name="composition", top=COMPOSITION_SUM),
        by_element=True,
        median="energy_median",
    ),
    "energy_rmse": Quantity(
        name="energy RMSE",
        unit=MILLI_EV_PER_ATOM,
        formula=Ratio(top=ENERGY_SQUARE, bottom=FRAMES, root=True),
        headline=False,
    ),
    "energy_median": Quantity(
        name="median energy error",
        unit=MILLI_EV_PER_ATOM,
        formula=Median(top=ENERGY_SUM, bottom=FRAMES),
        note="The mean energy error can depend on a few outliers, the median does not",
    ),
    "force_mae": Quantity(
        name="force MAE",
        short="force",
        unit=MILLI_EV_PER_ANGSTROM,
        formula=Ratio(top=FORCE_SUM, bottom=FORCE_COUNT),
        trivial=Trivial(key="zero_force_mae", name="zero", top=ZERO_FORCE_SUM),
        by_element=True,
        median="force_median",
    ),
    "force_rmse": Quantity(
        name="force RMSE",
        unit=MILLI_EV_PER_ANGSTROM,
        formula=Ratio(top=FORCE_ERROR_SQUARE, bottom=FORCE_COUNT, root=True),
        headline=False,
    ),
    "force_median": Quantity(
        name="force MAE, median frame",
        unit=MILLI_EV_PER_ANGSTROM,
        formula=Median(top=FORCE_SUM, bottom=FORCE_COUNT),
        headline=False,
    ),
    "stress_mae": Quantity(
        name="stress MAE",
        short="stress",
        unit=GPA,
        formula=Ratio(top=STRESS_SUM, bottom=STRESS_COUNT),
        trivial=Trivial(key="zero_stress_mae", name="zero", top=ZERO_STRESS_SUM),
    ),
    "softening": Quantity(
        name="softening slope",
        unit=NUMBER,
        formula=Ratio(top=FORCE_PRODUCT, bottom=FORCE_SQUARE),
        ideal=1.0,
        decimals=3,
        note="The softening slope is Σ F·F̂ / Σ F²: below one, the surface is too soft",
    ),
}
"""Quantities by name in files, in the order of tables. Errors are over frames, or over the components of forces and
stress. The softening slope is that of Deng et al., npj Comput. Mater. 11, 9 (2025)."""


def followed() -> dict[str, Ratio]:
    """Return the formulas of the quantities that follow from sums alone: those logged in training."""
    return {key: each.formula for key, each in QUANTITIES.items() if isinstance(each.formula, Ratio)}


def by_atoms() -> dict[str, Ratio]:
    """Return the formulas of the quantities by element that are sums over atoms."""
    return {key: ratio for key, ratio in followed().items() if QUANTITIES[key].by_element and ratio.top.per == "atom"}


def terms_of(keys: Iterable[str], *, trivial: bool = False) -> tuple[Term, ...]:
    """Return the terms of quantities, with those of their trivial predictors if requested."""
    found: list[Term] = []
    for each in (QUANTITIES[key] for key in keys):
        found += [each.formula.top, each.formula.bottom]
        if trivial and each.trivial:
            found.append(each.trivial.top)
    return unique(found)


def values_of(totals: Mapping[str, float]) -> dict[str, float]:
    """Return the quantities logged in training that have labels, from the totals of all terms by name."""
    return {key: ratio.of(totals) for key, ratio in followed().items() if totals[ratio.bottom.name]}


def summary(errors: FrameErrors) -> dict[str, float]:
    """Return the quantities with labels of a set of frames, each followed by that of its trivial predictor."""
    found: dict[str, float] = {}
    every, totals = np.ones((1, len(errors.ids))), {name: float(sums.sum()) for name, sums in errors.sums.items()}
    for key, values in weighted(errors, every).items():
        found[key], each = float(values[0]), QUANTITIES[key]
        if each.trivial and each.trivial.top.name in errors.sums:
            formula = replace(each.formula, top=each.trivial.top)
            is_ratio = isinstance(formula, Ratio)
            trivial = formula.of(totals) if is_ratio else weighted_median(of_frames(formula, errors), every)[0]
            found[each.trivial.key] = float(trivial)
    return found


def weighted(
    errors: FrameErrors, weights: Float64[np.ndarray, "resamples frames"], *, elements: bool = False
) -> dict[str, Float64[np.ndarray, " resamples"]]:
    """Return every quantity with labels, each frame counted as often as its weight.

    Args:
        errors: Sums of the frames.
        weights: Multiplicity of each frame.
        elements: Whether to return the quantities of by_atoms() for each element as well, with names such as
            force_mae/Al.
    """
    sums = errors.sums
    present = {key: each.formula for key, each in QUANTITIES.items() if _is_labelled(each.formula, sums)}
    names = list(dict.fromkeys(name for each in present.values() for name in (each.top.name, each.bottom.name)))
    totals = dict(zip(names, (weights @ np.stack([sums[name] for name in names], axis=1)).T, strict=True))
    found: dict[str, np.ndarray] = {}
    with np.errstate(invalid="ignore", divide="ignore"):
        for key, formula in present.items():
            is_ratio = isinstance(formula, Ratio)
            found[key] = formula.of(totals) if is_ratio else weighted_median(of_frames(formula, errors), weights)
        for key, ratio in by_atoms().items() if elements else ():
            if _is_labelled(ratio, errors.of_elements):
                columns = ratio.of({name: weights @ sums for name, sums in errors.of_elements.items()})
                found |= {f"{key}/{symbol}": columns[:, place] for place, symbol in enumerate(errors.elements)}
    return found


def _is_labelled(formula: Ratio | Median, sums: Mapping[str, np.ndarray]) -> bool:
    return formula.top.name in sums and formula.bottom.name in sums and bool(sums[formula.bottom.name].any())


def of_frames(formula: Ratio | Median, errors: FrameErrors) -> Float64[np.ndarray, " frames"]:
    """Return the ratio of each frame's own sums; NaN without labels."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return errors.sums[formula.top.name] / errors.sums[formula.bottom.name]


def labelled_frames(errors: FrameErrors, key: str) -> int:
    """Return the number of frames with labels for a quantity, or for one of an element such as force_mae/Al."""
    key, _, symbol = key.partition("/")
    bottom = QUANTITIES[key].formula.bottom.name
    counts = errors.of_elements[bottom][:, errors.elements.index(symbol)] if symbol else errors.sums[bottom]
    return int((counts > 0).sum())


def weighted_median(
    values: Float64[np.ndarray, " frames"], weights: Float64[np.ndarray, "resamples frames"]
) -> Float64[np.ndarray, " resamples"]:
    """Return the medians of values repeated by their weights; NaN values are ignored."""
    known = np.flatnonzero(~np.isnan(values))
    order = known[np.argsort(values[known], kind="stable")]
    upto = np.cumsum(weights[:, order], axis=1)
    total = weights[:, order].sum(axis=1, keepdims=True)
    # of 2m values the median is the mean of those at m - 1 and m; of 2m + 1, both are at m
    places = [(upto <= place).sum(axis=1) for place in ((total - 1) // 2, total // 2)]
    ordered = np.append(values[order], np.nan)  # the last place serves resamples without values
    middle = [ordered[np.minimum(place, len(order))] for place in places]
    return np.where(total[:, 0] > 0, (middle[0] + middle[1]) / 2, np.nan)


class Row(NamedTuple):
    """A quantity of one potential in a table."""

    title: str
    """Name and unit."""
    value: str
    """The potential's."""
    trivial: str
    """Value of the trivial predictor and its name; a dash without one."""
    ratio: str
    """Ratio of the two."""


def rows(values: Mapping[str, float]) -> list[Row]:
    """Return the table of the quantities of a potential.

    Args:
        values: Result of summary(), possibly read from a file.

    Raises:
        KeyError: the error of a trivial predictor is missing; the argument names it.
    """
    found = []
    for key, each in QUANTITIES.items():
        if key in values and each.trivial is None:
            found.append(Row(each.title, each.text(values[key], 4), "–", "–"))
        elif key in values and each.trivial is not None:
            trivial = values[each.trivial.key]
            ratio = f"{values[key] / trivial:.3f}" if trivial else "–"
            beside = f"{each.text(trivial, 4)} ({each.trivial.name})"
            found.append(Row(each.title, each.text(values[key], 4), beside, ratio))
    return found


def notes(keys: Iterable[str]) -> list[str]:
    """Return the remarks to show with quantities."""
    return [QUANTITIES[key].note for key in keys if key in QUANTITIES and QUANTITIES[key].note]
