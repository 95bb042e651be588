"""Lattice thermal conductivity of cubic crystals by phono3py, in the relaxation-time approximation.

Force constants of second and third order come from displaced atoms in a supercell; phonons scatter each other and
natural isotopes (A. Togo, L. Chaput and I. Tanaka, Phys. Rev. B 91, 094306 (2015)). The long-range field of polar
crystals is in them only as far as the subject has it. The error of the modes is that of Matbench Discovery.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import h5py
import numpy as np
from jaxtyping import Float64

from data_pipeline.sources.source import resolve
from data_pipeline.structure import Structure
from foundation.configuration import MAY_CHANGE, check_numbers
from foundation.evaluation.discovery import FAILED_SRME, conductivity_error, mean_conductivity_error
from foundation.evaluation.suites.crystals.equation_of_state import Crystal, check_labels, elements_of, relaxed
from foundation.evaluation.suites.crystals.phonons import IMAGINARY
from foundation.evaluation.suites.suite import Chart, Curve, Finding, Findings, Subject, Suite

UNIT = "W/m/K"
LIMITS = {"supercell": (1, 10), "mesh": (1, 100)}
"""Smallest and largest value of each number."""
CENTRINGS = {"bcc": "I", "caesium chloride": "P"}
"""Symbol of the lattice's centring by structure type; F for the others."""
MAX_POINTS = 200
"""Largest number of points of a curve."""


class Modes(NamedTuple):
    """Phonon modes that carry heat."""

    frequencies: Float64[np.ndarray, "points bands"]
    """Frequencies [THz]."""
    conductivities: Float64[np.ndarray, "points bands"]
    """Parts of the conductivity [W/m/K], means of the three axes and sums over the equivalents of each q-point."""

    @property
    def total(self) -> float:
        """Conductivity of the crystal [W/m/K]."""
        return float(self.conductivities.sum())

    def over_frequency(self, *, reference: bool = False) -> Curve:
        """Return the conductivity of all modes up to a frequency."""
        order = np.argsort(self.frequencies, axis=None)
        every = -(-len(order) // MAX_POINTS)
        below = np.cumsum(self.conductivities.ravel()[order])[every - 1 :: every]
        at = self.frequencies.ravel()[order][every - 1 :: every]
        return Curve(x=tuple(at.tolist()), y=tuple(below.tolist()), reference=reference)


@dataclass(frozen=True, kw_only=True)
class Conductivity(Suite):
    """Lattice thermal conductivity of cubic crystals at their equilibrium volume."""

    name: ClassVar[str] = "thermal conductivity"

    conducting: tuple[Crystal, ...] = field(metadata=MAY_CHANGE)
    """Crystals that conduct heat."""
    references: dict[str, float] = field(default_factory=dict, metadata=MAY_CHANGE)
    """Reference conductivity [W/m/K] by crystal, such as `MgO rocksalt: 60`."""
    modes: dict[str, Path] = field(default_factory=dict, metadata=MAY_CHANGE)
    """Reference conductivities of modes by crystal: a file kappa-*.hdf5 of phono3py with the same mesh and temperature;
    ${NAME} in a path stands for an environment variable."""
    supercell: int = field(default=2, metadata=MAY_CHANGE)
    """Number of conventional cells along each axis of the supercell."""
    mesh: int = field(default=11, metadata=MAY_CHANGE)
    """Number of q-points along each axis of the reciprocal primitive cell."""
    temperature: float = field(default=300.0, metadata=MAY_CHANGE)
    """Temperature [K]."""
    displacement: float = field(default=0.03, metadata=MAY_CHANGE)
    """Displacement of an atom [Å]."""

    def __post_init__(self) -> None:
        check_labels(self.conducting, [*self.references, *self.modes])
        check_numbers(self, LIMITS)
        if not 1.0 <= self.temperature <= 1e5:
            raise ValueError(f"temperature must be between 1 and 100,000 K, not {self.temperature:g}")
        if not 1e-4 <= self.displacement <= 0.2:
            raise ValueError(f"displacement must be between 0.0001 and 0.2 Å, not {self.displacement:g}")

    def elements(self) -> set[int]:
        """Return the atomic numbers of the crystals.

        Raises:
            ValueError: phono3py is not installed.
        """
        _phono3py()
        return elements_of(self.conducting)

    def run(self, subject: Subject) -> Findings:
        """Return the conductivity of each crystal, and the error of its modes where a reference has them.

        A crystal without a minimum or with imaginary modes has no conductivity, and the largest error, 2.

        Raises:
            FileNotFoundError: a reference is missing.
            ValueError: phono3py is not installed, or a reference has no modes at this mesh and temperature.
        """
        found: dict[str, Finding] = {}
        charts: dict[str, Chart] = {}
        known = {label: self._reference(label, path) for label, path in self.modes.items()}
        errors = []
        for crystal in self.conducting:
            label, cell = crystal.label, relaxed(crystal, subject)
            modes = None if cell is None else self._modes(cell, CENTRINGS.get(crystal.prototype, "F"), subject)
            found[f"{label}: conductivity at {self.temperature:g} K"] = Finding(
                value=None if modes is None else modes.total, unit=UNIT, reference=self.references.get(label)
            )
            curves = {} if modes is None else {"": modes.over_frequency()}
            if label in known:
                errors.append(_error(modes, known[label], label))
                found[f"{label}: error of the modes' conductivities"] = Finding(value=errors[-1], reference=0.0)
                curves["reference"] = known[label].over_frequency(reference=True)
            if curves:
                charts[f"Conductivity of {label} over frequency"] = Chart(
                    x="frequency [THz]", y=f"conductivity of the modes below [{UNIT}]", curves=curves
                )
        if errors:
            found["mean error of the modes' conductivities"] = Finding(
                value=mean_conductivity_error(errors), reference=0.0
            )
        return Findings(quantities=found, charts=charts)

    def _modes(self, cell: Structure, centring: str, subject: Subject) -> Modes | None:
        """Return the modes of a crystal; None if some are imaginary."""
        phono3py, atoms_of = _phono3py()
        unit = atoms_of(numbers=cell.numbers, positions=cell.positions, cell=cell.cell)
        crystal = phono3py(unit, supercell_matrix=[self.supercell] * 3, primitive_matrix=centring)
        crystal.generate_displacements(distance=self.displacement)
        displaced = [
            Structure.checked(
                numbers=each.numbers, positions=each.positions, cell=each.cell, pbc=[True] * 3, energy=0.0
            )
            for each in crystal.supercells_with_displacements
        ]
        crystal.forces = np.array([each.forces for each in subject.predict(displaced)])
        crystal.produce_fc3()
        crystal.symmetrize_fc3()
        crystal.symmetrize_fc2()
        crystal.mesh_numbers = [self.mesh] * 3
        crystal.init_phph_interaction()
        crystal.run_phonon_solver()
        if (crystal.get_phonon_data()[0] < IMAGINARY).any():
            return None
        crystal.run_thermal_conductivity(temperatures=[self.temperature], is_isotope=True)
        result = crystal.thermal_conductivity
        return _modes(result.frequencies, result.mode_kappa[0, 0], result.grid_weights)

    def _reference(self, label: str, path: Path) -> Modes:
        file = resolve(str(path), field="modes", section="suites")
        try:
            with h5py.File(file) as group:
                arrays = {name: np.asarray(group[name]) for name in ("mesh", "temperature", "frequency", "weight")}
                arrays["mode_kappa"] = np.asarray(group["mode_kappa"])
        except (KeyError, OSError) as error:
            raise ValueError(
                f"modes: {label}: {file} has no conductivities of modes ({error}); give a file kappa-*.hdf5 of phono3py"
            ) from error
        at = np.flatnonzero(np.abs(arrays["temperature"] - self.temperature) < 0.01)
        if arrays["mesh"].tolist() != [self.mesh] * 3 or not len(at):
            raise ValueError(
                f"modes: {label}: {file} has the mesh {arrays['mesh'].tolist()} and the temperatures "
                f"{arrays['temperature'].tolist()}; the suite needs {[self.mesh] * 3} and {self.temperature:g} K"
            )
        return _modes(arrays["frequency"], arrays["mode_kappa"][at[0]], arrays["weight"])


def _modes(
    frequencies: Float64[np.ndarray, "points bands"],
    tensors: Float64[np.ndarray, "points bands 6"],
    weights: Any,
) -> Modes:
    """Return modes from phono3py's arrays, whose conductivities are sums over equivalents and not divided by points."""
    return Modes(np.asarray(frequencies), np.asarray(tensors)[..., :3].mean(axis=-1) / np.sum(weights))


def _error(modes: Modes | None, reference: Modes, label: str) -> float:
    """Return the error of the modes' conductivities."""
    if modes is None:
        return FAILED_SRME
    if modes.conductivities.shape != reference.conductivities.shape:
        raise ValueError(
            f"modes: {label}: the reference has {reference.conductivities.shape} q-points and bands, and the crystal "
            f"{modes.conductivities.shape}; give one of the same crystal"
        )
    # sums over equivalents have their weights in them
    return conductivity_error(modes.conductivities, reference.conductivities, np.ones(len(modes.conductivities)))


def _phono3py() -> tuple[Any, Any]:
    """Return phono3py's class of a crystal and phonopy's of a cell.

    Raises:
        ValueError: they are not installed.
    """
    try:
        from phono3py import Phono3py  # pyright: ignore[reportMissingImports] (of an extra)
        from phonopy.structure.atoms import PhonopyAtoms  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ValueError(
            "suites: thermal conductivity needs a package: pip install 'foundation[conductivity]', or leave it out"
        ) from error
    return Phono3py, PhonopyAtoms
