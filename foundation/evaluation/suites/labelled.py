"""Labelled frames of a data set or plain file, for suites that compare predictions with labels."""

import numpy as np

from data_pipeline.loading.datasets import Dataset
from data_pipeline.plain_files import ReadConfig
from data_pipeline.sources.source import resolve
from data_pipeline.structure import Structure
from foundation.datasets import one_split
from foundation.evaluation.suites.suite import Subject

CUTOFF = 5.0
"""Cutoff for which plain files are read [Å]; no graph is made of them here."""


def labelled_frames(path: str, split: str, max_frames: int, subject: Subject) -> tuple[list[Structure], int]:
    """Return frames whose elements a subject knows, and the number of those with unknown ones.

    Args:
        path: Data set or plain file; environment variables are expanded.
        split: Split of the data set; of a plain file, all frames are read.
        max_frames: Largest number of frames, spread evenly over the split.
        subject: The judged.

    Raises:
        FileNotFoundError: there is no such data set.
        ValueError: it has no such split, or no frame whose elements are all known.
    """
    resolved = resolve(path, field="path", section="suites", folders=True)
    with one_split(resolved, ReadConfig(), split=split, cutoff=CUTOFF) as manifest:
        frames = Dataset(manifest=manifest, split=split).frames()
        count = min(max_frames, len(frames))
        chosen = [frames[round(place)] for place in np.linspace(0, len(frames) - 1, count).tolist()]
    known = [
        frame for frame in chosen if subject.elements is None or set(frame.numbers.tolist()) <= set(subject.elements)
    ]
    if not known:
        raise ValueError(f"{resolved}: split {split!r} has no frame whose elements are all known to the potential")
    return known, len(chosen) - len(known)
