"""JSON corpora as tests write them: records in the layouts that are documented, or that others' readers go by."""

import bz2
import gzip
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.sources import AlexandriaJson, MatpesJson, MlearnJson, MptrjJson, Source
from data_pipeline.structure import SYMBOLS, Structure

KBAR_PER_EV_PER_CUBIC_ANGSTROM = 1602.1766208
STRESS = np.array([[1.0, 6.0, 5.0], [6.0, 2.0, 4.0], [5.0, 4.0, 3.0]])
FORCES = [[0.1, 0.2, 0.3], [-0.1, -0.2, -0.3]]
CELL = np.array([[4.0, 0.0, 0.0], [1.0, 5.0, 0.0], [0.5, -0.5, 6.0]])


def lattice_and_sites(cell: np.ndarray, numbers: np.ndarray, positions: np.ndarray) -> dict[str, Any]:
    """pymatgen's Structure.as_dict()."""
    sites = [
        {
            "species": [{"element": SYMBOLS[number], "occu": 1}],
            "abc": abc.tolist(),
            "xyz": xyz.tolist(),
            "properties": {"magmom": -0.0},
            "label": SYMBOLS[number],
        }
        for number, xyz, abc in zip(numbers, positions, positions @ np.linalg.inv(cell), strict=True)
    ]
    lattice = {"matrix": cell.tolist(), "pbc": [True] * 3, "a": 1.0, "alpha": 90.0, "volume": 1.0}
    return {
        "@module": "pymatgen.core.structure",
        "@class": "Structure",
        "charge": 0.0,
        "lattice": lattice,
        "sites": sites,
    }


def salt() -> dict[str, Any]:
    return lattice_and_sites(CELL, np.array([11, 17]), np.array([[0.1, 0.2, 0.3], [2.0, 2.5, 3.0]]))


def mptrj_frame(structure: Structure) -> dict[str, Any]:
    return {
        "structure": lattice_and_sites(structure.cell, structure.numbers, structure.positions),
        "uncorrected_total_energy": structure.energy,
        "corrected_total_energy": structure.energy - 1.5,
        "energy_per_atom": (structure.energy - 1.5) / structure.num_atoms,
        "ef_per_atom": -1.0,
        "e_per_atom_relaxed": -5.0,
        "ef_per_atom_relaxed": -1.1,
        "force": structure.forces.tolist(),
        "stress": (-KBAR_PER_EV_PER_CUBIC_ANGSTROM * structure.stress).tolist(),
        "magmom": None,
        "bandgap": 0.5,
        "mp_id": structure.group,
    }


def mptrj_frames(materials: int = 3, frames: int = 2) -> dict[str, Any]:
    """A corpus of the layout of MPtrj; the energy of a frame is its number."""
    number = itertools.count()
    return {
        f"{kind}-{m}": {
            f"{kind}-{m}-0-{f}": {
                "structure": salt(),
                "uncorrected_total_energy": float(next(number)),
                "corrected_total_energy": -1,
                "force": FORCES,
                "stress": STRESS.tolist(),
                "mp_id": f"{kind}-{m}",
            }
            for f in range(frames)
        }
        for m, kind in zip(range(materials), itertools.cycle(["mp", "mvc"]), strict=False)
    }


def matpes_document(**changes: Any) -> dict[str, Any]:
    document = {
        "builder_meta": {"emmet_version": "0.1"},
        "nsites": 2,
        "elements": ["Na", "Cl"],
        "structure": salt(),
        "energy": -7.5,
        "forces": FORCES,
        "stress": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
        "matpes_id": "matpes-20240214_30496_38",
        "bandgap": 0.0,
        "functional": "PBE",
        "ddec6": None,
        "provenance": {"original_mp_id": "mp-30496", "md_ensemble": "NpT", "md_step": 726},
    }
    return document | changes


def alexandria_entry(**changes: Any) -> dict[str, Any]:
    structure = salt()
    for site, force in zip(structure["sites"], FORCES, strict=True):
        site["properties"] = {"charge": 1.0, "forces": force, "magmom": 0.0}
    entry = {
        "@module": "pymatgen.entries.computed_entries",
        "@class": "ComputedStructureEntry",
        "energy": -7.5,
        "composition": {"Na": 1.0, "Cl": 1.0},
        "entry_id": None,
        "correction": 0.0,
        "parameters": {},
        "data": {"mat_id": "agm003", "stress": STRESS.tolist(), "energy_total": -7.5, "e_above_hull": 0.0},
        "structure": structure,
    }
    return entry | changes


def mlearn_record(**changes: Any) -> dict[str, Any]:
    outputs = {"energy": -7.5, "forces": FORCES, "virial_stress": [1.0, 2.0, 3.0, 6.0, 4.0, 5.0]}
    return {"structure": salt(), "outputs": outputs, "group": "Elastic", "tag": "train"} | changes


SOURCES = {"mptrj": MptrjJson, "matpes": MatpesJson, "alexandria": AlexandriaJson, "mlearn": MlearnJson}


def source(corpus: str, path: Path, **options: Any) -> Source:
    return SOURCES[corpus](**{f"{corpus}_json": (str(path),)}, **options)


def frames(corpus: str, path: Path) -> list:
    """Everything that the parts yield, refused frames too."""
    return [frame for part in source(corpus, path).parts() for frame in part.read()]


def write(path: Path, corpus: Any) -> Path:
    text = json.dumps(corpus).encode()
    path.write_bytes({".gz": gzip.compress, ".bz2": bz2.compress}.get(path.suffix, bytes)(text))
    return path


def one(corpus: str, folder: Path, record: Any, **options: Any) -> Structure:
    layout = {"mptrj": {"mp-1": {"mp-1-0-0": record}}, "alexandria": {"entries": [record]}}.get(corpus, [record])
    (structure,) = source(corpus, write(folder / "corpus.json", layout), **options)
    return structure
