"""Softening: the slope of predicted over labelled forces, by size of the force and by chemistry.

Universal potentials are too soft: a slope of Σ F·F̂ / Σ F² below one (Deng et al., npj Comput. Mater. 11, 9 (2025)). One
slope of a whole data set can be that of a single frame with huge forces, so it is given by size of the labelled force,
with intervals by a bootstrap over frames.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from jaxtyping import Float64

from data_pipeline.structure import SYMBOLS, Structure
from foundation.configuration import MAY_CHANGE
from foundation.evaluation.suites.labelled import labelled_frames
from foundation.evaluation.suites.suite import Chart, Curve, Finding, Findings, Predicted, Subject, Suite

RESAMPLES, SEED = 1000, 0
"""Number of bootstrap resamples, and seed of the draws."""
FAMILIES = {
    "F": "fluorides",
    "O": "oxides",
    "Cl": "chlorides",
    "N": "nitrides",
    "Br": "bromides",
    "I": "iodides",
    "S": "sulfides",
    "Se": "selenides",
    "C": "carbides",
    "Te": "tellurides",
    "As": "arsenides",
    "P": "phosphides",
    "H": "hydrides",
}
"""Chemistries by their anion, in order of electronegativity: a frame belongs to the first whose element it has."""
OTHERS = "others"
"""Frames without any of these elements, such as metals."""


@dataclass(frozen=True, kw_only=True)
class Softening(Suite):
    """Slope of predicted over labelled forces of a data set, by size of the force and by chemistry."""

    name: ClassVar[str] = "softening"

    labelled: str = field(metadata=MAY_CHANGE)
    """Data set or plain file with labelled forces; environment variables are expanded."""
    split: str = field(default="test", metadata=MAY_CHANGE)
    """Split of the data set; of a plain file, all frames are read."""
    max_frames: int = field(default=1000, metadata=MAY_CHANGE)
    """Largest number of frames, spread evenly over the split."""
    edges: tuple[float, ...] = field(default=(0.0, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0), metadata=MAY_CHANGE)
    """Limits of the bins of the size of a labelled force [eV/Å], ascending; larger forces are left out of them."""
    min_frames: int = field(default=5, metadata=MAY_CHANGE)
    """Smallest number of frames for which a slope is given."""

    def __post_init__(self) -> None:
        if len(self.edges) < 2 or any(low >= high for low, high in zip(self.edges, self.edges[1:], strict=False)):
            raise ValueError(f"edges must be two or more, ascending, not {self.edges}")
        if self.max_frames < 1 or self.min_frames < 1:
            raise ValueError("max_frames and min_frames must be at least 1")

    def elements(self) -> set[int]:
        """Return nothing: frames with unknown elements are left out."""
        return set()

    def run(self, subject: Subject) -> Findings:
        """Return slopes with intervals, and a chart of the slope over the size of the force.

        Raises:
            FileNotFoundError: there is no such data set.
            ValueError: it has no such split, or no frame with forces whose elements are all known to the subject.
        """
        known, num_unknown = labelled_frames(self.labelled, self.split, self.max_frames, subject)
        frames = [frame for frame in known if frame.has_forces]
        if not frames:
            raise ValueError(
                f"{self.labelled}: split {self.split!r} has no labelled forces (labelled of softening names it)"
            )
        sums = [_Sums.of(*each, self.edges) for each in zip(frames, subject.predict(frames), strict=True)]
        total = np.array([each.total for each in sums])
        bins = np.array([each.bins for each in sums])
        families = np.array([family(frame) for frame in frames])
        found = {
            "frames": Finding(value=float(len(frames))),
            "frames left out with unknown elements": Finding(value=float(num_unknown)),
            "slope": self._slope(total),
        }
        limits = list(zip(self.edges, self.edges[1:], strict=False))
        slopes = [self._slope(bins[:, place]) for place in range(len(limits))]
        for (low, high), slope in zip(limits, slopes, strict=True):
            found[f"slope of forces of {low:g} to {high:g} eV/Å"] = slope
        for each in (*FAMILIES.values(), OTHERS):
            if (families == each).any():
                found[f"slope of {each}"] = self._slope(total[families == each])
        return Findings(quantities=found, charts={"Slope by size of the force": self._chart(slopes)})

    def _slope(self, sums: Float64[np.ndarray, "frames 2"]) -> Finding:
        """Return the slope and its interval from the products and squares of frames."""
        sums = sums[sums[:, 1] > 0]
        if len(sums) < self.min_frames:
            return Finding(value=None, reference=1.0)
        draws = np.random.default_rng(SEED).integers(len(sums), size=(RESAMPLES, len(sums)))
        products, squares = sums[draws].sum(axis=1).T
        low, high = np.quantile(products / squares, [0.025, 0.975])
        product, square = sums.sum(axis=0)
        return Finding(value=float(product / square), reference=1.0, interval=(float(low), float(high)))

    def _chart(self, slopes: Sequence[Finding]) -> Chart:
        middles = tuple((low + high) / 2 for low, high in zip(self.edges, self.edges[1:], strict=False))
        own = Curve(
            x=middles,
            y=tuple(each.value for each in slopes),
            low=tuple(each.interval[0] if each.interval else None for each in slopes),
            high=tuple(each.interval[1] if each.interval else None for each in slopes),
        )
        ideal = Curve(x=(self.edges[0], self.edges[-1]), y=(1.0, 1.0), reference=True)
        return Chart(
            x="labelled force [eV/Å]", y="slope of predicted force", curves={"": own, "neither soft nor stiff": ideal}
        )


@dataclass(frozen=True, kw_only=True)
class _Sums:
    """Sums of a frame: Σ F·F̂ and Σ F² of all its atoms, and of those in each bin."""

    total: tuple[float, float]
    bins: Float64[np.ndarray, "bins 2"]

    @classmethod
    def of(cls, frame: Structure, predicted: Predicted, edges: Sequence[float]) -> "_Sums":
        labels = frame.forces.astype(np.float64)
        products, squares = (labels * predicted.forces).sum(axis=1), (labels**2).sum(axis=1)
        places = np.digitize(np.sqrt(squares), edges) - 1
        inside = [places == place for place in range(len(edges) - 1)]
        return cls(
            total=(float(products.sum()), float(squares.sum())),
            bins=np.array([[products[each].sum(), squares[each].sum()] for each in inside]),
        )


def family(frame: Structure) -> str:
    """Return the chemistry of a frame, by its most electronegative element."""
    symbols = {SYMBOLS[number] for number in frame.numbers.tolist()}
    return next((name for symbol, name in FAMILIES.items() if symbol in symbols), OTHERS)
