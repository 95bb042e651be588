"""What a file says is quoted at a bounded length and cost."""

import time

from data_pipeline.quoting import MAX_MESSAGE, MAX_VALUE, abbreviated, one_line


def test_a_value_of_any_size_is_quoted_in_one_short_line_at_once() -> None:
    values = [b"x" * 10**7, "é" * 10**7, ["a" * 10**6] * 1000, {"a": [1] * 10**6}, 10**100_000, -(10**39), 1.5, None]
    start = time.process_time()
    texts = [abbreviated(value) for value in values]
    assert time.process_time() - start < 0.5
    for text in texts:
        assert len(text) <= MAX_VALUE + 6
        assert text.isprintable()


def test_short_values_are_quoted_as_they_are() -> None:
    assert [abbreviated(value) for value in (True, 12, "fcc", [1, 2])] == ["True", "12", "'fcc'", "a list of 2"]


def test_a_long_message_of_a_library_becomes_one_line() -> None:
    text = one_line("could not convert\n\n " + "0 " * 10**6)
    assert text.startswith("could not convert 0 0")
    assert len(text) == MAX_MESSAGE + 3
