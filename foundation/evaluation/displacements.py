"""Displacements of atoms in trajectories: mean squared displacement, diffusivity, likeness of pair distances."""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64

WINDOW = (0.1, 0.5)
"""Lags between which the diffusivity is fitted, in units of a run's length: at shorter ones atoms rattle in cages, and
at longer ones few origins are independent."""
SQUARE_CENTIMETRES = 1e-4
"""1 Å²/ps in cm²/s."""
BINS = 100
"""Number of bins of pair distances."""


class Msd(NamedTuple):
    """Mean squared displacement over lags, from zero on."""

    lags: Float64[np.ndarray, " lags"]
    """Lags [ps]."""
    values: Float64[np.ndarray, " lags"]
    """Mean squared displacements [Å²]."""

    def at(self, lag: float) -> float | None:
        """Return the value at a lag [ps], interpolated; None beyond the last."""
        return float(np.interp(lag, self.lags, self.values)) if lag <= self.lags[-1] * (1 + 1e-9) else None

    def to(self, lag: float) -> "Msd":
        """Return the part up to a lag [ps]."""
        inside = self.lags <= lag * (1 + 1e-9)
        return Msd(self.lags[inside], self.values[inside])


def mean_squared_displacement(tracks: Float64[np.ndarray, "frames atoms 3"], interval: float) -> Msd:
    """Return the mean over atoms and over all origins of time of the squared displacement.

    The sums over origins are correlations, computed by Fourier transformation (Kneller et al., Comput. Phys. Commun.
    91, 191 (1995)).

    Args:
        tracks: Positions that do not jump across the cell [Å].
        interval: Time between frames [ps].
    """
    count = len(tracks)
    # positions near zero keep the digits of the differences
    places = tracks - tracks.mean(axis=0)
    spectrum = np.fft.rfft(places, n=2 * count, axis=0)
    products = np.fft.irfft(np.abs(spectrum) ** 2, n=2 * count, axis=0)[:count].sum(axis=(1, 2))
    squares = np.concatenate([[0.0], np.cumsum((places**2).sum(axis=(1, 2)))])
    lags = np.arange(count)
    ends = squares[count - lags] + squares[count] - squares[lags]
    values = (ends - 2 * products) / ((count - lags) * tracks.shape[1])
    return Msd(interval * lags, np.maximum(values, 0.0))


def diffusivity(msd: Msd) -> float:
    """Return the slope of the mean squared displacement in WINDOW over six [cm²/s]; NaN with fewer than two lags."""
    low, high = (share * msd.lags[-1] for share in WINDOW)
    inside = (msd.lags >= low * (1 - 1e-9)) & (msd.lags <= high * (1 + 1e-9))
    if np.count_nonzero(inside) < 2:
        return math.nan
    slope = np.polynomial.Polynomial.fit(msd.lags[inside], msd.values[inside], 1).convert().coef
    return SQUARE_CENTIMETRES * float(slope[1] if len(slope) > 1 else 0.0) / 6


def block_diffusivities(
    tracks: Float64[np.ndarray, "frames atoms 3"], interval: float, blocks: int
) -> Float64[np.ndarray, " blocks"]:
    """Return the diffusivities of consecutive parts of a trajectory [cm²/s], by whose spread its error is judged."""
    parts = np.array_split(tracks, blocks)
    return np.array([diffusivity(mean_squared_displacement(part, interval)) for part in parts])


def read_msd(path: Path, time_step: float) -> Msd:
    """Read a table of the mean squared displacement: rows of the number of steps and of the value [Å²].

    Lines that are not two numbers, such as a heading, are left out at the beginning only.

    Args:
        path: The file.
        time_step: Time step of the simulation [fs].

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the table is not one.
    """
    rows: list[list[float]] = []
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), start=1):
        try:
            row = [float(word) for word in line.split()]
        except ValueError:
            row = []
        if len(row) == 2 and all(map(math.isfinite, row)):
            rows.append(row)
        elif rows and line.strip():
            raise ValueError(f"{path}, line {number}: two numbers are needed, steps and Å², not {line.strip()[:40]!r}")
    steps, values = np.array(rows).reshape(-1, 2).T
    if len(steps) < 3 or steps[0] != 0 or not (np.diff(steps) > 0).all():
        raise ValueError(f"{path}: at least three rows are needed, with steps that begin at 0 and rise")
    return Msd(1e-3 * time_step * steps, values)


def unwrapped(
    positions: Float64[np.ndarray, "frames atoms 3"], cell: Float64[np.ndarray, "3 3"]
) -> Float64[np.ndarray, "frames atoms 3"]:
    """Return positions of consecutive frames without jumps across a periodic cell."""
    steps = nearest_image(np.diff(positions, axis=0), cell)
    return np.concatenate([positions[:1], positions[:1] + np.cumsum(steps, axis=0)])


def nearest_image(
    vectors: Float64[np.ndarray, "*some 3"], cell: Float64[np.ndarray, "3 3"]
) -> Float64[np.ndarray, "*some 3"]:
    """Return vectors less the nearest lattice vectors; the shortest images for those within half the cell's height."""
    return vectors - np.round(vectors @ np.linalg.inv(cell)) @ cell


def height(cell: Float64[np.ndarray, "3 3"]) -> float:
    """Return the least distance between opposite faces of a cell [Å]."""
    return float(1.0 / np.linalg.norm(np.linalg.inv(cell), axis=0).max())


def displaced_share(
    tracks: Float64[np.ndarray, "frames atoms 3"],
    basins: Float64[np.ndarray, "atoms 3"],
    cell: Float64[np.ndarray, "3 3"],
    limit: float,
) -> float:
    """Return the share of atoms farther than a limit from their basin, over the second half of a trajectory.

    The common motion of the atoms does not count.

    Args:
        tracks: Positions that do not jump across the cell [Å].
        basins: Place of each atom, in any image [Å].
        cell: Lattice vectors as rows [Å].
        limit: Distance [Å].
    """
    moves = nearest_image(tracks[0] - basins, cell) + tracks - tracks[0]
    moves = moves - moves.mean(axis=1, keepdims=True)
    return float((np.linalg.norm(moves[len(moves) // 2 :], axis=2) > limit).mean())


def pair_distribution(
    tracks: Float64[np.ndarray, "frames atoms 3"],
    cell: Float64[np.ndarray, "3 3"],
    largest: float,
    kinds: tuple[Bool[np.ndarray, " atoms"], Bool[np.ndarray, " atoms"]] | None = None,
) -> Float64[np.ndarray, " bins"]:
    """Return the radial distribution of pairs in BINS bins: one where they are as many as in a gas of the same density.

    Args:
        tracks: Positions [Å].
        cell: Lattice vectors as rows [Å].
        largest: Largest distance [Å].
        kinds: Where the one and the other atom of a pair may be; None: anywhere.
    """
    first, second = np.triu_indices(tracks.shape[1], 1)
    if kinds is not None:
        one, other = kinds
        chosen = (one[first] & other[second]) | (other[first] & one[second])
        first, second = first[chosen], second[chosen]
    edges = np.linspace(0.0, largest, BINS + 1)
    counts = np.zeros(BINS)
    for frame in tracks:
        distances = np.linalg.norm(nearest_image(frame[first] - frame[second], cell), axis=1)
        counts += np.histogram(distances, edges)[0]
    shells = 4 / 3 * np.pi * np.diff(edges**3) / abs(np.linalg.det(cell))
    return counts / (shells * max(1, len(tracks) * len(first)))


def bin_centres(largest: float) -> Float64[np.ndarray, " bins"]:
    """Return the middle distances of the bins of pair_distribution() [Å]."""
    return (np.arange(BINS) + 0.5) * largest / BINS


def overlap(one: Float64[np.ndarray, " bins"], other: Float64[np.ndarray, " bins"]) -> float:
    """Return the common share of two distributions: one if the same, zero if apart; NaN if one is without pairs."""
    if not (one.any() and other.any()):
        return math.nan
    return float(np.minimum(one / one.sum(), other / other.sum()).sum())


def without_drift(
    tracks: Float64[np.ndarray, "frames atoms 3"], masses: Float64[np.ndarray, " atoms"]
) -> Float64[np.ndarray, "frames atoms 3"]:
    """Return positions with the centre of mass where it is in the first frame."""
    drift = np.einsum("a,fax->fx", masses, tracks - tracks[:1]) / masses.sum()
    return tracks - drift[:, None]
