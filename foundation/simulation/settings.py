"""Settings of a folder whose results are made in several goes: they are written once, and others are refused."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from data_pipeline.store import durable
from data_pipeline.store.untrusted import CorruptFile, OpenRecord, read_json, refusing, typed
from foundation.configuration import changes

SETTINGS = "settings.json"
"""File of the settings."""
Recorded = TypeVar("Recorded", bound=OpenRecord)


def settled(settings: Recorded, out: Path, *, free: Sequence[str]) -> Recorded:
    """Return the settings of a folder of results, which are written there first if it has none.

    Args:
        settings: Settings, a dataclass.
        out: The folder.
        free: Names of settings that may differ.

    Raises:
        CorruptFile: the file is damaged.
        ValueError: the folder has others.
    """
    file, now = out / SETTINGS, asdict(settings)  # pyright: ignore[reportArgumentType]
    if not file.is_file():
        out.mkdir(parents=True, exist_ok=True)
        durable.write_whole(file, json.dumps(now, indent=1) + "\n", shared=True)
    with refusing(file, CorruptFile, "not the settings of results ({}); choose another --out"):
        old = typed(type(settings), read_json(file), "")
    before: dict[str, Any] = asdict(old)
    if changed := changes(before, now | {name: before[name] for name in free}):
        told = "; ".join(f"{name} was {was} and is {is_}" for name, (was, is_) in changed.items())
        raise ValueError(f"{out} has results with other settings: {told}. Restore them, or choose another --out")
    return old


def part_of(word: str) -> tuple[int, int]:
    """Return the number of a part and of all parts.

    Raises:
        ValueError: the word is none.
    """
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", word)
    number, parts = map(int, found.groups()) if found else (0, 0)
    if not 1 <= number <= parts:
        raise ValueError(f"part must be such as 3/32, the third of 32 parts, not {word!r}")
    return number, parts
