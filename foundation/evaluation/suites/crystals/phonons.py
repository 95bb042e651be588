"""Phonons of cubic crystals: imaginary modes, highest frequency, heat capacity and density of states.

Force constants come from displacing every atom of the conventional cell in a supercell. The phonons are those whose
waves fit into the supercell: they are exact, and none are interpolated. The long-range field of polar crystals, which
splits longitudinal and transversal modes, is in them only as far as the subject has it.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import ase.data
import ase.units
import numpy as np
from jaxtyping import Float64

from data_pipeline.structure import Structure
from foundation.configuration import MAY_CHANGE
from foundation.evaluation.suites.crystals.elastic import force_constants
from foundation.evaluation.suites.crystals.equation_of_state import (
    Crystal,
    check_labels,
    elements_of,
    relaxed,
    repeated,
)
from foundation.evaluation.suites.suite import Chart, Curve, Finding, Findings, Subject, Suite

PLANCK = 4.135667696e-3
"""Planck's constant [eV/THz]."""
GAS_CONSTANT = 8.314462618
"""Molar gas constant [J/mol/K]."""
IMAGINARY = -0.05
"""Frequency below which a mode is imaginary and not the noise of a prediction [THz]; imaginary ones are negative."""
ACOUSTIC = 3
"""Number of modes that move the whole crystal, whose frequency is zero."""
WIDTH = 0.2
"""Standard deviation of a mode in the density of states [THz]."""


@dataclass(frozen=True, kw_only=True)
class Phonons(Suite):
    """Phonons of cubic crystals at their equilibrium volume."""

    name: ClassVar[str] = "phonons"

    vibrating: tuple[Crystal, ...] = field(metadata=MAY_CHANGE)
    """Crystals whose atoms to displace."""
    references: dict[str, tuple[float | None, float | None]] = field(default_factory=dict, metadata=MAY_CHANGE)
    """Reference highest frequency [THz] and heat capacity [J/mol/K], per mole of atoms, by crystal, such as
    `Si diamond: [15.5, 20]`; null is unknown."""
    supercell: int = field(default=2, metadata=MAY_CHANGE)
    """Number of conventional cells along each axis of the supercell."""
    temperature: float = field(default=300.0, metadata=MAY_CHANGE)
    """Temperature of the heat capacity [K]."""
    displacement: float = field(default=0.02, metadata=MAY_CHANGE)
    """Displacement of an atom, in both directions [Å]."""

    def __post_init__(self) -> None:
        check_labels(self.vibrating, self.references)
        if not 1 <= self.supercell <= 10:
            raise ValueError(f"supercell must be between 1 and 10, not {self.supercell}")
        if not 1.0 <= self.temperature <= 1e5:
            raise ValueError(f"temperature must be between 1 and 100,000 K, not {self.temperature:g}")
        if not 1e-4 <= self.displacement <= 0.2:
            raise ValueError(f"displacement must be between 0.0001 and 0.2 Å, not {self.displacement:g}")

    def elements(self) -> set[int]:
        """Return the atomic numbers of the crystals."""
        return elements_of(self.vibrating)

    def run(self, subject: Subject) -> Findings:
        """Return four findings and a density of states for each crystal; none have values without a minimum."""
        found: dict[str, Finding] = {}
        charts: dict[str, Chart] = {}
        for crystal in self.vibrating:
            cell = relaxed(crystal, subject)
            highest, capacity = self.references.get(crystal.label, (None, None))
            values: tuple[float | None, ...] = (None,) * 4
            if cell is not None:
                modes = frequencies(cell, subject, self.supercell, self.displacement)
                imaginary = float((modes < IMAGINARY).mean())
                heat = None if imaginary else heat_capacity(modes, self.temperature)
                values = imaginary, float(modes[0]), float(modes[-1]), heat
                charts[f"Density of states of {crystal.label}"] = _density(modes)
            share, low, high, heat = values
            found |= {
                f"{crystal.label}: share of imaginary modes": Finding(value=share, reference=0.0),
                f"{crystal.label}: lowest frequency": Finding(value=low, unit="THz"),
                f"{crystal.label}: highest frequency": Finding(value=high, unit="THz", reference=highest),
                f"{crystal.label}: heat capacity at {self.temperature:g} K": Finding(
                    value=heat, unit="J/mol/K", reference=capacity
                ),
            }
        return Findings(quantities=found, charts=charts)


def frequencies(
    cell: Structure, subject: Subject, supercell: int, displacement: float
) -> Float64[np.ndarray, " modes"]:
    """Return the frequencies [THz] of the modes that fit into a supercell, ascending, without the three that move it.

    Args:
        cell: Conventional cell at equilibrium.
        subject: The subject that predicts its forces.
        supercell: Number of cells along each axis.
        displacement: Displacement of an atom, in both directions [Å].
    """
    count, grid = cell.num_atoms, (supercell,) * 3
    constants = force_constants(repeated(cell, supercell), subject, range(count), displacement)
    constants = constants.reshape(count, 3, *grid, count, 3)
    # no forces if all atoms move together
    net = constants.sum(axis=(2, 3, 4, 5))
    for atom in range(count):
        constants[atom, :, 0, 0, 0, atom, :] -= net[atom]
    masses = ase.data.atomic_masses[cell.numbers]
    constants /= np.sqrt(masses[:, None, None, None, None, None, None] * masses[:, None])
    # a wave for every vector of the reciprocal grid
    waves = np.moveaxis(np.fft.fftn(constants, axes=(2, 3, 4)), (2, 3, 4), (0, 1, 2))
    matrices = waves.reshape(-1, 3 * count, 3 * count)
    squares = np.linalg.eigvalsh((matrices + matrices.conj().swapaxes(1, 2)) / 2)
    whole = np.sign(squares) * np.sqrt(np.abs(squares)) * 1e3 * ase.units.fs / (2 * np.pi)
    still = np.argsort(np.abs(whole[0]))[:ACOUSTIC]
    return np.sort(np.concatenate([np.delete(whole[0], still), *whole[1:]]))


def heat_capacity(modes: Float64[np.ndarray, " modes"], temperature: float) -> float:
    """Return the heat capacity [J/mol/K] at constant volume, per mole of atoms.

    Args:
        modes: Frequencies [THz], without those that move the whole crystal, which count as classical.
        temperature: Temperature [K].
    """
    x = PLANCK * np.maximum(modes, 1e-6) / (ase.units.kB * temperature)
    each = (x / 2 / np.sinh(np.minimum(x, 700.0) / 2)) ** 2
    return float(3 * GAS_CONSTANT * (each.sum() + ACOUSTIC) / (len(modes) + ACOUSTIC))


def _density(modes: Float64[np.ndarray, " modes"]) -> Chart:
    at = np.linspace(min(modes[0], 0.0) - 3 * WIDTH, modes[-1] + 3 * WIDTH, 300)
    values = np.exp(-(((at[:, None] - modes) / WIDTH) ** 2) / 2).mean(axis=1) / (WIDTH * np.sqrt(2 * np.pi))
    own = Curve(x=tuple(at.tolist()), y=tuple(values.tolist()))
    return Chart(x="frequency [THz], imaginary ones negative", y="density of states [1/THz]", curves={"": own})
