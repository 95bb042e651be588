"""Splits: frames for training, validation and testing; whole groups, contiguous blocks of frames, or at random.

Whole groups, assigned by a hash of their names, keep similar frames together, and adding data never moves a group. A
handful of groups cannot be split so: a single one, such as molecular dynamics of one material, would be all train or
all test. Then each group gives its first frames to train, the next to val and the last to test. Single frames at random
are for frames without relation: of molecular dynamics, neighbours in time would be on both sides.

A source may name the split of some frames itself; the options divide the others.
"""

from typing import Literal

import numpy as np
from jaxtyping import Bool, Int8, UInt64

from data_pipeline.building.filters import Rejection
from data_pipeline.building.staging import StagedFrames, hash_of

REJECTED, UNNAMED = -1, -2
"""Split of a frame that is left out, and that of one whose source names none."""
SPLITS = ("train", "val", "test")
SplitBy = Literal["group", "order", "blocks", "random"]
"""Unit of a split: whole groups by a hash of their names, contiguous blocks of frames, in the source's order, of
everything or of each group, or single frames by a hash of their names."""
MIN_GROUPS = 5
"""Number of groups from which a hash assigns them."""
FAR = 2.0
"""Factor between the actual and the requested frames of a split above which a warning is given."""
TINY = 1e-9
"""Fraction below which nothing was requested: 1 - 0.9 - 0.1 is not quite zero."""


class Splits:
    """Assignment of the kept frames to the splits."""

    def __init__(
        self,
        frames: StagedFrames,
        rejections: list[Rejection],
        val_fraction: float,
        test_fraction: float,
        split_by: SplitBy,
        *,
        group_key: str | None = None,
        seed: int = 0,
        named: Int8[np.ndarray, " frames"] | None = None,
    ) -> None:
        """Assign the frames.

        Args:
            frames: All frames that were read.
            rejections: Frames that are left out.
            val_fraction: Fraction for validation.
            test_fraction: Fraction for the final evaluation.
            split_by: Unit of the split.
            group_key: Entry that the user named for groups; None if the source chose them.
            seed: Seed of a random split; that of the groups is in their staged hashes.
            named: Split of each frame, as index in SPLITS, if its source names one, else UNNAMED; None: no source does.
        """
        self._frames, self._group_key = frames, group_key
        self._fractions = (1 - val_fraction - test_fraction, val_fraction, test_fraction)
        group = frames.column("group").astype(np.uint64)
        accepted = np.ones(len(group), dtype=bool)
        for rejection in rejections:
            accepted[rejection.frames] = False
        named = np.full(len(group), UNNAMED, dtype=np.int8) if named is None else named
        self._divided = kept = accepted & (named == UNNAMED)
        divided = split_by == "group" and sum(part > TINY for part in self._fractions) > 1
        first_frames = _first_of_groups(group, kept) if divided else []
        self._few = first_frames if len(first_frames) < MIN_GROUPS else []
        self.by: SplitBy = "blocks" if self._few and group_key is None else split_by
        """Unit that was used: blocks instead of groups if there are too few and no group_key."""
        self.of_frames: Int8[np.ndarray, " frames"] = np.where(accepted, named, REJECTED).astype(np.int8)
        """Split of every frame as index in SPLITS; REJECTED for one that is left out."""
        if self.by in ("group", "random"):
            hashes = group if self.by == "group" else _mixed(frames.column("id").astype(np.uint64), seed)
            position = hashes[kept] / 2.0**64
            dealt = np.where(position < test_fraction, 2, np.where(position < test_fraction + val_fraction, 1, 0))
        else:
            of_all = np.zeros(int(kept.sum()), dtype=np.uint64)
            dealt = _in_blocks(of_all if self.by == "order" else group[kept], val_fraction, test_fraction)
        self.of_frames[kept] = dealt

    def remarks(self) -> list[str]:
        """Return a sentence for each deviation from the requested split."""
        found = [self._about_groups()] if self._few else []
        divided = self.of_frames[self._divided]
        counts = [int(np.count_nonzero(divided == number)) for number in range(len(SPLITS))]
        total = max(1, sum(counts))
        for name, count, asked in zip(SPLITS, counts, self._fractions, strict=True):
            if asked > TINY and divided.size and not asked / FAR <= count / total <= asked * FAR:
                dealt = {"group": "groups", "random": "frames"}.get(self.by)
                remedy = f"; another --split_seed assigns the {dealt} anew" if dealt else ""
                found.append(
                    f"{name} has {count:,} of {total:,} frames, {count / total:.3g}, not the {asked:.3g} requested "
                    f"by val_fraction and test_fraction{remedy}"
                )
        return found

    def _about_groups(self) -> str:
        names = [self._frames.structure(first).group for first in self._few]
        listed = ", ".join(name if len(name) <= 40 else f"{name[:40]}…" for name in names)
        number = "one group" if len(names) == 1 else f"{len(names)} groups"
        if self.by == "group":
            return (
                f"the source's group_key {self._group_key} names {number} ({listed}), too few to split as requested: "
                "each is in one split as a whole. --split_by blocks divides every group in the order of its frames"
            )
        return (
            f"the frames are of {number} ({listed}), too few to be kept whole: split by blocks, in each group the "
            "first frames are train, the next val, the last test, so frames beside a border are alike. The source's "
            "group_key, if it has one, names other groups"
        )


def split_name(group: str, seed: int, val_fraction: float, test_fraction: float) -> str:
    """Return the split of a whole group: a stable hash, so that adding data never moves a group."""
    position = hash_of(group, seed) / 2**64
    if position < test_fraction:
        return "test"
    return "val" if position < test_fraction + val_fraction else "train"


def _mixed(names: UInt64[np.ndarray, " frames"], seed: int) -> UInt64[np.ndarray, " frames"]:
    """Return hashes of hashed names and a seed (the finalizer of SplitMix64), which depend on nothing else."""
    mixed = names ^ np.uint64(hash_of("split", seed))
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def _first_of_groups(group: UInt64[np.ndarray, " frames"], kept: Bool[np.ndarray, " frames"]) -> list[int]:
    """Return the first frame of each kept group, of MIN_GROUPS at most, in one pass over large data."""
    found = list[int]()
    places = np.flatnonzero(kept)
    while len(places) and len(found) < MIN_GROUPS:
        found.append(int(places[0]))
        places = places[group[places] != group[places[0]]]
    return found


def _in_blocks(
    group: UInt64[np.ndarray, " kept"], val_fraction: float, test_fraction: float
) -> Int8[np.ndarray, " kept"]:
    """Return the split of every frame, with each group cut at whole frames into train, val and test."""
    _, of_frame, sizes = np.unique(group, return_inverse=True, return_counts=True)
    place = np.empty(len(group), dtype=np.int64)
    place[np.argsort(of_frame, kind="stable")] = np.arange(len(group)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    size = sizes[of_frame]
    first_val, first_test = np.round(size * (1 - val_fraction - test_fraction)), np.round(size * (1 - test_fraction))
    return (place >= first_val).astype(np.int8) + (place >= first_test).astype(np.int8)
