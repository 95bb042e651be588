"""Labelled frames of a data set or plain file, for suites that compare predictions with labels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from data_pipeline.loading.datasets import Dataset, Frames
from data_pipeline.plain_files import ReadConfig
from data_pipeline.sources.source import resolve
from data_pipeline.structure import Structure
from foundation.configuration import MAY_CHANGE
from foundation.datasets import one_split, refuse_unlabelled
from foundation.evaluation.suites.suite import Subject

CUTOFF = 5.0
"""Cutoff for which plain files are read [Å]; no graph is made of them here."""


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """Labelled frames to predict."""

    path: str = field(metadata=MAY_CHANGE)
    """Data set or plain file; environment variables are expanded."""
    name: str = field(default="", metadata=MAY_CHANGE)
    """Name on the page; empty: that of the folder or file."""
    split: str = field(default="test", metadata=MAY_CHANGE)
    """Split of the data set; of a plain file, all frames are read."""
    max_frames: int = field(default=1000, metadata=MAY_CHANGE)
    """Largest number of frames, spread evenly over the split."""

    def __post_init__(self) -> None:
        if self.max_frames < 1:
            raise ValueError(f"max_frames must be at least 1, not {self.max_frames}")

    @property
    def label(self) -> str:
        """Name on the page."""
        return self.name or self.path.rstrip("/").rpartition("/")[2]


def labelled_frames(path: str, split: str, max_frames: int, subject: Subject) -> tuple[list[Structure], int]:
    """Return frames whose elements a subject knows, and the number of those with unknown ones.

    Args:
        path: Data set or plain file; environment variables are expanded.
        split: Split of the data set; of a plain file, all frames are read.
        max_frames: Largest number of frames, spread evenly over the split.
        subject: The judged.

    Raises:
        FileNotFoundError: there is no such data set.
        ValueError: it is without labels, or has no such split, or no frame whose elements are all known.
    """

    def spread(frames: Frames) -> list[Structure]:
        count = min(max_frames, len(frames))
        return [frames[round(place)] for place in np.linspace(0, len(frames) - 1, count).tolist()]

    chosen = _read(path, split, spread)
    known = [
        frame for frame in chosen if subject.elements is None or set(frame.numbers.tolist()) <= set(subject.elements)
    ]
    if not known:
        raise ValueError(f"{path}: split {split!r} has no frame whose elements are all known to the potential")
    return known, len(chosen) - len(known)


def frames_with_forces(path: str, split: str, elements: Sequence[int]) -> list[Structure]:
    """Return all frames with forces whose elements are among some; arguments and errors as of labelled_frames()."""
    known = set(elements)

    def with_forces(frames: Frames) -> list[Structure]:
        return [each for each in frames if each.has_forces and set(each.numbers.tolist()) <= known]

    return _read(path, split, with_forces)


def _read(path: str, split: str, choose: Callable[[Frames], list[Structure]]) -> list[Structure]:
    """Return the chosen frames of a split; they are read while the data set is open."""
    resolved = resolve(path, field="path", section="suites", folders=True)
    with one_split(resolved, ReadConfig(), split=split, cutoff=CUTOFF) as manifest:
        dataset = Dataset(manifest=manifest, split=split)
        refuse_unlabelled([dataset])
        return choose(dataset.frames())
