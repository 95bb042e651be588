"""Grains beside SevenNet-0 in one box of an electrolyte, both by the same ASE calculator: time and memory.

The networks of grains are those of the study `grains`, with random weights, which cost as much as trained ones.
"""

import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.yaml_files import read_mapping
from tests.benchmarks.rows import Row, write

COMMAND = "make bench BENCH=grains"
STUDY = Path("configs/study/grains.yaml")
PEER = "sevennet-0"
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

def grains(options):
    torch.manual_seed(0)
    config = GrainsConfig(grains=("Li", "PF6", "CO3C2H4", "CO3C3H8"), **options)
    return Potential(config.network((1, 3, 6, 8, 9, 15)), (1, 3, 6, 8, 9, 15), ("none",))

options, copies = json.loads(sys.argv[1]), int(sys.argv[2])
one = packed({"EC": 6, "EMC": 6, "PF6": 2, "Li": 2}, 0.45, np.random.default_rng(0))
scaled(one, (0.45 / 1.2) ** (1 / 3))
box = one.repeat(copies)
box.set_array("molecule", np.concatenate([one.arrays["molecule"] + 16 * each for each in range(copies**3)]))
box.calc = Calculator(resolve("sevennet-0").load() if options is None else grains(options), mode="md")
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
    runs = read_mapping(STUDY)["runs"]
    networks = {name: {key.removeprefix("model."): each for key, each in run.items()} for name, run in runs.items()}
    found = _in_turns({PEER: None, **networks}, config)
    peer, atoms = found.pop(PEER), f"{166 * config.copies**3:,} atoms"
    rows = [
        _row(f"energy, forces and stress of {atoms}", "seconds", "CPU s", found["default"], peer, SPEED_BAR),
        _row("memory above imports and model", "megabytes", "MB", found["default"], peer, MEMORY_BAR),
        _row("memory of the whole process", "all", "MB", found["default"], peer, MEMORY_BAR),
    ]
    for name, variant in found.items():
        if name != "default":
            rows.append(_row(f"energy, forces and stress of {atoms}, {name}", "seconds", "CPU s", variant, peer))
    write("grains", rows)


def _in_turns(networks: dict[str, dict[str, Any] | None], config: Config) -> dict[str, dict[str, float]]:
    """Return medians over steps and processes, which take turns, by name of the network."""
    results: dict[str, list[dict]] = {name: [] for name in networks}
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for _ in range(2):
        for name, options in networks.items():
            words = [sys.executable, "-c", PROGRAM, json.dumps(options), str(config.copies), str(config.rounds)]
            done = subprocess.run(words, env=environment, capture_output=True, check=True, text=True)
            results[name].append(json.loads(done.stdout.splitlines()[-1]))
    return {
        name: {
            "seconds": statistics.median(each for result in found for each in result["seconds"]),
            **{key: statistics.median(result[key] for result in found) for key in ("megabytes", "all")},
        }
        for name, found in results.items()
    }


def _row(measure: str, key: str, unit: str, ours: dict, peer: dict, bar: float | None = None) -> Row:
    ratio = peer[key] / ours[key]
    return Row(
        measure=f"{measure}: SevenNet-0's over ours",
        value=ours[key],
        unit=unit,
        peer=PEER,
        peer_value=peer[key],
        ratio=ratio,
        bar=bar,
        holds=None if bar is None else ratio >= bar,
        command=COMMAND,
    )
