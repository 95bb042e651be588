"""Shards: blocks of frames in tar files that WebDataset can stream, each with a small index beside it.

The index holds the byte range and checksum of every block, and the number of atoms and edges of every frame: all that
planning needs, so planning never opens a shard.
"""

import hashlib
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
from webdataset.writer import TarWriter

from data_pipeline.store import durable
from data_pipeline.store.block import Block, CorruptShard, Precision, encode_block
from data_pipeline.store.index import BlockIndex, index_path, save_shard_index, summed
from data_pipeline.structure import Structure


@contextmanager
def shard_writer(path: Path, num_cutoffs: int, positions: Precision = "float64") -> Iterator["ShardWriter"]:
    """Write one shard and its index; the shard appears under its name only when both are complete."""
    with durable.whole_file(path) as partial:
        # a fixed clock, owner and format: the same frames give the same bytes
        fixed = {"user": "", "group": "", "mtime": 0}
        with partial.open("xb") as file, closing(TarWriter(file, encoder=False, **fixed)) as tar:
            writer = ShardWriter(tar, num_cutoffs, positions)
            yield writer
        writer.save_index(partial, index_path(path))


class ShardWriter:
    """Appends blocks to a shard, and remembers what its index will say of them."""

    def __init__(self, tar: TarWriter, num_cutoffs: int, positions: Precision) -> None:
        self._tar, self._num_cutoffs = tar, num_cutoffs
        self._positions: Precision = positions
        self._sizes: list[int] = []
        self._checksums: list[int] = []
        self._frames: list[int] = []
        self._atoms: list[int] = []
        self._edges: list[Sequence[int]] = []

    def write(self, structures: Sequence[Structure], num_edges: Sequence[Sequence[int]]) -> None:
        """Append one block, with the edge counts of its frames."""
        buffer = encode_block(structures, self._positions)
        self._tar.write({"__key__": f"{len(self._sizes):06d}", "block.safetensors": buffer})
        self._sizes.append(len(buffer))
        self._checksums.append(zlib.crc32(buffer))
        self._frames.append(len(structures))
        self._atoms += [s.num_atoms for s in structures]
        self._edges += num_edges

    def save_index(self, shard: Path, path: Path) -> None:
        """Write the index of the finished shard."""
        with tarfile.open(shard) as tar:
            offsets = np.array([member.offset_data for member in tar], dtype=np.int64)
        atoms = np.array(self._atoms, dtype=np.int32)
        edges = np.array(self._edges, dtype=np.int32).reshape(-1, self._num_cutoffs)
        blocks = BlockIndex(
            shard=np.zeros(len(offsets), dtype=np.int32),
            offset=offsets,
            size=np.array(self._sizes, dtype=np.int64),
            checksum=np.array(self._checksums, dtype=np.uint32),
            num_frames=np.array(self._frames, dtype=np.int32),
            **summed(np.array(self._frames), atoms, edges),
        )
        save_shard_index(path, blocks, (atoms, edges))


def read_block(path: Path, blocks: BlockIndex, number: int) -> Block:
    """Read one block of a shard by its byte range and verify its checksum.

    Raises:
        CorruptShard: the bytes are not those that were written, or the shard ends early.
        FileNotFoundError: the shard is missing.
    """
    offset, size = int(blocks.offset[number]), int(blocks.size[number])
    try:
        with path.open("rb") as file:
            file.seek(offset)
            buffer = file.read(size)
    except FileNotFoundError as error:
        message = f"{path}, block at byte {offset}: the shard is missing; copy or build it again"
        raise FileNotFoundError(message) from error
    return decode_block(buffer, str(path), blocks, number)


def decode_block(buffer: bytes, shard: str, blocks: BlockIndex, number: int) -> Block:
    """Verify the checksum of a block and decode it; `shard` names the shard in messages.

    Raises:
        CorruptShard: the bytes are wrong or too few.
    """
    size, where = int(blocks.size[number]), f"{shard}, block at byte {int(blocks.offset[number])}"
    if len(buffer) != size:
        raise CorruptShard(f"{where}: the file ends after {len(buffer)} of {size} bytes; copy or build it again")
    if zlib.crc32(buffer) != int(blocks.checksum[number]):
        raise CorruptShard(f"{where}: the checksum does not match; copy or build the shard again")
    try:
        block = Block(buffer)
    except CorruptShard as error:
        raise CorruptShard(f"{where}: {error}; build the data again") from error
    if len(block) != blocks.num_frames[number] or block.num_atoms.sum() != blocks.num_atoms[number]:
        raise CorruptShard(f"{where}: its frames differ from its index; build the data again")
    return block


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
