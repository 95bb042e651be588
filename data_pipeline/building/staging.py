"""Staging: one part of a source, read once and measured, in files for the rest of the build.

Reading is the expensive step and the only one that needs the source's own order, so its result is kept: the frames in
blocks, as in a shard, and beside them one small array for each quantity of decisions over all frames (energy, largest
force, hash of the name ...). A killed build continues from the complete parts: a part appears under its name by one
rename of its folder. A reading process holds one block of frames, some 20 MB for the arrays of a chunk, and the memory
of the reader itself. On disk the staged frames take as much as the shards made from them.
"""

import hashlib
import itertools
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple, TextIO

import numpy as np
import safetensors.numpy
from jaxtyping import Int, Int8, Int64
from safetensors import safe_open

from data_pipeline.building.duplicates import fingerprint
from data_pipeline.building.edge_count import EdgeCounter, Edges
from data_pipeline.sources import Frame, MachineLearned, Part
from data_pipeline.store import durable
from data_pipeline.store.block import Block, Precision
from data_pipeline.store.index import BlockIndex, index_path
from data_pipeline.store.json_record import parse_json
from data_pipeline.store.shards import read_block, sha256, shard_writer
from data_pipeline.structure import InvalidStructure, Structure

logger = logging.getLogger(__name__)

BLOCK_FRAMES = 256
SUMS = "sums.json"
"""File with the checksums of the other files of a staged part, written last."""
CHUNK_FRAMES = 65_536
"""Number of frames in one file of a staged part; bounds memory for parts of any size."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Settings that a staged part depends on, apart from its source."""

    cutoffs: tuple[float, ...]
    """Cutoffs at which edges are counted [Å]."""
    positions: Precision
    """Precision of the positions."""
    split_seed: int
    """Seed of the hash that assigns groups to splits."""
    isolated_atoms: bool
    """Look for atoms without neighbours."""
    duplicates: bool
    """Compute fingerprints, by which duplicates are found."""
    refuse: bool
    """True if a frame that cannot be trained on ends the build; otherwise it is recorded and left out."""


def part_folder(staged: Path, number: int) -> Path:
    """Return the folder of a staged part, which exists once the part is complete."""
    return staged / f"part-{number:06d}"


def part_folders(staged: Path) -> list[Path]:
    """Return the folders of the parts that are complete, in order."""
    return sorted(staged.glob("part-*[0-9]"))


def stage_part(staged: Path, number: int, part: Part, reading: Reading) -> None:
    """Read a part, measure its frames and write both into the folder of staged parts.

    Raises:
        InvalidStructure: a frame is refused and ends the build, or the source cannot be read further.
    """
    # of its small files, what a power cut takes is found missing by the checksums and read again
    with durable.whole_folder(part_folder(staged, number), flush=False) as folder:
        with (folder / "refused.jsonl").open("w") as refused:
            frames = _accepted(part, reading, refused)
            blocks = batched(frames, BLOCK_FRAMES)
            for chunk, first in enumerate(blocks):
                rest = itertools.islice(blocks, CHUNK_FRAMES // BLOCK_FRAMES - 1)
                _write_chunk(folder / f"{chunk:06d}.tar", itertools.chain([first], rest), reading)
        (folder / SUMS).write_text(json.dumps(_sums(folder)))


def _sums(folder: Path) -> dict[str, str | int]:
    """Return the checksum of every file of a part; for a tar file its size, as its index has checksums of blocks."""
    files = sorted(path for path in folder.iterdir() if path.name != SUMS)
    return {path.name: path.stat().st_size if path.suffix == ".tar" else sha256(path) for path in files}


def drop_damaged(staged: Path) -> None:
    """Remove incomplete or changed parts, so that they are read again."""
    for folder in part_folders(staged):
        try:
            whole = parse_json((folder / SUMS).read_bytes()) == _sums(folder)
            for path in sorted(folder.glob("*.tar")) if whole else ():
                index = BlockIndex.load(index_path(path))
                for number in range(len(index.size)):
                    read_block(path, index, number)
        except (OSError, ValueError):
            whole = False
        if not whole:
            logger.warning("%s: incomplete or damaged; reading it again", folder)
            durable.remove(folder)


class _Accepted(NamedTuple):
    number: int
    structure: Structure
    edges: Edges


def _accepted(part: Part, reading: Reading, refused: TextIO) -> Iterator[_Accepted]:
    """Yield the frames that can be trained on; record the others, or raise their error."""
    count = EdgeCounter(reading.cutoffs, isolated=reading.isolated_atoms)
    for batch in batched(enumerate(_read(part, reading)), BLOCK_FRAMES):
        structures = {number: _rounded(frame, reading) for number, frame in batch if isinstance(frame, Structure)}
        counted = dict(zip(structures, count(list(structures.values())), strict=True))
        for number, frame in batch:
            structure, edges = structures.get(number), counted.get(number, frame)
            if structure is not None and isinstance(edges, Edges):
                yield _Accepted(number, structure, edges)
            elif reading.refuse and not isinstance(frame, MachineLearned):
                raise InvalidStructure(f"{edges} {_HOW_TO_LEAVE_OUT}")
            else:
                name = None if structure is None else structure.id
                reason = "machine_learned" if isinstance(frame, MachineLearned) else "invalid"
                line = {"frame": number, "id": name, "reason": reason, "detail": str(edges)}
                refused.write(json.dumps(line) + "\n")


_HOW_TO_LEAVE_OUT = "(--filters.invalid reject leaves such frames out)"


def _read(part: Part, reading: Reading) -> Iterator[Frame]:
    for frame in part.read():
        if reading.refuse and isinstance(frame, InvalidStructure) and not isinstance(frame, MachineLearned):
            # at once: the reader's error at the end of a file of such frames says less
            raise InvalidStructure(f"{frame} {_HOW_TO_LEAVE_OUT}") from frame
        yield frame


def _rounded(frame: Structure, reading: Reading) -> Structure:
    """Return the frame with positions rounded as on disk, so that edges are counted as in training."""
    if reading.positions == "float64":
        return frame
    return replace(frame, positions=frame.positions.astype(np.float32).astype(np.float64))


def _write_chunk(path: Path, blocks: Iterable[Sequence[_Accepted]], reading: Reading) -> None:
    columns = []
    with shard_writer(path, len(reading.cutoffs), reading.positions) as writer:
        for block in blocks:
            structures = [frame.structure for frame in block]
            writer.write(structures, [frame.edges.counts for frame in block])
            columns.append(_measured(block, structures, reading))
    arrays = {name: np.concatenate([column[name] for column in columns]) for name in columns[0]}
    durable.write_whole(_columns_path(path), safetensors.numpy.save(arrays), flush=False)


def _measured(block: Sequence[_Accepted], structures: Sequence[Structure], reading: Reading) -> dict[str, np.ndarray]:
    """Return one array per quantity of decisions over all frames; a missing label is -1."""
    num_atoms = np.array([s.num_atoms for s in structures])
    starts = np.concatenate([[0], np.cumsum(num_atoms)[:-1]])
    forces = np.concatenate([s.forces for s in structures]).astype(np.float64)
    largest_force = np.sqrt(np.maximum.reduceat(np.square(forces).sum(axis=1), starts))
    largest_stress = np.abs(np.stack([s.stress for s in structures])).max(axis=(1, 2)).astype(np.float64)
    # elements of each frame with their counts, as in a sparse matrix
    cells, counts = np.unique(
        np.repeat(np.arange(len(structures)), num_atoms) * 256 + np.concatenate([s.numbers for s in structures]),
        return_counts=True,
    )
    columns = {
        "frame": np.array([frame.number for frame in block], dtype=np.int64),
        "id": np.array([hash_of(s.id) for s in structures], dtype=np.uint64),
        "group": np.array([hash_of(s.group, reading.split_seed) for s in structures], dtype=np.uint64),
        "energy": np.array([s.energy for s in structures]) / num_atoms,
        "force": np.where([s.has_forces for s in structures], largest_force, -1.0),
        "stress": np.where([s.has_stress for s in structures], largest_stress, -1.0),
        "distance": np.array([frame.edges.closest for frame in block]),
        "isolated": np.array([frame.edges.num_isolated for frame in block], dtype=np.int32),
        "num_elements": np.bincount(cells // 256, minlength=len(structures)).astype(np.uint8),
        "element": (cells % 256).astype(np.uint8),
        "fraction": counts / num_atoms[cells // 256],
    }
    if reading.duplicates:
        prints = [fingerprint(structure) for structure in structures]
        columns["key"] = np.array([p.key for p in prints], dtype=np.uint64)
        columns["projections"] = np.array([p.projections for p in prints])
        columns["steepness"] = np.array([p.steepness for p in prints])
    return columns


def hash_of(name: str, seed: int | None = None) -> int:
    """Return the first 64 bits of the SHA-256 of a name, preceded by the seed if given."""
    text = name if seed is None else f"{seed}:{name}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


class StagedFrames:
    """The frames of all staged parts in source order: single columns as arrays, single frames on demand."""

    def __init__(self, staged: Path, num_parts: int) -> None:
        self.parts = [part_folder(staged, number) for number in range(num_parts)]
        chunks = [(number, path) for number, part in enumerate(self.parts) for path in sorted(part.glob("*.tar"))]
        self.chunks = [path for _, path in chunks]
        self.part_of_chunk = [number for number, _ in chunks]
        self._index = lru_cache(maxsize=4)(lambda chunk: BlockIndex.load(index_path(self.chunks[chunk])))
        self._block = lru_cache(maxsize=64)(self._read_block)
        self._numbers = lru_cache(maxsize=1)(lambda chunk: self.column_of(chunk, "frame"))

    @cached_property
    def first_frame(self) -> Int64[np.ndarray, " chunks_plus_one"]:
        """Number of the first frame of each chunk, and the number of frames at the end."""
        sizes = []
        for path in self.chunks:
            with safe_open(_columns_path(path), framework="numpy") as file:
                sizes.append(file.get_slice("frame").get_shape()[0])
        return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)

    def column(self, name: str) -> np.ndarray:
        """Return one column over all frames."""
        columns = [self.column_of(chunk, name) for chunk in range(len(self.chunks))]
        return np.concatenate(columns) if columns else np.zeros(0)

    def column_of(self, chunk: int, name: str) -> np.ndarray:
        """Return one column over the frames of a chunk."""
        with safe_open(_columns_path(self.chunks[chunk]), framework="numpy") as file:
            return file.get_tensor(name)

    def of_parts(self, values: Sequence[int]) -> Int8[np.ndarray, " frames"]:
        """Return the value of its part for each frame, given a value for every part."""
        of_chunk = np.array(values, dtype=np.int8)[np.array(self.part_of_chunk, dtype=np.int64)]
        return np.repeat(of_chunk, np.diff(self.first_frame))

    def chunk_of(self, frame: int) -> int:
        """Return the chunk that holds a frame."""
        return int(np.searchsorted(self.first_frame, frame, side="right")) - 1

    def structure(self, frame: int) -> Structure:
        """Read one frame; the latest blocks are cached."""
        chunk = self.chunk_of(frame)
        block, place = divmod(int(frame - self.first_frame[chunk]), BLOCK_FRAMES)
        return self._block(chunk, block)[place]

    def number_in_part(self, frame: int) -> int:
        """Return the frame's number in its part, refused frames included."""
        chunk = self.chunk_of(frame)
        return int(self._numbers(chunk)[frame - self.first_frame[chunk]])

    def _read_block(self, chunk: int, block: int) -> Block:
        return read_block(self.chunks[chunk], self._index(chunk), block)


def selected_frames(
    path: Path, places: Int[np.ndarray, " frames"]
) -> Iterator[tuple[Structure, Int[np.ndarray, " cutoffs"]]]:
    """Yield frames of a chunk, given by ascending indices in it, with their edge counts."""
    index = BlockIndex.load(index_path(path))
    with safe_open(index_path(path), framework="numpy") as file:
        edges = file.get_tensor("frame_edges")
    for number in np.unique(places // BLOCK_FRAMES):
        block = read_block(path, index, int(number))
        inside = places[places // BLOCK_FRAMES == number]
        for place in inside.tolist():
            yield block[place % BLOCK_FRAMES], edges[place]


def _columns_path(path: Path) -> Path:
    return path.with_suffix(".columns.safetensors")


def batched(items: Iterator, size: int) -> Iterator[list]:
    """Yield lists of the given size; the last one may be shorter."""
    batch = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
