"""Values and messages as this program quotes them: what a file or a library says may be of any length."""

MAX_VALUE, MAX_MESSAGE = 60, 400
"""Longest part of a value, and of a message of a library, that a message of this program contains [characters]."""


def abbreviated(value: object) -> str:
    """Return a value as a message quotes it: its beginning, at a cost that does not depend on its size."""
    if isinstance(value, dict | list | tuple | set):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, int) and value.bit_length() > 128:
        return f"a whole number of {value.bit_length()} bits"  # Python refuses to write out a very long one
    if isinstance(value, str | bytes):
        return repr(value[:MAX_VALUE]) + "..." * (len(value) > MAX_VALUE)
    text = repr(value)
    return text if len(text) <= MAX_VALUE else f"{text[:MAX_VALUE]}..."


def one_line(message: str) -> str:
    """Return a message of a library, which may quote what it has read, as one line of bounded length."""
    line = " ".join(message[: 4 * MAX_MESSAGE].split())
    return line if len(line) <= MAX_MESSAGE else f"{line[:MAX_MESSAGE]}..."
