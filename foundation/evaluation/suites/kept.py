"""Trajectories that a suite keeps until it is finished, so that an interrupted command does not run them again."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import safetensors.numpy

from data_pipeline.store import durable
from data_pipeline.store.untrusted import CorruptFile, refusing

Arrays = tuple[np.ndarray, ...]
"""Arrays in order."""


def kept(folder: Path | None, name: str, make: Callable[[], Arrays]) -> Arrays:
    """Return arrays that an interrupted command has kept, or make and keep them.

    Args:
        folder: Folder of the suite, as of Subject.kept; None: nothing is kept.
        name: Name of the arrays, which says all that they depend on besides subject and options of the suite.
        make: Makes them.

    Raises:
        CorruptFile: the kept file is damaged.
    """
    if folder is None:
        return make()
    file = folder / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.safetensors"
    if file.is_file():
        with refusing(file, CorruptFile, "damaged ({}); remove it"):
            found = safetensors.numpy.load(file.read_bytes())
            return tuple(found[str(place)] for place in range(len(found)))
    made = make()
    folder.mkdir(parents=True, exist_ok=True)
    durable.write_whole(file, safetensors.numpy.save({str(place): each for place, each in enumerate(made)}))
    return made
