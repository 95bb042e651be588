"""One file per on-disk format; each turns it into Structures and is the only place that converts units and signs."""

from collections.abc import Iterator
from typing import Protocol

from data_pipeline.sources.ase_files import AseFiles
from data_pipeline.sources.emt import EmtAlloys
from data_pipeline.structure import Structure

__all__ = ["AseFiles", "EmtAlloys", "Source", "SourceConfig"]


class Source(Protocol):
    """Anything that yields Structures in a fixed order; iterating it twice yields the same frames."""

    def __iter__(self) -> Iterator[Structure]:
        """Yield every frame once, in the source's own order."""
        ...


SourceConfig = AseFiles | EmtAlloys
"""The sources that a YAML can name; told apart by their fields."""
