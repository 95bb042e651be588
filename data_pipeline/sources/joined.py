"""Several sources as one, so that files of different formats or keys become one data set with one split."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from data_pipeline.sources.ase_files import AseFiles
from data_pipeline.sources.aselmdb import AseLmdb
from data_pipeline.sources.deepmd_npy import DeepmdNpy
from data_pipeline.sources.mace_hdf5 import MaceHdf5
from data_pipeline.sources.source import Frame, Part, Source
from data_pipeline.structure import Structure

FileSource = AseFiles | AseLmdb | DeepmdNpy | MaceHdf5
"""Sources that can be joined."""


@dataclass(frozen=True, kw_only=True)
class Joined(Source):
    """Frames of several sources, in the order given; the name of each begins with the number of its source.

    Frames of `val` and `test` are in these splits; those of `train` are split by the options of the build.
    """

    train: tuple[FileSource, ...]
    """Sources of the frames that the build splits."""
    val: tuple[FileSource, ...] = ()
    """Sources of frames for validation only."""
    test: tuple[FileSource, ...] = ()
    """Sources of frames for the final evaluation only."""

    @property
    def group_key(self) -> str | None:
        """Entry that names the groups of the frames to split, or None if no source names one."""
        return next((key for each in self.train if (key := getattr(each, "group_key", None))), None)

    def parts(self) -> Sequence[Part]:
        """Return the parts of every source.

        Raises:
            FileNotFoundError: a file is missing.
            InvalidStructure: a file that must be read to find the parts is damaged.
        """
        sections = (("train", None), ("val", "val"), ("test", "test"))
        chosen = [(source, split) for name, split in sections for source in getattr(self, name)]
        return list(
            itertools.chain.from_iterable(
                (_numbered(part, f"{number}/", split) for part in source.parts())
                for number, (source, split) in enumerate(chosen)
            )
        )


def _numbered(part: Part, prefix: str, split: str | None) -> Part:
    """Return a part whose names begin with a prefix, since two sources may use the same ones."""
    return replace(part, name=prefix + part.name, read=partial(_read, part, prefix), split=split)


def _read(part: Part, prefix: str) -> Iterator[Frame]:
    for frame in part.read():
        yield replace(frame, id=prefix + frame.id) if isinstance(frame, Structure) else frame
