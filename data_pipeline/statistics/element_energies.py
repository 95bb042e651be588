"""Element energies by least squares from sums over frames, independent of the zero of each element's energy.

A constant added to the energy of every atom of an element is added to that element's energy and changes nothing else.
So nothing is regularised: a ridge towards the mean, harmless for energies of cohesion, is off by hundreds of eV for the
totals of all-electron codes. The price is that an element with few atoms follows its few frames, noise included.
Directions that the compositions do not determine, as in one compound, stay at the centre of the fit.
"""

import numpy as np
from jaxtyping import Bool, Float64, Int

TOLERANCE = 1e-11
"""Smallest ratio to the largest eigenvalue for a direction of the data: sums over 10⁶ frames round to 10⁻¹⁴."""
SMALL_PART = 1e-3
"""Share of an element in an undetermined direction, relative to the largest, below which it is rounding."""
Matrix = Float64[np.ndarray, "elements elements"]
Energies = Float64[np.ndarray, " elements"]


def element_energies(gram: Matrix, projection: Energies, centre: Energies) -> Energies:
    """Return the least-squares element energies [eV], closest to a centre among equally good ones.

    Minimises Σ_frames (x·e - y)² with x the fraction of each element and y the energy per atom. The distance from the
    centre weights each element by the size of its fractions.

    Args:
        gram: Sum over frames of x xᵀ.
        projection: Sum over frames of x y [eV].
        centre: Energies of elements missing from the frames, and of undetermined compositions [eV].
    """
    seen, scale, values, vectors = _directions(gram)
    kept = values > TOLERANCE * values.max(initial=0.0)
    energies = centre.copy()
    for _ in range(2):  # the second time for rounding errors of energies much larger than their differences
        left = vectors.T @ (scale * (projection - gram @ energies)[seen])
        energies[seen] += scale * (vectors[:, kept] @ (left[kept] / values[kept]))
    return energies


def undetermined(gram: Matrix) -> Bool[np.ndarray, " elements"]:
    """Return a mask of elements that occur but whose energies the compositions do not determine."""
    seen, scale, values, vectors = _directions(gram)
    opened = scale[:, None] * vectors[:, values <= TOLERANCE * values.max(initial=0.0)]
    parts = np.abs(opened / np.abs(opened).max(axis=0, initial=0.0))
    result = np.zeros(len(gram), dtype=bool)
    result[seen] = parts.max(axis=1, initial=0.0) > SMALL_PART
    return result


def _directions(
    gram: Matrix,
) -> tuple[
    Int[np.ndarray, " seen"],
    Float64[np.ndarray, " seen"],
    Float64[np.ndarray, " seen"],
    Float64[np.ndarray, "seen seen"],
]:
    """Return the elements that occur, the scale of each, and eigenvalues and vectors of the scaled matrix.

    Scaled to a diagonal of ones, a rare element is as well conditioned as a frequent one.
    """
    seen = np.flatnonzero(np.diag(gram))
    scale = 1.0 / np.sqrt(np.diag(gram)[seen])
    values, vectors = np.linalg.eigh(gram[np.ix_(seen, seen)] * scale * scale[:, None])
    return seen, scale, values, vectors
