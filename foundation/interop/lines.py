"""Files of JSON lines: several processes add results, each to a file of its own, and a killed one goes on."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SUFFIX = ".jsonl"
"""End of the names of the files."""


def append_line(file: Path, value: Any, *, flush: bool = False) -> None:
    """Add a value as a line; after a torn one of a killed process, on a new line.

    Args:
        file: The file.
        value: The value.
        flush: Whether it has to be on the disk afterwards.
    """
    line = json.dumps(value, allow_nan=False) + "\n"
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab+") as opened:
        if opened.tell():  # in this mode, at first the size of the file
            opened.seek(-1, os.SEEK_END)
            line = line if opened.read(1) == b"\n" else f"\n{line}"
        opened.write(line.encode())
        if flush:
            opened.flush()
            os.fsync(opened.fileno())


def read_lines(folder: Path) -> Iterator[tuple[str, Any]]:
    """Yield the place and the value of every line of a folder's files; torn lines are left out."""
    for file in sorted(folder.glob(f"*{SUFFIX}")):
        with file.open("rb") as opened:
            for number, line in enumerate(opened, start=1):
                try:
                    value = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                yield f"{file}, line {number}", value
