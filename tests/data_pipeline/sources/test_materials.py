"""Materials of a benchmark are the same from every file that it is published in, and each keeps its name."""

import bz2
import gzip
import io
import json
import zipfile
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase.build import bulk

from data_pipeline.sources.materials import Material, read_materials, read_records
from data_pipeline.structure import InvalidStructure, Structure
from foundation.interop.matbench import pymatgen_form

CRYSTALS = {
    "wbm-1-1": bulk("NaCl", "rocksalt", a=5.6),
    "wbm-1-2": bulk("Cu", "fcc", a=3.6, cubic=True),
    "wbm-2-7": bulk("Si", "diamond", a=5.4),
}
ENERGIES = {"wbm-1-1": -6.5, "wbm-1-2": -14.0, "wbm-2-7": -10.75}


def frames(*, named: bool = True) -> list[ase.Atoms]:
    found = []
    for number, (name, atoms) in enumerate(CRYSTALS.items()):
        frame = atoms.copy()
        frame.rattle(0.1, seed=number)
        if named:
            frame.info["material_id"] = name
        found.append(frame)
    return found


def text_of(atoms: ase.Atoms) -> str:
    text = io.StringIO()
    ase.io.write(text, atoms, format="extxyz")
    return text.getvalue()


def records(column: str) -> list[dict]:
    """Return records of structures, or of entries with energies."""
    found = []
    for name, atoms in zip(CRYSTALS, frames(), strict=True):
        structure = pymatgen_form(atoms)
        entry = {"@class": "ComputedStructureEntry", "energy": ENERGIES[name], "structure": structure}
        found.append({"material_id": name, "formula": "X", column: entry if "entry" in column else structure})
    return found


def columns_of(rows: list[dict]) -> dict[str, dict]:
    return {name: {str(n): row[name] for n, row in enumerate(rows)} for name in rows[0]}


def written(path: Path, column: str = "initial_structure") -> Path:
    rows = records(column)
    match path.name:
        case "atoms.extxyz":
            path.write_text("".join(map(text_of, frames())))
        case "atoms.extxyz.gz":
            path.write_bytes(gzip.compress("".join(map(text_of, frames())).encode()))
        case "atoms.zip":
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("readme.txt", "not a structure")
                for name, frame in zip(CRYSTALS, frames(named=False), strict=True):
                    archive.writestr(f"inside/{name}.extxyz", text_of(frame))
        case "lines.jsonl.gz":
            path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
        case "list.json":
            path.write_text(json.dumps(rows))
        case "columns.json.bz2":
            path.write_bytes(bz2.compress(json.dumps(columns_of(rows)).encode()))
        case "named.json":
            path.write_text(json.dumps({column: {row["material_id"]: row[column] for row in rows}}))
    return path


IN_JSON = ["lines.jsonl.gz", "list.json", "columns.json.bz2", "named.json"]
FILES = ["atoms.extxyz", "atoms.extxyz.gz", "atoms.zip", *IN_JSON]


@pytest.mark.parametrize("name", FILES)
def test_every_file_has_the_same_materials(name: str, tmp_path: Path) -> None:
    found = list(read_materials(written(tmp_path / name)))
    assert [each.id for each in found if each] == list(CRYSTALS)
    for material, atoms in zip(found, frames(), strict=True):
        assert material is not None
        assert isinstance(material.structure, Structure)
        assert material.structure.numbers.tolist() == atoms.numbers.tolist()
        # extended XYZ has eight decimal digits
        assert material.structure.positions == pytest.approx(atoms.positions, abs=1e-7)
        assert material.structure.cell == pytest.approx(np.asarray(atoms.cell), abs=1e-12)
        assert material.energy is None


@pytest.mark.parametrize("name", IN_JSON)
def test_entries_have_energies(name: str, tmp_path: Path) -> None:
    found = list(read_materials(written(tmp_path / name, "computed_structure_entry")))
    assert {each.id: each.energy for each in found if each} == ENERGIES
    assert all(isinstance(each, Material) and isinstance(each.structure, Structure) for each in found)


@pytest.mark.parametrize("name", FILES)
def test_materials_that_are_not_chosen_keep_their_place(name: str, tmp_path: Path) -> None:
    found = list(read_materials(written(tmp_path / name), chosen=lambda number: number == 1))
    assert [each and each.id for each in found] == [None, "wbm-1-2", None]


def test_other_entries_of_a_frame_are_kept(tmp_path: Path) -> None:
    frame = frames()[0]
    frame.info |= {"fc2_supercell": np.diag([4, 4, 2]), "q_point_mesh": np.array([19, 19, 15])}
    (tmp_path / "crystals.extxyz").write_text(text_of(frame))
    (found,) = read_materials(tmp_path / "crystals.extxyz")
    assert found is not None
    assert np.array_equal(found.entries["fc2_supercell"], np.diag([4, 4, 2]))
    assert np.array_equal(found.entries["q_point_mesh"], [19, 19, 15])


def test_a_forbidden_structure_keeps_its_name(tmp_path: Path) -> None:
    rows = records("structure")
    rows[1]["structure"]["lattice"]["matrix"] = [[0.1, 0, 0], [0, 0.1, 0], [0, 0, 0.1]]
    rows[2]["structure"] = None
    (tmp_path / "list.json").write_text(json.dumps(rows))
    good, dense, missing = read_materials(tmp_path / "list.json")
    assert good is not None
    assert isinstance(good.structure, Structure)
    assert dense is not None
    assert dense.id == "wbm-1-2"
    assert isinstance(dense.structure, InvalidStructure)
    assert missing is not None
    assert missing.id == "wbm-2-7"
    assert "no structure" in str(missing.structure)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("x.extxyz", "".join(map(text_of, frames(named=False))), "no entry 'material_id' names the material"),
        ("x.extxyz", text_of(frames()[0])[:-20], "ends in the middle"),
        ("x.json", json.dumps([{"structure": pymatgen_form(frames()[0])}]), "no entry 'material_id'"),
        ("x.json", json.dumps(records("structure"))[:-200], "truncated"),
        ("x.json", "{}", "no entry 'material_id'"),
        ("x.json", "", "no structures"),
        ("x.cif", "data_x", "rename it"),
        ("x.zip", "not a zip", "BadZipFile"),
    ],
)
def test_a_bad_file_is_refused_with_its_place(name: str, content: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InvalidStructure, match=reason) as caught:
        list(read_materials(tmp_path / name))
    assert name in str(caught.value)


def test_another_entry_may_hold_the_name(tmp_path: Path) -> None:
    frame = frames()[0]
    (tmp_path / "x.extxyz").write_text(text_of(frame).replace("material_id", "mat"))
    assert [each and each.id for each in read_materials(tmp_path / "x.extxyz", "mat")] == ["wbm-1-1"]
    with pytest.raises(FileNotFoundError, match=r"y\.extxyz"):
        list(read_materials(tmp_path / "y.extxyz"))


@pytest.mark.parametrize("layout", ["columns", "list", "lines"])
def test_records_are_read_from_every_layout(layout: str, tmp_path: Path) -> None:
    rows = [{"material_id": "mp-1", "kappa": [1.0]}, {"material_id": "mp-2", "kappa": None}]
    texts = {
        "columns": json.dumps(columns_of(rows)),
        "list": json.dumps(rows),
        "lines": "\n".join(map(json.dumps, rows)),
    }
    (tmp_path / "rows.json.gz").write_bytes(gzip.compress(texts[layout].encode()))
    assert list(read_records(tmp_path / "rows.json.gz")) == rows
