"""From crystals to disorder: the force on an atom in a frozen crystalline sphere, while everything beyond it is hot.

The oracle is the calculator of the source in data_pipeline/sources/molecular_dynamics.py: rigid-ion magnesium oxide,
whose forces are Coulomb's beyond the first neighbours, or a potential. Near the atom everything is as in a crystal, so
that a potential trained on crystals must know the law of the far ones. Trajectories are the oracle's own and the same
for every subject; a study builds them once, as a data set.
"""

import functools
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import ase
import numpy as np
from jaxtyping import Float64

from data_pipeline.loading.datasets import Dataset
from data_pipeline.sources.molecular_dynamics import TIME_STEP, FrozenSpheres
from data_pipeline.sources.source import resolve
from data_pipeline.store.manifest import open_manifest
from data_pipeline.structure import Structure, atomic_number
from foundation.configuration import MAY_CHANGE
from foundation.evaluation.intervals import interval_over
from foundation.evaluation.suites.suite import Chart, Curve, Finding, Findings, Subject, Suite


class Trajectories(NamedTuple):
    """Frames around one sphere, one trajectory after the other."""

    structures: list[Structure]
    """Frames."""
    forces: Float64[np.ndarray, "trajectories frames 3"]
    """Force on the centre [eV/Å]."""
    centre: int
    """Index of the atom in the centre."""
    displacement: float
    """Root mean square distance of the free atoms from their sites in the last frames [Å]."""


@dataclass(frozen=True, kw_only=True)
class Disorder(Suite):
    """Relative error |F - F_oracle| / |F_oracle| of the force on the centre of a frozen crystalline sphere.

    Medians are over frames of all trajectories; intervals are a bootstrap over trajectories, because frames of one are
    alike. The error of a potential that predicts no force is 1. A ratio is large where forces are small: the mean error
    over the mean force is given as well.
    """

    name: ClassVar[str] = "disorder"

    spheres: tuple[FrozenSpheres, ...] = field(metadata=MAY_CHANGE)
    """Spheres, as options of the source."""
    data: tuple[str, ...] = field(default=(), metadata=MAY_CHANGE)
    """Data sets that `build` made of the same options with test_fraction 1, in the same order; environment variables
    are expanded. (): this process makes the trajectories, which takes the oracle a minute or more."""

    def __post_init__(self) -> None:
        labels = [each.label for each in self.spheres]
        if not labels or len(set(labels)) < len(labels):
            raise ValueError("spheres must name at least one material, and each at one temperature once")
        if self.data and len(self.data) != len(self.spheres):
            raise ValueError(f"data must name {len(self.spheres)} data sets, one for each of spheres, or none")

    def elements(self) -> set[int]:
        """Return the atomic numbers of the crystals."""
        symbols = {symbol for each in self.spheres for symbol in each.material.crystal(1).get_chemical_symbols()}
        return {atomic_number(symbol) for symbol in symbols}

    def run(self, subject: Subject) -> Findings:
        """Return errors and correlation for each sphere, and the errors against radius and time.

        Raises:
            FileNotFoundError: there is no such data set.
            ValueError: a data set was made with other options.
        """
        found: dict[str, Finding] = {}
        radii, times = dict[str, Curve](), dict[str, Curve]()
        for number, source in enumerate(self.spheres):
            frames = _built(self.data[number], source) if self.data else made(source)
            label = source.label
            for radius in source.frozen_radii:
                oracle = _trajectories(source, radius, frames)
                predicted = np.array([each.forces[oracle.centre] for each in subject.predict(oracle.structures)])
                errors = np.linalg.norm(predicted.reshape(oracle.forces.shape) - oracle.forces, axis=2)
                found |= _findings(f"{label}: ", f", R {radius:g} Å", predicted, errors, oracle)
                ratios = np.median(errors / np.linalg.norm(oracle.forces, axis=2), axis=0)
                at = TIME_STEP * (source.warm_up + source.interval * np.arange(source.frames))
                times[f"{label}, R {radius:g} Å"] = Curve(x=tuple(at.tolist()), y=tuple(ratios.tolist()))
            radii[label if len(self.spheres) > 1 else ""] = _over_radius(source, found)
        return Findings(quantities=found, charts=_charts(radii, times))


def _findings(
    label: str,
    which: str,
    predicted: Float64[np.ndarray, "all 3"],
    errors: Float64[np.ndarray, "trajectories frames"],
    oracle: Trajectories,
) -> dict[str, Finding]:
    """Return the findings of one sphere, named with a label before and the radius behind."""
    sizes = np.linalg.norm(oracle.forces, axis=2)
    both = np.concatenate([errors, sizes], axis=1)
    found = {
        "median error": Finding(
            value=float(np.median(errors / sizes)), interval=interval_over(np.median, errors / sizes)
        ),
        "mean error over mean force": Finding(value=mean_ratio(both), interval=interval_over(mean_ratio, both)),
        "mean force": Finding(value=float(sizes.mean()), unit="eV/Å"),
        "correlation": Finding(value=correlation(predicted, oracle.forces)),
        "displacement of free atoms": Finding(value=oracle.displacement, unit="Å"),
    }
    return {f"{label}{name}{which}": each for name, each in found.items()}


def _over_radius(source: FrozenSpheres, found: dict[str, Finding]) -> Curve:
    medians = [found[f"{source.label}: median error, R {radius:g} Å"] for radius in source.frozen_radii]
    limits = [each.interval or (None, None) for each in medians]
    return Curve(
        x=source.frozen_radii,
        y=tuple(each.value for each in medians),
        low=tuple(low for low, _ in limits),
        high=tuple(high for _, high in limits),
    )


def _charts(radii: dict[str, Curve], times: dict[str, Curve]) -> dict[str, Chart]:
    """Return a chart over the radius and one over time for each sphere, with the line of a subject without forces."""
    charts = {"Error against radius": ("radius of the frozen sphere [Å]", radii)}
    charts |= {f"Error against time, {label}": ("time [fs]", {"": curve}) for label, curve in times.items()}
    found = {}
    for title, (x, curves) in charts.items():
        ends = [place for curve in curves.values() for place in curve.x]
        nothing = Curve(x=(min(ends), max(ends)), y=(1.0, 1.0), reference=True)
        y = "|F - F(oracle)| / |F(oracle)|"
        found[title] = Chart(x=x, y=y, curves=curves | {"no force predicted": nothing})
    return found


@functools.lru_cache(maxsize=16)
def made(source: FrozenSpheres) -> dict[str, Structure]:
    """Return the frames of spheres by name, made here."""
    return {frame.id: frame for frame in source}


def _built(word: str, source: FrozenSpheres) -> dict[str, Structure]:
    """Return the frames of spheres by name, read from a data set.

    Raises:
        FileNotFoundError: there is no such data set.
        ValueError: it was made with other options.
    """
    path = resolve(word, field="data", section="suites", folders=True)
    frames = {frame.id: frame for frame in Dataset(manifest=open_manifest(path), split="test").frames()}
    if missing := [name for radius in source.frozen_radii for name in source.names(radius) if name not in frames]:
        raise ValueError(
            f"{path}: {len(missing)} frames are missing in its split test, the first is {missing[0]!r}. It was made "
            "with other options than the suite disorder has in spheres; build it with those and with test_fraction 1"
        )
    return frames


def _trajectories(source: FrozenSpheres, radius: float, frames: dict[str, Structure]) -> Trajectories:
    """Return the trajectories of one radius."""
    perfect, centre, frozen = source.perfect(radius)
    structures = [frames[name] for name in source.names(radius)]
    forces = np.array([each.forces[centre] for each in structures], dtype=np.float64)
    moved = np.array([each.positions for each in structures[source.frames - 1 :: source.frames]]) - perfect.positions
    moved = np.delete(moved, frozen, axis=1)
    return Trajectories(
        structures=structures,
        forces=forces.reshape(source.trajectories, source.frames, 3),
        centre=centre,
        displacement=float(np.sqrt((moved**2).sum(axis=2).mean())) if moved.size else 0.0,
    )


def unlabelled(atoms: ase.Atoms) -> Structure:
    """Return a copy of a frame, without labels."""
    return Structure.checked(
        numbers=atoms.numbers, positions=atoms.positions.copy(), cell=np.asarray(atoms.cell), pbc=atoms.pbc, energy=0.0
    )


def correlation(one: Float64[np.ndarray, "..."], other: Float64[np.ndarray, "..."]) -> float | None:
    """Return Pearson's correlation of all components; None if one of them does not vary."""
    first, second = one.ravel() - one.mean(), other.ravel() - other.mean()
    norm = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(first @ second) / norm if norm > 0 else None


def mean_ratio(both: Float64[np.ndarray, "rows columns"]) -> float:
    """Return the mean of the left half of all rows over that of the right half."""
    numerators, denominators = np.split(both, 2, axis=1)
    return float(numerators.mean() / denominators.mean()) if denominators.any() else float("nan")
