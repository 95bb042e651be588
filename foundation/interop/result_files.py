"""Results of many structures as files: extended XYZ by ASE, and a table as CSV, and as Parquet where pyarrow is."""

import csv
import importlib.util
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ase
import ase.io
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator
from ase.stress import full_3x3_to_voigt_6_stress

from data_pipeline.graphs.molecules import MOLECULE_ARRAYS
from data_pipeline.store import durable
from foundation.interop.atomic_data import GIGAPASCAL
from foundation.simulation.outcome import Outcome

COLUMNS = (
    *("number", "id", "formula", "atoms", "energy", "energy_per_atom", "energy_before", "max_force", "pressure"),
    *("energy_uncertainty", "force_uncertainty"),
    *("steps", "converged", "volume", "volume_change", "space_group_before", "space_group"),
)
"""Columns of every table, before the averages: energies in eV, forces in eV/Å, pressure in GPa, volumes in Å³."""


def write_results(outcomes: Sequence[Outcome], structures: Path, table: Path) -> tuple[Path, ...]:
    """Write the structures that have a result, and the table of all; return the files."""
    with durable.whole_file(structures) as partial:
        atoms = [atoms_of(each) for each in outcomes if each.error is None]
        ase.io.write(partial, atoms, format="extxyz")
    rows = _rows(outcomes)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else list(COLUMNS), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    durable.write_whole(table, text.getvalue())
    if importlib.util.find_spec("pyarrow") is None:
        return structures, table
    return structures, table, _parquet(rows, table.with_suffix(".parquet"))


def atoms_of(outcome: Outcome) -> ase.Atoms:
    """Return the structure of an outcome with its energy, forces and stress."""
    count = len(outcome.atomic_numbers)
    atoms = ase.Atoms(
        list(outcome.atomic_numbers),
        outcome.array("positions", count, 3),
        cell=outcome.array("cell", 3, 3),
        pbc=outcome.pbc,
    )
    if outcome.molecules:
        atoms.new_array(MOLECULE_ARRAYS[0], np.array(outcome.molecules))
    atoms.info |= {"id": outcome.id, "number": outcome.number}
    uncertainties = {name: getattr(outcome, name) for name in ("energy_uncertainty", "force_uncertainty")}
    atoms.info |= {name: value for name, value in uncertainties.items() if value is not None}
    stress = full_3x3_to_voigt_6_stress(outcome.array("stress", 3, 3)) if outcome.stress else None
    forces = outcome.array("forces", count, 3)
    atoms.calc = SinglePointCalculator(atoms, energy=outcome.energy, forces=forces, stress=stress)
    return atoms


def write_trajectory(file: Path, frames: Sequence[Outcome]) -> None:
    """Write the frames of a trajectory as extended XYZ."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with durable.whole_file(file) as partial:
        ase.io.write(partial, [atoms_of(each) for each in frames], format="extxyz")


def _rows(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Return the rows of the table; a cell is None where nothing is known."""
    averages = dict.fromkeys(name for each in outcomes for name in each.averages)
    return [
        _row(each)
        | {name: each.averages.get(name) for name in averages}
        | {"warnings": "; ".join(each.warnings), "error": each.error}
        for each in outcomes
    ]


def _row(outcome: Outcome) -> dict[str, Any]:
    atoms = len(outcome.atomic_numbers)
    before, after = outcome.volume_before, outcome.volume
    values = {
        "number": outcome.number,
        "id": outcome.id,
        "formula": ase.Atoms(list(outcome.atomic_numbers)).get_chemical_formula(),
        "atoms": atoms,
        "energy": outcome.energy,
        "energy_per_atom": None if outcome.energy is None else outcome.energy / atoms,
        "energy_before": outcome.energy_before,
        "max_force": outcome.max_force,
        "pressure": -float(np.trace(outcome.array("stress", 3, 3))) / 3 / GIGAPASCAL if outcome.stress else None,
        "energy_uncertainty": outcome.energy_uncertainty,
        "force_uncertainty": outcome.force_uncertainty,
        "steps": outcome.steps,
        "converged": outcome.converged,
        "volume": outcome.volume,
        "volume_change": None if before is None or after is None else after / before - 1,
        "space_group_before": outcome.space_group_before,
        "space_group": outcome.space_group,
    }
    assert tuple(values) == COLUMNS
    return values


def _parquet(rows: list[dict[str, Any]], file: Path) -> Path:
    """Write the table as Parquet."""
    import pyarrow  # pyright: ignore[reportMissingImports]
    import pyarrow.parquet  # pyright: ignore[reportMissingImports]

    with durable.whole_file(file) as partial:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), partial)
    return file
