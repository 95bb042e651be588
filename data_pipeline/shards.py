"""Blocks of Structures to tar members and back: WebDataset files that anyone can stream.

A member is a block of frames in one safetensors buffer, not a frame: tar pads every member to 512 bytes and costs a
header, which triples the size of small frames and takes most of the decoding time. The price is that shuffling works
on blocks and windows of blocks. Bytes depend only on the frames: no clock, no user name, no hash order.

A small index file beside each shard holds the byte range and checksum of every block, and the number of atoms and edges
of every frame: all that planning needs, so planning never opens a shard.
"""

import hashlib
import itertools
import json
import os
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import safetensors.numpy
from jaxtyping import Int, UInt8, UInt32
from safetensors import SafetensorError
from webdataset.writer import TarWriter

from data_pipeline.structure import Structure

HAS_FORCES, HAS_STRESS, HAS_ALTERNATIVE_ENERGY = 1, 2, 4
"""Bits of the label mask of a frame."""


class CorruptShard(ValueError):
    """A shard whose bytes are not those that were written; the message names file and block."""


def label_mask(structure: Structure) -> int:
    """Return which labels a frame has, as bits."""
    return (
        HAS_FORCES * structure.has_forces
        + HAS_STRESS * structure.has_stress
        + HAS_ALTERNATIVE_ENERGY * structure.has_alternative_energy
    )


def encode_block(structures: Sequence[Structure]) -> bytes:
    """Return frames as one safetensors buffer: concatenated arrays, the atoms of each frame, and JSON names."""
    arrays = {
        "num_atoms": np.array([s.num_atoms for s in structures], dtype=np.int32),
        "numbers": np.concatenate([s.numbers for s in structures]),
        "positions": np.concatenate([s.positions for s in structures]),
        "cell": np.stack([s.cell for s in structures]),
        "pbc": np.stack([s.pbc for s in structures]),
        "energy": np.array([s.energy for s in structures], dtype=np.float64),
        "forces": np.concatenate([s.forces for s in structures]),
        "stress": np.stack([s.stress for s in structures]),
        "alternative_energy": np.array([s.alternative_energy for s in structures], dtype=np.float64),
        "labels": np.array([label_mask(s) for s in structures], dtype=np.uint8),
    }
    names = {"ids": [s.id for s in structures], "groups": [s.group for s in structures]}
    # one metadata entry only: safetensors writes several in hash order, which would make the bytes differ
    return safetensors.numpy.save(arrays, metadata={"frames": json.dumps(names)})


def decode_block(buffer: bytes) -> list[Structure]:
    """Return the frames of a block.

    Raises:
        CorruptShard: the buffer is not a block.
    """
    try:
        arrays = safetensors.numpy.load(buffer)
        header_size = int.from_bytes(buffer[:8], "little")
        names = json.loads(json.loads(buffer[8 : 8 + header_size])["__metadata__"]["frames"])
    except (SafetensorError, ValueError, KeyError) as error:
        raise CorruptShard(f"not a block of frames ({error})") from error
    starts = np.concatenate([[0], np.cumsum(arrays["num_atoms"], dtype=np.int64)])
    return [
        Structure(
            numbers=arrays["numbers"][start:stop],
            positions=arrays["positions"][start:stop],
            cell=arrays["cell"][frame],
            pbc=arrays["pbc"][frame],
            energy=float(arrays["energy"][frame]),
            forces=arrays["forces"][start:stop],
            stress=arrays["stress"][frame],
            has_forces=bool(arrays["labels"][frame] & HAS_FORCES),
            has_stress=bool(arrays["labels"][frame] & HAS_STRESS),
            alternative_energy=float(arrays["alternative_energy"][frame]),
            has_alternative_energy=bool(arrays["labels"][frame] & HAS_ALTERNATIVE_ENERGY),
            id=names["ids"][frame],
            group=names["groups"][frame],
        )
        for frame, (start, stop) in enumerate(itertools.pairwise(starts))
    ]


@dataclass(frozen=True, kw_only=True, eq=False)
class ShardIndex:
    """What planning knows of a shard, or of several one after another."""

    block_shard: Int[np.ndarray, " blocks"]
    """Number of the shard that holds each block."""
    block_offset: Int[np.ndarray, " blocks"]
    """First byte of each block's buffer in its shard."""
    block_size: Int[np.ndarray, " blocks"]
    """Bytes of each block's buffer."""
    block_checksum: UInt32[np.ndarray, " blocks"]
    """CRC-32 of each block's buffer."""
    block_frames: Int[np.ndarray, " blocks"]
    """Frames of each block."""
    num_atoms: Int[np.ndarray, " frames"]
    """Atoms of each frame."""
    num_edges: Int[np.ndarray, "frames cutoffs"]
    """Directed edges of each frame at each planning cutoff."""
    labels: UInt8[np.ndarray, " frames"]
    """Label mask of each frame, of HAS_FORCES and HAS_STRESS."""

    @property
    def num_frames(self) -> int:
        """Number of frames."""
        return len(self.num_atoms)

    @property
    def first_frame(self) -> Int[np.ndarray, " blocks_plus_one"]:
        """Number of the first frame of each block, and the number of frames at the end."""
        return np.concatenate([[0], np.cumsum(self.block_frames)])

    def save(self, path: Path) -> None:
        """Write the index as safetensors."""
        arrays = {name: np.ascontiguousarray(getattr(self, name)) for name in _INDEX_ARRAYS}
        path.write_bytes(safetensors.numpy.save(arrays))

    @classmethod
    def load(cls, paths: Sequence[Path], num_cutoffs: int) -> "ShardIndex":
        """Read the index files of several shards, in order.

        Raises:
            FileNotFoundError: an index file is missing.
            CorruptShard: an index file cannot be read.
        """
        parts = []
        for number, path in enumerate(paths):
            try:
                part = safetensors.numpy.load_file(path)
            except SafetensorError as error:
                raise CorruptShard(f"{path}: cannot be read ({error}); build the data again") from error
            parts.append({**part, "block_shard": np.full_like(part["block_shard"], number)})
        empty = {"num_edges": np.zeros((0, num_cutoffs), np.int32), "block_checksum": np.zeros(0, np.uint32)}
        return cls(
            **{
                name: np.concatenate([part[name] for part in parts])
                if parts
                else empty.get(name, np.zeros(0, np.uint8 if name == "labels" else np.int64))
                for name in _INDEX_ARRAYS
            }
        )


_INDEX_ARRAYS = tuple(ShardIndex.__dataclass_fields__)


class ShardWriter:
    """Writes one shard and its index; the shard appears under its name only when it is complete."""

    def __init__(self, path: Path, num_cutoffs: int) -> None:
        self.path = path
        self._temporary = path.with_suffix(".tar.partial")
        self._file = self._temporary.open("wb")
        # a fixed clock, owner and format: the same frames give the same bytes
        self._tar = TarWriter(self._file, user="", group="", mtime=0, encoder=False)
        self._sizes: list[int] = []
        self._checksums: list[int] = []
        self._frames: list[int] = []
        self._atoms: list[int] = []
        self._edges: list[Sequence[int]] = []
        self._labels: list[int] = []
        self._num_cutoffs = num_cutoffs

    def __enter__(self) -> "ShardWriter":
        """Return the writer itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Complete the shard, or remove what was written if there was an error."""
        self._tar.close()
        if error is None:
            self._file.flush()
            os.fsync(self._file.fileno())
        self._file.close()
        if error is not None:
            self._temporary.unlink()
            return
        os.replace(self._temporary, self.path)
        self._index().save(index_path(self.path))

    def write(self, structures: Sequence[Structure], num_edges: Sequence[Sequence[int]]) -> None:
        """Append one block, with the edge counts of its frames."""
        buffer = encode_block(structures)
        self._tar.write({"__key__": f"{len(self._sizes):06d}", "block.safetensors": buffer})
        self._sizes.append(len(buffer))
        self._checksums.append(zlib.crc32(buffer))
        self._frames.append(len(structures))
        self._atoms += [s.num_atoms for s in structures]
        self._edges += num_edges
        self._labels += [label_mask(s) for s in structures]

    def _index(self) -> ShardIndex:
        sizes = np.array(self._sizes, dtype=np.int64)
        with tarfile.open(self.path) as tar:
            offsets = np.array([member.offset_data for member in tar], dtype=np.int64)
        return ShardIndex(
            block_shard=np.zeros(len(sizes), dtype=np.int64),
            block_offset=offsets,
            block_size=sizes,
            block_checksum=np.array(self._checksums, dtype=np.uint32),
            block_frames=np.array(self._frames, dtype=np.int64),
            num_atoms=np.array(self._atoms, dtype=np.int32),
            num_edges=np.array(self._edges, dtype=np.int32).reshape(-1, self._num_cutoffs),
            labels=np.array(self._labels, dtype=np.uint8),
        )


def index_path(shard: Path) -> Path:
    """Return the path of a shard's index."""
    return shard.with_suffix(".index.safetensors")


def read_block(path: Path, index: ShardIndex, block: int) -> list[Structure]:
    """Read one block by its byte range and check its checksum.

    Raises:
        CorruptShard: the bytes are not those that were written, or the shard ends early.
        FileNotFoundError: the shard is missing.
    """
    offset, size = int(index.block_offset[block]), int(index.block_size[block])
    with path.open("rb") as file:
        file.seek(offset)
        buffer = file.read(size)
    where = f"{path}, block at byte {offset}"
    if len(buffer) != size:
        raise CorruptShard(f"{where}: the file ends after {len(buffer)} of {size} bytes; copy or build it again")
    if zlib.crc32(buffer) != int(index.block_checksum[block]):
        raise CorruptShard(f"{where}: the checksum does not match; copy or build the shard again")
    return decode_block(buffer)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
