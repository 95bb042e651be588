"""The yardstick of all kernels: the rate of this core at sums and products that never leave its registers."""

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path

from foundation.kernels.cpu import compiler
from foundation.kernels.cpu.parts import part

COUNT = 1_000_000
"""Turns of the loop in a measurement."""


@cache
def _library(real: str) -> ctypes.CDLL:
    source = Path(__file__).with_name("register_peak.c").read_text()
    loaded = compiler.load(part("prologue.c") + source, (f"-DREAL={real}",))
    loaded.operations.restype = ctypes.c_int64
    loaded.chains.restype = ctypes.c_double
    return loaded


def register_peak(real: str = "float") -> tuple[Callable[[], object], float]:
    """Return a task to time and its number of operations."""
    loaded = _library(real)
    return lambda: loaded.chains(ctypes.c_int64(COUNT)), float(COUNT * loaded.operations())
