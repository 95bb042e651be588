"""Small files that failed once, each with the right value that its README gives."""

import logging
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from data_pipeline.building.build import BuildConfig, build
from data_pipeline.building.filters import FilterConfig
from data_pipeline.sources import (
    AlexandriaJson,
    AseFiles,
    AseLmdb,
    DeepmdNpy,
    MaceHdf5,
    MatpesJson,
    MptrjJson,
    Source,
)
from data_pipeline.store.manifest import Provenance
from data_pipeline.structure import InvalidStructure, Structure

SOURCES: dict[str, Callable[[str], Source]] = {
    "": lambda path: AseFiles(files=(path,)),
    "alex": lambda path: AlexandriaJson(alexandria_json=(path,)),
    "aselmdb": lambda path: AseLmdb(aselmdb=(path,)),
    "deepmd": lambda path: DeepmdNpy(deepmd_npy=(path,)),
    "mace": lambda path: MaceHdf5(mace_hdf5=(path,)),
    "matpes": lambda path: MatpesJson(matpes_json=(path,)),
    "mptrj": lambda path: MptrjJson(mptrj_json=(path,)),
}
"""Source of a file, by the beginning of its name."""

CASES = {
    "k3_labels_under_other_names.xyz": [
        "'force'.*--source.forces_key force",
        "'REF_forces'.*--source.forces_key REF_forces",
        "'properties'.*call it 'Properties'",
        "7 columns and Properties declare 4",
        "'virial'.*--source.virials_key virial",
        "'REF_stress'.*--source.stress_key REF_stress",
    ],
    "k4_geometry_keys.xyz": [
        "'lattice'.*call it 'Lattice'",
        "'Cell'.*call it 'Lattice'",
        "pbc is 'FFF'",
        "pbc is 'p p f'",
        r"pbc is '\[T, T, F\]'",
    ],
    "k5_what_ase_lets_pass.xyz": [
        "8 columns",
        "stress is not symmetric",
        "energy.*True, not a number",
        "'energy' .*twice",
    ],
    "k7_molecule_stress.xyz": [-7.5, "no volume", -7.5],
    "k9_charged.xyz": ["spin multiplicity 2", r"charge 1 .*by charge, spin\)", r"charge -1 .*by charge, spin\)"],
    "k11_free_energy_only.xyz": [r"--source.energy_key\): the frame has 'free_energy' \(-7.5\)"],
    "OUTCAR.converged": [-7.5, -7.4],
    "OUTCAR.nostress": [-7.5],
    "OUTCAR.unconverged": [-7.5, "did not converge", -7.4],
    "OUTCAR.mlff-train": [-7.5, "predicted", "predicted", -7.4],
    "OUTCAR.mlff-run": ["predicted", "predicted", "all 2 steps are machine-learned"],
    "fuzz/outcar_stars_stress.OUTCAR": ["stress is not six numbers"],
    "fuzz/extxyz_stress_asym.xyz": ["stress is not symmetric", -14.5, -15.5, -16.5],
    "fuzz/extxyz_energy_dup_key.xyz": ["'energy' occurs twice", -14.5, -15.5, -16.5],
    "fuzz/alex_deep_nesting.json": ["nested too deeply"],
    "fuzz/aselmdb_energy_true": ["row 1: the energy energy is True, not a number", -14.5, -15.5, -16.5],
    "fuzz/aselmdb_kvp_list": ["row 1: key_value_pairs is a list of 2", -14.5, -15.5, -16.5],
    "fuzz/aselmdb_nextid_1e12": ["holds 4 rows where its counters say 999,999,999,999"],
    "fuzz/aselmdb_row_deep_json": [-13.5, "row 2: is damaged.*too deep", -15.5, -16.5],
    "fuzz/aselmdb_row_deep_json_ok": [-13.5, "row 2: is damaged.*too deep", -15.5, -16.5],
    "fuzz/deepmd_coord_bool": ["coord.npy: is of type 'bool'"],
    "fuzz/deepmd_header_neg": ["coord.npy: cannot be read"],
    "fuzz/deepmd_real_types_float": ["real_atom_types.npy: is of type float64"],
    "fuzz/deepmd_type_neg": ["type.raw: type -1 is not valid"],
    "fuzz/deepmd_type_neg2": ["type.raw: type -2 is not valid"],
    "fuzz/mace_new_batch_is_dataset.h5": ["config_batch_0 is not a group"],
    "fuzz/mace_old_soft_link_loop.h5": ["config_0: forces is a link", -14.5, -15.5, -16.5],
    "fuzz/matpes_abc_huge.json": ["record 0: positions has a value beyond", -14.5, -15.5, -16.5],
    "fuzz/mptrj_forces_bool.json": ["mp-1-0-0: forces: could not convert bool", -14.5, -15.5, -16.5],
    "fuzz/mptrj_pbc_strings.json": ["mp-1-0-0: pbc is .*, not three of true and false", -14.5, -15.5, -16.5],
}
"""Energy of each frame that is right [eV], or what is said of one that is not; a message that ends reading is last."""


def read(path: Path) -> list[float | str]:
    beginning = next(name for name in sorted(SOURCES, reverse=True) if path.name.startswith(name))
    found: list[float | str] = []
    try:
        for part in SOURCES[beginning](str(path)).parts():
            for frame in part.read():
                found.append(frame.energy if isinstance(frame, Structure) else str(frame))
    except InvalidStructure as error:
        found.append(str(error))
    return found


@pytest.mark.parametrize("name", CASES)
def test_every_frame_is_right_or_refused_by_name(real_data: Path, name: str) -> None:
    path = real_data.parent / "cases" / name
    found = read(path)
    assert len(found) == len(CASES[name]), found
    for number, (value, expected) in enumerate(zip(found, CASES[name], strict=True)):
        if isinstance(expected, str):
            assert re.search(expected, str(value), re.DOTALL), f"{number}: {value}"
            assert str(path) in str(value)
        else:
            assert value == pytest.approx(expected), f"{number}: {value}"


def test_a_stress_that_says_nothing_is_no_label(real_data: Path) -> None:
    (part,) = AseFiles(files=(str(real_data.parent / "cases" / "k7_molecule_stress.xyz"),)).parts()
    assert [frame.has_stress for frame in part.read() if isinstance(frame, Structure)] == [False, False]


def test_a_build_counts_what_is_left_out_by_reason(
    real_data: Path, tmp_path: Path, provenance: Provenance, caplog: pytest.LogCaptureFixture
) -> None:
    cases = real_data.parent / "cases"
    source = AseFiles(files=(str(cases / "OUTCAR.mlff-train"), str(cases / "OUTCAR.converged")))
    shared = {"provenance": provenance, "val_fraction": 0.0, "test_fraction": 0.0}
    with caplog.at_level(logging.WARNING):
        manifest = build(BuildConfig(source=source, out=tmp_path / "predicted", **shared))
    assert manifest.rejected == {"machine_learned": 2}
    assert manifest.split("train").statistics.num_frames == 4
    assert "2 frames are left out: 2 machine_learned" in caplog.text
    source = AseFiles(files=(str(cases / "OUTCAR.mlff-train"), str(cases / "OUTCAR.unconverged")))
    config = BuildConfig(source=source, out=tmp_path / "both", filters=FilterConfig(invalid="reject"), **shared)
    assert build(config).rejected == {"invalid": 1, "machine_learned": 2}
