"""Files of a source: read for hours by a build, during which none may be overwritten.

Size and times of every file are noted before the first is read. The time of change is among them because a program can
set the time of modification, but not that one.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_pipeline.store.replacing import named_paths

Snapshot = dict[str, tuple[int, int, int]]
"""Size [bytes], and times of modification and of change [ns], of each file by its path."""


class SourceChanged(ValueError):
    """A file of the source was written while the build read it; the message names the file."""


def snapshot(settings: Any, is_own: Callable[[Path], bool]) -> Snapshot:
    """Return a snapshot of the files that a source's settings name, without the build's own."""
    return {
        str(path): _stamp(path) for path in _files(settings) if not is_own(path) and not path.name.endswith("-lock")
    }


def refuse_changes(before: Snapshot) -> None:
    """Compare the files of a source with their snapshot.

    Raises:
        SourceChanged: one is gone or was written to. Files that were missing before were not read either.
    """
    for name, stamp in before.items():
        path = Path(name)
        happened = "is gone" if not path.is_file() else "was written to" if _stamp(path) != stamp else ""
        if happened:
            raise SourceChanged(
                f"{name} {happened} while it was read, so the frames may be half of the old and half of the new file. "
                "The same command starts over; wait until nothing writes to the source."
            )


def _stamp(path: Path) -> tuple[int, int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _files(settings: Any) -> list[Path]:
    """Return every file that a setting of the source names, and those in a folder that one names."""
    return [
        path
        for named in named_paths(settings, texts=True)
        for path in (sorted(p for p in named.rglob("*") if p.is_file()) if named.is_dir() else [named])
    ]
