"""Block: frames as one safetensors buffer, a member of a shard and the unit of reading.

A member is a block of frames, not a frame: tar pads every member to 512 bytes and costs a header, which triples the
size of small frames and takes most of the decoding time. The price is that shuffling works on blocks and windows of
blocks. Bytes depend only on the frames: no clock, no user name, no hash order.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import safetensors.numpy
from jaxtyping import Int32
from safetensors import SafetensorError

from data_pipeline.structure import MAX_ATOMIC_NUMBER, Structure

HAS_FORCES, HAS_STRESS, HAS_ALTERNATIVE_ENERGY, HAS_MOLECULES = 1, 2, 4, 8
"""Bits of the label mask of a frame."""

Precision = Literal["float64", "float32"]


class CorruptShard(ValueError):
    """A shard with other bytes than were written; the message names file and block."""


def encode_block(structures: Sequence[Structure], positions: Precision = "float64") -> bytes:
    """Return frames as one safetensors buffer: concatenated arrays, the atoms of each frame, and JSON names.

    Positions in float32 round to 2⁻²⁴ of their value, 10⁻⁶ Å at 20 Å, and save 12 bytes per atom.
    """
    arrays = {
        "num_atoms": np.array([s.num_atoms for s in structures], dtype=np.int32),
        "numbers": np.concatenate([s.numbers for s in structures]),
        "positions": np.concatenate([s.positions for s in structures]).astype(positions, copy=False),
        "cell": np.stack([s.cell for s in structures]),
        "pbc": np.stack([s.pbc for s in structures]),
        "energy": np.array([s.energy for s in structures], dtype=np.float64),
        "forces": np.concatenate([s.forces for s in structures]),
        "stress": np.stack([s.stress for s in structures]),
        "labels": np.array([_label_mask(s) for s in structures], dtype=np.uint8),
    }
    if any(s.has_alternative_energy for s in structures):
        arrays["alternative_energy"] = np.array([s.alternative_energy for s in structures], dtype=np.float64)
    if any(s.has_molecules for s in structures):
        arrays["molecules"] = np.concatenate([s.molecules for s in structures])
    names = {"ids": [s.id for s in structures], "groups": [s.group for s in structures]}
    # one metadata entry only: safetensors writes several in hash order, which would make the bytes differ
    return safetensors.numpy.save(arrays, metadata={"frames": json.dumps(names)})


def _label_mask(structure: Structure) -> int:
    return (
        HAS_FORCES * structure.has_forces
        + HAS_STRESS * structure.has_stress
        + HAS_ALTERNATIVE_ENERGY * structure.has_alternative_energy
        + HAS_MOLECULES * structure.has_molecules
    )


class Block(Sequence[Structure]):
    """The frames of one buffer. Arrays are kept unchanged; a frame becomes a Structure on access."""

    def __init__(self, buffer: bytes) -> None:
        """Decode the buffer.

        Raises:
            CorruptShard: the buffer is not a block.
        """
        try:
            self._arrays = safetensors.numpy.load(buffer)
            header_size = int.from_bytes(buffer[:8], "little")
            names = json.loads(json.loads(buffer[8 : 8 + header_size])["__metadata__"]["frames"])
            self._ids, self._groups = names["ids"], names["groups"]
        except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise CorruptShard(f"not a block of frames ({error})") from error
        for problem in _contradictions(self._arrays, self._ids, self._groups):
            raise CorruptShard(f"not a block of frames ({problem})")
        self._starts = np.concatenate([[0], np.cumsum(self._arrays["num_atoms"], dtype=np.int64)]).tolist()
        self._labels = self._arrays["labels"].tolist()
        self.num_bytes = len(buffer)

    @property
    def num_atoms(self) -> Int32[np.ndarray, " frames"]:
        """Number of atoms of each frame."""
        return self._arrays["num_atoms"]

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, frame: int) -> Structure:  # pyright: ignore[reportIncompatibleMethodOverride] (no slices)
        arrays, labels = self._arrays, self._labels[frame]
        atoms = slice(self._starts[frame], self._starts[frame + 1])
        second, molecules = arrays.get("alternative_energy"), arrays.get("molecules")
        num_atoms = atoms.stop - atoms.start
        return Structure(
            numbers=arrays["numbers"][atoms],
            positions=arrays["positions"][atoms].astype(np.float64, copy=False),
            cell=arrays["cell"][frame],
            pbc=arrays["pbc"][frame],
            energy=float(arrays["energy"][frame]),
            forces=arrays["forces"][atoms],
            stress=arrays["stress"][frame],
            has_forces=bool(labels & HAS_FORCES),
            has_stress=bool(labels & HAS_STRESS),
            alternative_energy=0.0 if second is None else float(second[frame]),
            has_alternative_energy=bool(labels & HAS_ALTERNATIVE_ENERGY),
            molecules=np.zeros(num_atoms, np.int32) if molecules is None else molecules[atoms],
            has_molecules=bool(labels & HAS_MOLECULES),
            id=self._ids[frame],
            group=self._groups[frame],
        )


def _contradictions(arrays: dict[str, np.ndarray], *names: object) -> Iterator[str]:
    """Yield the problems of arrays that cannot be frames; a checksum does not tell the author of the bytes."""
    num_atoms = arrays.get("num_atoms", np.zeros(0))
    if num_atoms.dtype != np.int32 or num_atoms.ndim != 1 or len(num_atoms) == 0 or num_atoms.min() < 1:
        yield "num_atoms is not one positive int32 for each frame"
        return
    lengths = {"frames": len(num_atoms), "atoms": int(num_atoms.sum(dtype=np.int64))}
    for name, (dtypes, length, shape) in _ARRAYS.items():
        array = arrays.get(name)
        if array is None and name in _OPTIONAL:
            continue
        if array is None or array.dtype.name not in dtypes or array.shape != (lengths[length], *shape):
            yield f"{name} is not {' or '.join(dtypes)} for each of {lengths[length]} {length}"
        elif array.dtype.kind == "f" and not np.isfinite(array).all():
            yield f"{name} has a value that is not finite"
    numbers = arrays.get("numbers", np.zeros(0))
    if len(numbers) and not 1 <= numbers.min() <= numbers.max() <= MAX_ATOMIC_NUMBER:
        yield f"numbers are not atomic numbers from 1 to {MAX_ATOMIC_NUMBER}"
    for texts in names:
        if not isinstance(texts, list) or len(texts) != len(num_atoms) or not all(isinstance(t, str) for t in texts):
            yield f"ids and groups are not one text for each of {len(num_atoms)} frames"


_ARRAYS: dict[str, tuple[tuple[str, ...], Literal["frames", "atoms"], tuple[int, ...]]] = {
    "numbers": (("uint8",), "atoms", ()),
    "positions": (("float64", "float32"), "atoms", (3,)),
    "cell": (("float64",), "frames", (3, 3)),
    "pbc": (("bool",), "frames", (3,)),
    "energy": (("float64",), "frames", ()),
    "forces": (("float32",), "atoms", (3,)),
    "stress": (("float32",), "frames", (3, 3)),
    "labels": (("uint8",), "frames", ()),
    "alternative_energy": (("float64",), "frames", ()),
    "molecules": (("int32",), "atoms", ()),
}
"""Types of each array of a block, the unit of its entries (frames or atoms), and the shape of an entry."""
_OPTIONAL = ("alternative_energy", "molecules")
"""Arrays that a block without such labels lacks."""
