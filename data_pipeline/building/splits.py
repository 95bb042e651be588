"""Splits: which frames are trained on, validated and kept for the end; whole groups, or contiguous blocks of frames.

Whole groups, dealt by a hash of their names, keep what is alike together, and adding data never moves one. A handful
of groups cannot be dealt so: a single one, such as molecular dynamics of one material, is all train or all test. There
each group gives its first frames to train, the next to val and the last to test.
"""

from typing import Literal

import numpy as np
from jaxtyping import Bool, Int8, UInt64

from data_pipeline.building.filters import Rejection
from data_pipeline.building.staging import StagedFrames, hash_of

REJECTED = -1
"""Split of a frame that is left out."""
SPLITS = ("train", "val", "test")
SplitBy = Literal["group", "order", "blocks"]
"""Unit of a split: whole groups by a hash of their names, or contiguous blocks of frames, in the source's order, of
everything or of each group."""
MIN_GROUPS = 5
"""Groups from which on a hash deals them."""
FAR = 2.0
"""Factor between the frames of a split and what was asked for that is worth a warning."""
TINY = 1e-9
"""Fraction below which nothing was asked for: 1 - 0.9 - 0.1 is not quite zero."""


class Splits:
    """Which frames are kept, and how they are dealt to the splits."""

    def __init__(
        self,
        frames: StagedFrames,
        rejections: list[Rejection],
        val_fraction: float,
        test_fraction: float,
        split_by: SplitBy,
        *,
        group_key: str | None = None,
    ) -> None:
        """Deal the frames.

        Args:
            frames: All frames that were read.
            rejections: Those that are left out.
            val_fraction: Fraction for validation.
            test_fraction: Fraction for the final evaluation.
            split_by: What is dealt.
            group_key: Entry that the source was told to take groups from; None where groups are its own choice.
        """
        self._frames, self._group_key = frames, group_key
        self._fractions = (1 - val_fraction - test_fraction, val_fraction, test_fraction)
        group = frames.column("group").astype(np.uint64)
        kept = np.ones(len(group), dtype=bool)
        for rejection in rejections:
            kept[rejection.frames] = False
        divided = split_by == "group" and sum(part > TINY for part in self._fractions) > 1
        first_frames = _first_of_groups(group, kept) if divided else []
        self._few = first_frames if len(first_frames) < MIN_GROUPS else []
        self.by: SplitBy = "blocks" if self._few and group_key is None else split_by
        """Unit that was dealt: blocks in place of groups where there are too few of them and nobody named them."""
        self.of_frames: Int8[np.ndarray, " frames"] = np.full(len(group), REJECTED, dtype=np.int8)
        """Split of every frame by its place in SPLITS; REJECTED for one that is left out."""
        if self.by == "group":
            position = group[kept] / 2.0**64
            dealt = np.where(position < test_fraction, 2, np.where(position < test_fraction + val_fraction, 1, 0))
        else:
            of_all = np.zeros(int(kept.sum()), dtype=np.uint64)
            dealt = _in_blocks(of_all if self.by == "order" else group[kept], val_fraction, test_fraction)
        self.of_frames[kept] = dealt

    def remarks(self) -> list[str]:
        """Return what is dealt otherwise than one would expect, a sentence each."""
        found = [self._about_groups()] if self._few else []
        counts = [int(np.count_nonzero(self.of_frames == number)) for number in range(len(SPLITS))]
        total = max(1, sum(counts))
        for name, count, asked in zip(SPLITS, counts, self._fractions, strict=True):
            if asked > TINY and not asked / FAR <= count / total <= asked * FAR:
                remedy = "; another --split_seed deals the groups anew" if self.by == "group" else ""
                found.append(
                    f"{name} has {count:,} of {total:,} frames, {count / total:.3g} of all, and {asked:.3g} were asked "
                    f"for by val_fraction and test_fraction{remedy}"
                )
        return found

    def _about_groups(self) -> str:
        names = [self._frames.structure(first).group for first in self._few]
        listed = ", ".join(name if len(name) <= 40 else f"{name[:40]}…" for name in names)
        number = "one group" if len(names) == 1 else f"{len(names)} groups"
        if self.by == "group":
            return (
                f"the source's group_key {self._group_key} names {number} ({listed}), too few to be dealt as asked: "
                "each is in one split as a whole. --split_by blocks divides every group in the order of its frames"
            )
        return (
            f"the frames are of {number} ({listed}), too few to be dealt whole: split by blocks, of each group the "
            "first frames are train, the next val, the last test, so frames beside a border are alike. The source's "
            "group_key names other groups, where it has one"
        )


def split_name(group: str, seed: int, val_fraction: float, test_fraction: float) -> str:
    """Return the split of a group that is dealt whole: a stable hash, so that adding data never moves a group."""
    position = hash_of(group, seed) / 2**64
    if position < test_fraction:
        return "test"
    return "val" if position < test_fraction + val_fraction else "train"


def _first_of_groups(group: UInt64[np.ndarray, " frames"], kept: Bool[np.ndarray, " frames"]) -> list[int]:
    """Return the first frame of each group that is kept; of MIN_GROUPS at most, to look through large data once."""
    found = list[int]()
    places = np.flatnonzero(kept)
    while len(places) and len(found) < MIN_GROUPS:
        found.append(int(places[0]))
        places = places[group[places] != group[places[0]]]
    return found


def _in_blocks(
    group: UInt64[np.ndarray, " kept"], val_fraction: float, test_fraction: float
) -> Int8[np.ndarray, " kept"]:
    """Return the split of every frame where each group is cut, at whole frames, into train, val and test."""
    _, of_frame, sizes = np.unique(group, return_inverse=True, return_counts=True)
    place = np.empty(len(group), dtype=np.int64)
    place[np.argsort(of_frame, kind="stable")] = np.arange(len(group)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    size = sizes[of_frame]
    first_val, first_test = np.round(size * (1 - val_fraction - test_fraction)), np.round(size * (1 - test_fraction))
    return (place >= first_val).astype(np.int8) + (place >= first_test).astype(np.int8)
