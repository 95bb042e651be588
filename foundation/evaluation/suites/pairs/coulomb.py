"""Law of force between two charges in a random medium, at distances beyond those of the training data.

The particles are those of the source in data_pipeline/sources/coulomb.py. The force of the pair is F_i - F_o: that on
the first probe with the second one there, less that without it, in the same medium. It should be k/d².
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Bool, Float64

from data_pipeline.sources.coulomb import COULOMB, MEDIA, PROBES, CoulombMedia, Medium
from data_pipeline.structure import atomic_number
from foundation.configuration import MAY_CHANGE
from foundation.evaluation.suites.suite import Chart, Curve, Finding, Findings, Subject, Suite

RESAMPLES = 1000
"""Number of bootstrap resamples of the media."""
REACHED = 0.8
"""Smallest ratio to k/d² at which the law still counts as followed."""
REFERENCES = {"ratio": 1.0, "slope": -2.0, "deviation": 0.0}
"""Values of Coulomb's law, by the first word of the quantity."""


@dataclass(frozen=True, kw_only=True)
class CoulombLaw(Suite):
    """Force between two probes over k/d² at each distance, its slope where trained, and its reach beyond."""

    name: ClassVar[str] = "coulomb"

    probe_distances: tuple[float, ...] = field(metadata=MAY_CHANGE)
    """Distances of the probes [Å], increasing."""
    trained: tuple[float, float] = field(default=(4.0, 8.0), metadata=MAY_CHANGE)
    """Shortest and longest distance of the training data [Å]."""
    num_media: int = field(default=32, metadata=MAY_CHANGE)
    """Number of random media at each distance; intervals are those of a bootstrap over them."""
    medium: Medium | None = field(default=None, metadata=MAY_CHANGE)
    """Medium, charged or neutral; None: the one whose elements the subject knows."""
    against: Literal["removed", "alike"] = field(default="removed", metadata=MAY_CHANGE)
    """Second probe in F_o: removed, or with its sign changed, for which half of the difference is taken."""
    box: tuple[float, float, float] = field(default=CoulombMedia.box, metadata=MAY_CHANGE)
    """Lengths of the box of the medium [Å], the first along the pair."""
    box_grows: bool = field(default=CoulombMedia.box_grows, metadata=MAY_CHANGE)
    """Add the probe distance to the first length of the box."""
    density: float = field(default=CoulombMedia.density, metadata=MAY_CHANGE)
    """Number of particles of the medium per volume of the box [1/Å³]."""
    min_distance: float = field(default=CoulombMedia.min_distance, metadata=MAY_CHANGE)
    """Least distance of two particles [Å]."""
    seed: int = field(default=1_000_000, metadata=MAY_CHANGE)
    """Random seed of the media, another one than that of the training data."""

    def __post_init__(self) -> None:
        if self.num_media < 2:
            raise ValueError(f"num_media must be at least 2, not {self.num_media}")
        self._media("charged")
        if list(self.probe_distances) != sorted(set(self.probe_distances)):
            raise ValueError("probe_distances must increase")
        if np.count_nonzero(self._where_trained()) < 2 or self.trained[1] not in self.probe_distances:
            raise ValueError(
                f"probe_distances need {self.trained[1]:g} Å, the longest trained one, and another between it and "
                f"{self.trained[0]:g} Å"
            )

    def elements(self) -> set[int]:
        """Return the atomic numbers of the probes, and of the medium if it is given."""
        return {atomic_number(symbol) for symbol in (*PROBES, *(MEDIA[self.medium] if self.medium else ()))}

    def run(self, subject: Subject) -> Findings:
        """Return the ratio to k/d² at each distance, slope and largest deviation where trained, and reach.

        Raises:
            ValueError: the medium is not given, and the subject knows the elements of both or of none.
        """
        distances = np.array(self.probe_distances)
        media = self._media(self._medium_of(subject))
        expected = COULOMB / distances**2
        forces = np.array([self._pair_forces(subject, media, distance) for distance in self.probe_distances])
        draws = np.random.default_rng(0).integers(self.num_media, size=(RESAMPLES, self.num_media))
        means = forces.mean(axis=1)
        low, high = np.percentile(forces[:, draws].mean(axis=2), (2.5, 97.5), axis=1)
        found = self._statistics((means / expected)[:, None])
        resampled = self._statistics(forces[:, draws].mean(axis=2) / expected[:, None])
        quantities = {}
        for name, values in found.items():
            limits = np.percentile(resampled[name], (2.5, 97.5))
            unit, reference = ("Å", None) if name == "reach" else ("", REFERENCES[name.split()[0]])
            quantities[name] = Finding(
                value=float(values[0]), unit=unit, reference=reference, interval=(float(limits[0]), float(limits[1]))
            )
        charts = {
            "Force": _chart("force of the pair [eV/Å]", distances, (means, low, high), ("k/d²", expected), log=True),
            "Ratio": _chart(
                "force of the pair over k/d²",
                distances,
                (means / expected, low / expected, high / expected),
                ("Coulomb's law", np.ones_like(distances)),
                log=False,
            ),
        }
        return Findings(quantities=quantities, charts=charts)

    def _media(self, medium: Medium) -> CoulombMedia:
        return CoulombMedia(
            medium=medium,
            num_media=self.num_media,
            probe_distances=self.probe_distances,
            box=self.box,
            box_grows=self.box_grows,
            density=self.density,
            min_distance=self.min_distance,
            seed=self.seed,
        )

    def _medium_of(self, subject: Subject) -> Medium:
        if self.medium is not None:
            return self.medium
        known = set(subject.elements or ())
        fitting = [name for name, symbols in MEDIA.items() if {atomic_number(symbol) for symbol in symbols} <= known]
        if len(fitting) != 1:
            raise ValueError(
                f"suites: {self.name} cannot tell the medium by the elements that {subject.name} knows; give medium: "
                "charged or medium: neutral"
            )
        return "charged" if fitting[0] == "charged" else "neutral"

    def _pair_forces(self, subject: Subject, media: CoulombMedia, distance: float) -> Float64[np.ndarray, " media"]:
        """Return F_i - F_o in each medium, towards the second probe [eV/Å]."""
        frames = [
            media.frame(number, distance, partner)
            for number in range(self.num_media)
            for partner in ("opposite", self.against)
        ]
        # the second probe is on the positive side of the first along x, and attracts it
        forces = np.array([each.forces[0, 0] for each in subject.predict(frames)], dtype=np.float64)
        return (forces[0::2] - forces[1::2]) / (2 if self.against == "alike" else 1)

    def _where_trained(self) -> Bool[np.ndarray, " distances"]:
        distances = np.array(self.probe_distances)
        return (self.trained[0] <= distances) & (distances <= self.trained[1])

    def _statistics(
        self, ratios: Float64[np.ndarray, "distances samples"]
    ) -> dict[str, Float64[np.ndarray, " samples"]]:
        """Return every quantity of mean ratios to k/d², not a number where it is undetermined."""
        distances, inside = np.array(self.probe_distances), self._where_trained()
        known = ratios[inside]
        logs = np.log(known, out=np.full_like(known, np.nan), where=known > 0)
        x = np.log(distances[inside]) - np.log(distances[inside]).mean()
        beyond = distances[distances >= self.trained[1]]
        reached = np.logical_and.accumulate(ratios[distances >= self.trained[1]] >= REACHED).sum(axis=0)
        span = f"{self.trained[0]:g}-{self.trained[1]:g} Å"
        return {
            **{f"ratio at {d:g} Å": ratio for d, ratio in zip(self.probe_distances, ratios, strict=True)},
            f"slope {span}": x @ logs / (x @ x) - 2,
            f"deviation {span}": np.abs(known - 1).max(axis=0),
            "reach": np.array([np.nan, *beyond])[reached],
        }


def _chart(
    y: str,
    distances: Float64[np.ndarray, " distances"],
    own: tuple[Float64[np.ndarray, " distances"], ...],
    reference: tuple[str, Float64[np.ndarray, " distances"]],
    *,
    log: bool,
) -> Chart:
    values, low, high = (tuple(each.tolist()) for each in own)
    x = tuple(distances.tolist())
    label, expected = reference
    return Chart(
        x="distance of the probes [Å]",
        y=y,
        curves={
            "": Curve(x=x, y=values, low=low, high=high),
            label: Curve(x=x, y=tuple(expected.tolist()), reference=True),
        },
        log_x=log,
        log_y=log,
    )
