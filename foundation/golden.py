"""Golden predictions: structures with their energies, forces and stresses, by which a release is verified."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from data_pipeline.graphs.batch import to_graph
from data_pipeline.sources import RandomCrystals
from data_pipeline.store.manifest import Provenance as DataProvenance
from data_pipeline.store.untrusted import OpenRecord, read_json, refusing, typed
from data_pipeline.structure import SYMBOLS, Structure
from foundation import checkpoint
from foundation.potential import Potential

MAX_GENERATED_ATOMS = 12
"""Largest number of atoms of a generated golden structure."""
GENERATED = DataProvenance(
    name="generated crystals",
    licence="CC0-1.0",
    level_of_theory="none",
    energy_convention="none",
    citation="data_pipeline.sources.RandomCrystals",
    source="data_pipeline.sources.RandomCrystals",
)
"""Provenance of generated golden structures."""
TOLERANCE = 1e-9
"""Largest allowed difference from the golden energies per atom, forces and stresses in float64, relative to 1 +
|value|: only rounding may differ between machines."""


class GoldenMismatch(ValueError):
    """A release that does not reproduce its own golden predictions."""


def golden_record(potential: Potential, structure: Structure, theory: str) -> dict:
    """Return a structure with its predictions in float64 as JSON: energy [eV], forces [eV/Å], stress [eV/Å³]."""
    dtype, number = potential.dtype, potential.theory_number(theory)
    prediction = potential.cast(torch.float64)(to_graph(structure, potential.cutoff, torch.float64, number))
    potential.cast(dtype)
    return {
        "theory": theory,
        "numbers": structure.numbers.tolist(),
        "positions": structure.positions.tolist(),
        "cell": structure.cell.tolist(),
        "pbc": structure.pbc.tolist(),
        **({"molecules": structure.molecules.tolist()} if structure.has_molecules else {}),
        "energy": float(prediction.energy),
        "forces": prediction.forces.tolist(),
        "stress": prediction.stress[0].tolist(),
    }


@dataclass(frozen=True, kw_only=True)
class Golden(OpenRecord):
    """A structure with its predictions in golden.json."""

    theory: str
    numbers: list[int]
    positions: list[tuple[float, float, float]]
    cell: tuple[tuple[float, float, float], tuple[float, float, float], tuple[float, float, float]]
    pbc: tuple[bool, bool, bool]
    energy: float
    forces: list[tuple[float, float, float]]
    stress: tuple[tuple[float, float, float], tuple[float, float, float], tuple[float, float, float]]
    molecules: list[int] | None = None

    def structure(self) -> Structure:
        """Return the structure without the predictions.

        Raises:
            InvalidStructure: an array does not fit the others.
        """
        return Structure.checked(
            numbers=np.array(self.numbers),
            positions=np.array(self.positions),
            cell=np.array(self.cell),
            pbc=np.array(self.pbc),
            energy=0.0,
            molecules=self.molecules,
        )


def _read_golden(file: Path) -> list[Golden]:
    with refusing(file, checkpoint.CorruptCheckpoint):
        golden = typed(list[Golden], read_json(file), "golden")
        if not golden:
            raise ValueError("no structure")
        return golden


def golden_at(folder: Path, theory: str) -> list[Golden]:
    """Return the golden structures of a release at a level of theory, with its predictions in float64.

    Raises:
        CorruptCheckpoint: the file is damaged.
        FileNotFoundError: the folder has none.
    """
    return [record for record in _read_golden(folder / checkpoint.GOLDEN) if record.theory == theory]


def verify_golden(folder: Path) -> None:
    """Recompute the golden predictions from the files of a release.

    Raises:
        CorruptCheckpoint: a file of the release is damaged.
        GoldenMismatch: one differs; the message names structure and quantity.
    """
    potential, file = checkpoint.load(folder), folder / checkpoint.GOLDEN
    golden = _read_golden(file)
    with refusing(file, checkpoint.CorruptCheckpoint, let_through=GoldenMismatch):
        for number, record in enumerate(golden):
            structure = record.structure()
            again = golden_record(potential, structure, record.theory)
            for name in ("energy", "forces", "stress"):
                expected, found = np.array(getattr(record, name)), np.array(again[name])
                if expected.shape != found.shape:
                    raise ValueError(f"structure {number} has {name} of shape {expected.shape}")
                if not (np.abs(found - expected) <= TOLERANCE * (structure.num_atoms + np.abs(expected))).all():
                    raise GoldenMismatch(
                        f"{file}, structure {number}: the {name} recomputed from the exported files differs by "
                        f"{np.abs(found - expected).max():.3g}; the release is not the trained potential"
                    )


def generated(potential: Potential, count: int, *, instead: str = "take another potential") -> list[Structure]:
    """Return small random crystals of a potential's elements, always the same, which nobody owns.

    Args:
        potential: The potential.
        count: Number of crystals.
        instead: Advice for a potential of molecules.

    Raises:
        ValueError: the potential is one of molecules.
    """
    if potential.network.units:
        raise ValueError(f"a potential of molecules cannot predict generated crystals: {instead}")
    symbols = tuple(SYMBOLS[number] for number in potential.elements)
    source = RandomCrystals(num_crystals=count, elements=symbols, max_atoms=MAX_GENERATED_ATOMS)
    return list(source.make(0, count))
