"""Shards: exact round trips, files any webdataset reader can stream, and damage that is found and named."""

import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from data_pipeline.store.block import Block, CorruptShard, encode_block
from data_pipeline.store.index import BlockIndex, SplitIndex, StoredCounts, index_path
from data_pipeline.store.shards import read_block, sha256, shard_writer
from data_pipeline.structure import Structure

ARRAYS = ("numbers", "positions", "cell", "pbc", "forces", "stress")
# webdataset itself leaves its files to the garbage collector, which warns
CLOSED_BY_COLLECTION = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
VALUES = ("energy", "has_forces", "has_stress", "has_alternative_energy", "alternative_energy", "id", "group")


def assert_same_bits(got: Sequence[Structure], expected: Sequence[Structure]) -> None:
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        for name in ARRAYS:
            left, right = getattr(a, name), getattr(b, name)
            assert (left.dtype, left.shape, left.tobytes()) == (right.dtype, right.shape, right.tobytes()), name
        for name in VALUES:
            assert getattr(a, name) == getattr(b, name), name
        assert np.float64(a.energy).tobytes() == np.float64(b.energy).tobytes()


@pytest.fixture
def frames(random_structure: Callable[..., Structure]) -> list[Structure]:
    return [random_structure(n, num_atoms=1 + n % 4, labelled=n % 3 > 0, group=f"group-{n // 2}") for n in range(11)]


@pytest.fixture
def shard(tmp_path: Path, frames: list[Structure]) -> Path:
    """Blocks of 4, 4 and 3 frames, with counts at two cutoffs."""
    path = tmp_path / "train-000000.tar"
    with shard_writer(path, 2) as writer:
        for start in (0, 4, 8):
            block = frames[start : start + 4]
            writer.write(block, [(10 * n, 20 * n) for n in range(start, start + len(block))])
    return path


def load_index(*shards: Path) -> SplitIndex:
    parts = [BlockIndex.load(index_path(shard)) for shard in shards]
    counts = StoredCounts([index_path(shard) for shard in shards].__getitem__, [11] * len(shards), 2)
    return SplitIndex(BlockIndex.joined(parts, 2), counts)


def test_blocks_come_back_bit_by_bit(shard: Path, frames: list[Structure]) -> None:
    index = load_index(shard)
    assert_same_bits([s for block in range(3) for s in read_block(shard, index.blocks, block)], frames)


@CLOSED_BY_COLLECTION
def test_stock_webdataset_iterates_a_shard(shard: Path, frames: list[Structure]) -> None:
    samples = list(webdataset.WebDataset(str(shard), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == ["000000", "000001", "000002"]
    assert_same_bits([s for sample in samples for s in Block(sample["block.safetensors"])], frames)


@CLOSED_BY_COLLECTION
def test_any_safetensors_reader_understands_a_block(shard: Path, frames: list[Structure]) -> None:
    sample = next(iter(webdataset.WebDataset(str(shard), shardshuffle=False)))
    block = safetensors.numpy.load(sample["block.safetensors"])
    np.testing.assert_array_equal(block["num_atoms"], [f.num_atoms for f in frames[:4]])
    np.testing.assert_array_equal(block["energy"], [f.energy for f in frames[:4]])
    np.testing.assert_array_equal(block["positions"], np.concatenate([f.positions for f in frames[:4]]))


def test_the_index_holds_what_planning_needs(shard: Path, frames: list[Structure]) -> None:
    index = load_index(shard)
    assert index.num_frames == 11
    assert index.first_frame.tolist() == [0, 4, 8, 11]
    atoms, edges = index.counts(0, 11)
    assert atoms.tolist() == [f.num_atoms for f in frames]
    assert edges.tolist() == [[10 * n, 20 * n] for n in range(11)]
    blocks = index.blocks
    assert blocks.num_frames.tolist() == [4, 4, 3]
    assert blocks.num_atoms.tolist() == [sum(atoms[:4]), sum(atoms[4:8]), sum(atoms[8:])]
    assert blocks.max_atoms.tolist() == [max(atoms[:4]), max(atoms[4:8]), max(atoms[8:])]
    assert blocks.max_edges.tolist() == [[30, 60], [70, 140], [100, 200]]
    # frame 0 has no edges and counts as one
    assert blocks.cost.tolist() == [[61, 121], [220, 440], [270, 540]]
    with tarfile.open(shard) as tar:
        assert blocks.offset.tolist() == [member.offset_data for member in tar]


def test_indices_of_several_shards_follow_each_other(shard: Path) -> None:
    joined = load_index(shard, shard, shard)
    assert joined.num_frames == 33
    assert joined.blocks.shard.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert joined.first_frame[-1] == 33


@pytest.mark.parametrize(("first", "last"), [(0, 33), (0, 0), (3, 5), (9, 13), (10, 23), (22, 33), (33, 33)])
@pytest.mark.parametrize("few", [0, 33])
def test_counts_of_any_stretch_of_frames_are_read_across_shards(
    shard: Path, first: int, last: int, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_pipeline.store.index.FEW", few)
    index = load_index(shard, shard, shard)
    all_atoms, all_edges = (np.concatenate([part] * 3) for part in load_index(shard).counts(0, 11))
    for _ in range(2):
        atoms, edges = index.counts(first, last)
        np.testing.assert_array_equal(atoms, all_atoms[first:last])
        np.testing.assert_array_equal(edges, all_edges[first:last])


def test_the_index_of_no_shards_is_empty() -> None:
    index = SplitIndex(BlockIndex.joined([], 3), StoredCounts([].__getitem__, [], 3))
    assert index.num_frames == 0
    assert index.counts(0, 0)[1].shape == (0, 3)
    assert index.first_frame.tolist() == [0]


def test_a_block_index_comes_back_from_its_file(shard: Path, tmp_path: Path) -> None:
    blocks = load_index(shard, shard).blocks
    blocks.save(tmp_path / "x.index.safetensors")
    for name, array in vars(BlockIndex.load(tmp_path / "x.index.safetensors")).items():
        np.testing.assert_array_equal(array, getattr(blocks, name))


def test_the_same_frames_give_the_same_bytes(tmp_path: Path, frames: list[Structure]) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        with shard_writer(tmp_path / folder / "x.tar", 1) as writer:
            writer.write(frames, [(n,) for n in range(len(frames))])
    for name in ("x.tar", "x.index.safetensors"):
        assert sha256(tmp_path / "a" / name) == sha256(tmp_path / "b" / name)


def test_other_frames_give_other_bytes(frames: list[Structure]) -> None:
    changed = Structure(**{**vars(frames[0]), "energy": np.nextafter(frames[0].energy, 1e9).item()})
    assert encode_block([changed]) != encode_block([frames[0]])


@pytest.mark.parametrize("place", [0.0, 0.3, 0.99])
@pytest.mark.parametrize("block", [0, 1, 2])
def test_a_flipped_byte_is_found_and_named(shard: Path, block: int, place: float) -> None:
    index = load_index(shard)
    offset = int(index.blocks.offset[block])
    content = bytearray(shard.read_bytes())
    content[offset + int(place * index.blocks.size[block])] ^= 0x10
    shard.write_bytes(content)
    message = rf"train-000000.tar, block at byte {offset}: the checksum does not match; copy or build"
    with pytest.raises(CorruptShard, match=message):
        read_block(shard, index.blocks, block)
    for other in {0, 1, 2} - {block}:
        read_block(shard, index.blocks, other)


def test_a_shard_that_ends_early_is_found_and_named(shard: Path) -> None:
    index = load_index(shard)
    offset, size = int(index.blocks.offset[2]), int(index.blocks.size[2])
    shard.write_bytes(shard.read_bytes()[: offset + 100])
    message = rf"train-000000.tar, block at byte {offset}: the file ends after 100 of {size} bytes"
    with pytest.raises(CorruptShard, match=message):
        read_block(shard, index.blocks, 2)
    assert len(read_block(shard, index.blocks, 1)) == 4


def test_a_missing_shard_is_named(shard: Path) -> None:
    index = load_index(shard)
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=r"train-000000\.tar"):
        read_block(shard, index.blocks, 0)


def test_a_missing_index_is_named(shard: Path) -> None:
    index_path(shard).unlink()
    with pytest.raises(FileNotFoundError, match=r"train-000000\.index\.safetensors"):
        load_index(shard)


def test_an_index_that_cannot_be_read_is_named(shard: Path) -> None:
    content = index_path(shard).read_bytes()
    index_path(shard).write_bytes(content[: len(content) // 2])
    with pytest.raises(CorruptShard, match=r"train-000000\.index\.safetensors: cannot be read.*build"):
        load_index(shard)


@pytest.mark.parametrize("buffer", [b"", b"no block", safetensors.numpy.save({"energy": np.zeros(2)})])
def test_what_is_not_a_block_is_refused(buffer: bytes) -> None:
    with pytest.raises(CorruptShard, match="not a block of frames"):
        Block(buffer)


def test_positions_in_float32_are_rounded_and_nothing_else(frames: list[Structure]) -> None:
    rounded = [Structure(**{**vars(f), "positions": f.positions.astype(np.float32).astype(np.float64)}) for f in frames]
    assert any((a.positions != b.positions).any() for a, b in zip(frames, rounded, strict=True))
    buffer = encode_block(frames, "float32")
    assert_same_bits(Block(buffer), rounded)
    assert len(encode_block(frames)) - len(buffer) >= 12 * sum(f.num_atoms for f in frames) - 64


def failing_writer(path: Path, frames: list[Structure]) -> None:
    with shard_writer(path, 1) as writer:
        writer.write(frames, [(0,)] * len(frames))
        assert not path.exists()
        raise KeyboardInterrupt


def test_an_interrupted_writer_leaves_nothing(tmp_path: Path, frames: list[Structure]) -> None:
    with pytest.raises(KeyboardInterrupt):
        failing_writer(tmp_path / "x.tar", frames)
    assert list(tmp_path.iterdir()) == []


FINITE = st.floats(allow_nan=False, allow_infinity=False)
FINITE_32 = st.floats(allow_nan=False, allow_infinity=False, width=32)


@st.composite
def structures(draw: st.DrawFn) -> Structure:
    """Anything the types can hold, physical or not: storing is not judging."""
    count = draw(st.integers(1, 4))
    has_alternative_energy, has_molecules = draw(st.booleans()), draw(st.booleans())
    return Structure(
        numbers=draw(arrays(np.uint8, count, elements=st.integers(1, 118))),
        positions=draw(arrays(np.float64, (count, 3), elements=FINITE)),
        cell=draw(arrays(np.float64, (3, 3), elements=FINITE)),
        pbc=draw(arrays(np.bool_, 3)),
        energy=draw(FINITE),
        forces=draw(arrays(np.float32, (count, 3), elements=FINITE_32)),
        stress=draw(arrays(np.float32, (3, 3), elements=FINITE_32)),
        has_forces=draw(st.booleans()),
        has_stress=draw(st.booleans()),
        alternative_energy=draw(FINITE) if has_alternative_energy else 0.0,
        has_alternative_energy=has_alternative_energy,
        molecules=draw(arrays(np.int32, count)) if has_molecules else np.zeros(count, np.int32),
        has_molecules=has_molecules,
        id=draw(st.text(max_size=8)),
        group=draw(st.text(max_size=8)),
    )


@settings(derandomize=True, deadline=None, max_examples=30)
@given(st.lists(structures(), min_size=1, max_size=4))
def test_any_structures_survive_a_block_bit_by_bit(frames: list[Structure]) -> None:
    assert_same_bits(Block(encode_block(frames)), frames)


def test_names_are_stored_as_json_that_other_languages_can_read(frames: list[Structure]) -> None:
    buffer = encode_block(frames)
    header = json.loads(buffer[8 : 8 + int.from_bytes(buffer[:8], "little")])
    names = json.loads(header["__metadata__"]["frames"])
    assert names == {"ids": [f.id for f in frames], "groups": [f.group for f in frames]}
