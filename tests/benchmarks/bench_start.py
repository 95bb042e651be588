"""What a process costs before and while it trains: memory above imports, and time from import to the first step."""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass

from tests.benchmarks.rows import Row, write

COMMAND = "make bench BENCH=start"
PROGRAM = """
import json, resource, sys, time
started = time.perf_counter()
import torch
torch.set_num_threads(1)
from data_pipeline.graphs.batch import collate
from tests.benchmarks.oxides import SEVENNET_0, oxides, potential_for, training_step
from tests.benchmarks.peer import sevenn_step
engine, frames = sys.argv[1], int(sys.argv[2])

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

imported = time.perf_counter() - started
structures = oxides(frames)
started = time.perf_counter()
if engine == "sevenn":
    peer = sevenn_step(collate(structures, 5.0))
    step = lambda: peer(True)
else:
    step = training_step(*potential_for(SEVENNET_0, structures))
before = peak()
step()
first = imported + time.perf_counter() - started
step()
print(json.dumps({"megabytes": peak() - before, "seconds": first}))
"""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes of the benchmark."""

    num_frames: int = 4
    """Oxides in the batch."""


def run(config: Config) -> None:
    """Measure and write runs/bench/start.json."""
    with tempfile.TemporaryDirectory() as cache:
        cold = _measure("ours", config.num_frames, cache)
        warm = _measure("ours", config.num_frames, cache)
        peer = _measure("sevenn", config.num_frames, cache)
    rows = [
        Row(
            measure=f"from import to the end of the first training step, {name} cache",
            value=measured["seconds"],
            unit="s",
            bar=bar,
            holds=measured["seconds"] <= bar,
            command=COMMAND,
        )
        for name, measured, bar in (("cold", cold, 25.0), ("warm", warm, 3.0))
    ]
    share = warm["megabytes"] / peer["megabytes"]
    rows.append(
        Row(
            measure=f"peak memory of training above imports, data and model, {config.num_frames} oxides",
            value=warm["megabytes"],
            unit="MB",
            peer="sevenn 0.13, SevenNet-0",
            peer_value=peer["megabytes"],
            ratio=share,
            bar=0.125,
            holds=share <= 0.125,
            command=COMMAND,
        )
    )
    write("start", rows)


def _measure(engine: str, num_frames: int, cache: str) -> dict[str, float]:
    environment = {**os.environ, "XDG_CACHE_HOME": cache, "PYTHONPATH": os.getcwd()}
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, engine, str(num_frames)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])
