"""The .aselmdb shards of the OMat24 family: written here by ase-db-backends, as their authors wrote them."""

import json
import pickle
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import ase
import ase.io
import lmdb
import numpy as np
import pytest
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect

from data_pipeline.sources import AseFiles, AseLmdb, aselmdb
from data_pipeline.structure import InvalidStructure, Structure

ARRAYS = ("numbers", "positions", "cell", "pbc", "forces", "stress")
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, copper_frames: list[ase.Atoms]) -> Write:
    """Write a shard of `count` rows, with the copper frames in turn unless others are given."""

    def write_shard(
        name: str,
        count: int = 3,
        frames: Sequence[ase.Atoms] = copper_frames,
        delete: Sequence[int] = (),
        **data: object,
    ) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with connect(path) as database:
            for number in range(count):
                database.write(frames[number % len(frames)], data={"number": number, **data})
        if delete:
            database = connect(path)
            database.delete(list(delete))
            database.close()
        return path

    return write_shard


def read(*paths: Path, **options: object) -> list[Structure]:
    return list(AseLmdb(aselmdb=tuple(map(str, paths)), **options))


def content(structures: Sequence[Structure]) -> list[tuple]:
    return [(s.energy, s.id, s.group, *(getattr(s, array).tobytes() for array in ARRAYS)) for s in structures]


def alter(path: Path, key: str, change: Callable[[bytes], bytes | None]) -> None:
    """Change or remove one entry of a shard."""
    with lmdb.open(str(path), subdir=False) as environment, environment.begin(write=True) as transaction:
        value = change(transaction.get(key.encode()) or b"")
        _ = transaction.delete(key.encode()) if value is None else transaction.put(key.encode(), value)


@pytest.fixture(scope="module")
def mptrj_shard(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 100 frames of MPtrj's sample."""
    path = tmp_path_factory.mktemp("mptrj") / "mptrj.aselmdb"
    with connect(path) as database:
        for atoms in ase.io.iread(real_data / "mptrj-1k" / "mptrj-random-1k.xyz", index=":100"):
            database.write(atoms, data=atoms.info)
    return path


def test_mptrj_comes_out_as_it_went_in(real_data: Path, mptrj_shard: Path) -> None:
    extxyz = AseFiles(files=(str(real_data / "mptrj-1k" / "mptrj-random-1k.xyz"),))
    structures = read(mptrj_shard)
    assert len(structures) == 100
    for structure, original in zip(structures, extxyz, strict=False):
        assert structure.energy == original.energy
        assert structure.group == original.group
        for array in ARRAYS:
            np.testing.assert_array_equal(getattr(structure, array), getattr(original, array))


def test_the_first_frame_of_mptrj_is_what_its_file_says(mptrj_shard: Path) -> None:
    first = read(mptrj_shard, group_key="mptrj_traj_id", id_key="mptrj_snapshot_id")[0]
    assert (first.id, first.group, first.energy) == ("mp-1080834-0-1", "mp-1080834", -28.75765745)
    # eV/Å³, positive in tension; the file of the shard holds xx, yy, zz, yz, xz, xy
    assert first.stress[0, 0] == np.float32(0.0008926831358242223)
    assert first.stress[0, 2] == first.stress[2, 0] == np.float32(0.0007746200973649859)
    assert first.stress[1, 2] == np.float32(-8.113961863648236e-11)
    assert first.positions[0].tolist() == [3.87535312, -2.33845927, 4.61262141]
    assert first.forces[5, 2] == np.float32(0.0705251)


def test_rows_come_by_number_not_by_the_alphabet(write: Write) -> None:
    structures = read(write("a.aselmdb", 12), group_key="number")
    assert [s.id for s in structures] == [f"a.aselmdb:{row}" for row in range(1, 13)]
    assert [s.group for s in structures] == [str(number) for number in range(12)]


def test_a_shard_in_parts_is_the_shard_in_one(mptrj_shard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = content(read(mptrj_shard))
    monkeypatch.setattr(aselmdb, "PART_ROWS", 7)
    parts = AseLmdb(aselmdb=(str(mptrj_shard),)).parts()
    assert [part.name for part in parts][::14] == ["mptrj.aselmdb:1-7", "mptrj.aselmdb:99-100"]
    frames = [frame for part in parts for frame in pickle.loads(pickle.dumps(part)).read()]
    assert content([frame for frame in frames if isinstance(frame, Structure)]) == whole


@pytest.mark.parametrize("part_rows", [2, 3, 100])
def test_deleted_rows_are_passed_over_and_the_others_keep_their_names(
    write: Write, monkeypatch: pytest.MonkeyPatch, part_rows: int
) -> None:
    monkeypatch.setattr(aselmdb, "PART_ROWS", part_rows)
    path = write("a.aselmdb", 9, delete=(1, 4, 5, 6))
    np.savez(path.with_name("metadata.npz"), natoms=[4, 4, 4, 4, 4])
    assert [(s.id, s.group) for s in read(path, group_key="number")] == [
        (f"a.aselmdb:{row}", str(row - 1)) for row in (2, 3, 7, 8, 9)
    ]


def test_shards_of_a_folder_come_in_the_order_of_their_paths(write: Write, tmp_path: Path) -> None:
    for name in ("val/data.0010.aselmdb", "val/data.0009.aselmdb", "train/deep/data.aselmdb"):
        write(name, 1)
    names = ["train/deep/data.aselmdb:1", "val/data.0009.aselmdb:1", "val/data.0010.aselmdb:1"]
    assert [s.id for s in read(tmp_path)] == names
    assert [s.id for s in read(tmp_path / "val", tmp_path / "train")] == [*names[1:], names[0]]
    assert [s.id for s in read(tmp_path / "val")] == ["data.0009.aselmdb:1", "data.0010.aselmdb:1"]


def test_a_variable_in_the_path_is_filled_in(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMAT", str(write("a.aselmdb").parent))
    assert len(list(AseLmdb(aselmdb=("${OMAT}/a.aselmdb",)))) == 3
    monkeypatch.delenv("OMAT")
    with pytest.raises(FileNotFoundError, match=r"variable in this path is not set.*--source.aselmdb"):
        AseLmdb(aselmdb=("${OMAT}/a.aselmdb",)).parts()


def test_a_path_without_shards_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no .aselmdb file in this folder \(source.aselmdb"):
        AseLmdb(aselmdb=(str(tmp_path),)).parts()
    with pytest.raises(FileNotFoundError, match=r"no such file or folder \(source.aselmdb"):
        AseLmdb(aselmdb=(str(tmp_path / "a"),)).parts()


def test_metadata_of_another_length_is_named(write: Write) -> None:
    path = write("a.aselmdb").with_name("metadata.npz")
    write("b.aselmdb")
    np.savez(path, natoms=np.full(7, 4))
    with pytest.raises(InvalidStructure, match=r"metadata.npz: lists 7 rows, and the 2 shards beside it hold 6"):
        read(path.parent)
    path.write_bytes(b"PK nothing")
    with pytest.raises(InvalidStructure, match=r"metadata.npz: cannot be read"):
        read(path.parent)


def test_metadata_in_another_order_is_named(write: Write) -> None:
    # concatenated over shards that were not sorted
    folder = write("a.aselmdb", 2).parent
    write("b.aselmdb", 2, frames=[_water()])
    np.savez(folder / "metadata.npz", natoms=[4, 4, 3, 3])
    assert [s.num_atoms for s in read(folder)] == [s.num_atoms for s in read(*sorted(folder.glob("*.aselmdb")))]
    np.savez(folder / "metadata.npz", natoms=[3, 3, 4, 4])
    with pytest.raises(InvalidStructure, match=r"b.aselmdb, row 1: has 3 atoms where .*metadata.npz says 4"):
        read(folder / "b.aselmdb")


def _water() -> ase.Atoms:
    atoms = molecule("H2O")
    atoms.calc = SinglePointCalculator(atoms, energy=-2079.5)
    return atoms


def test_a_molecule_has_no_cell_and_absent_labels_are_missing(write: Write) -> None:
    (structure,) = read(write("a.aselmdb", 1, frames=[_water()]))
    assert (structure.has_forces, structure.has_stress, structure.energy) == (False, False, -2079.5)
    assert structure.group == "H2O"
    assert not structure.pbc.any()


@pytest.mark.parametrize(("charge", "spin"), [(1, 1), (-2, 1), (0, 3), (1, 2)])
def test_charge_and_spin_are_refused_unless_kept(write: Write, charge: int, spin: int) -> None:
    path = write("a.aselmdb", 1, frames=[_water()], charge=charge, spin=spin)
    with pytest.raises(InvalidStructure, match=rf"a.aselmdb, row 1: has charge {charge} and spin multiplicity {spin}"):
        read(path)
    assert len(read(path, charged="keep")) == 1


@pytest.mark.parametrize("spin", [0, 1, None])
def test_a_neutral_singlet_is_no_special_case(write: Write, spin: int | None) -> None:
    assert len(read(write("a.aselmdb", 1, charge=0, spin=spin))) == 1


def test_either_energy_can_be_the_one_trained_on(write: Write) -> None:
    path = write("a.aselmdb", 1, corrected=-12.5)
    (structure,) = read(path, alternative_energy_key="corrected")
    assert (structure.energy, structure.alternative_energy) == (-10.0, -12.5)
    (structure,) = read(path, energy_key="corrected")
    assert (structure.energy, structure.has_alternative_energy) == (-12.5, False)
    with pytest.raises(InvalidStructure, match=r"a.aselmdb, row 1: no energy 'c'.*\['corrected', 'number'\]"):
        read(path, energy_key="c")


@pytest.mark.parametrize("option", ["group_key", "id_key"])
def test_a_name_that_is_not_there_is_an_error_that_lists_what_is(write: Write, option: str) -> None:
    with pytest.raises(InvalidStructure, match=r"a.aselmdb, row 1: no name or number 'sid'.*\['number'\]"):
        read(write("a.aselmdb"), **{option: "sid"})


def test_a_flipped_byte_in_a_row_is_refused_and_the_next_ones_are_read(write: Write) -> None:
    path = write("a.aselmdb")
    with lmdb.open(str(path), subdir=False, readonly=True, lock=False) as environment, environment.begin() as reading:
        value = reading.get(b"2")
    stored = path.read_bytes()
    place = stored.index(value) + len(value) // 2
    path.write_bytes(stored[:place] + bytes([stored[place] ^ 1]) + stored[place + 1 :])
    (part,) = AseLmdb(aselmdb=(str(path),)).parts()
    first, second, third = part.read()
    assert isinstance(second, InvalidStructure)
    assert "a.aselmdb, row 2: is damaged" in str(second)
    assert [frame.id for frame in (first, third) if isinstance(frame, Structure)] == ["a.aselmdb:1", "a.aselmdb:3"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda row: {**row, "positions": None}, "has no positions"),
        (lambda row: {**row, "forces": {"__ndarray__": [[5, 3], "float64", [0.0] * 12]}}, "forces is not an array"),
        (lambda row: {**row, "forces": {"values": []}}, "forces is not an array"),
        (lambda row: {**row, "stress": {"__ndarray__": [[7], "float64", [0.0] * 7]}}, r"stress has shape \(7,\)"),
        (lambda row: {**row, "energy": "low"}, "the energy energy is 'low', not a number"),
        (lambda row: {**row, "energy": float("nan")}, "the energy is nan"),
        (lambda row: [row], "is list, not a row"),
        (lambda row: {**row, "energy": True}, "the energy energy is True, not a number"),
        (lambda row: {**row, "forces": [[True, 1.0, 2.0]] * 4}, "forces is not an array .*could not convert bool"),
        (lambda row: {**row, "pbc": ["T", "T", "T"]}, "pbc is .*not three of true and false"),
        (lambda row: {**row, "pbc": [1, 1, 2]}, "pbc is .*not three of true and false"),
        (lambda row: {**row, "stress": [1.0, 2, 3, 4, 5, 6, 7, 8, 9]}, "the stress is not symmetric"),
        (lambda row: {**row, "key_value_pairs": [1]}, "key_value_pairs is a list of 1"),
        (lambda row: {**row, "data": "none"}, "data is 'none'"),
        (lambda row: {**row, "data": {"total_charge": -1}}, r"has charge -1 .*\(by total_charge\)"),
        (lambda row: {**row, "charge": 2}, r"has charge 2 .*\(by charge\)"),
        (lambda row: {**{k: v for k, v in row.items() if k != "forces"}, "force": row["forces"]}, ".*entry 'force'"),
        (lambda row: {**row, "forces": None, "data": {"REF_forces": row["forces"]}}, ".*entry 'REF_forces'"),
        (lambda row: {**row, "stress": None, "data": {"virial": [1, 2, 3, 0, 0, 0]}}, ".*entry 'virial'"),
        (lambda row: {**row, "energy": None, "data": {"E_tot": -3.5}}, r"no energy.*'E_tot' \(-3.5\)"),
    ],
)
def test_a_row_that_is_no_frame_says_why(write: Write, change: Callable, message: str) -> None:
    path = write("a.aselmdb")
    alter(path, "2", lambda value: zlib.compress(json.dumps(change(json.loads(zlib.decompress(value)))).encode()))
    with pytest.raises(InvalidStructure, match=rf"a.aselmdb, row 2: {message}"):
        read(path)


@pytest.mark.parametrize(
    "text",
    [
        b'{"energy": 1, "energy": 2}',
        b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'"' + b" " * 70_000_000 + b'"',
    ],
    ids=["twice", "deep", "bomb"],
)
def test_a_row_that_python_would_read_and_should_not_is_damaged(write: Write, text: bytes) -> None:
    path = write("a.aselmdb")
    alter(path, "2", lambda _: zlib.compress(text))
    with pytest.raises(InvalidStructure, match=r"a.aselmdb, row 2: is damaged"):
        read(path)


@pytest.mark.parametrize("counter", [b"1000000000000", b"true", b"3.5", b'"4"'])
def test_a_counter_that_is_absurd_is_refused_at_once(write: Write, counter: bytes) -> None:
    path = write("a.aselmdb")
    alter(path, "nextid", lambda _: zlib.compress(counter))
    with pytest.raises(InvalidStructure, match=r"a.aselmdb: (holds 3 rows where|its list of rows cannot be read)"):
        read(path)


def test_an_energy_beside_the_one_that_is_read_is_a_warning(write: Write, caplog: pytest.LogCaptureFixture) -> None:
    path = write("a.aselmdb", 2, REF_energy=-3.5)
    assert len(read(path)) == 2
    (record,) = caplog.records
    assert "a.aselmdb, row 1: the entry 'REF_energy' also looks like energy" in record.getMessage()


def test_a_row_that_is_gone_without_being_deleted_is_named(write: Write) -> None:
    path = write("a.aselmdb")
    alter(path, "2", lambda _: None)
    with pytest.raises(InvalidStructure, match=r"a.aselmdb, row 2: is missing"):
        read(path)


def test_rows_beyond_the_counter_are_not_lost_in_silence(write: Write) -> None:
    path = write("a.aselmdb")
    alter(path, "nextid", lambda _: zlib.compress(b"3"))
    with pytest.raises(InvalidStructure, match=r"a.aselmdb: holds 3 rows where its counters say 2"):
        read(path)
    alter(path, "nextid", lambda _: b"3")
    with pytest.raises(InvalidStructure, match=r"a.aselmdb: its list of rows cannot be read"):
        read(path)


@pytest.mark.parametrize("share", [0.999, 0.6, 0.3])
def test_a_file_cut_short_is_named(write: Write, share: float) -> None:
    path = write("a.aselmdb", 60)
    stored = path.read_bytes()
    path.write_bytes(stored[: int(share * len(stored))])
    with pytest.raises(InvalidStructure, match=r"a.aselmdb: truncated, it has [\d,]+ of [\d,]+ bytes"):
        AseLmdb(aselmdb=(str(path),)).parts()


@pytest.mark.parametrize("stored", [b"", b"version https://git-lfs.github.com/spec/v1\n" * 500])
def test_a_file_that_is_no_lmdb_is_named(tmp_path: Path, stored: bytes) -> None:
    (tmp_path / "a.aselmdb").write_bytes(stored)
    with pytest.raises(InvalidStructure, match=r"a.aselmdb: cannot be read as an LMDB file"):
        AseLmdb(aselmdb=(str(tmp_path),)).parts()


def test_a_shard_whose_newest_root_is_lost_is_not_taken_for_an_empty_one(write: Write) -> None:
    path = write("a.aselmdb", 1)
    with lmdb.open(str(path), subdir=False, readonly=True, lock=False) as environment:
        size = environment.stat()["psize"]
    stored = path.read_bytes()
    path.write_bytes(stored[: size + 100] + bytes(size - 100) + stored[2 * size :])
    with pytest.raises(InvalidStructure, match=r"a.aselmdb: "):
        AseLmdb(aselmdb=(str(path),)).parts()


def test_an_empty_shard_has_no_parts(write: Write) -> None:
    assert AseLmdb(aselmdb=(str(write("a.aselmdb", 0)),)).parts() == []


def test_parts_of_one_shard_can_be_read_in_turns_and_the_file_is_let_go(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aselmdb, "PART_ROWS", 3)
    path = write("a.aselmdb", 6)
    first, second = (part.read() for part in AseLmdb(aselmdb=(str(path),)).parts())
    frames = [frame for pair in zip(first, second, strict=True) for frame in pair]
    assert [frame.id.split(":")[1] for frame in frames if isinstance(frame, Structure)] == [
        "1",
        "4",
        "2",
        "5",
        "3",
        "6",
    ]
    with lmdb.open(str(path), subdir=False) as environment:  # which LMDB forbids while another holds it
        assert environment.stat()["entries"] == 7
