"""metrics.jsonl: the metrics of a run, one JSON object per line, written once and in order of the steps.

Append-only plain text survives any kill: at worst the last line is torn, and ignored by readers. A resumed run first
drops the rows after its checkpoint, which it will write again, so every step is in the file once. metrics.csv is made
from it when a run ends.
"""

import csv
import json
import logging
import math
import time
from pathlib import Path
from typing import Any

from data_pipeline.store import durable

log = logging.getLogger(__name__)

JSONL, CSV = "metrics.jsonl", "metrics.csv"
START = "start"
"""Kind of the row that is written at every start of a run; the others are 'train' and 'validation'."""
KINDS = (START, "train", "validation")
MAX_STEP, LARGEST, MAX_TEXT = 10**12, 1e300, 10_000
"""Largest step, number [any unit] and text length of a row."""


class MetricsFile:
    """Writer of a run's file; it is opened for each row, so that a crash leaves nothing open."""

    def __init__(self, folder: Path, first_step: int) -> None:
        """Drop the rows of a folder's file after first_step."""
        self.folder, self._path = folder, folder / JSONL
        folder.mkdir(parents=True, exist_ok=True)
        rows = [row for row in read_rows(folder) if row["kind"] == START or row["step"] <= first_step]
        durable.write_whole(self._path, "".join(_line(row) for row in rows))
        self._last = {row["kind"]: row["step"] for row in rows}
        self._begin = ""

    def append(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Add a row, unless one of its kind and step exists."""
        if kind != START and step <= self._last.get(kind, -1):
            return
        self._last[kind] = step
        line = _line({"kind": kind, "step": step, "time": round(time.time(), 3), **values})
        try:
            with self._path.open("a") as file:
                file.write(self._begin + line)
            self._begin = ""
        except OSError as error:  # on a full disk, the checkpoints decide whether the run ends
            self._begin = "\n"
            log.warning("%s: the row of step %d is lost: %s", self._path, step, error)


def _line(row: dict[str, Any]) -> str:
    return json.dumps({name: _as_json(value) for name, value in row.items()}) + "\n"


def _as_json(value: Any) -> Any:
    """Return a value for JSON: None for numbers that are not finite."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of a folder's metrics.jsonl, [] without a file.

    A torn last line is ignored, and so is any other line that is not a row, with a warning.
    """
    path = folder / JSONL
    if not path.is_file():
        return []
    lines = path.read_text(errors="replace").split("\n")
    rows = {number: _row(line) for number, line in enumerate(lines, start=1) if line}
    damaged = [number for number, row in rows.items() if row is None and number < len(lines)]
    if damaged:
        log.warning("%s: %d lines are not rows and are ignored, the first is line %d", path, len(damaged), damaged[0])
    return [row for row in rows.values() if row is not None]


def _row(line: str) -> dict[str, Any] | None:
    """Return the row in a line: a kind, a step, and values that can be drawn; else None."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or row.get("kind") not in KINDS or type(row.get("step")) is not int:
        return None
    if not 0 <= row["step"] <= MAX_STEP or not all(map(_is_value, row.values())):
        return None
    return row


def _is_value(value: Any) -> bool:
    if isinstance(value, dict):  # the errors of each element, where one may be nan
        errors = [each.values() if isinstance(each, dict) else [None] for each in value.values()]
        return all(isinstance(error, int | float) and not abs(error) > LARGEST for each in errors for error in each)
    if type(value) in (int, float):
        return abs(value) <= LARGEST
    return value is None or (isinstance(value, str) and len(value) <= MAX_TEXT)


def write_csv(folder: Path) -> None:
    """Write a folder's metrics.csv: every row, with missing metrics empty, without the errors of elements."""
    rows = [row for row in read_rows(folder) if row["kind"] != START]
    shown = [{name: value for name, value in row.items() if not isinstance(value, dict)} for row in rows]
    columns = list(dict.fromkeys(name for row in shown for name in row))
    with durable.whole_file(folder / CSV) as partial, partial.open("x", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(shown)
