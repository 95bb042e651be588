"""Frame keys: 64 bits that identify a frame in any data set.

A frame is identified by its id and composition. Ids of published corpora are unique (mp-1234-0-5), but if a file has no
ids they are its name and a number, which files of different materials may share. Training data, Fisher data and
held-out data are compared by these keys: 8 bytes per frame, and two data sets of 10⁶ frames share a key by chance once
in 10⁷ comparisons.
"""

import hashlib

import numpy as np
from jaxtyping import Integer


def frame_key(id: str, numbers: Integer[np.ndarray, " atoms"]) -> int:
    """Return the key of a frame with this id and these atomic numbers in any order, as nonzero int64."""
    counts = np.bincount(numbers)
    elements = np.flatnonzero(counts)
    composition = np.stack([elements, counts[elements]]).astype("<i8").tobytes()
    digest = hashlib.blake2b(composition + id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True) or 1
