"""metrics.jsonl: what a run has measured, one JSON object per line, written once and in order of the steps.

Plain text that is only ever appended to survives whatever kills a run: at worst the last line is torn, and left out by
whoever reads it. A run that goes on from a checkpoint first drops the rows from after it, which it will write again, so
every step is in the file once. metrics.csv beside it is made from it when a run ends.
"""

import csv
import json
import logging
import math
import os
import time
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

JSONL, CSV = "metrics.jsonl", "metrics.csv"
START = "start"
"""Kind of the row that every process of a run begins with; the others are 'train' and 'validation'."""


class MetricsFile:
    """The file of a run, to be appended to; it is opened for each row, so that nothing is left open by a crash."""

    def __init__(self, folder: Path, first_step: int) -> None:
        """Drop the rows of a folder's file from after a step: those up to it have been taken."""
        self.folder, self._path = folder, folder / JSONL
        folder.mkdir(parents=True, exist_ok=True)
        rows = [row for row in read_rows(folder) if row["kind"] == START or row["step"] <= first_step]
        partial = folder / (JSONL + ".partial")
        partial.write_text("".join(_line(row) for row in rows))
        os.replace(partial, self._path)
        self._last = {row["kind"]: row["step"] for row in rows}
        self._begin = ""

    def append(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """Add a row, unless there is one of its kind and step."""
        if kind != START and step <= self._last.get(kind, -1):
            return
        self._last[kind] = step
        line = _line({"kind": kind, "step": step, "time": round(time.time(), 3), **values})
        try:
            with self._path.open("a") as file:
                file.write(self._begin + line)
            self._begin = ""
        except OSError as error:  # whether a full disk ends a run is for its checkpoints to say
            self._begin = "\n"
            log.warning("%s: the row of step %d is lost: %s", self._path, step, error)


def _line(row: dict[str, Any]) -> str:
    return json.dumps({name: _as_json(value) for name, value in row.items()}) + "\n"


def _as_json(value: Any) -> Any:
    """Return a value; null where it is not finite, which JSON cannot say."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of a folder's metrics.jsonl, none if there is no file; a torn line is left out."""
    path = folder / JSONL
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(row, dict) and {"kind", "step"} <= row.keys():
            rows.append(row)
    return rows


def write_csv(folder: Path) -> None:
    """Write a folder's metrics.csv: every row, a metric that it lacks left empty, without the errors of elements."""
    rows = [row for row in read_rows(folder) if row["kind"] != START]
    shown = [{name: value for name, value in row.items() if not isinstance(value, dict)} for row in rows]
    columns = list(dict.fromkeys(name for row in shown for name in row))
    partial = folder / (CSV + ".partial")
    with partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(shown)
    os.replace(partial, folder / CSV)
