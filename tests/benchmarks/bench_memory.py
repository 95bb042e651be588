"""Activation checkpointing: peak memory and time of a training step at SevenNet-0 size, beside none."""

import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass

from tests.benchmarks.rows import Row, write

COMMAND = "make bench BENCH=memory"
PROGRAM = """
import json, resource, sys, time
import torch
torch.set_num_threads(1)
from torch.utils.checkpoint import checkpoint
from foundation.models import equivariant
from foundation.nn.computation import Computation
from tests.benchmarks.oxides import SEVENNET_0, oxides, potential_for, training_step

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

way, frames = sys.argv[1], int(sys.argv[2])
torch.manual_seed(0)
potential, batch = potential_for(SEVENNET_0, oxides(frames))
potential.compute_as(Computation(recompute=way not in ("none", "inference")))
if way == "torch":
    equivariant.recomputed = lambda part, parameters, *inputs: checkpoint(part, *inputs, use_reentrant=False)
step = (lambda: potential.eval()(batch)) if way == "inference" else training_step(potential, batch)
before = peak()
step()
seconds = []
for _ in range(3):
    started = time.process_time()
    step()
    seconds.append(time.process_time() - started)
print(json.dumps({"megabytes": peak() - before, "seconds": min(seconds), "edges": batch.num_edges}))
"""
"""A process for each way: the peak of a process does not fall again."""
WAYS = {
    "none": "without checkpointing",
    "ours": "fit.recompute",
    "torch": "torch.utils.checkpoint around each block",
    "inference": "inference (E, F, S) without checkpointing",
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes of the benchmark."""

    num_frames: int = 16
    """Oxides in the batch."""
    rounds: int = 3
    """Processes of each way, taking turns; the median counts."""


def run(config: Config) -> None:
    """Measure and write runs/bench/memory.json."""
    measured: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(config.rounds):
        for way, results in measured.items():
            results.append(_measure(way, config.num_frames))
    edges = int(measured["none"][0]["edges"])
    units = {"megabytes": ("peak memory above imports, data and model", "MB"), "seconds": ("CPU time", "s, one core")}
    rows = []
    for quantity, (what, unit) in units.items():
        values = {way: statistics.median(r[quantity] for r in results) for way, results in measured.items()}
        for way, value in values.items():
            rows.append(
                Row(
                    measure=f"{'step' if way != 'inference' else 'pass'} of SevenNet-0 size, {edges} edges, "
                    f"{WAYS[way]}: {what}",
                    value=value,
                    unit=unit,
                    peer=WAYS["none"],
                    peer_value=values["none"],
                    ratio=value / values["none"],
                    command=COMMAND,
                )
            )
    write("memory", rows)


def _measure(way: str, num_frames: int) -> dict[str, float]:
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, way, str(num_frames)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])
