"""The pages of LMDB files: what LMDB would follow out of the file is refused before it does."""

import random
import struct
from pathlib import Path

import lmdb
import pytest

from data_pipeline.sources.lmdb_pages import check_pages
from data_pipeline.structure import InvalidStructure

PAGE = 4096


def write(path: Path, count: int, size: int) -> Path:
    """Write keys with values of a size."""
    with lmdb.open(str(path), subdir=False, lock=False, map_size=2**26) as shard, shard.begin(write=True) as writing:
        for number in range(count):
            writing.put(str(number).encode(), bytes(size))
    return path


def newest(data: bytes) -> int:
    """Return where the newest description begins, behind the header of its page."""
    return max((16, PAGE + 16), key=lambda at: struct.unpack_from("<Q", data, at + 128)[0])


@pytest.mark.parametrize(("count", "size"), [(0, 0), (1, 10), (300, 100), (3000, 100), (20, 10_000), (60_000, 1)])
def test_what_lmdb_writes_is_in_order(tmp_path: Path, count: int, size: int) -> None:
    check_pages(write(tmp_path / "a.aselmdb", count, size))


def test_what_is_left_after_removals_is_in_order(tmp_path: Path) -> None:
    path = write(tmp_path / "a.aselmdb", 5000, 500)
    for seed in range(3):
        with (
            lmdb.open(str(path), subdir=False, lock=False, map_size=2**26) as shard,
            shard.begin(write=True) as writing,
        ):
            for number in random.Random(seed).sample(range(5000), 2000):
                writing.delete(str(number).encode())
        check_pages(path)


@pytest.mark.parametrize(
    ("at", "new", "says"),
    [
        (10, b"\x22\x00", "kind 0x22"),
        (12, b"\x0f\x00", "free space"),
        (14, b"\xff\xff", "free space"),
        (16, b"\x00\x10", "a node at 4096"),
        (18, b"\x00\x80", "a node at 32768"),
        (0, b"\x09\x00", "not page"),
    ],
)
def test_numbers_of_a_page_that_lead_out_of_it_are_refused(tmp_path: Path, at: int, new: bytes, says: str) -> None:
    path = write(tmp_path / "a.aselmdb", 3, 10)
    data = bytearray(path.read_bytes())
    root = struct.unpack_from("<Q", data, newest(data) + 24 + 48 + 40)[0] * PAGE
    data[root + at : root + at + len(new)] = new
    path.write_bytes(data)
    with pytest.raises(InvalidStructure, match=rf"a\.aselmdb: cannot be read as an LMDB file .*{says}"):
        check_pages(path)


@pytest.mark.parametrize(
    ("at", "new", "says"),
    [
        (24, struct.pack("<I", 4097), "a page has 4097 bytes"),
        (72 + 4, b"\x04", "kind 0x4"),
        (72 + 6, b"\x09", "at depth"),
        (72 + 32, b"\x07", "3 keys"),
        (72 + 40, struct.pack("<Q", 2**40), "outside the file"),
        (120, struct.pack("<Q", 2**60), "truncated"),
        (0, b"x", "no description"),
    ],
)
def test_a_description_that_leads_out_of_the_file_is_refused(tmp_path: Path, at: int, new: bytes, says: str) -> None:
    path = write(tmp_path / "a.aselmdb", 3, 10)
    data = bytearray(path.read_bytes())
    data[newest(data) + at : newest(data) + at + len(new)] = new
    path.write_bytes(data)
    with pytest.raises(InvalidStructure, match=says):
        check_pages(path)


def test_a_branch_that_leads_to_a_page_twice_and_a_long_value_outside_the_file_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.aselmdb", 3000, 100)
    data = bytearray(path.read_bytes())
    root = struct.unpack_from("<Q", data, newest(data) + 24 + 48 + 40)[0] * PAGE
    one, two = (root + place for place in struct.unpack_from("<2H", data, root + 16))
    data[two : two + 6] = data[one : one + 6]
    path.write_bytes(data)
    with pytest.raises(InvalidStructure, match="twice"):
        check_pages(path)

    path = write(tmp_path / "b.aselmdb", 1, 10_000)
    data = bytearray(path.read_bytes())
    leaf = struct.unpack_from("<Q", data, newest(data) + 24 + 48 + 40)[0] * PAGE
    node = leaf + struct.unpack_from("<H", data, leaf + 16)[0]
    data[node + 2] = 255  # 16 MB instead of 10 kB
    path.write_bytes(data)
    with pytest.raises(InvalidStructure, match="not in the file"):
        check_pages(path)
