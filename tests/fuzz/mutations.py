"""Ways to damage bytes, text, JSON, safetensors and folders, for any target."""

import json
import random
import re
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.fuzz.harness import Expectation, Mutation

Seal = Callable[[Path], None]
"""Makes checksums right again after a change, so that what lies behind them is reached."""

NASTY_WORDS = (
    *"nan inf -inf -1 0 1 2 -0.0 1e308 -1e308 1e400 1e-320 99999999999999999999 0x10 1_000 T F true null None".split(),
    *(
        "****",
        "'",
        '"',
        "{",
        "[",
        "\\",
        "é",
        "",
        " ",
        "\x00",
        "9" * 5000,
        "[" * 5000,
        "../../etc/passwd",
        "/tmp/elsewhere",
    ),
)
"""Words that stand where a number or a name is expected."""


def nasty_values() -> list[Any]:
    """Return values that stand where another type or size is expected in JSON."""
    deep: Any = 0
    for _ in range(900):
        deep = [deep]
    return [
        *(None, True, False, 0, -1, 1, 2, 0.5, -0.0, 1e308, -1e308, float("nan"), float("inf"), 10**30, 10**400),
        *("", "x", "nan", "true", "../x", "/tmp/x", "a\nb", "x" * 100_000),
        *([], {}, [[]], [None], {"": None}, [1, "a"], list(range(10_000)), deep),
    ]


def damaged_bytes(pattern: str, *, expects: Expectation = "any", names: str = "") -> dict[str, Mutation]:
    """Return mutations of the bytes of the files that match a pattern."""
    edits = {
        "flipped bit": _flip,
        "truncated": lambda data, chance: data[: chance.randrange(len(data))],
        "bytes removed": _remove,
        "bytes repeated": _repeat,
        "bytes inserted": _insert,
        "bytes zeroed": _zero,
        "emptied": lambda data, chance: b"",
    }
    return {f"{pattern} {name}": _on_bytes(pattern, edit, expects, names) for name, edit in edits.items()}


def damaged_text(
    pattern: str, *, expects: Expectation = "any", names: str = "", words: Sequence[str] = NASTY_WORDS
) -> dict[str, Mutation]:
    """Return mutations of the lines and words of the text files that match a pattern."""

    def word(data: bytes, chance: random.Random) -> bytes:
        places = list(re.finditer(rb"[^\s=\"',:\[\]{}]+", data))
        place = chance.choice(places)
        return data[: place.start()] + chance.choice(words).encode() + data[place.end() :]

    def lines(change: Callable[[list[bytes], random.Random], None]) -> Callable[[bytes, random.Random], bytes]:
        def edit(data: bytes, chance: random.Random) -> bytes:
            parts = data.splitlines(keepends=True)
            change(parts, chance)
            return b"".join(parts)

        return edit

    edits = {
        "word": word,
        "line removed": lines(lambda parts, chance: parts.pop(chance.randrange(len(parts)))),
        "line repeated": lines(lambda parts, chance: parts.insert(chance.randrange(len(parts)), chance.choice(parts))),
        "lines shuffled": lines(lambda parts, chance: chance.shuffle(parts)),
        "blank line": lines(lambda parts, chance: parts.insert(chance.randrange(len(parts)), b"\n")),
        "column added": lines(_add_column),
    }
    return {f"{pattern} {name}": _on_bytes(pattern, edit, expects, names) for name, edit in edits.items()}


def damaged_json(
    pattern: str, *, expects: Expectation = "any", names: str = "", seal: Seal | None = None
) -> dict[str, Mutation]:
    """Return mutations of the values and keys of the JSON files that match a pattern."""

    def text(change: Callable[[Any, random.Random], tuple[Any, str]]) -> Callable[[Path, random.Random], str]:
        def edit(place: Path, chance: random.Random) -> str:
            path = _chosen(place, pattern, chance)
            values, said = change(json.loads(path.read_text()), chance)
            path.write_text(json.dumps(values))
            if seal is not None:
                seal(place)
            return f"{path.name}, {said}"

        return edit

    def doubled(place: Path, chance: random.Random) -> str:
        path = _chosen(place, pattern, chance)
        content = path.read_text()
        key = chance.choice(list(re.finditer(r'"\w+":', content)))
        path.write_text(content[: key.start()] + f"{key[0]} 0, " + content[key.start() :])
        if seal is not None:
            seal(place)
        return f"{path.name}, {key[0]} twice"

    edits = {"value": text(_change_value), "key removed": text(_remove_key), "key added": text(_add_key)}
    edits |= {"key doubled": doubled}
    return {f"{pattern} {name}": Mutation(edit=edit, expects=expects, names=names) for name, edit in edits.items()}


def damaged_safetensors(
    pattern: str, *, expects: Expectation = "any", names: str = "", seal: Seal | None = None
) -> dict[str, Mutation]:
    """Return mutations of the headers of the safetensors files that match a pattern: offsets, shapes, types, names."""

    def edit(place: Path, chance: random.Random) -> str:
        path = _chosen(place, pattern, chance)
        data = path.read_bytes()
        size = struct.unpack("<Q", data[:8])[0]
        header, said = chance.choice([_change_value, _remove_key, _add_key])(json.loads(data[8 : 8 + size]), chance)
        text = json.dumps(header).encode()
        claimed = chance.choice([len(text)] * 6 + [0, 2**40, 2**64 - 1])
        path.write_bytes(struct.pack("<Q", claimed) + text + data[8 + size :])
        if seal is not None:
            seal(place)
        return f"{path.name}, {said}, header of {claimed} bytes"

    return {f"{pattern} header": Mutation(edit=edit, expects=expects, names=names)}


def damaged_files(pattern: str, *, expects: Expectation = "same", names: str = "") -> dict[str, Mutation]:
    """Return mutations that replace whole files that match a pattern."""

    def replaced(change: Callable[[Path], object]) -> Callable[[Path, random.Random], str]:
        def edit(place: Path, chance: random.Random) -> str:
            path = _chosen(place, pattern, chance)
            path.unlink()
            change(path)
            return path.name

        return edit

    edits = {
        "removed": replaced(lambda path: None),
        "a folder": replaced(Path.mkdir),
        "a link to itself": replaced(lambda path: path.symlink_to(path.name)),
        "a broken link": replaced(lambda path: path.symlink_to("nowhere")),
        "random": replaced(lambda path: path.write_bytes(random.Random(path.name).randbytes(1000))),
    }
    return {f"{pattern} {name}": Mutation(edit=edit, expects=expects, names=names) for name, edit in edits.items()}


def damaged_numbers(pattern: str, span: int, width: int = 2) -> dict[str, Mutation]:
    """Return a mutation of one to three binary numbers among the first bytes of the files that match a pattern.

    Args:
        pattern: Pattern of the names.
        span: Bytes at the beginning that may change; numbers that are zero are left, most of them space.
        width: Bytes of a number.
    """

    def edit(data: bytes, chance: random.Random) -> bytes:
        changed = bytearray(data)
        used = [at for at in range(0, min(span, len(data)), width) if any(data[at : at + width])]
        for _ in range(chance.randint(1, 3)):
            at = chance.choice(used)
            old, top = int.from_bytes(data[at : at + width], "little"), 256**width - 1
            new = chance.choice(
                [0, 1, 2, old - 1, old + 1, 2 * old, old ^ 1 << chance.randrange(8 * width), top // 2, top]
            )
            changed[at : at + width] = (new & top).to_bytes(width, "little")
        return bytes(changed)

    return {f"{pattern} numbers": _on_bytes(pattern, edit, "any", "")}


def _chosen(place: Path, pattern: str, chance: random.Random) -> Path:
    return chance.choice(sorted(path for path in place.rglob(pattern) if path.is_file()))


def _on_bytes(
    pattern: str, change: Callable[[bytes, random.Random], bytes], expects: Expectation, names: str
) -> Mutation:
    def edit(place: Path, chance: random.Random) -> str:
        path = _chosen(place, pattern, chance)
        before = path.read_bytes()
        after = change(before, chance)
        path.write_bytes(after)
        first = next((n for n, (old, new) in enumerate(zip(before, after, strict=False)) if old != new), len(after))
        return f"{path.name}, from byte {first}: {before[first : first + 40]!r} -> {after[first : first + 40]!r}"

    return Mutation(edit=edit, expects=expects, names=names)


def _flip(data: bytes, chance: random.Random) -> bytes:
    changed, place = bytearray(data), chance.randrange(len(data))
    changed[place] ^= 1 << chance.randrange(8)
    return bytes(changed)


def _span(data: bytes, chance: random.Random) -> tuple[int, int]:
    start = chance.randrange(len(data))
    return start, min(len(data), start + chance.choice([1, 2, 4, 8, 64, 1024]))


def _remove(data: bytes, chance: random.Random) -> bytes:
    start, stop = _span(data, chance)
    return data[:start] + data[stop:]


def _repeat(data: bytes, chance: random.Random) -> bytes:
    start, stop = _span(data, chance)
    return data[:stop] + data[start:]


def _insert(data: bytes, chance: random.Random) -> bytes:
    start, stop = _span(data, chance)
    return data[:start] + chance.randbytes(stop - start) + data[start:]


def _zero(data: bytes, chance: random.Random) -> bytes:
    start, stop = _span(data, chance)
    return data[:start] + bytes(stop - start) + data[stop:]


def _add_column(parts: list[bytes], chance: random.Random) -> None:
    number = chance.randrange(len(parts))
    parts[number] = parts[number].rstrip(b"\n") + b" 0.7\n"


def _nodes(values: Any) -> list[tuple[Any, Any]]:
    """Return every container below some values with each of its keys."""
    found, waiting = [], [values]
    while waiting:
        node = waiting.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        found += [(node, key) for key in keys]
        waiting += [node[key] for key in keys]
    return found


def _change_value(values: Any, chance: random.Random) -> tuple[Any, str]:
    node, key = chance.choice(_nodes(values))
    new = chance.choice(nasty_values())
    node[key] = new
    return values, f"{str(key)[:40]!r} is {str(new)[:40]!r}"


def _remove_key(values: Any, chance: random.Random) -> tuple[Any, str]:
    node, key = chance.choice(_nodes(values))
    del node[key]
    return values, f"{str(key)[:40]!r} removed"


def _add_key(values: Any, chance: random.Random) -> tuple[Any, str]:
    node, key = chance.choice(_nodes(values))
    if isinstance(node, list):
        node.append(node[key])
        return values, f"item {key} once more"
    node[f"{key}_"] = node[key]
    return values, f"{key}_ beside {key}"
