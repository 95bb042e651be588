"""Reading with ASE under MPI: its readers let the first rank read and broadcast; here each rank reads its own files."""

from collections.abc import Iterator
from contextlib import contextmanager

import ase.parallel


@contextmanager
def each_rank_for_itself() -> Iterator[None]:
    """Let ASE read on each rank independently.

    Otherwise ranks that read different files at the same time silently get the frames of the first rank.
    """
    before = ase.parallel.world.comm
    ase.parallel.world.comm = ase.parallel.DummyMPI()
    try:
        yield
    finally:
        ase.parallel.world.comm = before
