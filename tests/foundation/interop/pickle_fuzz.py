"""Random pickles in the place of a checkpoint's, run as a program of its own: a crash of this process is a failure."""

import faulthandler
import random
import resource
import sys
import time
from pathlib import Path

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foundation.checkpoint import CorruptCheckpoint
from foundation.interop.sevennet import UnsupportedSevenNet, from_sevennet
from foundation.interop.torch_file import read_torch_file
from tests.fuzz.pickles import any_opcode, changed, opcodes, replace_stream, stream_of

CPU_SECONDS = 5
"""CPU time of one file."""
MEMORY = 2**30
"""Memory above what the program has after its imports [bytes]."""


def check(path: Path, stream: bytes) -> None:
    """Read a file with another pickle: plain numbers of the types they say, inside the file, or a short refusal."""
    replace_stream(path, stream)
    start, refusals = time.process_time(), []
    try:
        touch(read_torch_file(path))
    except ValueError as error:
        refusals.append(f"{path}: {error}")
    try:
        from_sevennet(path)
    except (CorruptCheckpoint, UnsupportedSevenNet) as error:
        refusals.append(str(error))
    for message in refusals:
        assert path.name in message
        assert len(message) < 2000, message[:2000]
    assert time.process_time() - start < CPU_SECONDS


def touch(value: object) -> None:
    """Read every number of what was read."""
    if isinstance(value, dict | list | tuple):
        for each in value.values() if isinstance(value, dict) else value:
            touch(each)
    elif isinstance(value, torch.Tensor):
        assert value.layout == torch.strided
        assert not value.is_complex()
        value.double().sum()
    elif isinstance(value, np.ndarray):
        assert value.dtype.kind in "fiub"
        value.sum()
    else:
        assert value is None or isinstance(value, bool | int | float | str | bytes | torch.device)


def main(path: Path, examples: int) -> None:
    """Try changes of the pickle of a valid file, and pickles made of anything."""
    valid = stream_of(path)
    pieces = opcodes(valid)
    limits = settings(max_examples=examples, deadline=None, database=None, derandomize=True)
    limits = settings(limits, suppress_health_check=list(HealthCheck))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    own = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_DATA, (own + MEMORY, own + MEMORY))

    @limits
    @given(st.randoms(use_true_random=False))
    def edited(chance: random.Random) -> None:
        check(path, changed(valid, chance)[0])

    @limits
    @given(st.randoms(use_true_random=False), st.lists(st.integers(-20, len(pieces) - 1), max_size=200))
    def generated(chance: random.Random, numbers: list[int]) -> None:
        check(path, b"\x80\x02" + b"".join(pieces[n] if n >= 0 else any_opcode(chance) for n in numbers) + b".")

    @limits
    @given(st.binary(max_size=300))
    def anything(content: bytes) -> None:
        check(path, b"\x80\x02" + content + b".")

    for law in (edited, generated, anything):
        law()


if __name__ == "__main__":
    faulthandler.enable()
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]))
