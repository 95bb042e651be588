"""Files that the user's words mean: files, globs, folders, and lists in SevenNet's format.

A folder is searched for files that are recognised by their names; where a calculation left both OUTCAR and
vasprun.xml, the OUTCAR is read. Everything else is listed, so that nothing is left out silently.
"""

import difflib
import glob
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from data_pipeline.quoting import abbreviated
from data_pipeline.structure import InvalidStructure

COMPRESSED = (".gz", ".bz2", ".xz")
MAX_LIST = 2**20
"""Largest structure_list [bytes]."""
_LABEL = re.compile(r"\s*\[[^\]]*\]\s*")
_SLICE = re.compile(r"[+-]?\d*(:[+-]?\d*){0,2}")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")
_IGNORED_FOLDERS = ("__pycache__",)


class DataFile(NamedTuple):
    """A file, or folder of a DeePMD system, with labelled frames."""

    path: Path
    """Path as the user's word gives it."""
    kind: str
    """ASE's name of the format ("other": ASE finds out), or one that has its own source: aselmdb, mace, deepmd."""
    slice: str = ":"
    """Python slice of the frames to read."""


@dataclass
class Found:
    """Files that words mean, and those that lie beside them and are not read."""

    files: list[DataFile] = field(default_factory=list)
    """Files to read, each once, in the order of the words."""
    unread: list[tuple[Path, str]] = field(default_factory=list)
    """Files of folders that are not read, with the reason."""


def find_files(words: Sequence[str], option: str = "data") -> Found:
    """Return the files that words mean.

    Args:
        words: Paths of files and folders, globs, and structure_lists, as typed.
        option: Name of the option, for messages.

    Raises:
        FileNotFoundError: a file is missing, a glob matches nothing, or a folder holds no file that is recognised.
        ValueError: a word names a run, a release or a built data set instead of files.
        InvalidStructure: a line of a structure_list is neither a label nor a file.
    """
    found = Found()
    for word in words:
        paths = _matches(word, option)
        for path in paths:
            _refuse_own(path, option)
        for folder in (path for path in paths if path.is_dir()):
            _search(folder, found, option)
        files = [path for path in paths if path.is_file()]
        if len(files) > 1:
            _take(files, found, all_of_them=not any(kind_of_file(path) for path in files))
        for path in files if len(files) == 1 else ():
            found.files += _listed(path) if _is_list(path) else [DataFile(path, kind_of_file(path) or "other")]
    once = {(file.path.resolve(), file.slice): file for file in reversed(found.files)}
    found.unread += [(file.path, "named twice") for file in found.files if file not in once.values()]
    found.files = list(reversed(once.values()))
    return found


def kind_of_file(path: Path) -> str | None:
    """Return the format of a file by its name, or None."""
    name = path.name
    if path.suffix in COMPRESSED:
        name = path.stem
    suffix = Path(name).suffix.lower()
    by_suffix = {".xyz": "extxyz", ".extxyz": "extxyz", ".db": "db", ".traj": "traj"}
    if suffix in by_suffix:
        return by_suffix[suffix]
    if path.suffix == ".aselmdb":
        return "aselmdb"
    if path.suffix in (".h5", ".hdf5"):
        return "mace"
    if "OUTCAR" in name:
        return "vasp-out"
    return "vasp-xml" if "vasprun" in name and ".xml" in name else None


def _matches(word: str, option: str) -> list[Path]:
    """Return the paths that a word means, sorted for a glob."""
    text = os.path.expanduser(os.path.expandvars(word))
    if "$" in text and not os.path.exists(text):
        raise FileNotFoundError(f"{word}: the environment variable in this path is not set (--{option})")
    if os.path.exists(text):
        return [Path(text)]
    if not glob.has_magic(text):
        raise FileNotFoundError(f"{text}: no such file or folder (--{option} names it){_beside(Path(text))}")
    paths = [Path(path) for path in sorted(glob.glob(text, recursive=True))]
    if not paths:
        raise FileNotFoundError(
            f"{text}: no file matches this pattern in {Path.cwd()} (--{option}); ** stands for folders at any depth"
        )
    # ** matches the folders as well as the files in them
    return [path for path in paths if path.is_file()] or paths if "**" in text else paths


def _beside(path: Path) -> str:
    """Return a hint with the most similar name in the same folder, or ''."""
    try:
        names = [each.name for each in path.parent.iterdir()]
    except OSError:
        return f"; there is no folder {path.parent}"
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {path.parent / near[0]}?" if near else ""


def _refuse_own(path: Path, option: str) -> None:
    """Refuse what this program wrote and is not a file of frames."""
    if path.name == "manifest.json" or (path / "manifest.json").is_file():
        raise ValueError(
            f"{path} is a built data set, which is used as it is; name it without other files (--{option})"
        )
    if (path / "run.json").is_file():
        raise ValueError(
            f"{path} is the folder of a run, not data; --{option} takes files of labelled frames or a built data set, "
            "--model and --start take runs"
        )
    if (path / "model.safetensors").is_file() or path.suffix in (".safetensors", ".pth", ".pt", ".ckpt"):
        raise ValueError(
            f"{path} is a potential, not data; --{option} takes files of labelled frames or a built data set, --model "
            "and --start take potentials"
        )


def _search(folder: Path, found: Found, option: str) -> None:
    """Add the files of a folder that are recognised, in the order of their paths, and list the others."""
    before = len(found.files)
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in _IGNORED_FOLDERS)
        if "type.raw" in names:
            found.files.append(DataFile(Path(parent), "deepmd"))
            folders[:] = []
            continue
        if "manifest.json" in names:
            found.unread += [(Path(parent), "a built data set")]
            folders[:] = []
            continue
        _take([Path(parent) / name for name in sorted(names) if not name.startswith(".")], found)
    if len(found.files) == before:
        others = sorted({path.name for path, _ in found.unread if path.is_relative_to(folder)})
        holds = f"it holds {abbreviated(', '.join(others))}" if others else "it is empty"
        raise FileNotFoundError(
            f"{folder}: no file in this folder is recognised by its name ({holds}); name the files themselves "
            f"(--{option})"
        )


def _take(paths: Sequence[Path], found: Found, *, all_of_them: bool = False) -> None:
    """Add the files that are recognised by their names, or all, and list the others with the reason."""
    kinds = {path: kind_of_file(path) for path in paths}
    with_outcar = {path.parent for path, kind in kinds.items() if kind == "vasp-out"}
    for path, kind in kinds.items():
        if kind == "vasp-xml" and path.parent in with_outcar:
            found.unread.append((path, "the OUTCAR beside it is read"))
        elif kind is None and not all_of_them:
            found.unread.append((path, "a structure_list" if _is_list(path) else "not recognised"))
        else:
            found.files.append(DataFile(path, kind or "other"))


def _is_list(path: Path) -> bool:
    """Return whether a file is a structure_list: labels in brackets, and paths each with a slice."""
    if not path.is_file() or path.stat().st_size > MAX_LIST or kind_of_file(path) is not None:
        return False
    lines = [line for line in path.read_bytes().decode(errors="replace").splitlines() if line.strip()]
    return bool(lines) and _LABEL.fullmatch(lines[0]) is not None


def _listed(path: Path) -> list[DataFile]:
    """Return the files of a structure_list; paths are relative to the working directory, else to the list's folder.

    Raises:
        FileNotFoundError: a file is missing.
        InvalidStructure: a line is neither a label nor a path with a slice.
    """
    found = []
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
        words = line.split()
        if not words or _LABEL.fullmatch(line):
            continue
        if len(words) > 2 or (len(words) == 2 and not _SLICE.fullmatch(words[1])):
            raise InvalidStructure(
                f"{path}, line {number}: {abbreviated(line.strip())} is neither a [label] nor a path with a slice "
                "such as OUTCAR 0:10:2"
            )
        for name in _expanded(words[0]):
            file = next((each for each in (Path(name), path.parent / name) if each.is_file()), None)
            if file is None:
                raise FileNotFoundError(
                    f"{name}: no such file (line {number} of {path} names it), neither from the working directory nor "
                    "from the folder of the list"
                )
            kind = kind_of_file(file)
            found.append(DataFile(file, kind or "other", words[1] if len(words) == 2 else ":"))
    if not found:
        raise FileNotFoundError(f"{path}: the list names no file")
    return found


def _expanded(text: str) -> Iterator[str]:
    """Yield the texts that braces stand for, as in a shell: {a,b} and {1..3}."""
    match = _BRACES.search(text)
    if match is None:
        yield text
        return
    bounds = _RANGE.fullmatch(match[1])
    if bounds is not None:
        first, last = int(bounds[1]), int(bounds[2])
        choices: Iterator[str] = map(str, range(first, last + 1) if first <= last else range(first, last - 1, -1))
    else:
        choices = iter(match[1].split(","))
    yield from itertools.chain.from_iterable(
        _expanded(text[: match.start()] + choice + text[match.end() :]) for choice in choices
    )
