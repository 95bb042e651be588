"""Large files in parts: the same frames, names and refusals as in one go, and what a scan finds beforehand."""

import gzip
import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import ase
import ase.db
import ase.io
import numpy as np
import pytest
from ase.build import molecule

from data_pipeline.sources import AseFiles, Frame, Part, ase_files
from data_pipeline.structure import InvalidStructure, Structure

ARRAYS = ("numbers", "positions", "cell", "pbc", "forces", "stress")


def content(frames: Sequence[Frame]) -> list[tuple]:
    """Everything in each frame, bit by bit; the message of a refused one."""
    return [
        (frame.energy, frame.alternative_energy, frame.id, frame.group, *(getattr(frame, a).tobytes() for a in ARRAYS))
        if isinstance(frame, Structure)
        else str(frame)
        for frame in frames
    ]


def read_parts(parts: Sequence[Part]) -> list[Frame]:
    """Every frame, after the journey of its part to another process."""
    return [frame for part in parts for frame in pickle.loads(pickle.dumps(part)).read()]


def test_mptrj_in_parts_is_mptrj_in_one(real_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = real_data / "mptrj-1k" / "mptrj-random-1k.xyz"
    source = AseFiles(files=(str(path),))
    (whole,) = source.parts()
    monkeypatch.setattr(ase_files, "PART_BYTES", 400_000)
    parts = source.parts()
    assert sum(part.size for part in parts) == whole.size == path.stat().st_size
    assert len({part.name for part in parts}) == len(parts) == 10
    assert content(read_parts(parts)) == content(list(whole.read()))
    assert parts[0].name.startswith("mptrj-random-1k.xyz:0-")
    assert parts[-1].name.endswith("-999")


@pytest.mark.parametrize(("share", "num_parts"), [(0.0, 3), (0.2, 3), (0.4, 2), (0.9, 1)])
def test_cuts_fall_between_frames(
    copper_file: Path, monkeypatch: pytest.MonkeyPatch, share: float, num_parts: int
) -> None:
    source = AseFiles(files=(str(copper_file),))
    whole = content(list(source))
    monkeypatch.setattr(ase_files, "PART_BYTES", int(share * copper_file.stat().st_size) + 1)
    parts = source.parts()
    assert len(parts) == num_parts
    assert content(read_parts(parts)) == whole
    assert [frame.id for frame in read_parts(parts)] == [f"copper.extxyz:{number}" for number in range(3)]


def test_windows_line_ends_and_blank_lines_at_the_end_change_nothing(
    copper_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = AseFiles(files=(str(copper_file),))
    whole = content(list(source))
    copper_file.write_bytes(copper_file.read_bytes().replace(b"\n", b"\r\n") + b"\r\n\r\n")
    assert content(list(source)) == whole
    monkeypatch.setattr(ase_files, "PART_BYTES", 600)
    assert content(read_parts(source.parts())) == whole


def test_a_bad_frame_is_refused_and_the_next_ones_are_read(copper_file: Path) -> None:
    text = copper_file.read_text()
    begin = text.index("\n4\n") + 1
    copper_file.write_text(text[:begin] + text[begin:].replace("Cu  ", "Cu  x", 1))
    (part,) = AseFiles(files=(str(copper_file),)).parts()
    first, second, third = part.read()
    assert isinstance(second, InvalidStructure)
    assert "copper.extxyz, frame 1: cannot be read" in str(second)
    assert [frame.energy for frame in (first, third) if isinstance(frame, Structure)] == [-10.0, -12.0]


def test_damage_in_a_large_file_is_found_before_anything_is_read(
    copper_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ase_files, "PART_BYTES", 600)
    text = copper_file.read_text()
    copper_file.write_text(text.replace("\n4\n", "\n\n4\n", 1))
    with pytest.raises(InvalidStructure, match=r"copper.extxyz: a blank line after frame 0"):
        AseFiles(files=(str(copper_file),)).parts()
    copper_file.write_text(text[:-200])
    with pytest.raises(InvalidStructure, match=r"copper.extxyz, frame 2: .*truncated"):
        AseFiles(files=(str(copper_file),)).parts()


def test_a_compressed_file_is_one_part_and_checked_all_the_same(
    copper_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ase_files, "PART_BYTES", 1)
    text = copper_file.read_text()
    packed = copper_file.with_name("copper.xyz.gz")
    packed.write_bytes(gzip.compress(text.encode()))
    (part,) = AseFiles(files=(str(packed),)).parts()
    assert [frame.energy for frame in part.read() if isinstance(frame, Structure)] == [-10.0, -11.0, -12.0]
    packed.write_bytes(gzip.compress(text.replace("\n4\n", "\n\n4\n", 1).encode()))
    with pytest.raises(InvalidStructure, match=r"copper.xyz.gz: a blank line after frame 0"):
        list(AseFiles(files=(str(packed),)))
    packed.write_bytes(gzip.compress(text.encode())[:-40])
    with pytest.raises(InvalidStructure, match=r"copper.xyz.gz, frames from 0: cannot be read \(EOFError"):
        list(AseFiles(files=(str(packed),)))


def test_a_database_in_parts_is_the_database_in_one(real_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = real_data / "mptrj-db" / "10_thin_mp_traj_systems.db"
    source = AseFiles(files=(str(path),), group_key="mp_id", alternative_energy_key="corrected_total_energy")
    whole = list(source)
    monkeypatch.setattr(ase_files, "PART_ROWS", 3)
    parts = source.parts()
    assert [part.name.split(":")[1] for part in parts] == ["1-3", "4-6", "7-9", "10-11"]
    assert content(read_parts(parts)) == content(whole)
    # mp-1205402 as published: the energy that VASP computed, and the one with the corrections of MP2020
    assert (whole[0].group, whole[0].energy, round(whole[0].alternative_energy, 7)) == (
        "mp-1205402",
        -208.0919485,
        -220.4579485,
    )


def test_either_energy_of_a_database_can_be_the_one_trained_on(real_data: Path) -> None:
    path = real_data / "mptrj-db" / "10_thin_mp_traj_systems.db"
    keys = {"energy_key": "corrected_total_energy", "alternative_energy_key": "energy"}
    first = next(iter(AseFiles(files=(str(path),), **keys)))
    assert (round(first.energy, 7), first.alternative_energy) == (-220.4579485, -208.0919485)
    with pytest.raises(
        InvalidStructure, match=r"none of 11 frames has an entry 'corected'; correct alternative_energy"
    ):
        list(AseFiles(files=(str(path),), alternative_energy_key="corected"))


def test_rows_keep_their_names_where_others_are_deleted(
    tmp_path: Path, copper_frames: list[ase.Atoms], monkeypatch: pytest.MonkeyPatch
) -> None:
    with ase.db.connect(tmp_path / "copper.db") as database:
        for number in range(9):
            database.write(copper_frames[number % 3], number=number)
        database.delete([2, 4, 5, 6])
    monkeypatch.setattr(ase_files, "PART_ROWS", 3)
    source = AseFiles(files=(str(tmp_path / "copper.db"),), group_key="number")
    assert [(s.id, s.group) for s in source] == [(f"copper.db:{row}", str(row - 1)) for row in (1, 3, 7, 8, 9)]


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "copper.db").write_bytes(b"no SQLite format " * 100)
    with pytest.raises(InvalidStructure, match=r"copper.db, newest row: cannot be read \(DatabaseError"):
        AseFiles(files=(str(tmp_path / "copper.db"),)).parts()


def test_an_empty_database_is_named(tmp_path: Path, copper_frames: list[ase.Atoms]) -> None:
    with ase.db.connect(tmp_path / "copper.db") as database:
        database.delete([database.write(copper_frames[0])])
    with pytest.raises(InvalidStructure, match=r"copper.db: the file holds no frames"):
        AseFiles(files=(str(tmp_path / "copper.db"),)).parts()


def test_each_process_of_mpi_reads_its_own_file(tmp_path: Path, copper_frames: list[ase.Atoms]) -> None:
    # left to itself, ASE under MPI reads on the first process only, and every process gets the frames of its file
    for number, atoms in enumerate(copper_frames[:2]):
        ase.io.write(tmp_path / f"{number}.traj", atoms)
    script = f"""
from mpi4py import MPI
from data_pipeline.sources import AseFiles
rank = MPI.COMM_WORLD.rank
(structure,) = AseFiles(files=({str(tmp_path)!r} + f"/{{rank}}.traj",))
open({str(tmp_path)!r} + f"/{{rank}}.txt", "w").write(str(structure.energy))
"""
    command = [str(Path(sys.executable).with_name("mpiexec")), "-n", "2", sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)] == ["-10.0", "-11.0"]


def test_numbers_of_any_form_are_a_stress_and_nothing_else_is() -> None:
    tensor = np.array([[1.0, 6.0, 5.0], [6.0, 2.0, 4.0], [5.0, 4.0, 3.0]])
    for form in ([1, 2, 3, 4, 5, 6], tensor.reshape(9).tolist(), tensor):
        np.testing.assert_array_equal(ase_files.full_stress(form), tensor)
    with pytest.raises(InvalidStructure, match="not numbers"):
        ase_files.full_stress("none")


def test_the_formula_is_ases(real_data: Path) -> None:
    for atoms in ase.io.iread(real_data / "alexandria-1k" / "alexandria-random-1k.xyz", index="::5"):
        assert ase_files.hill_formula(atoms.numbers) == atoms.get_chemical_formula()
    for name in ("CH3CH2OH", "H2O", "C6H6", "SiH4", "HCl", "CO"):
        assert ase_files.hill_formula(molecule(name).numbers) == molecule(name).get_chemical_formula()
