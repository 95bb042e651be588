"""Extrapolation: atoms of structures that lie outside of a potential's training data, one number for each.

The number is the distance of an atom's environment from the nearest one seen (coverage.py), over the distance within
which 99.9 % of the training data are. Where forces are labelled, the suite tells how well the number ranks their
errors: by the rank correlation, and by the chance that an atom of the tenth with the largest errors has a larger number
than another one (the area under the ROC curve). It finds what is far, not what is wrong: a potential may be right far
away, and wrong near by.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import ase
import ase.io
import numpy as np
from jaxtyping import Bool, Float64

from data_pipeline.sources.atoms import to_atoms
from data_pipeline.store import durable
from data_pipeline.structure import Structure
from foundation.configuration import MAY_CHANGE
from foundation.evaluation.coverage import QUANTILES, UNSEEN, Coverage, Distances
from foundation.evaluation.quantities import MILLI_EV_PER_ANGSTROM
from foundation.evaluation.suites.labelled import labelled_frames
from foundation.evaluation.suites.suite import Chart, Curve, Finding, Findings, Subject, Suite

LARGE = 0.9
"""Share of the atoms whose errors are not called large."""
BINS = 12
"""Number of bins of the chart of errors, with as many atoms each."""
RESAMPLES = 200
"""Number of bootstrap resamples over frames."""
COLUMN, CONTACT = "extrapolation", "contact"
"""Names of the columns in the file of atoms."""


@dataclass(frozen=True, kw_only=True)
class Extrapolation(Suite):
    """Distances of atoms from the training data, and how well they rank errors of forces."""

    name: ClassVar[str] = "extrapolation"

    extrapolated: str = field(metadata=MAY_CHANGE)
    """Data set or plain file of structures; environment variables are expanded. Labels of forces are used if it has
    them."""
    coverage: Path = field(metadata=MAY_CHANGE)
    """File with the coverage of the training data, made by `foundation coverage`."""
    split: str = field(default="test", metadata=MAY_CHANGE)
    """Split of a data set; of plain files, all frames are read."""
    max_frames: int = field(default=200, metadata=MAY_CHANGE)
    """Largest number of frames, spread evenly."""
    atoms: Path | None = field(default=None, metadata=MAY_CHANGE)
    """File to write in extended XYZ with the numbers of every atom, to colour it by; None: none."""

    def __post_init__(self) -> None:
        if self.max_frames < 1:
            raise ValueError(f"max_frames must be at least 1, not {self.max_frames}")

    def elements(self) -> set[int]:
        """Return no atomic number: frames with elements unknown to the potential are left out and counted."""
        return set()

    def run(self, subject: Subject) -> Findings:
        """Return shares of atoms outside of the training data, and how well distances rank errors.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: the subject is a calculator, the coverage belongs to another potential, or no frame has only
                elements that the potential knows.
        """
        if subject.potential is None:
            raise ValueError(
                f"extrapolation looks into a network, and {subject.name} is a calculator of another program; "
                "judge a potential by --model"
            )
        coverage = Coverage.read(self.coverage)
        frames, num_unknown = labelled_frames(self.extrapolated, self.split, self.max_frames, subject)
        found = coverage.distances(subject.potential, frames)
        if self.atoms is not None:
            write_atoms(frames, found, self.atoms)
        counts = {
            "frames": Finding(value=float(len(frames))),
            "frames with elements unknown to the potential": Finding(value=float(num_unknown)),
            "atoms": Finding(value=float(len(found.features))),
        }
        quantities = counts | _shares(found, [each.num_atoms for each in frames])
        charts = {"Distance from the training data": _distances_chart(found, coverage)}
        labelled = [each.has_forces for each in frames]
        if any(labelled):
            atoms = np.repeat(labelled, [each.num_atoms for each in frames])
            with_forces = [each for each in frames if each.has_forces]
            ranked = _ranked(with_forces, found.features[atoms], subject)
            quantities, charts = quantities | ranked.quantities, charts | ranked.charts
        return Findings(quantities=quantities, charts=charts)


def write_atoms(frames: Sequence[Structure], found: Distances, path: Path) -> None:
    """Write structures in extended XYZ with two columns: distance from the training data, and closeness."""
    text = io.StringIO()
    ends = np.cumsum([each.num_atoms for each in frames])
    for frame, end in zip(frames, ends.tolist(), strict=True):
        atoms = to_atoms(frame)
        atoms.info["id"] = frame.id
        atoms.set_array(COLUMN, found.features[end - frame.num_atoms : end])
        atoms.set_array(CONTACT, found.contact[end - frame.num_atoms : end])
        ase.io.write(text, atoms, format="extxyz")
    path.parent.mkdir(parents=True, exist_ok=True)
    durable.write_whole(path, text.getvalue())


def rank_correlation(one: Float64[np.ndarray, " atoms"], other: Float64[np.ndarray, " atoms"]) -> float:
    """Return Spearman's rank correlation; NaN if one of them is constant."""
    ranks = _ranks(one), _ranks(other)
    spreads = [float(each.std()) for each in ranks]
    if not all(spreads):
        return float("nan")
    return float(((ranks[0] - ranks[0].mean()) * (ranks[1] - ranks[1].mean())).mean() / (spreads[0] * spreads[1]))


def ranking_area(scores: Float64[np.ndarray, " atoms"], positive: Bool[np.ndarray, " atoms"]) -> float:
    """Return the chance that a positive atom has a larger score than another one (AUROC); NaN without either kind."""
    num_positive = int(positive.sum())
    num_others = len(positive) - num_positive
    if not num_positive or not num_others:
        return float("nan")
    total = _ranks(scores)[positive].sum()
    return float((total - num_positive * (num_positive + 1) / 2) / (num_positive * num_others))


def _ranks(values: Float64[np.ndarray, " atoms"]) -> Float64[np.ndarray, " atoms"]:
    """Return ranks from one on, the mean rank for equal values."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return (ends - (counts - 1) / 2)[inverse].astype(np.float64)


def _shares(found: Distances, sizes: Sequence[int]) -> dict[str, Finding]:
    """Return shares of atoms, with intervals over frames, and the median distance."""
    shares = {
        "share of unseen elements": found.features >= UNSEEN,
        "share beyond 99.9 % of the training data": found.features > 1.0,
        "share closer than any such pair": found.contact > 1.0,
        "share farther than any such pair": found.far,
        "share with a pair of elements never seen": found.strange,
    }
    findings = {name: _over_frames(lambda values: float(values.mean()), sizes, each) for name, each in shares.items()}
    return {"median distance": _over_frames(lambda values: float(np.median(values)), sizes, found.features)} | findings


def _over_frames(statistic: Callable[..., float], sizes: Sequence[int], *values: np.ndarray) -> Finding:
    """Return a statistic of atoms with its interval by a bootstrap over frames; one frame has none."""
    frames = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    value = statistic(*values)
    if len(frames) < 2:
        return Finding(value=value)
    random = np.random.default_rng(0)
    drawn = []
    for _ in range(RESAMPLES):
        atoms = np.concatenate([frames[place] for place in random.integers(len(frames), size=len(frames))])
        drawn.append(statistic(*(each[atoms] for each in values)))
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return Finding(value=value, interval=(float(low), float(high)))


def _ranked(frames: Sequence[Structure], distances: Float64[np.ndarray, " atoms"], subject: Subject) -> Findings:
    """Return how well distances rank the errors of forces."""
    differences = [
        each.forces.astype(np.float64) - predicted.forces
        for each, predicted in zip(frames, subject.predict(frames), strict=True)
    ]
    errors = np.linalg.norm(np.concatenate(differences), axis=1)
    sizes = [each.num_atoms for each in frames]
    large = errors > np.quantile(errors, LARGE)
    unit = MILLI_EV_PER_ANGSTROM
    beyond = distances > 1.0
    quantities = {
        "rank correlation with the force error": _over_frames(rank_correlation, sizes, distances, errors),
        "chance to rank large force errors first": _over_frames(ranking_area, sizes, distances, large),
        "median force error within": _median_error(errors[~beyond]),
        "median force error beyond": _median_error(errors[beyond]),
    }
    order = np.argsort(distances, kind="stable")
    bins = np.array_split(order, min(BINS, len(order)))
    curve = Curve(
        x=tuple(float(np.median(distances[each])) for each in bins),
        y=tuple(unit.factor * float(np.median(errors[each])) for each in bins),
        low=tuple(unit.factor * float(np.quantile(errors[each], 0.25)) for each in bins),
        high=tuple(unit.factor * float(np.quantile(errors[each], 0.75)) for each in bins),
    )
    chart = Chart(
        x="distance from the training data",
        y=f"force error, median and quartiles [{unit.name}]",
        curves={"": curve},
        log_y=True,
    )
    return Findings(quantities=quantities, charts={"Force error by distance": chart})


def _median_error(errors: Float64[np.ndarray, " atoms"]) -> Finding:
    unit = MILLI_EV_PER_ANGSTROM
    return Finding(value=unit.factor * float(np.median(errors)) if len(errors) else None, unit=unit.name)


def _distances_chart(found: Distances, coverage: Coverage) -> Chart:
    """Return the shares of atoms within each distance, beside those of the training data."""
    known = np.sort(np.minimum(found.features, 10.0))
    shares = np.linspace(0.0, 1.0, 101)
    own = Curve(x=tuple(np.quantile(known, shares).tolist()), y=tuple(shares.tolist()))
    training = Curve(x=tuple((coverage.quantiles / coverage.limit).tolist()), y=QUANTILES, reference=True)
    return Chart(
        x="distance over that of 99.9 % of the training data",
        y="share of atoms within",
        curves={"training data, other groups": training, "": own},
    )
