"""Pace: too few bytes in a stretch of time are an error, a pause within one is not."""

import pytest

from data_pipeline.corpora import pace
from data_pipeline.corpora.pace import LEAST_RATE, Pace


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, to be set."""
    now = [100.0]
    monkeypatch.setattr(pace.time, "monotonic", lambda: now[0])
    return now


def test_a_byte_now_and_then_is_an_error_after_a_minute(clock: list[float]) -> None:
    watch = Pace(60.0)
    for second in range(60):
        clock[0] = 100.0 + second
        watch.check(second)
    clock[0] = 160.0
    with pytest.raises(TimeoutError, match=r"60 bytes in 60\.0 s, less than 1,000 bytes a second"):
        watch.check(60)


def test_each_stretch_counts_for_itself(clock: list[float]) -> None:
    watch = Pace(60.0, 10**9)
    clock[0] = 160.0
    watch.check(10**9 + 60 * LEAST_RATE)
    clock[0] = 220.0
    with pytest.raises(TimeoutError):
        watch.check(10**9 + 60 * LEAST_RATE + 5)
