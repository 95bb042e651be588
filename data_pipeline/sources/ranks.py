"""Ranks: under MPI, ASE's readers let the first rank read and send what it reads to all; here each reads its own."""

from collections.abc import Iterator
from contextlib import contextmanager

import ase.parallel


@contextmanager
def each_rank_for_itself() -> Iterator[None]:
    """Let ASE read on each rank as if there were no other.

    Otherwise ranks that read different files at the same time all get the frames of the first, without a word.
    """
    before = ase.parallel.world.comm
    ase.parallel.world.comm = ase.parallel.DummyMPI()
    try:
        yield
    finally:
        ase.parallel.world.comm = before
