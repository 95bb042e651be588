"""Optimizers of one structure: each turns forces on rows of coordinates into a displacement of them."""

from collections import deque
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64

Rows = Float64[np.ndarray, "rows 3"]
MAX_STEP = 0.2
"""Largest displacement in a step [Å]: of all rows together for FIRE, of a row for L-BFGS, as in ASE."""
Algorithm = Literal["fire", "lbfgs"]


@runtime_checkable
class Optimizer(Protocol):
    """An algorithm with its memory."""

    def step(self, coordinates: Rows, forces: Rows) -> Rows:
        """Return the displacement [Å] at coordinates [Å] with forces [eV/Å]."""
        ...


class Fire:
    """Fast inertial relaxation engine (Bitzek et al., Phys. Rev. Lett. 97, 170201 (2006)), with ASE's numbers."""

    def __init__(self) -> None:
        """Begin at rest."""
        self._velocity: Rows | None = None
        self._dt, self._mixing, self._downhill = 0.1, 0.1, 0

    def step(self, coordinates: Rows, forces: Rows) -> Rows:
        """Return the displacement [Å] at coordinates [Å] with forces [eV/Å]."""
        velocity = np.zeros_like(forces) if self._velocity is None else self._velocity
        if self._velocity is not None:
            if np.vdot(forces, velocity) > 0:
                along = forces * (np.linalg.norm(velocity) / np.linalg.norm(forces))
                velocity = (1 - self._mixing) * velocity + self._mixing * along
                if self._downhill > 5:
                    self._dt, self._mixing = min(1.1 * self._dt, 1.0), 0.99 * self._mixing
                self._downhill += 1
            else:
                velocity = np.zeros_like(forces)
                self._dt, self._mixing, self._downhill = 0.5 * self._dt, 0.1, 0
        self._velocity = velocity + self._dt * forces
        moved = self._dt * self._velocity
        return moved * min(1.0, MAX_STEP / max(float(np.linalg.norm(moved)), 1e-300))


class Lbfgs:
    """Limited-memory BFGS (Liu and Nocedal, Math. Program. 45, 503 (1989)) without line searches, with ASE's numbers.

    A pair of steps with a negative curvature is forgotten, so that every step goes downhill.
    """

    MEMORY, CURVATURE = 100, 70.0

    def __init__(self) -> None:
        """Begin with the same curvature [eV/Å²] in all directions."""
        self._last: tuple[Rows, Rows] | None = None
        self._pairs: deque[tuple[Rows, Rows, float]] = deque(maxlen=self.MEMORY)

    def step(self, coordinates: Rows, forces: Rows) -> Rows:
        """Return the displacement [Å] at coordinates [Å] with forces [eV/Å]."""
        if self._last is not None:
            moved, change = coordinates - self._last[0], self._last[1] - forces
            if (product := float(np.vdot(moved, change))) > 0:
                self._pairs.append((moved, change, 1.0 / product))
        self._last = coordinates.copy(), forces.copy()
        direction, factors = forces.copy(), []
        for moved, change, inverse in reversed(self._pairs):
            factors.append(inverse * float(np.vdot(moved, direction)))
            direction -= factors[-1] * change
        direction /= self.CURVATURE
        for (moved, change, inverse), factor in zip(self._pairs, reversed(factors), strict=True):
            direction += (factor - inverse * float(np.vdot(change, direction))) * moved
        longest = float(np.linalg.norm(direction, axis=1).max())
        return direction * min(1.0, MAX_STEP / max(longest, 1e-300))


ALGORITHMS: dict[Algorithm, type[Fire] | type[Lbfgs]] = {"fire": Fire, "lbfgs": Lbfgs}
