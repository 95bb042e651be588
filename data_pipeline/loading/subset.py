"""Subset: some frames of a split, by number, as training data.

The numbers take 8 bytes per frame, and in a stream the costs of the frames as many again; blocks without any of them
are not read. A split need not be rebuilt to train on a part of it.
"""

import hashlib
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from jaxtyping import Int, Int64


class Subset:
    """Frames of a split by number, each once, in order."""

    def __init__(self, numbers: Int[np.ndarray, " chosen"] | Sequence[int]) -> None:
        """Take numbers in any order.

        Raises:
            ValueError: none is given, one is negative, or one is given twice.
        """
        found = np.unique(np.asarray(numbers, dtype=np.int64))
        if len(found) == 0:
            raise ValueError("a subset without frames; give at least one number")
        if found[0] < 0:
            raise ValueError(f"a subset has frame {found[0]}: frames are numbered from 0")
        if len(found) != len(numbers):
            raise ValueError(f"a subset has {len(numbers) - len(found)} frames twice: give each number once")
        found.flags.writeable = False
        self.numbers: Int64[np.ndarray, " chosen"] = found
        """The numbers in order; read-only."""

    def __len__(self) -> int:
        return len(self.numbers)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Subset) and np.array_equal(self.numbers, other.numbers)

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        return f"Subset({len(self)} frames, {self.fingerprint[:12]}…)"

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the numbers."""
        return hashlib.sha256(self.numbers.astype("<i8").tobytes()).hexdigest()

    def check(self, num_frames: int, place: str) -> None:
        """Check that a set of num_frames frames holds all numbers; `place` names it in messages.

        Raises:
            ValueError: a number is too high.
        """
        if self.numbers[-1] >= num_frames:
            raise ValueError(
                f"{place}: no frame {self.numbers[-1]} to choose, only {num_frames} frames, numbered from 0"
            )
