"""Pairs of atoms by trying every pair and every shift around the nearest: the oracle of the neighbour searches."""

import itertools

import numpy as np

from data_pipeline.graphs.neighbors import complete_cell
from data_pipeline.structure import Structure

Found = dict[tuple[int, ...], float]
"""Distance of every pair (first, second, *shift), the lower atom first, or the shift that is ahead."""


def num_shifts(frame: Structure, cutoff: float) -> int:
    """Return how many shifts are tried."""
    return int((2 * _reach(frame, cutoff) + 1).prod())


def by_trying(frame: Structure, cutoff: float) -> Found:
    """Return the pairs closer than the cutoff [Å]."""
    cell = complete_cell(frame.cell, frame.pbc)
    first, second = np.triu_indices(frame.num_atoms)
    apart = frame.positions[second] - frame.positions[first]
    nearest = -np.rint(apart @ np.linalg.inv(cell)) * frame.pbc
    ends, found, distances = [], [], []
    for turn in itertools.product(*(range(-n, n + 1) for n in _reach(frame, cutoff).astype(int).tolist())):
        shifts = nearest + turn
        lengths = np.linalg.norm(apart + shifts @ cell, axis=1)
        ahead = (first < second) | (shifts @ [1e6, 1e3, 1] > 0)
        near = np.flatnonzero((lengths < cutoff) & ahead)
        ends.append(np.stack([first, second], axis=1)[near])
        found.append(shifts[near].astype(int))
        distances.append(lengths[near])
    return halved(*(np.concatenate(parts) for parts in (ends, found, distances)))


def halved(ends: np.ndarray, shifts: np.ndarray, distances: np.ndarray) -> Found:
    """Return pairs, each of which is there in one of both directions."""
    found = {}
    for (i, j), shift, distance in zip(ends.tolist(), shifts.tolist(), distances.tolist(), strict=True):
        turned = i > j or (i == j and tuple(shift) < (0, 0, 0))
        key = (j, i, *(-s for s in shift)) if turned else (i, j, *shift)
        assert key not in found
        found[key] = distance
    return found


def _reach(frame: Structure, cutoff: float) -> np.ndarray:
    inverse = np.linalg.inv(complete_cell(frame.cell, frame.pbc))
    return np.ceil(cutoff * np.linalg.norm(inverse, axis=0) + 0.5) * frame.pbc
