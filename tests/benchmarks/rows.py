"""The form of a benchmark's result, and how two things are timed fairly."""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measured number, beside its peer's."""

    measure: str
    """What was measured, with the sizes that matter."""
    value: float
    """Ours."""
    unit: str
    """Unit of both values."""
    peer: str | None = None
    """What it is compared with."""
    peer_value: float | None = None
    """The peer's, from the same run."""
    ratio: float | None = None
    """Ours over the peer's."""
    bar: float | None = None
    """What the ratio (or, without a peer, the value) has to reach."""
    holds: bool | None = None
    """Whether it does; None where it could not be measured here, or there is no bar."""
    command: str
    """What reproduces it."""


def write(name: str, rows: list[Row]) -> Path:
    """Write runs/bench/<name>.json and print the same as a table."""
    path = Path("runs/bench") / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    table = Table(title=str(path), title_justify="left")
    for column in ("measure", "value", "unit", "peer", "peer's", "ratio", "bar", "holds"):
        table.add_column(column, justify="left" if column in ("measure", "unit", "peer") else "right")
    for row in rows:
        numbers = [_shown(value) for value in (row.peer_value, row.ratio, row.bar)]
        holds = "" if row.holds is None else str(row.holds)
        table.add_row(row.measure, _shown(row.value), row.unit, row.peer or "", *numbers, holds)
    Console(width=140).print(table)
    return path


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def interleaved(tasks: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median CPU seconds of each task over rounds in which all take turns; one round warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for number in range(rounds + 1):
        for name, task in tasks.items():
            started = time.process_time()
            task()
            if number > 0:
                seconds[name].append(time.process_time() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}
