"""Outcome: the result for one structure, or the reason why there is none; and its form as a line of a file.

Arrays are stored as bytes in base64: a line is then half as long, read ten times faster, and exact.
"""

import base64
from dataclasses import asdict, dataclass, field, replace

import numpy as np
from jaxtyping import Float64

from data_pipeline.store.untrusted import OpenRecord, typed
from data_pipeline.structure import InvalidStructure, Structure

OUTSIDE = "outside of the training data: "
"""Beginning of the remark on a structure that leaves the coverage."""
ARRAYS = ("positions", "cell", "forces", "stress")


@dataclass(frozen=True, kw_only=True)
class Outcome(OpenRecord):
    """A structure with what was computed for it, or the reason why nothing was."""

    number: int
    """Place in the input, from zero on."""
    id: str
    """Name of the structure."""
    atomic_numbers: tuple[int, ...] = ()
    """Atomic numbers; () if the structure could not be read."""
    molecules: tuple[int, ...] = ()
    """Label of each atom's molecule; () if the structure has none."""
    pbc: tuple[bool, ...] = (False, False, False)
    """Lattice vectors that repeat."""
    positions: str = ""
    """Positions at the end [Å], in base64; '' without a result."""
    cell: str = ""
    """Lattice vectors at the end as rows [Å], in base64."""
    forces: str = ""
    """Forces at the end [eV/Å], in base64."""
    stress: str = ""
    """Stress at the end [eV/Å³], positive in tension, in base64; '' if the cell encloses no volume."""
    energy: float | None = None
    """Total energy at the end [eV]."""
    energy_before: float | None = None
    """Total energy at the start [eV]."""
    max_force: float | None = None
    """Largest force on an atom at the end [eV/Å]; after a relaxation, on the deformation of the cell as well."""
    energy_uncertainty: float | None = None
    """Uncertainty of the total energy at the end [eV]; None if the potential's release has none."""
    force_uncertainty: float | None = None
    """Largest uncertainty of a force at the end [eV/Å]."""
    steps: int = 0
    """Steps taken."""
    converged: bool | None = None
    """True if a relaxation ended below its limits."""
    volume: float | None = None
    """Volume at the end [Å³]; None if the cell encloses none."""
    volume_before: float | None = None
    """Volume at the start [Å³]."""
    space_group: str | None = None
    """Space group at the end; None if it is not known."""
    space_group_before: str | None = None
    """Space group at the start."""
    averages: dict[str, float] = field(default_factory=dict)
    """Means over a molecular dynamics, by the name of their column."""
    warnings: tuple[str, ...] = ()
    """Remarks on the result."""
    error: str | None = None
    """Reason why the structure was put aside."""

    def array(self, name: str, *shape: int) -> Float64[np.ndarray, "..."]:
        """Return an array by its name."""
        return decoded(getattr(self, name)).reshape(shape)


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluated:
    """Prediction of a potential for one structure."""

    energy: float
    """Total energy [eV]."""
    forces: Float64[np.ndarray, "atoms 3"]
    """Forces [eV/Å]."""
    stress: Float64[np.ndarray, "3 3"]
    """Stress [eV/Å³], positive in tension; zeros if the cell encloses no volume."""
    energy_uncertainty: float | None = None
    """Uncertainty of the total energy [eV]; None if the potential's release has none."""
    force_uncertainty: float | None = None
    """Largest uncertainty of a force [eV/Å]."""
    outside: tuple[str, ...] = ()
    """Ways in which the structure leaves the coverage of the training data."""


def outcome(number: int, structure: Structure, found: Evaluated) -> Outcome:
    """Return the outcome for a structure from its prediction."""
    volume = structure.volume
    return replace(
        put_aside(number, structure, None),
        positions=encoded(structure.positions),
        cell=encoded(structure.cell),
        forces=encoded(found.forces),
        stress=encoded(found.stress) if volume > 0 else "",
        energy=found.energy,
        max_force=float(np.linalg.norm(found.forces, axis=1).max()),
        volume=volume or None,
        energy_uncertainty=found.energy_uncertainty,
        force_uncertainty=found.force_uncertainty,
        warnings=tuple(f"{OUTSIDE}{each}" for each in found.outside),
    )


def put_aside(number: int, structure: Structure | InvalidStructure, reason: str | None) -> Outcome:
    """Return the outcome for a structure without a result."""
    if isinstance(structure, InvalidStructure):
        return Outcome(number=number, id=f"structure {number}", error=reason)
    return Outcome(
        number=number,
        id=structure.id or f"structure {number}",
        atomic_numbers=tuple(structure.numbers.tolist()),
        molecules=tuple(structure.molecules.tolist()) if structure.has_molecules else (),
        pbc=tuple(structure.pbc.tolist()),
        error=reason,
    )


def to_json(outcome: Outcome) -> dict:
    """Return an outcome as JSON, without what is at its default."""
    fresh = asdict(Outcome(number=-1, id=""))
    return {name: value for name, value in asdict(outcome).items() if value != fresh[name]}


def from_json(values: object) -> Outcome:
    """Return an outcome from JSON.

    Raises:
        ValueError: it is none.
    """
    return typed(Outcome, values, "")


def encoded(array: Float64[np.ndarray, "..."]) -> str:
    """Return an array's bytes in base64."""
    return base64.b64encode(np.ascontiguousarray(array, dtype="<f8").tobytes()).decode()


def decoded(text: str) -> Float64[np.ndarray, " values"]:
    """Return the values of an array in base64."""
    return np.frombuffer(base64.b64decode(text), dtype="<f8").astype(np.float64)
