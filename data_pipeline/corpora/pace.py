"""Pace of a transfer: a server that sends a byte now and then is never silent and never ends."""

import time

LEAST_RATE = 1000
"""Rate below which a connection counts as broken [bytes/s]: 12 GB would take four months."""


class Pace:
    """Check of the rate of one transfer over successive intervals."""

    def __init__(self, seconds: float, completed: int = 0) -> None:
        """Begin at `completed` bytes; check the rate every `seconds`."""
        self._seconds, self._since, self._from = seconds, time.monotonic(), completed

    def check(self, completed: int) -> None:
        """Record the number of bytes.

        Raises:
            TimeoutError: the rate over the last interval is too low.
        """
        elapsed = time.monotonic() - self._since
        if elapsed < self._seconds:
            return
        brought = completed - self._from
        if brought < LEAST_RATE * elapsed:
            raise TimeoutError(f"{brought:,} bytes in {elapsed:,.1f} s, less than {LEAST_RATE:,} bytes a second")
        self._since, self._from = time.monotonic(), completed
