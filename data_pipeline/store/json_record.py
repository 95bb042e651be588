"""JSON from a file that may be damaged or hostile: strict text, with entries read by name and type.

Python's reader accepts NaN, keeps the last of two equal keys, and reads `true` as 1. Here each of these is refused with
the file and the path of the entry, such as splits.train.shards[3].num_frames.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from data_pipeline.quoting import abbreviated

MAX_DEPTH = 100
"""Largest nesting depth of lists and objects; a merged data set adds four to that of its parts."""
MAX_COUNT = 2**53
"""Largest count; above it sums are no longer exact in other readers of JSON."""


class InvalidRecord(ValueError):
    """A JSON file with a wrong or missing entry; the message names file and entry."""


def parse_json(content: bytes, *, finite: bool = True) -> Any:
    """Return the value of a JSON text in UTF-8.

    Args:
        content: The text.
        finite: Whether to refuse NaN and infinities, which are valid in options of a run.

    Raises:
        ValueError: it is not JSON, a number is not finite, a key occurs twice, or it is nested too deeply.
    """
    try:
        kept = {"parse_constant": _no_constant, "parse_float": _finite} if finite else {}
        value = json.loads(content.decode(), object_pairs_hook=_object, **kept)
    except RecursionError as error:
        raise ValueError(_TOO_DEEP) from error
    _check_depth(value)
    if b"\\u" in content:
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is not text and cannot be printed
    return value


_TOO_DEEP = f"nested more than {MAX_DEPTH} levels deep"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {abbreviated(twice)} occurs twice")
    return found


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {abbreviated(text)} is too large")
    return value


def _check_depth(value: Any) -> None:
    level, depth = [value], 0
    while level := [inner for item in level if isinstance(item, dict | list) for inner in _inside(item)]:
        depth += 1
        if depth > MAX_DEPTH:
            raise ValueError(_TOO_DEEP)


def _inside(item: dict | list) -> Iterable[Any]:
    return item.values() if isinstance(item, dict) else item


class Record:
    """An object of a JSON file whose entries are read by name and type."""

    def __init__(self, value: object, where: str, path: str = "") -> None:
        """Wrap an object; `where` names the file in messages, `path` the place of the object in it.

        Raises:
            InvalidRecord: it is not an object.
        """
        self._where, self._path = where, path
        if not isinstance(value, dict):
            raise InvalidRecord(f"{where} ({path or 'the text'} is {abbreviated(value)}, not an object)")
        self._entries: dict[str, Any] = value

    def refuse(self, name: str, problem: str) -> InvalidRecord:
        """Return the error for an entry with a problem."""
        return InvalidRecord(f"{self._where} ({self._place(name)} {problem})")

    def _place(self, name: str) -> str:
        name = name if len(name) <= 60 else f"{name[:57]}..."
        return f"{self._path}.{name}" if self._path else name

    def only(self, *names: str) -> "Record":
        """Return the record itself if it has exactly these entries.

        Raises:
            InvalidRecord: an entry is missing or unknown.
        """
        for name in names:
            self.raw(name)
        for name in self._entries:
            if name not in names:
                raise self.refuse(name, "is not an entry that this version knows")
        return self

    def raw(self, name: str) -> Any:
        """Return an entry of any type.

        Raises:
            InvalidRecord: it is missing.
        """
        if name not in self._entries:
            raise self.refuse(name, "is missing")
        return self._entries[name]

    def text(self, name: str, pattern: str = r"(?s).*", kind: str = "a text") -> str:
        """Return a text that matches a pattern; `kind` names it in messages."""
        value = self.raw(name)
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise self.refuse(name, f"is {abbreviated(value)}, not {kind}")
        return value

    def count(self, name: str, least: int = 0) -> int:
        """Return a whole number of at least `least`."""
        value = self.raw(name)
        if not _is_count(value, least):
            raise self.refuse(name, f"is {abbreviated(value)}, not a count of {least} or more")
        return value

    def number(self, name: str) -> float:
        """Return a number that is not negative."""
        value = self.raw(name)
        if not _is_number(value) or value < 0:
            raise self.refuse(name, f"is {abbreviated(value)}, not a number of 0 or more")
        return value

    def counts(self, name: str, length: int | None = None) -> list[int]:
        """Return a list of counts, of the length if one is given."""
        values = self._list(name, length)
        for place, value in enumerate(values):
            if not _is_count(value, 0):
                raise self.refuse(f"{name}[{place}]", f"is {abbreviated(value)}, not a count of 0 or more")
        return values

    def numbers(self, name: str, length: int | None = None) -> list[float]:
        """Return a list of numbers, of the length if one is given."""
        values = self._list(name, length)
        for place, value in enumerate(values):
            if not _is_number(value):
                raise self.refuse(f"{name}[{place}]", f"is {abbreviated(value)}, not a number")
        return values

    def rows(self, name: str, length: int) -> list[list[float]]:
        """Return a square matrix of numbers, row by row."""
        self._list(name, length)
        squares = Record({f"{name}[{n}]": row for n, row in enumerate(self.raw(name))}, self._where, self._path)
        return [squares.numbers(f"{name}[{n}]", length) for n in range(length)]

    def record(self, name: str) -> "Record":
        """Return an object."""
        return Record(self.raw(name), self._where, self._place(name))

    def records(self, name: str) -> "list[Record]":
        """Return the objects of a list."""
        places = enumerate(self._list(name, None))
        return [Record(value, self._where, f"{self._place(name)}[{place}]") for place, value in places]

    def members(self) -> "dict[str, Record]":
        """Return every entry, each an object."""
        return {name: self.record(name) for name in self._entries}

    def names(self) -> list[str]:
        """Return the names of the entries."""
        return list(self._entries)

    def _list(self, name: str, length: int | None) -> list[Any]:
        value = self.raw(name)
        if not isinstance(value, list):
            raise self.refuse(name, f"is {abbreviated(value)}, not a list")
        if length is not None and len(value) != length:
            raise self.refuse(name, f"has {len(value)} entries, expected {length}")
        return value


def _is_count(value: object, least: int) -> bool:
    return type(value) is int and least <= value <= MAX_COUNT


def _is_number(value: object) -> bool:
    # an integer beyond the floats would overflow later, under another name
    return type(value) is float or (type(value) is int and abs(value) <= 10**300)
