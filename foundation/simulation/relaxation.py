"""Relaxation of one structure among many: its coordinates, with or without the cell, its limits and its outcome."""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float64
from scipy.linalg import expm, expm_frechet

from data_pipeline.structure import Structure
from foundation.interop.symmetry import Symmetry, space_group
from foundation.simulation.driver import expected_edges
from foundation.simulation.optimizers import ALGORITHMS, Algorithm, Optimizer, Rows
from foundation.simulation.outcome import Evaluated, Outcome, outcome, put_aside

MAX_VOLUME_RATIO = 8.0
"""Largest ratio of the volumes before and after: beyond, the structure has exploded or collapsed."""
NOTED_VOLUME_RATIO = 1.2
"""Ratio of volumes from which a remark is made."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Options of a relaxation."""

    max_force: float
    """Largest force at which it ends, on an atom or, from the stress, on a row of the cell's deformation [eV/Å]."""
    max_steps: int
    """Largest number of steps."""
    algorithm: Algorithm
    """Algorithm."""
    cell: bool
    """True if cells that repeat in all directions relax as well."""
    symmetry: bool
    """True if the symmetry of the start is kept."""
    precision: float = 0.01
    """Largest distance of atoms from symmetric places [Å]."""
    space_groups: bool = True
    """True if space groups are found before and after."""


class Coordinates:
    """Rows that an optimizer moves: positions in the cell of the start, and the logarithm of the cell's deformation.

    They are those of ASE's FrechetCellFilter, so FIRE takes the same steps: positions x and cell follow F = exp(L), and
    L has the weight of the number of atoms N. The force on L is the adjoint of exp's derivative at L, applied to
    -V σ F⁻ᵀ, over N.
    """

    def __init__(self, start: Structure, *, cell: bool) -> None:
        """Begin at a structure, with its cell or without."""
        self._start, self._with_cell, self._weight = start, cell, float(start.num_atoms)
        self.rows: Rows = start.positions.copy()
        if cell:
            self.rows = np.vstack([self.rows, np.zeros((3, 3))])

    def structure(self) -> Structure:
        """Return the structure at the present coordinates."""
        if not self._with_cell:
            return replace(self._start, positions=self.rows.copy())
        deformation = expm(self.rows[-3:] / self._weight).T
        cell = np.ascontiguousarray(self._start.cell @ deformation)
        return replace(self._start, positions=self.rows[:-3] @ deformation, cell=cell)

    def forces(self, forces: Float64[np.ndarray, "atoms 3"], stress: Float64[np.ndarray, "3 3"], volume: float) -> Rows:
        """Return the forces on the rows [eV/Å]."""
        if not self._with_cell:
            return forces
        logarithm = self.rows[-3:] / self._weight
        deformation = expm(logarithm)
        on_deformation = -volume * stress @ np.linalg.inv(deformation.T)
        _, on_logarithm = expm_frechet(logarithm.T, on_deformation)
        return np.vstack([forces @ deformation, on_logarithm / self._weight])


class Relaxing:
    """A structure that is being relaxed."""

    def __init__(self, number: int, start: Structure, cutoff: float, limits: Limits) -> None:
        """Begin at a structure of the input, by its number there."""
        self.structure, self.cost = start, expected_edges(start, cutoff)
        self._number, self._start, self._limits = number, start, limits
        with_cell = limits.cell and bool(start.pbc.all())
        self._coordinates = Coordinates(start, cell=with_cell)
        self._optimizer: Optimizer = ALGORITHMS[limits.algorithm]()
        periodic = bool(start.pbc.all())
        self._symmetry: Symmetry | None = None
        if limits.symmetry and periodic:
            self._symmetry = Symmetry.of(start, limits.precision)
        self._steps, self._energy_before = 0, 0.0

    def advance(self, found: Evaluated) -> Outcome | None:
        """Take a step, or end; see Task."""
        forces, stress, volume = found.forces, found.stress, self.structure.volume
        if self._symmetry is not None:
            forces = self._symmetry.of_forces(self.structure, forces)
            stress = self._symmetry.of_stress(self.structure, stress)
        if self._steps == 0:
            self._energy_before = found.energy
        if reason := self._exploded(volume):
            return self.failed(reason)
        rows = self._coordinates.forces(forces, stress, volume)
        largest = float(np.linalg.norm(rows, axis=1).max())
        if largest < self._limits.max_force or self._steps >= self._limits.max_steps:
            return self._outcome(found, largest)
        self._coordinates.rows = self._coordinates.rows + self._optimizer.step(self._coordinates.rows, rows)
        self.structure = self._coordinates.structure()
        self._steps += 1
        return None

    def failed(self, reason: str) -> Outcome:
        """Return the outcome of a structure that cannot be relaxed."""
        after = f" after {self._steps} steps" if self._steps else ""
        return put_aside(self._number, self._start, f"{reason}{after}")

    def _space_group(self, structure: Structure) -> str | None:
        return space_group(structure, self._limits.precision) if self._limits.space_groups else None

    def _exploded(self, volume: float) -> str | None:
        if not self._start.pbc.all():
            return None
        ratio = volume / self._start.volume
        if 1 / MAX_VOLUME_RATIO < ratio < MAX_VOLUME_RATIO:
            return None
        return f"{'exploded' if ratio > 1 else 'collapsed'}: its volume is {ratio:.3g} times that of the start"

    def _outcome(self, found: Evaluated, largest: float) -> Outcome:
        converged = largest < self._limits.max_force
        made = outcome(self._number, self.structure, found)
        warnings = made.warnings if converged else (*made.warnings, f"not converged in {self._steps} steps")
        if made.volume and not 1 / NOTED_VOLUME_RATIO < made.volume / self._start.volume < NOTED_VOLUME_RATIO:
            warnings += (f"the volume changed by a factor of {made.volume / self._start.volume:.3g}",)
        return replace(
            made,
            energy_before=self._energy_before,
            volume_before=self._start.volume or None,
            steps=self._steps,
            converged=converged,
            max_force=largest,
            space_group_before=self._space_group(self._start),
            space_group=self._space_group(self.structure),
            warnings=warnings,
        )
