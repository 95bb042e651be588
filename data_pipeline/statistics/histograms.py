"""Histograms with fixed bins, so that those of shards add up.

A histogram is an array of integers, described by Bins. Its quantiles are accurate to the width of a bin (0.1 eV/atom,
26 % of a force, 58 % of a stress), enough to detect a wrong unit without a second pass.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Float64, Int64


@dataclass(frozen=True, kw_only=True, eq=False)
class Bins:
    """Edges on the real line; bin 0 counts values below the first, the last bin those at or above the last."""

    quantity: str
    """Name of the quantity."""
    unit: str
    """Its unit; empty for a pure number."""
    scale: Literal["linear", "log", "signed log", "count"]
    """Axis on which the bins are evenly wide; a count is an integer on a logarithmic axis."""
    edges: Float64[np.ndarray, " edges"]
    """Edges, ascending; an edge belongs to the bin above it."""

    @property
    def size(self) -> int:
        """Number of bins."""
        return len(self.edges) + 1

    def count(self, values: Float[np.ndarray, " values"]) -> Int64[np.ndarray, " bins"]:
        """Return the number of values in each bin."""
        return np.bincount(np.searchsorted(self.edges, values, side="right"), minlength=self.size)

    def quantile(self, counts: Int64[np.ndarray, " bins"], fraction: float) -> float:
        """Return the value below which a fraction of the values lies, interpolated in its bin.

        Beyond the outer edges it is the edge; below the first of a logarithmic axis it is zero. Without values it is
        NaN.
        """
        total = int(counts.sum())
        if total == 0:
            return float("nan")
        reached = np.cumsum(counts)
        place = int(np.searchsorted(reached, max(fraction * total, 1e-9)))
        if place == 0:
            return 0.0 if self.scale == "log" else float(self.edges[0])
        if place == len(self.edges):
            return float(self.edges[-1])
        low, high = self.edges[place - 1 : place + 1]
        value = float(low + (high - low) * (1.0 - (reached[place] - fraction * total) / counts[place]))
        return float(round(value)) if self.scale == "count" else value

    def number_from(self, counts: Int64[np.ndarray, " bins"], edge: float) -> int:
        """Return the number of values at or above an edge; a value between two edges means the lower one."""
        return int(counts[np.searchsorted(self.edges, edge, side="right") :].sum())


def magnitudes(bins: Bins, counts: Int64[np.ndarray, " bins"]) -> tuple[Bins, Int64[np.ndarray, " folded"]]:
    """Return a histogram on symmetric edges without the signs."""
    half = len(bins.edges) // 2
    folded = Bins(quantity=f"|{bins.quantity}|", unit=bins.unit, scale="log", edges=bins.edges[half:])
    # the middle bin holds both signs of values too small to tell apart
    return folded, np.concatenate([counts[half : half + 1], counts[half + 1 :] + counts[:half][::-1]])


def _decades(first: int, last: int, per_decade: int) -> Float64[np.ndarray, " edges"]:
    return np.array([10.0 ** (k / per_decade) for k in range(first * per_decade, last * per_decade + 1)])


def _both_signs(positive: Float64[np.ndarray, " positive"]) -> Float64[np.ndarray, " edges"]:
    return np.concatenate([-positive[::-1], positive])


BINS: dict[str, Bins] = {
    "energy": Bins(
        quantity="energy per atom",
        unit="eV",
        scale="linear",
        # 0.1 eV in the range of pseudopotential codes, decades beyond for all-electron ones
        edges=np.concatenate([-20 * _decades(0, 4, 4)[:0:-1], np.arange(-200, 201) / 10, 20 * _decades(0, 4, 4)[1:]]),
    ),
    "force": Bins(quantity="force on an atom", unit="eV/Å", scale="log", edges=_decades(-4, 4, 10)),
    "stress": Bins(
        quantity="mean normal stress", unit="eV/Å³", scale="signed log", edges=_both_signs(_decades(-5, 4, 5))
    ),
    "size": Bins(
        quantity="atoms per frame",
        unit="",
        scale="count",
        edges=np.unique(np.rint(_decades(0, 5, 24))) - 0.5,
    ),
    "stress_ratio": Bins(
        quantity="stress work over energy change",
        unit="",
        scale="signed log",
        # one is the middle of a bin, and a factor of the root of ten from it is an edge
        edges=_both_signs(np.array([10.0 ** ((k + 0.5) / 9) for k in range(-45, 45)])),
    ),
    "force_ratio": Bins(
        quantity="force work over energy change",
        unit="",
        scale="signed log",
        # one is the middle of a bin of 5 %
        edges=_both_signs(np.array([10.0 ** ((k + 0.5) / 45) for k in range(-180, 180)])),
    ),
}
"""The histograms that Statistics keeps; changing one makes older manifests unreadable."""
LATER = ("force_ratio",)
"""Histograms missing from older manifests, which were built before they were introduced."""
