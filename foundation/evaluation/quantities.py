"""The quantities by which potentials are judged: each has its name, unit, digits and formula here and nowhere else.

The log of a training, evaluations, comparisons, model cards and tables go through QUANTITIES: one more entry is in all
of them. Numbers are kept in eV, eV/Å and eV/Å³, also in files, and shown in the unit of the quantity.
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
    """A unit that numbers are shown in."""

    name: str
    """Its symbol."""
    factor: float = 1.0
    """Number of these units in the stored one."""


MILLI_EV_PER_ATOM = Unit(name="meV/atom", factor=1e3)
MILLI_EV_PER_ANGSTROM = Unit(name="meV/Å", factor=1e3)
GPA = Unit(name="GPa", factor=160.2176634)
"""Stress [eV/Å³] as people read it."""
NUMBER = Unit(name="")
LABEL_UNITS = {"energy": Unit(name="eV/atom"), "force": Unit(name="eV/Å"), "stress": GPA}
"""Units in which labels, unlike their errors, are shown."""


Totals = TypeVar("Totals", float, np.ndarray)
"""A sum over some frames, or the sums over the frames of many resamples."""


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """A sum over a sum, such as of absolute errors over their number; or the root of that."""

    top: Term
    """Dividend."""
    bottom: Term
    """Divisor; where it is zero there are no labels."""
    root: bool = False
    """Take the square root."""

    def of(self, totals: Mapping[str, Totals]) -> Totals:
        """Return the ratio of the totals of a set of frames, which go by the names of the terms."""
        power: Any = 0.5 if self.root else 1.0
        return (totals[self.top.name] / totals[self.bottom.name]) ** power


@dataclass(frozen=True, kw_only=True)
class Median:
    """The median over frames of a ratio of each frame's own sums."""

    top: Term
    """Dividend."""
    bottom: Term
    """Divisor; frames where it is zero do not count."""


@dataclass(frozen=True, kw_only=True)
class Trivial:
    """The same error of a predictor that has learned nothing."""

    key: str
    """Its name in files."""
    name: str
    """Predicted quantity."""
    top: Term
    """Sum of its errors; their number is that of the quantity."""


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """A number by which a potential is judged."""

    name: str
    """Name for people."""
    unit: Unit
    """Unit that it is shown in."""
    formula: Ratio | Median
    """Formula from sums over frames. Only a ratio can be followed in training, where frames are not kept."""
    short: str = ""
    """Its name in the lines of a log; empty: it is not there."""
    trivial: Trivial | None = None
    """Predictor that it is compared with in the evaluation of one potential."""
    by_element: bool = False
    """Report by element too: of forces those of its atoms, of energies those of structures that hold it."""
    median: str = ""
    """Key of the quantity that says the same of the median frame."""
    ideal: float = 0.0
    """Its value for a perfect potential. What has another one than zero changes by differences, errors by ratios."""
    decimals: int | None = None
    """Digits behind the point; None: as many as show the wanted number of significant ones."""
    headline: bool = True
    """Show in tables that have room for a few quantities."""
    note: str = ""
    """Remark that belongs beside it."""

    @property
    def title(self) -> str:
        """Name and unit."""
        return f"{self.name} [{self.unit.name}]" if self.unit.name else self.name

    @property
    def is_error(self) -> bool:
        """True if smaller is better."""
        return self.ideal == 0.0

    def text(self, value: float | None, significant: int = 3) -> str:
        """Return a number in the unit that it is shown in, or a dash where there is none."""
        if value is None or not math.isfinite(value):
            return "–"
        shown = self.unit.factor * value
        if shown and not 1e-5 <= abs(shown) < 1e7:
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
        trivial=Trivial(key="composition_energy_mae", name="composition only", top=COMPOSITION_SUM),
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
        name="energy, median absolute error",
        unit=MILLI_EV_PER_ATOM,
        formula=Median(top=ENERGY_SUM, bottom=FRAMES),
        note="The mean energy error can hang on a few outliers, the median does not",
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
        name="force MAE of the median frame",
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
"""Quantities by their names in files, in the order of tables. Errors are over frames, or over the components of forces
and stress. The softening slope is that of Deng et al., npj Comput. Mater. 11, 9 (2025)."""


def followed() -> dict[str, Ratio]:
    """Return the formulas of the quantities that sums alone give: those followed in training."""
    return {key: each.formula for key, each in QUANTITIES.items() if isinstance(each.formula, Ratio)}


def by_atoms() -> dict[str, Ratio]:
    """Return the formulas of the quantities by element of whose sums every atom has a part."""
    return {key: ratio for key, ratio in followed().items() if QUANTITIES[key].by_element and ratio.top.per == "atom"}


def terms_of(keys: Iterable[str], *, trivial: bool = False) -> tuple[Term, ...]:
    """Return the terms of quantities, and those of their trivial predictors if wanted."""
    found: list[Term] = []
    for each in (QUANTITIES[key] for key in keys):
        found += [each.formula.top, each.formula.bottom]
        if trivial and each.trivial:
            found.append(each.trivial.top)
    return unique(found)


def values_of(totals: Mapping[str, float]) -> dict[str, float]:
    """Return the quantities followed in training that the totals of all terms by name have labels for."""
    return {key: ratio.of(totals) for key, ratio in followed().items() if totals[ratio.bottom.name]}


def summary(errors: FrameErrors) -> dict[str, float]:
    """Return the quantities of a set of frames that it has labels for, each followed by its trivial predictor's."""
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
    """Return every quantity that there are labels for, each frame counted as often as its weight says.

    Args:
        errors: Sums of the frames.
        weights: How often each frame counts.
        elements: Return the quantities of by_atoms() for each element as well, by names such as force_mae/Al.
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
    """Return the number of frames with labels for a quantity, or, as force_mae/Al, for that of an element."""
    key, _, symbol = key.partition("/")
    bottom = QUANTITIES[key].formula.bottom.name
    counts = errors.of_elements[bottom][:, errors.elements.index(symbol)] if symbol else errors.sums[bottom]
    return int((counts > 0).sum())


def weighted_median(
    values: Float64[np.ndarray, " frames"], weights: Float64[np.ndarray, "resamples frames"]
) -> Float64[np.ndarray, " resamples"]:
    """Return the medians of values each of which is there as many times as its weight; those that are NaN are not."""
    known = np.flatnonzero(~np.isnan(values))
    order = known[np.argsort(values[known], kind="stable")]
    upto = np.cumsum(weights[:, order], axis=1)
    total = weights[:, order].sum(axis=1, keepdims=True)
    # of 2m values the median is the mean of those at m - 1 and m, of 2m + 1 both are the one at m
    places = [(upto <= place).sum(axis=1) for place in ((total - 1) // 2, total // 2)]
    ordered = np.append(values[order], np.nan)  # the place behind the end is that of a resample without values
    middle = [ordered[np.minimum(place, len(order))] for place in places]
    return np.where(total[:, 0] > 0, (middle[0] + middle[1]) / 2, np.nan)


class Row(NamedTuple):
    """A quantity of one potential in a table."""

    title: str
    """Name and unit."""
    value: str
    """The potential's."""
    trivial: str
    """That of a predictor that has learned nothing, and what it predicts; a dash without one."""
    ratio: str
    """The former over the latter."""


def rows(values: Mapping[str, float]) -> list[Row]:
    """Return the table of the quantities of a potential.

    Args:
        values: What summary() returned, perhaps read from a file.

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
    """Return what has to be said of quantities where they are shown."""
    return [QUANTITIES[key].note for key in keys if key in QUANTITIES and QUANTITIES[key].note]
