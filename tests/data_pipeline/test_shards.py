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

from data_pipeline.shards import (
    HAS_FORCES,
    HAS_STRESS,
    CorruptShard,
    ShardIndex,
    ShardWriter,
    decode_block,
    encode_block,
    index_path,
    read_block,
    sha256,
)
from data_pipeline.structure import Structure

ARRAYS = ("numbers", "positions", "cell", "pbc", "forces", "stress")
# webdataset itself leaves its files to the garbage collector, which warns
CLOSED_BY_COLLECTION = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
VALUES = ("energy", "has_forces", "has_stress", "id", "group")


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
    with ShardWriter(path, 2) as writer:
        for start in (0, 4, 8):
            block = frames[start : start + 4]
            writer.write(block, [(10 * n, 20 * n) for n in range(start, start + len(block))])
    return path


def load_index(shard: Path) -> ShardIndex:
    return ShardIndex.load([index_path(shard)], 2)


def test_blocks_come_back_bit_by_bit(shard: Path, frames: list[Structure]) -> None:
    index = load_index(shard)
    assert_same_bits([s for block in range(3) for s in read_block(shard, index, block)], frames)


@CLOSED_BY_COLLECTION
def test_stock_webdataset_iterates_a_shard(shard: Path, frames: list[Structure]) -> None:
    samples = list(webdataset.WebDataset(str(shard), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == ["000000", "000001", "000002"]
    assert_same_bits([s for sample in samples for s in decode_block(sample["block.safetensors"])], frames)


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
    assert index.block_frames.tolist() == [4, 4, 3]
    assert index.first_frame.tolist() == [0, 4, 8, 11]
    assert index.num_atoms.tolist() == [f.num_atoms for f in frames]
    assert index.num_edges.tolist() == [[10 * n, 20 * n] for n in range(11)]
    both = HAS_FORCES | HAS_STRESS
    assert index.labels.tolist() == [both if n % 3 else 0 for n in range(11)]
    with tarfile.open(shard) as tar:
        assert index.block_offset.tolist() == [member.offset_data for member in tar]


def test_indices_of_several_shards_follow_each_other(shard: Path) -> None:
    joined = ShardIndex.load([index_path(shard)] * 3, 2)
    assert joined.num_frames == 33
    assert joined.block_shard.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert joined.first_frame[-1] == 33


def test_the_index_of_no_shards_is_empty() -> None:
    index = ShardIndex.load([], 3)
    assert index.num_frames == 0
    assert index.num_edges.shape == (0, 3)
    assert index.first_frame.tolist() == [0]


def test_the_same_frames_give_the_same_bytes(tmp_path: Path, frames: list[Structure]) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        with ShardWriter(tmp_path / folder / "x.tar", 1) as writer:
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
    offset = int(index.block_offset[block])
    content = bytearray(shard.read_bytes())
    content[offset + int(place * index.block_size[block])] ^= 0x10
    shard.write_bytes(content)
    message = rf"train-000000.tar, block at byte {offset}: the checksum does not match; copy or build"
    with pytest.raises(CorruptShard, match=message):
        read_block(shard, index, block)
    for other in {0, 1, 2} - {block}:
        read_block(shard, index, other)


def test_a_shard_that_ends_early_is_found_and_named(shard: Path) -> None:
    index = load_index(shard)
    offset, size = int(index.block_offset[2]), int(index.block_size[2])
    shard.write_bytes(shard.read_bytes()[: offset + 100])
    message = rf"train-000000.tar, block at byte {offset}: the file ends after 100 of {size} bytes"
    with pytest.raises(CorruptShard, match=message):
        read_block(shard, index, 2)
    assert len(read_block(shard, index, 1)) == 4


def test_a_missing_shard_is_named(shard: Path) -> None:
    index = load_index(shard)
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=r"train-000000\.tar"):
        read_block(shard, index, 0)


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
        decode_block(buffer)


def failing_writer(path: Path, frames: list[Structure]) -> None:
    with ShardWriter(path, 1) as writer:
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
        alternative_energy=draw(FINITE),
        has_alternative_energy=draw(st.booleans()),
        id=draw(st.text(max_size=8)),
        group=draw(st.text(max_size=8)),
    )


@settings(derandomize=True, deadline=None, max_examples=30)
@given(st.lists(structures(), min_size=1, max_size=4))
def test_any_structures_survive_a_block_bit_by_bit(frames: list[Structure]) -> None:
    assert_same_bits(decode_block(encode_block(frames)), frames)


def test_names_are_stored_as_json_that_other_languages_can_read(frames: list[Structure]) -> None:
    buffer = encode_block(frames)
    header = json.loads(buffer[8 : 8 + int.from_bytes(buffer[:8], "little")])
    names = json.loads(header["__metadata__"]["frames"])
    assert names == {"ids": [f.id for f in frames], "groups": [f.group for f in frames]}
