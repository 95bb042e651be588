"""Files of Matbench Discovery: its summary of the reference calculations, and the files of a submission.

The benchmark's formation energies have the Materials Project's corrections of 2020. The summary has the corrected
formation energy of every material beside the raw total energy, so that a prediction is the reference plus the error of
the total energy per atom: elemental references and corrections cancel. This is the same as correcting the prediction
unless a relaxation changes the kind of an oxide or sulfide (a peroxide becomes an oxide), on which the corrections
depend; then the reference's kind is kept.
"""

import csv
import gzip
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase
import numpy as np
from ase.geometry import cell_to_cellpar

from data_pipeline.quoting import abbreviated
from data_pipeline.sources.materials import ID
from data_pipeline.store import durable
from foundation.interop.relaxations import Relaxed

ENERGIES = ("uncorrected_energy_from_cse", "uncorrected_energy")
"""Columns of the summary with the raw total energy [eV]; the first that is there is read."""
SITES, FORMATION, HULL = "n_sites", "e_form_per_atom_mp2020_corrected", "e_above_hull_mp2020_corrected_ppd_mp"
UNIQUE = "unique_prototype"
PREDICTED = "e_form_per_atom_"
"""Beginning of the name of the column of predicted formation energies."""
DIGITS = 6
"""Decimal digits of energies per atom in a submission [eV]; the benchmark's own have 4."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """Reference values of a material."""

    num_atoms: int
    """Number of atoms of its cell."""
    energy: float
    """Raw total energy [eV]."""
    formation: float
    """Formation energy with corrections [eV/atom]."""
    above_hull: float
    """Energy above the convex hull of the Materials Project [eV/atom]."""
    unique: bool | None
    """True for one material of each prototype that the Materials Project lacks; None: the table does not say."""


def read_summary(path: Path) -> dict[str, Reference]:
    """Return the references of the benchmark's summary (wbm-summary.csv.gz), or of a table with its columns, by name.

    A material without a number in one of them has no reference.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not such a table.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    found: dict[str, Reference] = {}
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", newline="") as file:  # pyright: ignore[reportCallIssue]
        try:
            rows = csv.DictReader(file)
            columns = list(rows.fieldnames or ())
            energy = next((each for each in ENERGIES if each in columns), ENERGIES[0])
            if missing := [each for each in (ID, SITES, energy, FORMATION, HULL) if each not in columns]:
                raise ValueError(
                    f"it has no column {', '.join(missing)}, only {abbreviated(', '.join(columns))}; give the "
                    "benchmark's wbm-summary.csv.gz or a table with the same columns"
                )
            for row in rows:
                name, *words = (row[each] or "" for each in (ID, SITES, energy, FORMATION, HULL))
                if not all(words):
                    continue
                sites, *values = map(float, words)
                if all(map(math.isfinite, (sites, *values))):
                    found[name] = Reference(
                        num_atoms=round(sites),
                        energy=values[0],
                        formation=values[1],
                        above_hull=values[2],
                        unique=row[UNIQUE].lower() == "true" if row.get(UNIQUE) else None,
                    )
        except (ValueError, UnicodeDecodeError, csv.Error, EOFError, gzip.BadGzipFile) as error:
            raise ValueError(f"{path}: not a table of references ({error})") from error
    return found


def formation_energy(relaxed: Relaxed, reference: Reference | None) -> float:
    """Return the predicted formation energy with corrections [eV/atom]; NaN after a failure or without a reference.

    Raises:
        ValueError: the reference has another number of atoms.
    """
    if relaxed.energy is None or reference is None:
        return math.nan
    if reference.num_atoms != len(relaxed.atomic_numbers):
        raise ValueError(
            f"{relaxed.id} has {len(relaxed.atomic_numbers)} atoms, and {reference.num_atoms} in the references: they "
            "belong to other structures"
        )
    return reference.formation + (relaxed.energy - reference.energy) / reference.num_atoms


def write_energies(relaxed: Sequence[Relaxed], formation: Sequence[float], name: str, path: Path) -> None:
    """Write the predicted formation energies of all materials as .csv.gz, NaN after a failure.

    Args:
        relaxed: Relaxed structures.
        formation: Predicted formation energy of each [eV/atom].
        name: Name of the model, in the name of the column.
        path: The file.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([ID, f"{PREDICTED}{name}", "energy", "converged", "n_steps", "error"])
    for each, value in zip(relaxed, formation, strict=True):
        energy = math.nan if each.energy is None else each.energy
        numbers = ("nan" if math.isnan(value) else f"{value:.{DIGITS}f}", f"{energy:.{DIGITS}f}")
        writer.writerow([each.id, *numbers, each.converged, each.num_steps, each.error or ""])
    write_gzip(path, text.getvalue())


def write_structures(relaxed: Iterable[Relaxed], path: Path) -> None:
    """Write the relaxed structures in pymatgen's form as .jsonl.gz, one a line; null after a failure."""
    lines = [
        json.dumps(
            {
                ID: each.id,
                "structure": None if each.energy is None else pymatgen_form(each.atoms()),
                "energy": each.energy,
                "converged": each.converged,
                "n_steps": each.num_steps,
                "error": each.error,
            }
        )
        for each in relaxed
    ]
    write_gzip(path, "".join(f"{line}\n" for line in lines))


def write_conductivities(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write the thermal conductivities of materials as .json.gz: a mapping for each, null for missing values."""
    write_gzip(path, json.dumps(list(rows), allow_nan=False))


def write_gzip(path: Path, text: str) -> None:
    """Write a text compressed, the same bytes for the same text."""
    durable.write_whole(path, gzip.compress(text.encode(), mtime=0), shared=True)


def pymatgen_form(atoms: ase.Atoms) -> dict[str, Any]:
    """Return a structure as the dictionary of pymatgen's Structure.as_dict()."""
    lengths, angles = np.split(cell_to_cellpar(np.asarray(atoms.cell)), 2)
    names = ("a", "b", "c", "alpha", "beta", "gamma")
    fractional = atoms.get_scaled_positions(wrap=False)
    return {
        "@module": "pymatgen.core.structure",
        "@class": "Structure",
        "charge": 0.0,
        "lattice": {
            "matrix": np.asarray(atoms.cell).tolist(),
            "pbc": atoms.pbc.tolist(),
            **dict(zip(names, [*lengths.tolist(), *angles.tolist()], strict=True)),
            "volume": float(atoms.cell.volume),
        },
        "properties": {},
        "sites": [
            {
                "species": [{"element": symbol, "occu": 1}],
                "abc": inside.tolist(),
                "properties": {},
                "label": symbol,
                "xyz": place.tolist(),
            }
            for symbol, inside, place in zip(atoms.symbols, fractional, atoms.positions, strict=True)
        ],
    }
