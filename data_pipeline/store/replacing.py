"""Checks before replacing a folder: it is ours, holds nothing else, and nothing that its replacement is made from."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.quoting import abbreviated


def refuse_foreign(folder: Path, kind: str, marker: str, belongs: Callable[[Path], bool] = lambda path: True) -> None:
    """Refuse to replace a folder that is not of a kind, or holds other files, which would be lost.

    Args:
        folder: The folder; it need not exist.
        kind: Word for the new content.
        marker: Name of a file that every folder of this kind has.
        belongs: Function that tells whether a file or folder in it is part of it.

    Raises:
        FileExistsError: the folder exists and has no such file, or holds files that would be lost.
    """
    if not folder.exists():
        return
    if not (folder / marker).is_file():
        raise FileExistsError(
            f"{folder} has no {marker}, so it is not a {kind} and is not replaced; choose another --out"
        )
    if foreign := sorted(path.name for path in folder.iterdir() if not belongs(path)):
        raise FileExistsError(
            f"{folder} holds other files that would be lost ({abbreviated(', '.join(foreign))}); move them away, "
            "or choose another --out"
        )


def refuse_inside(paths: Iterable[Path], folders: Sequence[Path]) -> None:
    """Refuse to replace folders that hold an input of their replacement.

    Raises:
        FileExistsError: the message names both.
    """
    for path in paths:
        for folder in folders:
            if path.is_relative_to(folder.absolute()) or path.resolve().is_relative_to(folder.resolve()):
                raise FileExistsError(f"{path} lies in {folder}, which the result would replace; choose another --out")


def named_paths(settings: Any, *, texts: bool = False) -> list[Path]:
    """Return every existing file and folder that settings name.

    Args:
        settings: A dataclass, paths, or containers of these.
        texts: Whether texts are names of files too, as in the settings of a source.
    """
    if dataclasses.is_dataclass(settings):
        settings = [getattr(settings, field.name) for field in dataclasses.fields(settings)]
    if isinstance(settings, dict):
        settings = list(settings.values())
    if isinstance(settings, list | tuple):
        return [path for value in settings for path in named_paths(value, texts=texts)]
    if not isinstance(settings, str | Path if texts else Path):
        return []
    path = Path(os.path.expandvars(settings)).expanduser().absolute()
    return [path] if path.is_dir() or path.is_file() else []
