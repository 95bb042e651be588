"""Source: labelled frames in parts that several processes can read independently."""

import contextlib
import importlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase

from data_pipeline.structure import InvalidStructure, Structure


class MachineLearned(InvalidStructure):
    """A step that a force field predicted, according to the file: not a label, always left out and counted."""


Frame = Structure | InvalidStructure
"""A frame, or the reason why it is refused; reading continues after it, and the caller decides."""
Frames = Iterator[tuple[int, ase.Atoms | InvalidStructure]]
"""Number of each frame in a file that ASE reads, and the frame or the reason why it cannot be read."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A range of a source that one process reads in order."""

    name: str
    """Name, unique in its source and reproducible: a file below the source's folder, and its rows."""
    size: int
    """Size to read [bytes], for the progress bar."""
    read: Callable[[], Iterator[Frame]]
    """Generator of the frames in order; pickled for other processes, so a bound method or functools.partial, not a
    lambda."""
    split: str | None = None
    """Split of all its frames; None: the options of the build decide."""


class Source:
    """Interface of every source: parts, and iteration over the frames of all of them.

    The parts depend on the files and the configuration only, not on the processes. A frame that cannot be trained on is
    yielded as an InvalidStructure with file, frame and reason; a file that cannot be read further raises it.
    """

    def parts(self) -> Sequence[Part]:
        """Return the parts in order: small enough for several processes to share, large enough to be worth opening.

        Raises:
            FileNotFoundError: a file is missing, or its path names an environment variable that is not set.
            InvalidStructure: a file that must be read to find the parts is damaged.
        """
        raise NotImplementedError

    def __iter__(self) -> Iterator[Structure]:
        """Yield every frame once, in order, without machine-learned steps.

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


def resolve(name: str, *, field: str, folders: bool = False, section: str = "source") -> Path:
    """Return the path in a field, of a source if no other section is named, with environment variables expanded.

    Raises:
        FileNotFoundError: a variable is not set, or the file (or folder, if folders is True) is missing.
    """
    path = Path(os.path.expandvars(name)).expanduser()
    if "$" in str(path):
        raise FileNotFoundError(
            f"{name}: the environment variable in this path is not set. Set it to the folder that holds the data, "
            f"or give the path itself with --{section}.{field}."
        )
    if not path.is_file() and not (folders and path.is_dir()):
        raise FileNotFoundError(f"{path}: no such file{' or folder' * folders} ({section}.{field} names it)")
    return path


def named_paths(names: Sequence[str], field: str) -> list[tuple[Path, str]]:
    """Return the files in a source's field, each with its name below the folder common to all.

    Raises:
        FileNotFoundError: a file is not there, or its path names an environment variable that is not set.
    """
    return below_common_folder([resolve(name, field=field) for name in names])


def below_common_folder(paths: Sequence[Path]) -> list[tuple[Path, str]]:
    """Return each file with its name below the folder common to all."""
    folder = os.path.commonpath([path.absolute().parent for path in paths]) if paths else ""
    return [(path, os.path.relpath(path.absolute(), folder)) for path in paths]


@contextlib.contextmanager
def errors_named(path: Path, place: str) -> Iterator[None]:
    """Turn any error of a reader into one that names the place."""
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
        f"{path}: the file holds no frames in the format used to read it. Name its format (--source.format NAME), or "
        "remove it from the source's files."
    )


def reason_of(error: Exception) -> str:
    """Return the reason in a reader's error, at most a few lines."""
    text = str(error) if len(str(error)) <= 300 else f"{str(error)[:300]}..."
    if isinstance(error, KeyError):
        return f"unknown element or entry {text}"
    return f"cannot be read ({type(error).__name__}: {text})"


def made_of(option: str, word: str, arguments: tuple[str, ...], example: str) -> Any:
    """Return what a word, `module:name`, makes of arguments; the module is imported and so run.

    Args:
        option: Name of the option that has the word.
        word: The word.
        arguments: Arguments of the class or function.
        example: Example of a word.

    Raises:
        ValueError: nothing can be made of it.
    """
    module, _, name = word.partition(":")
    try:
        return getattr(importlib.import_module(module), name)(*arguments)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{option} {word}: nothing can be made of {', '.join(arguments) or 'it'} ({error}); give the module and "
            f"the name of a class or function, and the arguments it needs, such as {example}"
        ) from error
