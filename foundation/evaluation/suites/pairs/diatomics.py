"""Diatomics: two atoms of every element, from far inside the wall to beyond the cutoff, beside curves of DFT.

Nearly all training data are near equilibrium, so these curves show what a potential makes of distances that it has not
seen: a smooth wall, or waves and attraction. The tortuosity is the total variation of the energy over that of a curve
with one minimum: 1 is smooth. A bond has one change of the force's sign, atoms that only repel have none. The wall is
the highest energy on the way to the shortest distance: atoms that hit each other harder collapse if they attract there.
"""

import gzip
import logging
import os
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
from jaxtyping import Float64

from data_pipeline.store.json_record import parse_json
from data_pipeline.store.untrusted import MAX_JSON, CorruptFile, OpenRecord, refusing, typed
from data_pipeline.structure import SYMBOLS, atomic_number
from foundation.configuration import MAY_CHANGE
from foundation.evaluation.suites.pairs.dimers import scan
from foundation.evaluation.suites.suite import Chart, Curve, Finding, Findings, Subject, Suite

log = logging.getLogger(__name__)

HEAVIEST = 92
"""Atomic number of the last element by default."""
SMOOTH = 1.1
"""Largest tortuosity that counts as smooth."""


@dataclass(frozen=True, kw_only=True)
class Diatomics(Suite):
    """Smoothness, wall at short distances and difference from DFT of two atoms of every element."""

    name: ClassVar[str] = "diatomics"

    curves: str | None = field(metadata=MAY_CHANGE)
    """JSON file of reference curves, of the form {PBE: {H-H: {distances, energies}}} and possibly compressed by gzip;
    environment variables are expanded, and one that is not set means that there is no reference; None: no reference."""
    symbols: tuple[str, ...] = field(default=tuple(SYMBOLS[1 : HEAVIEST + 1]), metadata=MAY_CHANGE)
    """Elements; those unknown to the subject are left out and counted."""
    drawn: tuple[str, ...] = field(default=(), metadata=MAY_CHANGE)
    """Elements whose curves are drawn, one chart each."""
    shortest: float = field(default=0.6, metadata=MAY_CHANGE)
    """Shortest distance [Å], where atoms must repel."""
    longest: float = field(default=6.0, metadata=MAY_CHANGE)
    """Longest distance [Å]; its energy is the zero."""
    step: float = field(default=0.05, metadata=MAY_CHANGE)
    """Step of the distance [Å]."""
    highest: float = field(default=10.0, metadata=MAY_CHANGE)
    """Highest energy of the reference [eV] that is compared, so that walls do not outweigh bonds."""
    least_force: float = field(default=0.01, metadata=MAY_CHANGE)
    """Smallest force that has a sign [eV/Å]."""

    def __post_init__(self) -> None:
        for symbol in self.symbols:
            atomic_number(symbol)
        if unknown := [symbol for symbol in self.drawn if symbol not in self.symbols]:
            raise ValueError(f"drawn: {', '.join(unknown)} is not among symbols")
        if not 0.2 <= self.shortest < self.longest <= 100.0:
            raise ValueError(f"0.2 ≤ shortest < longest ≤ 100 Å is needed, not {self.shortest:g} and {self.longest:g}")
        if not 0.001 <= self.step <= (self.longest - self.shortest) / 4:
            raise ValueError(f"step must be at least 0.001 Å and leave five distances, not {self.step:g}")

    def elements(self) -> set[int]:
        """Return nothing: unknown elements are left out."""
        return set()

    def run(self, subject: Subject) -> Findings:
        """Return medians and shares over the elements, with a chart of each over the atomic number.

        Raises:
            ValueError: the subject knows none of the elements, or the file has no curves of dimers.
            FileNotFoundError: there is no such file.
        """
        known = [each for each in self.symbols if subject.elements is None or atomic_number(each) in subject.elements]
        if not known:
            raise ValueError(f"{self.name}: the potential knows none of {', '.join(self.symbols)}; name others")
        references = _references(self.curves)
        distances = np.arange(self.shortest, self.longest + self.step / 2, self.step)
        energies, forces = scan(subject, [(symbol, symbol) for symbol in known], distances)
        energies = energies - energies[:, -1:]
        numbers = np.array([float(atomic_number(symbol)) for symbol in known])
        smoothness = np.array([tortuosity(each) for each in energies])
        changes = np.array([self._changes(each) for each in forces])
        walls = energies.max(axis=1)
        repulsive = forces[:, 0] > self.least_force
        found = {
            "elements": Finding(value=float(len(known))),
            "elements left out": Finding(value=float(len(self.symbols) - len(known))),
            "median tortuosity": Finding(value=float(np.median(smoothness))),
            f"share with a tortuosity below {SMOOTH:g}": Finding(value=float((smoothness < SMOOTH).mean())),
            "share with at most one change of the force's sign": Finding(value=float((changes <= 1).mean())),
            "median number of changes of the force's sign": Finding(value=float(np.median(changes))),
            f"share repulsive at {self.shortest:g} Å": Finding(value=float(repulsive.mean())),
            f"lowest wall of those attracted at {self.shortest:g} Å": Finding(
                value=None if repulsive.all() else float(walls[~repulsive].min()), unit="eV"
            ),
        }
        charts = {
            "Tortuosity": _over_elements("tortuosity", numbers, smoothness, log_y=True),
            "Changes of the force's sign": _over_elements("changes of sign", numbers, changes),
            "Wall": Chart(
                x="atomic number",
                y=f"highest energy on the way to {self.shortest:g} Å [eV]",
                curves={
                    label: _points(numbers[which], walls[which])
                    for label, which in (("repelled there", repulsive), ("attracted there", ~repulsive))
                },
                log_y=True,
            ),
        }
        for functional, of in references.items():
            pairs = zip(known, energies, strict=True)
            values = np.array([self._difference(distances, each, of.get(symbol)) for symbol, each in pairs])
            middle = float(np.nanmedian(values)) if np.isfinite(values).any() else None
            found[f"median difference from {functional}"] = Finding(value=middle, unit="eV")
            charts[f"Mean absolute difference from {functional}"] = _over_elements(
                "difference [eV]", numbers, values, log_y=True
            )
        for symbol in (each for each in self.drawn if each in known):
            of = {name: curves[symbol] for name, curves in references.items() if symbol in curves}
            charts[f"{symbol}–{symbol}"] = self._chart(distances, energies[known.index(symbol)], of)
        return Findings(quantities=found, charts=charts)

    def _changes(self, forces: Float64[np.ndarray, " distances"]) -> int:
        signs = np.sign(forces[np.abs(forces) > self.least_force])
        return int(np.count_nonzero(np.diff(signs)))

    def _difference(
        self,
        distances: Float64[np.ndarray, " distances"],
        energies: Float64[np.ndarray, " distances"],
        reference: "_Reference | None",
    ) -> float:
        """Return the mean absolute difference [eV] below the highest energy; NaN without a reference."""
        if reference is None:
            return np.nan
        r, expected = reference
        compared = (r >= distances[0]) & (r <= distances[-1]) & (expected <= self.highest)
        if not compared.any():
            return np.nan
        return float(np.abs(np.interp(r[compared], distances, energies) - expected[compared]).mean())

    def _chart(
        self,
        distances: Float64[np.ndarray, " distances"],
        energies: Float64[np.ndarray, " distances"],
        references: "dict[str, _Reference]",
    ) -> Chart:
        curves = {name: self._curve(*each, reference=True) for name, each in references.items()}
        return Chart(
            x="distance [Å]",
            y=f"energy [eV], up to {self.highest:g}",
            curves={**curves, "": self._curve(distances, energies)},
        )

    def _curve(
        self, r: Float64[np.ndarray, " points"], energies: Float64[np.ndarray, " points"], reference: bool = False
    ) -> Curve:
        """Return a curve from the longest distance inwards, as far as its energy is bounded."""
        beyond = np.flatnonzero(np.abs(energies) > self.highest)
        first = int(beyond[-1]) + 1 if len(beyond) else 0
        return Curve(x=tuple(r[first:].tolist()), y=tuple(energies[first:].tolist()), reference=reference)


def tortuosity(energies: Float64[np.ndarray, " distances"]) -> float:
    """Return the total variation of a curve over that of a curve with the same ends and only one minimum."""
    least = energies.min()
    straight = energies[0] - least + energies[-1] - least
    return float(np.abs(np.diff(energies)).sum() / straight) if straight > 0 else np.nan


class _Reference(NamedTuple):
    distances: Float64[np.ndarray, " points"]
    """Distances [Å], ascending."""
    energies: Float64[np.ndarray, " points"]
    """Energies [eV] above that of the longest distance."""


@dataclass(frozen=True, kw_only=True)
class _Entry(OpenRecord):
    """A curve as the file has it."""

    distances: tuple[float, ...]
    energies: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.distances) != len(self.energies) or not self.distances:
            raise ValueError(f"{len(self.distances)} distances and {len(self.energies)} energies")

    def reference(self) -> _Reference:
        order = np.argsort(self.distances)
        energies = np.array(self.energies)[order]
        return _Reference(np.array(self.distances)[order], energies - energies[-1])


def _references(name: str | None) -> dict[str, dict[str, _Reference]]:
    """Return the curves of a file, by functional and symbol; none without a file."""
    if name is None:
        return {}
    path = Path(os.path.expandvars(name)).expanduser()
    if "$" in str(path):
        log.warning(
            "diatomics: no curves of DFT are compared: the environment variable in curves: %s is not set to the folder "
            "that holds them",
            name,
        )
        return {}
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file (curves of the suite diatomics names it); or set curves: null")
    with refusing(path, CorruptFile, "not a file of curves of dimers ({})"):
        content = _read(path)
    pairs = {symbol: f"{symbol}-{symbol}" for symbol in SYMBOLS[1:]}
    return {
        functional: {symbol: dimers[pair].reference() for symbol, pair in pairs.items() if pair in dimers}
        for functional, dimers in content.items()
    }


def _read(path: Path) -> dict[str, dict[str, _Entry]]:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            text = file.read(MAX_JSON + 1)
    except (gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(str(error)) from error
    if len(text) > MAX_JSON:
        raise ValueError(f"more than {MAX_JSON} bytes")
    return typed(dict[str, dict[str, _Entry]], parse_json(text), "")


def _over_elements(
    quantity: str, numbers: Float64[np.ndarray, " elements"], values: np.ndarray, log_y: bool = False
) -> Chart:
    return Chart(x="atomic number", y=quantity, curves={"": _points(numbers, values)}, log_y=log_y)


def _points(numbers: Float64[np.ndarray, " elements"], values: np.ndarray) -> Curve:
    return Curve(x=tuple(numbers.tolist()), y=tuple(map(float, values)), points=True)
