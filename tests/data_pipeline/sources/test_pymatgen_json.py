"""Corpora in JSON: values known from elsewhere, signs against energy differences, and what is said of bad files.

Of mlearn the published files are read. MPtrj, MatPES and Alexandria cannot be had here: their files are written in the
layout that is documented or that others' readers go by, MPtrj's from real frames of it whose values another source has.
"""

import itertools
import json
import pickle
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.sources import (
    AlexandriaJson,
    AseFiles,
    MlearnJson,
    pymatgen_json,
)
from data_pipeline.structure import InvalidStructure, Structure
from tests.data_pipeline.sources.json_corpora import (
    CELL,
    FORCES,
    KBAR_PER_EV_PER_CUBIC_ANGSTROM,
    SOURCES,
    STRESS,
    alexandria_entry,
    frames,
    matpes_document,
    mlearn_record,
    mptrj_frame,
    mptrj_frames,
    one,
    salt,
    source,
    write,
)


@pytest.fixture(scope="module")
def known(real_data: Path) -> list[Structure]:
    """Real frames of MPtrj with the labels that the redistribution in extended XYZ has."""
    path = str(real_data / "mptrj-1k" / "mptrj-random-1k.xyz")
    keys = {"group_key": "mptrj_traj_id", "id_key": "mptrj_snapshot_id"}
    return list(itertools.islice(AseFiles(files=(path,), **keys), 40))


def test_mptrj_gives_what_its_redistribution_in_extended_xyz_gives(tmp_path: Path, known: list[Structure]) -> None:
    corpus: dict[str, dict[str, Any]] = defaultdict(dict)
    for structure in known:
        corpus[structure.group][structure.id] = mptrj_frame(structure)
    read = list(source("mptrj", write(tmp_path / "MPtrj.json", corpus)))
    by_id = {structure.id: structure for structure in known}
    assert len(read) == len(by_id)
    for structure in read:
        other = by_id[structure.id]
        assert (structure.group, structure.energy) == (other.group, other.energy)
        assert structure.numbers.tolist() == other.numbers.tolist()
        assert structure.pbc.all()
        np.testing.assert_allclose(structure.cell, other.cell)
        np.testing.assert_allclose(structure.positions, other.positions, atol=1e-10)
        np.testing.assert_allclose(structure.forces, other.forces, rtol=1e-6)
        np.testing.assert_allclose(structure.stress, other.stress, rtol=1e-6, atol=1e-12)
    assert max(np.abs(structure.stress).max() for structure in read) > 0.01


def test_both_energies_of_mptrj_are_kept_and_config_says_which_is_trained_on(tmp_path: Path) -> None:
    (record,) = mptrj_frames(1, 1)["mp-0"].values()
    record |= {"uncorrected_total_energy": -208.092, "corrected_total_energy": -220.458}
    structure = one("mptrj", tmp_path, record)
    assert (structure.energy, structure.alternative_energy) == (-208.092, -220.458)
    structure = one("mptrj", tmp_path, record, energy="corrected")
    assert (structure.energy, structure.alternative_energy) == (-220.458, -208.092)
    assert structure.has_alternative_energy


@pytest.mark.parametrize("suffix", ["", ".gz", ".bz2"])
def test_frames_of_mptrj_come_in_order_with_material_and_frame_as_names(tmp_path: Path, suffix: str) -> None:
    read = list(source("mptrj", write(tmp_path / f"MPtrj.json{suffix}", mptrj_frames(3, 2))))
    assert [s.energy for s in read] == [0, 1, 2, 3, 4, 5]
    assert [(s.group, s.id) for s in read[1:4]] == [
        ("mp-0", "mp-0-0-1"),
        ("mvc-1", "mvc-1-0-0"),
        ("mvc-1", "mvc-1-0-1"),
    ]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("part_bytes", [1, 13, 500, 2000, 5000, 10**9])
def test_the_parts_of_mptrj_have_every_frame_once_whatever_their_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part_bytes: int, indent: int | None
) -> None:
    path = tmp_path / "MPtrj.json"
    path.write_text(json.dumps(mptrj_frames(5, 2), indent=indent))
    # every place around one key, and coarse steps over the whole file
    begin = path.read_text().index('"mvc-3"') - 10 if part_bytes == 1 else 0
    monkeypatch.setattr(pymatgen_json, "PART_BYTES", max(part_bytes, 13))
    parts = source("mptrj", path).parts()
    assert sum(part.size for part in parts) == path.stat().st_size
    assert len({part.name for part in parts}) == len(parts)
    read = [frame for part in parts for frame in pickle.loads(pickle.dumps(part)).read()]
    assert [frame.energy for frame in read] == list(range(10))
    for cut in range(begin, begin + 30) if begin else ():
        monkeypatch.setattr(pymatgen_json, "PART_BYTES", cut)
        assert [frame.energy for frame in frames("mptrj", path)] == list(range(10))


def test_a_material_that_a_part_could_not_begin_at_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "MPtrj.json", {"mp-1": mptrj_frames(1, 1)["mp-0"], "agm-1": mptrj_frames(1, 1)["mp-0"]})
    with pytest.raises(InvalidStructure, match=r"after record mp-1/mp-0-0-0 \('agm-1' at byte \d+ is not the id of a"):
        list(source("mptrj", path))


def test_memory_does_not_grow_with_an_mptrj_of_one_long_trajectory(tmp_path: Path) -> None:
    # VmHWM, not ru_maxrss, which a process inherits from the one that started it
    (frame,) = mptrj_frames(1, 1)["mp-0"].values()
    frame["structure"]["sites"] *= 30
    frame["force"] = FORCES * 30
    text, count = json.dumps(frame), 0
    path = tmp_path / "MPtrj.json"
    with path.open("w") as file:
        file.write('{"mp-1": {')
        while file.tell() < 60e6:
            file.write(f'{", " if count else ""}"mp-1-0-{count}": {text}')
            count += 1
        file.write("}}")
    program = f"""
import re
from data_pipeline.sources import MptrjJson
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
before = peak()
count = sum(1 for _ in MptrjJson(mptrj_json=({str(path)!r},)))
print(count, peak() - before)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    frames_read, growth = map(int, run.stdout.split())
    assert frames_read == count
    assert growth < 40_000


def test_six_numbers_of_matpes_are_in_the_order_of_voigt(tmp_path: Path) -> None:
    # https://matpes.ai/dataset documents xx, yy, zz, yz, xz, xy
    structure = one("matpes", tmp_path, matpes_document())
    np.testing.assert_allclose(structure.stress, -STRESS / KBAR_PER_EV_PER_CUBIC_ANGSTROM, rtol=1e-6)
    np.testing.assert_allclose(structure.positions, [[0.1, 0.2, 0.3], [2.0, 2.5, 3.0]])
    np.testing.assert_allclose(structure.forces, FORCES, rtol=1e-6)
    assert (structure.energy, structure.id) == (-7.5, "matpes-20240214_30496_38")
    assert structure.numbers.tolist() == [11, 17]


@pytest.mark.parametrize(
    ("provenance", "group"), [({"original_mp_id": "mp-1"}, "mp-1"), ({"original_mp_id": None}, "ClNa"), (None, "ClNa")]
)
def test_the_group_of_matpes_is_where_it_came_from_or_the_formula(tmp_path: Path, provenance: Any, group: str) -> None:
    assert one("matpes", tmp_path, matpes_document(provenance=provenance)).group == group


def test_an_entry_of_alexandria_has_forces_in_its_sites_and_stress_in_its_data(tmp_path: Path) -> None:
    structure = one("alexandria", tmp_path, alexandria_entry())
    np.testing.assert_allclose(structure.forces, FORCES, rtol=1e-6)
    np.testing.assert_allclose(structure.stress, -STRESS / KBAR_PER_EV_PER_CUBIC_ANGSTROM, rtol=1e-6)
    assert (structure.energy, structure.id, structure.group) == (-7.5, "agm003", "ClNa")


def test_unit_and_sign_of_the_stress_of_alexandria_are_config(tmp_path: Path) -> None:
    structure = one("alexandria", tmp_path, alexandria_entry(), stress_unit="GPa", stress_positive_in="tension")
    np.testing.assert_allclose(structure.stress, 10 * STRESS / KBAR_PER_EV_PER_CUBIC_ANGSTROM, rtol=1e-6)


def test_an_entry_of_alexandria_may_lack_forces_and_stress(tmp_path: Path) -> None:
    structure = one("alexandria", tmp_path, alexandria_entry(structure=salt(), data={"mat_id": "agm1"}))
    assert not structure.has_forces
    assert not structure.has_stress


def test_what_stands_around_the_entries_of_alexandria_is_no_matter(tmp_path: Path) -> None:
    corpus = {"@version": 1, "entries": [alexandria_entry()], "notes": {"entries": [1, 2]}}
    assert len(list(source("alexandria", write(tmp_path / "a.json", corpus)))) == 1


@pytest.mark.parametrize("element", ["Si", "Ge"])
def test_stress_of_mlearn_is_what_strain_does_to_the_energy(real_data: Path, element: str) -> None:
    # along the six elastic modes (xx, yy, zz and the shears xy, yz, zx), E(b) - E(a) = V σ : ε to second order
    path = real_data / "mlearn" / element / "training.json"
    paths: dict[str, dict[float, Structure]] = defaultdict(dict)
    for structure, record in zip(source("mlearn", path), json.loads(path.read_text()), strict=True):
        if found := re.search(r"(mode \d), strain (\S+)", record["description"]):
            paths[found[1]][float(found[2])] = structure
    assert len(paths) == 6
    for strained in paths.values():
        for (_, a), (_, b) in itertools.pairwise(sorted(strained.items())):
            deformation = np.linalg.solve(a.cell, b.cell)
            strain = (deformation + deformation.T) / 2 - np.eye(3)
            work = (a.volume * a.stress + b.volume * b.stress) / 2
            assert b.energy - a.energy == pytest.approx(float((work * strain).sum()), rel=0.05, abs=0.05)


def test_mlearn_has_the_published_numbers_and_all_labels(real_data: Path) -> None:
    files = tuple(str(path) for path in sorted((real_data / "mlearn").glob("*/*.json")))
    read = list(MlearnJson(mlearn_json=files))
    assert len(read) == 877 + 102
    assert {s.has_forces and s.has_stress for s in read} == {True}
    assert len({s.id for s in read}) == len(read)
    assert {s.group for s in read if s.id.startswith("Mo/")} >= {"Mo54 AIMD-NVT", "Mo53 Vacancy", "Mo2 Elastic"}
    last = next(s for s in read if s.id == "Mo/test.json:0")
    assert last.energy == -539.80255298
    # the file: 210.13642, 180.39226, 182.85487, -6.23697, -10.00848, -0.18956
    printed = [[210.13642, -6.23697, -0.18956], [-6.23697, 180.39226, -10.00848], [-0.18956, -10.00848, 182.85487]]
    np.testing.assert_allclose(last.stress, -np.array(printed) / KBAR_PER_EV_PER_CUBIC_ANGSTROM, rtol=1e-6)


def test_without_a_group_of_its_own_an_mlearn_record_is_grouped_by_formula(tmp_path: Path) -> None:
    assert one("mlearn", tmp_path, mlearn_record(group=None)).group == "ClNa"
    assert one("mlearn", tmp_path, mlearn_record(group="Ordnung größer")).group == "ClNa Ordnung größer"


def test_fractional_coordinates_count_and_directions_that_do_not_repeat(tmp_path: Path) -> None:
    record = mlearn_record()
    record["structure"]["sites"][0] |= {"abc": [0.5, -1.0, 0.25], "xyz": [9.0, 9.0, 9.0]}
    record["structure"]["lattice"]["pbc"] = [True, True, False]
    structure = one("mlearn", tmp_path, record)
    np.testing.assert_allclose(structure.positions[0], np.array([0.5, -1.0, 0.25]) @ CELL)
    assert structure.pbc.tolist() == [True, True, False]


def test_isotopes_of_hydrogen_are_hydrogen(tmp_path: Path) -> None:
    record = mlearn_record()
    record["structure"]["sites"][1]["species"][0]["element"] = "D"
    assert one("mlearn", tmp_path, record).numbers.tolist() == [11, 1]


def species(*contents: tuple[str, float]) -> dict[str, Any]:
    structure = salt()
    structure["sites"][1]["species"] = [{"element": element, "occu": occupancy} for element, occupancy in contents]
    return structure


@pytest.mark.parametrize(
    ("corpus", "record", "message"),
    [
        ("matpes", {}, "no entry energy"),
        ("matpes", None, "no entry"),
        ("matpes", matpes_document(energy=None), "no entry energy"),
        ("matpes", matpes_document(energy="failed"), "energy is 'failed', not a number"),
        ("matpes", matpes_document(energy=float("nan")), "energy is nan, not a finite number"),
        ("matpes", matpes_document(forces=None), "no entry forces"),
        ("matpes", matpes_document(forces=FORCES[:1]), "forces has shape"),
        ("matpes", matpes_document(forces=[["x"] * 3] * 2), "could not convert"),
        ("matpes", matpes_document(stress=STRESS.tolist()), r"stress has shape \(3, 3\), expected six numbers"),
        ("matpes", matpes_document(matpes_id=None), "no entry matpes_id"),
        ("matpes", matpes_document(structure=species(("Na", 0.5), ("K", 0.5))), "partly empty or shared"),
        ("matpes", matpes_document(structure=species(("Na", 0.5))), "partly empty or shared"),
        ("matpes", matpes_document(structure=species(("Qq", 1.0))), "unknown element 'Qq'"),
        ("matpes", matpes_document(structure=salt() | {"lattice": None}), "no entry structure.lattice"),
        ("matpes", matpes_document(structure=salt() | {"sites": [{"abc": [0, 0, 0]}]}), "no entry 'species'"),
        ("matpes", matpes_document(structure=salt() | {"sites": 5}), "not iterable"),
        ("alexandria", alexandria_entry(data={}), "no entry data.mat_id"),
        ("alexandria", alexandria_entry(data={"mat_id": "a", "stress": [1.0] * 6}), r"stress has shape \(6,\)"),
        ("mlearn", mlearn_record(outputs={"energy": 1.0, "forces": FORCES}), "no entry outputs.virial_stress"),
    ],
)
def test_a_record_that_cannot_be_used_is_named_and_the_next_one_read(
    tmp_path: Path, corpus: str, record: Any, message: str
) -> None:
    good = {"matpes": matpes_document, "alexandria": alexandria_entry, "mlearn": mlearn_record}[corpus]()
    records = [good, record, good]
    path = write(tmp_path / "a.json", {"entries": records} if corpus == "alexandria" else records)
    first, refused, last = frames(corpus, path)
    assert first.energy == last.energy == -7.5
    assert isinstance(refused, InvalidStructure)
    assert re.search(rf"a\.json, record 1: .*{message}.*\. Correct the record or remove it", str(refused))


@pytest.mark.parametrize("entry", ["structure", "corrected_total_energy", "force", "stress"])
def test_a_frame_of_mptrj_that_lacks_an_entry_is_named(tmp_path: Path, entry: str) -> None:
    corpus = mptrj_frames(2, 2)
    del corpus["mvc-1"]["mvc-1-0-0"][entry]
    read = frames("mptrj", write(tmp_path / "MPtrj.json", corpus))
    assert [isinstance(frame, Structure) for frame in read] == [True, True, False, True]
    assert re.search(rf"MPtrj.json, record mvc-1/mvc-1-0-0: no entry {entry}", str(read[2]))


def read_until_it_breaks(corpus: str, path: Path) -> tuple[int, str]:
    read = []
    with pytest.raises(InvalidStructure) as raised:  # noqa: PT012
        for part in source(corpus, path).parts():
            for frame in part.read():
                assert isinstance(frame, Structure)
                read.append(frame)
    return len(read), str(raised.value)


@pytest.mark.parametrize("suffix", ["", ".gz", ".bz2"])
@pytest.mark.parametrize("corpus", ["mptrj", "matpes", "alexandria"])
def test_a_file_cut_in_the_middle_is_told_with_the_last_record_and_the_byte(
    tmp_path: Path, corpus: str, suffix: str
) -> None:
    layout = {
        "mptrj": mptrj_frames(2, 2),
        "matpes": [matpes_document()] * 4,
        "alexandria": {"entries": [alexandria_entry()] * 4},
    }[corpus]
    labels = {"mptrj": ["mp-0/mp-0-0-0", "mp-0/mp-0-0-1", "mvc-1/mvc-1-0-0", "mvc-1/mvc-1-0-1"]}.get(corpus, "0123")
    packed = write(tmp_path / f"whole.json{suffix}", layout).read_bytes()
    path = tmp_path / f"cut.json{suffix}"
    for length in range(0, len(packed), max(1, len(packed) // 40)):
        path.write_bytes(packed[:length])
        count, message = read_until_it_breaks(corpus, path)
        after = f"after record {labels[count - 1]} " if count else "before the first record after byte 0"
        assert re.search(
            rf"cut\.json{suffix}: cannot be read beyond byte \d+.*{after}.*truncated.*fetch it again", message
        )


def test_a_cut_in_the_middle_of_mptrj_is_found_by_the_part_that_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "MPtrj.json", mptrj_frames(6, 2))
    path.write_bytes(path.read_bytes()[:-1500])
    monkeypatch.setattr(pymatgen_json, "PART_BYTES", 3000)
    count, message = read_until_it_breaks("mptrj", path)
    assert count == 10
    assert "after record mvc-5/" not in message


@pytest.mark.parametrize(("corpus", "layout"), [("mptrj", {}), ("matpes", []), ("alexandria", {}), ("mlearn", [])])
def test_a_file_without_records_is_named(tmp_path: Path, corpus: str, layout: Any) -> None:
    with pytest.raises(InvalidStructure, match=r"a\.json: the file holds no records"):
        list(source(corpus, write(tmp_path / "a.json", layout)))


@pytest.mark.parametrize(("corpus", "layout"), [("mptrj", []), ("matpes", {}), ("alexandria", []), ("mlearn", {})])
def test_a_file_of_another_layout_is_named(tmp_path: Path, corpus: str, layout: Any) -> None:
    with pytest.raises(InvalidStructure, match=r"a\.json: cannot be read beyond byte 0, .*of another layout"):
        list(source(corpus, write(tmp_path / "a.json", layout)))


@pytest.mark.parametrize("corpus", list(SOURCES))
def test_a_file_that_is_not_there_is_named(tmp_path: Path, corpus: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent.json: no such file"):
        source(corpus, tmp_path / "absent.json").parts()


def test_parts_are_files_and_travel_to_other_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORPUS", str(tmp_path))
    for number in range(2):
        (tmp_path / str(number)).mkdir()
        write(tmp_path / str(number) / "a.json.bz2", {"entries": [alexandria_entry(energy=number)]})
    parts = AlexandriaJson(alexandria_json=("${CORPUS}/0/a.json.bz2", "${CORPUS}/1/a.json.bz2")).parts()
    assert [part.name for part in parts] == ["0/a.json.bz2", "1/a.json.bz2"]
    assert [part.size for part in parts] == [(tmp_path / part.name).stat().st_size for part in parts]
    read = [frame for part in parts for frame in pickle.loads(pickle.dumps(part)).read()]
    assert [frame.energy for frame in read] == [0.0, 1.0]


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
            alexandria_entry(data={"mat_id": "a", "virial": STRESS.tolist()}),
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
    with pytest.raises(InvalidStructure, match=rf"corpus\.json, record 0: .*({message})"):
        one(corpus, tmp_path, record)


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
