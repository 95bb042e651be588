"""Streaming of JSON files too large to load: memory holds one record and the window that it was read through.

A window of text slides over the file, and Python's own scanner (C) decodes the value at its beginning; if the value is
incomplete, the window grows. On one core and an MPtrj of 34 MB that is 66 MB/s; ijson with its C backend makes 51 MB/s
of whole materials (memory grows with the longest trajectory) and 32 MB/s of bare events (before any value is built).
The scanner also accepts NaN, which Python writes into JSON: one frame is refused, not the file.

Each byte is one character (ASCII; other bytes are kept as surrogates), so that positions in the text are positions in
the file, and reading can begin in the middle.
"""

import bz2
import gzip
import io
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

WINDOW = 1 << 20
"""Size of one read [bytes]."""
MAX_VALUE = 64 << 20
"""Largest record [bytes]; a larger one is taken to be damaged."""
MAX_KEY = 256
"""Longest key at which reading can begin, with white space and brackets [bytes]."""

_SPACE = re.compile(r"[ \t\r\n]*")
_REST_OF_NUMBER = re.compile(r"[-+.eE\d]*\Z")


def is_compressed(path: Path) -> bool:
    """Return whether the file is compressed, so that reading cannot begin in the middle."""
    return path.suffix in (".gz", ".bz2")


def open_json(path: Path) -> io.BufferedIOBase:
    """Open a JSON file and decompress it by its suffix (.gz, .bz2)."""
    if path.suffix == ".gz":
        return gzip.open(path, "rb")
    return bz2.open(path, "rb") if path.suffix == ".bz2" else path.open("rb")


def plain_text(value: object) -> str:
    """Return a decoded value as text, with bytes that are not ASCII decoded."""
    return str(value).encode("utf-8", "surrogateescape").decode("utf-8", "replace")


class JsonReader:
    """Reader of a JSON file, at the beginning of the next value.

    Every method raises ValueError with the byte where the text is not JSON or ends too early, and passes on errors of
    decompression.
    """

    def __init__(self, file: io.BufferedIOBase, start: int = 0) -> None:
        self._file = file
        self._text = ""
        self._at = 0
        self._offset = start
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object)
        self.repeated: str | None = None
        """A key that occurs twice in one object of the last value (the second is kept), or None."""

    @property
    def byte(self) -> int:
        """Position of the reader [bytes from the beginning of the unpacked file]."""
        return self._offset + self._at

    def value(self) -> Any:
        """Decode the value that begins here."""
        self._next_character()
        while True:
            self.repeated = None
            try:
                value, end = self._decoder.raw_decode(self._text, self._at)
            except RecursionError as error:
                raise ValueError(f"lists or objects at byte {self.byte} are nested too deeply") from error
            except json.JSONDecodeError as error:
                byte = self._offset + error.pos
                if len(self._text) - self._at > MAX_VALUE or not self._read():
                    raise ValueError(f"{error.msg} at byte {byte}") from error
                continue
            except ValueError as error:  # Python refuses to read a very long number
                raise ValueError(f"an integer of thousands of digits after byte {self.byte}") from error
            length = end - self._at
            # a number that is cut by the end of the window is a number too
            if not _REST_OF_NUMBER.match(self._text, end) or not self._read():
                self._at += length
                return value

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            self.repeated = Counter(name for name, _ in pairs).most_common(1)[0][0]
        return found

    def members(self, opening: str) -> Iterator[tuple[int, str]]:
        """Yield byte and key of each member of the object `{` or list `[` that begins here; the caller reads values."""
        closing = {"{": "}", "[": "]"}[opening]
        self._take(opening)
        if self._next_character() == closing:
            self._take(closing)
            return
        for number in itertools.count():
            self._next_character()
            byte, key = self.byte, str(number)
            if opening == "{":
                key = str(self.value())
                self._take(":")
            yield byte, key
            if self._take("," + closing) == closing:
                return

    def enter_object_at(self, key: re.Pattern[str], stop: int) -> bool:
        """Go to the next match of a key pattern, as if the object began there; False if there is none before stop."""
        while (match := key.search(self._text, self._at)) is None:
            self._at = max(self._at, len(self._text) - MAX_KEY)
            if self.byte >= stop or not self._read():
                return False
        self._text, self._offset, self._at = "{" + self._text[match.start() :], self._offset + match.start() - 1, 0
        return True

    def ended(self) -> bool:
        """Return whether nothing but white space follows."""
        return not self._next_character()

    def end(self) -> None:
        """Check that nothing follows."""
        if found := self._next_character():
            raise ValueError(f"{found!r} at byte {self.byte}, where the text should have ended")

    def _take(self, characters: str) -> str:
        found = self._next_character()
        if not found or found not in characters:
            wanted = " or ".join(characters)
            raise ValueError(f"{found or 'the text ends'} at byte {self.byte}, where {wanted} should be")
        self._at += 1
        return found

    def _next_character(self) -> str:
        """Skip white space and return the next character, '' at the end of the file."""
        while True:
            match = _SPACE.match(self._text, self._at)
            self._at = match.end() if match else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._read():
                return ""

    def _read(self) -> bool:
        """Drop the used part of the window and read on, at least as much as remains: long values take linear time."""
        left = self._text[self._at :]
        data = self._file.read(max(WINDOW, len(left)))
        self._text, self._offset, self._at = left + data.decode("ascii", "surrogateescape"), self.byte, 0
        return bool(data)
