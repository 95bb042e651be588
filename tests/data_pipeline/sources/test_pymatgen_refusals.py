"""Corpora in JSON: records that mean something else than their numbers say, and texts that are built to hurt."""

import json
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.sources import AlexandriaJson, MatpesJson
from data_pipeline.structure import InvalidStructure

FORCES = [[0.1, 0.2, 0.3], [-0.1, -0.2, -0.3]]


def salt() -> dict[str, Any]:
    """pymatgen's Structure.as_dict(), as far as it is read."""
    sites = [
        {"species": [{"element": symbol, "occu": 1}], "abc": abc, "properties": {"magmom": -0.0}}
        for symbol, abc in (("Na", [0.0, 0.1, 0.2]), ("Cl", [0.5, 0.5, 0.6]))
    ]
    matrix = [[4.0, 0.0, 0.0], [1.0, 5.0, 0.0], [0.5, -0.5, 6.0]]
    return {"charge": 0.0, "lattice": {"matrix": matrix, "pbc": [True] * 3, "volume": 120.0}, "sites": sites}


def matpes_document(**changes: Any) -> dict[str, Any]:
    document = {"structure": salt(), "energy": -7.5, "forces": FORCES, "stress": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]}
    return {**document, "matpes_id": "a", "bandgap": 0.0, **changes}


def alexandria_entry(**changes: Any) -> dict[str, Any]:
    structure = salt()
    for site, force in zip(structure["sites"], FORCES, strict=True):
        site["properties"] = {"charge": 1.0, "forces": force}
    data = {"mat_id": "a", "stress": [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]}
    return {"energy": -7.5, "data": data, "structure": structure, **changes}


def frames(corpus: str, path: Path) -> list:
    """Everything that the parts yield, refused frames too."""
    kind = {"matpes": MatpesJson, "alexandria": AlexandriaJson}[corpus]
    return [frame for part in kind(**{f"{corpus}_json": (str(path),)}).parts() for frame in part.read()]


def _without_forces(name: str) -> dict[str, Any]:
    entry = alexandria_entry()
    for site in entry["structure"]["sites"]:
        site["properties"] = {name: site["properties"]["forces"]}
    return entry


def _with_lattice(**changes: Any) -> dict[str, Any]:
    structure = salt()
    structure["lattice"] |= changes
    return matpes_document(structure=structure)


@pytest.mark.parametrize(
    ("corpus", "record", "message"),
    [
        ("matpes", matpes_document(energy=True), "energy is True, not a number"),
        ("matpes", matpes_document(forces=[[True, 0.2, 0.3], [0.1, 0.2, 0.3]]), "forces: could not convert bool"),
        ("matpes", matpes_document(stress=[True, 2.0, 3.0, 4.0, 5.0, 6.0]), "stress: could not convert bool"),
        ("matpes", _with_lattice(pbc=["true"] * 3), "pbc is .*not three of true and false"),
        ("matpes", _with_lattice(PBC=[True] * 3, pbc=[False] * 3), "'PBC'.* call it 'pbc'"),
        ("matpes", _with_lattice(matrix=[[True, 0, 0], [0, 4.0, 0], [0, 0, 4.0]]), "matrix: could not convert bool"),
        ("matpes", matpes_document(charge=1), r"has charge 1 .*\(by charge\)"),
        ("matpes", matpes_document(structure={**salt(), "charge": -2}), "has charge -2 "),
        (
            "matpes",
            matpes_document(structure={**salt(), "lattice": [1, 2]}),
            "no entry structure.*|AttributeError|no entry",
        ),
        ("matpes", matpes_document(structure={**salt(), "sites": [1, 2]}), "TypeError"),
        ("alexandria", _without_forces("REF_forces"), "entry 'REF_forces' looks like it"),
        (
            "alexandria",
            alexandria_entry(data={"mat_id": "a", "virial": [[1, 0, 0], [0, 1, 0], [0, 0, 1]]}),
            "entry 'virial' looks like it",
        ),
        (
            "alexandria",
            alexandria_entry(data={"mat_id": "a", "stress": [[1, 2, 3], [4, 5, 6], [7, 8, 900]]}),
            "symmetric",
        ),
    ],
)
def test_what_means_something_else_is_refused_by_name(tmp_path: Path, corpus: str, record: Any, message: str) -> None:
    layout = {"entries": [record]} if corpus == "alexandria" else [record]
    (tmp_path / "corpus.json").write_text(json.dumps(layout))
    (frame,) = frames(corpus, tmp_path / "corpus.json")
    with pytest.raises(InvalidStructure, match=rf"corpus\.json, record 0: .*({message})"):
        raise frame


def test_a_key_that_stands_twice_refuses_its_record_and_no_other(tmp_path: Path) -> None:
    first, second = (json.dumps(matpes_document(matpes_id=name)) for name in "ab")
    (tmp_path / "corpus.json").write_text(f'[{{"energy": -9, {first[1:]}, {second}]')
    refused, read = frames("matpes", tmp_path / "corpus.json")
    assert "record 0: the key 'energy' occurs twice" in str(refused)
    assert read.id == "b"
    place = second.index('"abc"')
    (tmp_path / "corpus.json").write_text(f'[{second[:place]}"abc": [0, 0, 0], {second[place:]}]')
    (refused,) = frames("matpes", tmp_path / "corpus.json")
    assert "the key 'abc' occurs twice" in str(refused)


def test_lists_too_deep_for_the_parser_end_in_a_sentence(tmp_path: Path) -> None:
    text = json.dumps([matpes_document()]).replace('"bandgap": 0.0', f'"bandgap": {"[" * 100_000}{"]" * 100_000}')
    (tmp_path / "corpus.json").write_text(text)
    with pytest.raises(InvalidStructure, match=r"corpus\.json: cannot be read beyond byte 1, .*nested too deeply"):
        frames("matpes", tmp_path / "corpus.json")
