"""Lattice thermal conductivity of the crystals of Matbench Discovery, by phono3py, as the benchmark's scripts have it.

Each crystal is relaxed with its symmetry kept. Force constants of second and third order come from displaced
supercells, and the conductivity at 300 K from the relaxation-time approximation with coherence between modes
(Simoncelli, Marzari and Mauri, Nat. Phys. 15, 809 (2019)), isotopes included. Crystals with imaginary modes or another
space group after the relaxation have none, as in the benchmark (Póta et al., arXiv:2408.00755).
"""

import contextlib
import importlib.util
import logging
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase
import numpy as np
from ase.calculators.calculator import Calculator
from ase.constraints import FixSymmetry
from ase.filters import FrechetCellFilter
from ase.optimize import FIRE
from jaxtyping import Float64

from data_pipeline.quoting import abbreviated, one_line
from data_pipeline.sources.atoms import to_atoms
from data_pipeline.sources.materials import ID, Material, read_records
from data_pipeline.structure import InvalidStructure
from foundation.evaluation.discovery import FAILED_SRME, conductivity_error
from foundation.interop.lines import SUFFIX, append_line, read_lines
from foundation.interop.relaxations import OF_THE_MACHINE

log = logging.getLogger(__name__)

WITHOUT = "phono3py is not installed; pip install 'foundation[discovery]' and run the same command again"
"""Reason why there are no conductivities."""
TEMPERATURE = 300.0
"""Temperature [K]."""
DISPLACEMENT = 0.01
"""Displacement of atoms for force constants [Å]."""
MAX_FORCE, MAX_STEPS = 1e-4, 300
"""Largest force at which the relaxation ends [eV/Å], and its largest number of steps."""
SAME_PLACE = 1e-5
"""Distance within which atoms are the same by symmetry [Å]."""
IMAGINARY = -0.01
"""Frequency of an acoustic mode at Γ below which it is imaginary [THz]; others are so below zero."""
MODES = "mode_kappa_tot_rta"
"""Column with the conductivities of modes."""
BOUNDARY = 1e6
"""Mean free path between boundaries [µm]: far beyond any phonon's."""
COHERENCE = "SMM19"
"""phono3py's name of the transport equation."""
SECOND, THIRD, MESH = "fc2_supercell", "fc3_supercell", "q_point_mesh"
"""Entries of a crystal with its supercells for second and third order, and its mesh of q-points."""


@dataclass(frozen=True, kw_only=True)
class Modes:
    """Thermal conductivities of the modes of a reference."""

    conductivity: Float64[np.ndarray, "points bands"]
    """Trace over three of each mode's conductivity, of all equivalent points together [W/m/K]."""


def can_conduct() -> bool:
    """Return whether phono3py is installed."""
    return importlib.util.find_spec("phono3py") is not None


def conduct_all(
    materials: Iterable[Material | None], calculator: Calculator, folder: Path, name: str
) -> tuple[list[dict[str, Any]], int]:
    """Compute the conductivities of the crystals that have no line yet.

    Args:
        materials: Crystals in order; None for one of another process.
        calculator: Calculator in float64.
        folder: Folder of the files of lines.
        name: Name of the file of this process.

    Returns:
        The rows of all processes by name, and the number of all crystals.

    Raises:
        ImportError: phono3py is not installed.
    """
    rows = {str(row[ID]): row for _, row in read_lines(folder)}
    total = 0
    for material in materials:
        total += 1
        if material is not None and material.id not in rows:
            rows[material.id] = conductivity_row(material, calculator)
            append_line(folder / f"{name}{SUFFIX}", rows[material.id])
            log.info("%s: %s", material.id, *(rows[material.id]["errors"] or ["done"]))
    return [rows[each] for each in sorted(rows)], total


def conductivity_row(material: Material, calculator: Calculator) -> dict[str, Any]:
    """Return the thermal conductivity of a crystal with its modes in the benchmark's columns; null after a failure.

    Args:
        material: Crystal with the entries fc2_supercell, fc3_supercell and q_point_mesh.
        calculator: Calculator of energy, forces and stress, in float64: forces of displaced atoms are small.

    Raises:
        ImportError: phono3py is not installed.
    """
    row: dict[str, Any] = {ID: material.id, "errors": [], "kappa_tot_rta": None, MODES: None}
    try:
        if isinstance(material.structure, InvalidStructure):
            raise material.structure
        atoms = to_atoms(material.structure)
        row["formula"] = atoms.get_chemical_formula()
        row |= _relaxed(atoms, calculator)
        row |= _conducted(atoms, calculator, material.entries, broken=row["broken_symmetry"])
    except (ImportError, *OF_THE_MACHINE):
        raise
    except Exception as error:  # calculators of other programs raise any type
        row["errors"] = [one_line(f"{type(error).__name__}: {error}")]
    return row


def error_of(row: Mapping[str, Any], reference: Modes) -> float:
    """Return the error of the conductivities of a crystal's modes (SRME), 2 without any.

    The columns hold modes summed over equivalent points, so that every one of them weighs the same here.
    """
    if (modes := row.get(MODES)) is None:
        return FAILED_SRME
    predicted = _trace(np.asarray(modes, dtype=np.float64)[0])
    if predicted.shape != reference.conductivity.shape:
        return FAILED_SRME
    return conductivity_error(predicted, reference.conductivity, np.ones(len(predicted)))


def read_references(path: Path) -> dict[str, Modes]:
    """Return the modes of the references in a file with the benchmark's columns, by name.

    Raises:
        FileNotFoundError: there is no such file.
        InvalidStructure: it is damaged.
        ValueError: a row has no name or no conductivities of modes.
    """
    found = {}
    for row in read_records(path):
        name = row.get(ID, row.get("mp_id"))
        average, modes = row.get("mode_kappa_tot_avg"), row.get(MODES, row.get("mode_kappa_tot"))
        if name is None or (average is None and modes is None):
            raise ValueError(
                f"a row has no {ID} or no mode_kappa_tot_avg or mode_kappa_tot_rta, only {abbreviated(str(list(row)))}"
            )
        values = np.asarray(modes if average is None else average, dtype=np.float64)
        values = _trace(values) if average is None else values
        found[str(name)] = Modes(conductivity=values[0] if values.ndim == 3 else values)
    return found


def _relaxed(atoms: ase.Atoms, calculator: Calculator) -> dict[str, Any]:
    """Relax a crystal in place with its symmetry kept, and return what the benchmark records of it."""
    before = _space_group(atoms)
    atoms.calc = calculator
    with _old_way_of_errors():
        atoms.set_constraint(FixSymmetry(atoms))
    target = FrechetCellFilter(atoms, mask=[True, True, True, False, False, False])
    with FIRE(target, logfile=None) as optimizer, _old_way_of_errors():  # pyright: ignore[reportArgumentType] (ASE's hints are too narrow)
        converged = bool(optimizer.run(fmax=MAX_FORCE, steps=MAX_STEPS))
    stress = np.asarray(atoms.get_stress()).reshape(2, 3).max(axis=1)
    atoms.calc = None
    atoms.set_constraint()
    after = _space_group(atoms)
    return {
        "initial_spg_num": before,
        "final_spg_num": after,
        "broken_symmetry": before != after,
        "reached_max_steps": not converged,
        "max_stress": stress.tolist(),
    }


@contextlib.contextmanager
def _old_way_of_errors() -> Iterator[None]:
    """Let ASE call spglib, which warns of a way to report errors that ASE still relies on."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*OLD_ERROR_HANDLING", category=DeprecationWarning)
        yield


def _space_group(atoms: ase.Atoms) -> int:
    import spglib  # pyright: ignore[reportMissingImports]

    cell = (np.asarray(atoms.cell).tolist(), atoms.get_scaled_positions().tolist(), atoms.numbers.tolist())
    with _old_way_of_errors():
        found = spglib.get_symmetry_dataset(cell, symprec=SAME_PLACE)  # pyright: ignore[reportArgumentType] (hints are lists)
    if found is None:
        raise ValueError("its space group cannot be found")
    return int(found.number)


def _conducted(atoms: ase.Atoms, calculator: Calculator, entries: Mapping[str, Any], *, broken: bool) -> dict[str, Any]:
    """Return frequencies, and the conductivity if no mode is imaginary and the symmetry was kept."""
    from phono3py import Phono3py  # pyright: ignore[reportMissingImports]
    from phonopy.structure.atoms import PhonopyAtoms  # pyright: ignore[reportMissingImports]
    from phonopy.structure.cells import guess_primitive_matrix  # pyright: ignore[reportMissingImports]

    if missing := [name for name in (SECOND, THIRD, MESH) if name not in entries]:
        raise ValueError(f"it has no {', '.join(missing)}")
    cell = PhonopyAtoms(symbols=list(atoms.symbols), cell=np.asarray(atoms.cell), positions=atoms.positions)
    crystal = Phono3py(
        cell,
        supercell_matrix=_supercell(entries[THIRD]),
        phonon_supercell_matrix=_supercell(entries[SECOND]),
        primitive_matrix=guess_primitive_matrix(cell, symprec=SAME_PLACE),
        symprec=SAME_PLACE,
    )
    crystal.mesh_numbers = np.asarray(entries[MESH], dtype=np.int64).ravel()
    crystal.generate_displacements(distance=DISPLACEMENT)
    crystal.phonon_forces = _forces(crystal.phonon_supercells_with_displacements, calculator)
    crystal.produce_fc2()
    crystal.symmetrize_fc2()
    crystal.init_phph_interaction(symmetrize_fc3q=False)
    crystal.run_phonon_solver()
    frequencies = np.asarray(crystal.get_phonon_data()[0])
    found = {"has_imag_ph_modes": is_imaginary(frequencies), "ph_freqs": None}
    if found["has_imag_ph_modes"] or broken:
        return found
    crystal.forces = _forces(crystal.supercells_with_displacements, calculator)
    crystal.produce_fc3()
    crystal.symmetrize_fc3()
    crystal.init_phph_interaction(symmetrize_fc3q=False)
    crystal.run_thermal_conductivity(
        temperatures=[TEMPERATURE], is_isotope=True, boundary_mfp=BOUNDARY, transport_type=COHERENCE
    )
    found_by: Any = crystal.thermal_conductivity
    pairs, capacities = found_by.mode_kappa_matrix[0], found_by.mode_heat_capacities
    return found | {
        "ph_freqs": found_by.frequencies.tolist(),
        "kappa_tot_rta": found_by.kappa[0].tolist(),
        MODES: by_mode(pairs, capacities).tolist(),
        "mode_weights": found_by.grid_weights.tolist(),
        "q_points": found_by.qpoints.tolist(),
    }


def by_mode(
    pairs: Float64[np.ndarray, "temperatures points bands bands 6"],
    capacities: Float64[np.ndarray, "temperatures points bands"],
) -> Float64[np.ndarray, "temperatures points bands 6"]:
    """Return the conductivity of each mode: coherence of two is shared by heat capacity, as in the benchmark."""
    one, other = capacities[..., :, None], capacities[..., None, :]
    total = one + other
    shares = np.divide(2 * one, total, out=np.ones_like(total), where=total > 0)
    return np.einsum("tqabc,tqab->tqbc", pairs, shares)


def is_imaginary(frequencies: Float64[np.ndarray, "points bands"]) -> bool:
    """Return whether a crystal has imaginary modes, given its frequencies [THz], those at Γ first."""
    if np.isnan(frequencies).any():
        return True
    acoustic, optical, others = frequencies[0, :3], frequencies[0, 3:], frequencies[1:]
    return bool((acoustic < IMAGINARY).any() or (optical < 0).any() or (others < 0).any())


def _forces(cells: Sequence[Any], calculator: Calculator) -> Float64[np.ndarray, "cells atoms 3"]:
    """Return the forces in displaced supercells; zeros where phono3py leaves one out."""
    first = next(each for each in cells if each is not None)
    found = np.zeros((len(cells), len(first), 3))
    for place, cell in enumerate(cells):
        if cell is not None:
            atoms = ase.Atoms(list(cell.symbols), cell.positions, cell=cell.cell, pbc=True)
            atoms.calc = calculator
            found[place] = atoms.get_forces()
    return found


def _supercell(value: Any) -> np.ndarray:
    """Return a supercell as three multiples or a matrix."""
    numbers = np.asarray(value, dtype=np.int64).ravel()
    if len(numbers) not in (3, 9):
        raise ValueError(f"a supercell has three or nine numbers, not {abbreviated(str(value))}")
    return numbers.reshape(3, 3) if len(numbers) == 9 else numbers


def _trace(tensor: Float64[np.ndarray, "... 6"] | Float64[np.ndarray, "... 3 3"]) -> Float64[np.ndarray, "..."]:
    """Return a third of the trace of tensors of 3×3, or of six components with the diagonal first."""
    if tensor.shape[-2:] == (3, 3):
        return np.trace(tensor, axis1=-2, axis2=-1) / 3
    return tensor[..., :3].mean(axis=-1)
