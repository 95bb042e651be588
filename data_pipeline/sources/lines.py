"""Reading of text lines of bounded length: a small compressed file can hold one line of terabytes."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import AnyStr

from data_pipeline.structure import InvalidStructure

MAX_LINE = 4 * 2**20
"""Longest line of a text file [characters]: entries of some 100,000 numbers."""
MAX_FRAME = 2**28
"""Largest text of a frame, or before the first one [bytes of memory]: a million atoms."""
LINE_BYTES = 64
"""Memory overhead of a line beyond its characters [bytes]."""


def lines_of(readline: Callable[[int], AnyStr], path: Path) -> Iterator[AnyStr]:
    """Yield the lines of an open file, given its readline().

    Raises:
        InvalidStructure: a line is longer than MAX_LINE.
    """
    while line := readline(MAX_LINE):
        if len(line) == MAX_LINE:
            raise InvalidStructure(
                f"{path}: has a line of more than {MAX_LINE:,} characters, so it is not a text of frames. Remove it "
                "from the source's files."
            )
        yield line


def of_one_frame(lines: Iterator[AnyStr], path: Path) -> Iterator[AnyStr]:
    """Yield lines, at most the text of one frame.

    Raises:
        InvalidStructure: the text is larger than MAX_FRAME.
    """
    size = 0
    for line in lines:
        size += len(line) + LINE_BYTES
        if size > MAX_FRAME:
            raise InvalidStructure(
                f"{path}: has more than {MAX_FRAME:,} bytes of text for one frame, so it is not a text of frames. "
                "Remove it from the source's files."
            )
        yield line
