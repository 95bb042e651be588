"""Source: labelled frames in parts that can be read independently, and so by several processes."""

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import ase

from data_pipeline.structure import InvalidStructure, Structure


class MachineLearned(InvalidStructure):
    """A step that the file itself says a force field predicted: no label, left out in any case, and counted."""


Frame = Structure | InvalidStructure
"""A frame, or why it is refused: reading goes on after a refused frame, and the caller decides what that means."""
Frames = Iterator[tuple[int, ase.Atoms | InvalidStructure]]
"""Number of each frame in a file that ASE reads, and the frame or why it cannot be read."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A stretch of a source that is read by one process, in order."""

    name: str
    """Name, unique in its source and the same every time: a file below the source's folder, and which rows."""
    size: int
    """Size of what there is to read [bytes], for the progress bar."""
    read: Callable[[], Iterator[Frame]]
    """Yields the frames in order. It travels to other processes: a bound method or functools.partial, not a lambda."""


class Source:
    """What every source has: parts, and iteration over the frames of all of them.

    The parts depend on the files and the configuration only, never on who reads them. A frame that cannot be trained on
    comes as the InvalidStructure that says why, with file and frame; a file that cannot be read on raises it.
    """

    def parts(self) -> Sequence[Part]:
        """Return the parts in order; small enough that several processes have work, large enough to be worth opening.

        Raises:
            FileNotFoundError: a file is missing, or its path names an environment variable that is not set.
            InvalidStructure: a file is damaged where it must be read to find the parts.
        """
        raise NotImplementedError

    def __iter__(self) -> Iterator[Structure]:
        """Yield every frame once, in order; steps that are machine-learned are none.

        Raises:
            InvalidStructure: a frame is refused or a file cannot be read; the message names file and frame.
        """
        for part in self.parts():
            for frame in part.read():
                if isinstance(frame, MachineLearned):
                    continue
                if isinstance(frame, InvalidStructure):
                    raise frame
                yield frame


def resolve(name: str, *, field: str, folders: bool = False) -> Path:
    """Return the path that a source's field names, with its environment variables filled in.

    Raises:
        FileNotFoundError: a variable is not set, or there is no such file (or folder, where folders may be named).
    """
    path = Path(os.path.expandvars(name)).expanduser()
    if "$" in str(path):
        raise FileNotFoundError(
            f"{name}: the environment variable in this path is not set. Set it to the folder that holds the data, "
            f"or give the path itself with --source.{field}."
        )
    if not path.is_file() and not (folders and path.is_dir()):
        raise FileNotFoundError(f"{path}: no such file{' or folder' * folders} (source.{field} names it)")
    return path


def named_paths(names: Sequence[str], field: str) -> list[tuple[Path, str]]:
    """Return the files that a source's field names, each with its name below the folder that is common to all.

    Raises:
        FileNotFoundError: a file is not there, or its path names an environment variable that is not set.
    """
    return below_common_folder([resolve(name, field=field) for name in names])


def below_common_folder(paths: Sequence[Path]) -> list[tuple[Path, str]]:
    """Return each file with its name below the folder that is common to all."""
    folder = os.path.commonpath([path.absolute().parent for path in paths]) if paths else ""
    return [(path, os.path.relpath(path.absolute(), folder)) for path in paths]


@contextlib.contextmanager
def errors_named(path: Path, place: str) -> Iterator[None]:
    """Turn whatever a reader raises into an error with a place."""
    try:
        yield
    except InvalidStructure:
        raise
    except Exception as error:
        raise InvalidStructure(
            f"{path}, {place}: {reason_of(error)}. The file may be truncated; repair it or remove it from the source's "
            "files."
        ) from error


def no_frames(path: Path) -> InvalidStructure:
    """Return the error for a file without frames."""
    return InvalidStructure(
        f"{path}: the file holds no frames of the format that it was read as. Name its format (source.format), or "
        "remove it from the source's files."
    )


def reason_of(error: Exception) -> str:
    """Return what an error of a reader means, at most a few lines of it."""
    text = str(error) if len(str(error)) <= 300 else f"{str(error)[:300]}..."
    if isinstance(error, KeyError):
        return f"unknown element or entry {text}"
    return f"cannot be read ({type(error).__name__}: {text})"
