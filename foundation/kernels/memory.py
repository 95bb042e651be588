"""Memory that the process keeps instead of returning it."""

import ctypes
import functools

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Options of glibc's mallopt()."""


@functools.cache
def keep_freed_memory() -> None:
    """Make the C library keep freed memory.

    Every step of a training or of molecular dynamics allocates the same again. New pages cost a tenth of a step of
    training, and up to half of a step of dynamics with 1,000 atoms. Freed memory is returned when the process ends.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc
        return
    mallopt(M_MMAP_THRESHOLD, 1 << 30)
    mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)
