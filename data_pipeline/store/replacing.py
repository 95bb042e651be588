"""What may be replaced: a folder that is ours and holds nothing else, and nothing that is read for what replaces it."""

import dataclasses
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.quoting import abbreviated


def refuse_foreign(folder: Path, kind: str, marker: str, belongs: Callable[[Path], bool] = lambda path: True) -> None:
    """Refuse to replace a folder that is not of a kind, or holds more, which would be lost.

    Args:
        folder: The folder; it need not be there.
        kind: Word for what is written there.
        marker: Name of a file that every folder of this kind has.
        belongs: Whether a file or folder in it is part of it.

    Raises:
        FileExistsError: the folder is there and has no such file, or holds files that would be lost.
    """
    if not folder.exists():
        return
    if not (folder / marker).is_file():
        raise FileExistsError(f"{folder} has no {marker}, so it is no {kind} and stays as it is; choose another --out")
    if foreign := sorted(path.name for path in folder.iterdir() if not belongs(path)):
        raise FileExistsError(
            f"{folder} holds what is of no {kind} and would be lost ({abbreviated(', '.join(foreign))}); move it away, "
            "or choose another --out"
        )


def refuse_inside(paths: Iterable[Path], folders: Sequence[Path]) -> None:
    """Refuse to replace folders in which something lies that is read for what replaces them.

    Raises:
        FileExistsError: the message names both.
    """
    for path in paths:
        for folder in folders:
            if path.is_relative_to(folder.absolute()) or path.resolve().is_relative_to(folder.resolve()):
                raise FileExistsError(
                    f"{path} lies in {folder}, which would be replaced by what is made of it; choose another --out"
                )


def named_paths(settings: Any, *, texts: bool = False) -> list[Path]:
    """Return every file and folder that settings name and that is there.

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
