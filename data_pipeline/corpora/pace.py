"""Pace of a transfer: a server that sends a byte now and then never falls silent, and never ends."""

import time

LEAST_RATE = 1000
"""Bytes a second below which a connection counts as broken: 12 GB would take four months."""


class Pace:
    """Watches the bytes of one transfer, stretch of time by stretch."""

    def __init__(self, seconds: float, completed: int = 0) -> None:
        """Begin with so many bytes there, and look at the rate whenever so many seconds are over."""
        self._seconds, self._since, self._from = seconds, time.monotonic(), completed

    def check(self, completed: int) -> None:
        """Note how many bytes are there.

        Raises:
            TimeoutError: over the last stretch they came too slowly.
        """
        elapsed = time.monotonic() - self._since
        if elapsed < self._seconds:
            return
        brought = completed - self._from
        if brought < LEAST_RATE * elapsed:
            raise TimeoutError(f"{brought:,} bytes in {elapsed:,.1f} s, less than {LEAST_RATE:,} bytes a second")
        self._since, self._from = time.monotonic(), completed
