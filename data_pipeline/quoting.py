"""Values and messages shortened for quotation: those of a file or a library can have any length."""

MAX_VALUE, MAX_MESSAGE = 60, 400
"""Maximum quoted length of a value and of a library's message [characters]."""


def abbreviated(value: object) -> str:
    """Return the beginning of a value for a message, at a cost independent of its size."""
    if isinstance(value, dict | list | tuple | set):
        return f"a {type(value).__name__} of {len(value)}"
    if isinstance(value, int) and value.bit_length() > 128:
        return f"a whole number of {value.bit_length()} bits"  # Python refuses to write out a very long one
    if isinstance(value, str | bytes):
        return repr(value[:MAX_VALUE]) + "..." * (len(value) > MAX_VALUE)
    text = repr(value)
    return text if len(text) <= MAX_VALUE else f"{text[:MAX_VALUE]}..."


def one_line(message: str) -> str:
    """Return a library's message, which may quote a file, as one line of bounded length."""
    line = " ".join(message[: 4 * MAX_MESSAGE].split())
    return line if len(line) <= MAX_MESSAGE else f"{line[:MAX_MESSAGE]}..."
