"""Grains beside SevenNet-0 in one box of an electrolyte, both by the same ASE calculator: time and memory.

The network of grains has random weights, which cost as much as trained ones.
"""

import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass

from tests.benchmarks.rows import Row, write

COMMAND = "make bench BENCH=grains"
SPEED_BAR, MEMORY_BAR = 10.0, 5.0
PROGRAM = """
import json, resource, sys, time
import numpy as np, torch
torch.set_num_threads(1)
from data_pipeline.sources.molecules import packed, scaled
from foundation.interop.calculator import Calculator
from foundation.models import GrainsConfig
from foundation.naming import resolve
from foundation.potential import Potential

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

def grains():
    torch.manual_seed(0)
    config = GrainsConfig(grains=("Li", "PF6", "CO3C2H4", "CO3C3H8"))
    return Potential(config.network((1, 3, 6, 8, 9, 15)), (1, 3, 6, 8, 9, 15), ("none",))

which, copies = sys.argv[1], int(sys.argv[2])
one = packed({"EC": 6, "EMC": 6, "PF6": 2, "Li": 2}, 0.45, np.random.default_rng(0))
scaled(one, (0.45 / 1.2) ** (1 / 3))
box = one.repeat(copies)
box.set_array("molecule", np.concatenate([one.arrays["molecule"] + 16 * each for each in range(copies**3)]))
box.calc = Calculator(grains() if which == "grains" else resolve(which).load(), mode="md")
before, seconds = peak(), []
for number in range(int(sys.argv[3]) + 1):
    box.rattle(0.001, seed=number)
    started = time.process_time()
    box.get_forces()
    seconds.append(time.process_time() - started)
print(json.dumps({"seconds": seconds[1:], "megabytes": peak() - before, "all": peak(), "atoms": len(box)}))
"""
"""A process for each potential: the peak of a process does not fall again."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes of the benchmark."""

    copies: int = 3
    """Boxes of 166 atoms along each side."""
    rounds: int = 3
    """Measured steps of each process; potentials take turns, two processes of each."""


def run(config: Config) -> None:
    """Measure and write runs/bench/grains.json."""
    found: dict[str, list[dict]] = {"grains": [], "sevennet-0": []}
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for _ in range(2):
        for name, results in found.items():
            words = [sys.executable, "-c", PROGRAM, name, str(config.copies), str(config.rounds)]
            done = subprocess.run(words, env=environment, capture_output=True, check=True, text=True)
            results.append(json.loads(done.stdout.splitlines()[-1]))
    ours, peer = (
        {
            "seconds": statistics.median(each for result in results for each in result["seconds"]),
            **{name: statistics.median(result[name] for result in results) for name in ("megabytes", "all")},
        }
        for results in found.values()
    )
    atoms = found["grains"][0]["atoms"]
    rows = []
    for measure, name, unit, bar in (
        (f"energy, forces and stress of {atoms:,} atoms", "seconds", "CPU s", SPEED_BAR),
        ("memory above imports and model", "megabytes", "MB", MEMORY_BAR),
        ("memory of the whole process", "all", "MB", MEMORY_BAR),
    ):
        ratio = peer[name] / ours[name]
        rows.append(
            Row(
                measure=f"{measure}: SevenNet-0's over ours",
                value=ours[name],
                unit=unit,
                peer="sevennet-0",
                peer_value=peer[name],
                ratio=ratio,
                bar=bar,
                holds=ratio >= bar,
                command=COMMAND,
            )
        )
    write("grains", rows)
