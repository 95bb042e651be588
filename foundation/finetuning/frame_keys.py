"""Frame keys: 64 bits that tell whether two frames are the same one, in whichever data set they are.

A frame is known by its id and its composition. Ids of published corpora are unique among all of them (mp-1234-0-5), but
where a file names no ids they are its name and a number, which files of different materials may share. What is trained
on, what a Fisher is made of and what is held out are compared by these keys: 8 bytes a frame, and two of 10⁶ frames
each have the same key by chance once in 10⁷ comparisons.
"""

import hashlib

import numpy as np
from jaxtyping import Integer


def frame_key(id: str, numbers: Integer[np.ndarray, " atoms"]) -> int:
    """Return the key of a frame with this id and these atomic numbers in any order; as int64, and never zero."""
    counts = np.bincount(numbers)
    elements = np.flatnonzero(counts)
    composition = np.stack([elements, counts[elements]]).astype("<i8").tobytes()
    digest = hashlib.blake2b(composition + id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True) or 1
