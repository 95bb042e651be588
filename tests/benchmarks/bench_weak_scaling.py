"""Weak scaling on this machine: two processes against one through the whole of fit(), the same work for each process.

One lane a process, the same edge budget, the same structures to draw from. Time is taken from the run's own log, after
its first lines, so that start-up is not in it; the edges of a step are the plan's. What limits two processes is told
apart: a third measurement, two runs of one process at the same time, has no communication and no waiting for each
other, only the sharing of caches and memory. Every process has one core and one thread.
"""

import csv
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml

from data_pipeline.building.build import BuildConfig, build
from data_pipeline.loading.datasets import Dataset
from data_pipeline.loading.stream import Stream
from data_pipeline.sources import AseFiles
from data_pipeline.store.manifest import Manifest, Provenance
from launch.checks import sample
from tests.benchmarks.rows import Row, write

COMMAND = "make bench BENCH=weak_scaling"
BAR = 0.9
RATE, WAIT = "speed/atoms_per_second", "speed/data_wait"
"""Columns of a run's metrics.csv."""
QUICKSTART = {
    "irreps": "32x0e+16x1e+8x2e",
    "num_blocks": 2,
    "radial_sizes": [32, 32],
    "readout_channels": 16,
    "cutoff_function": "polynomial",
}
MODELS = {"SevenNet-0 size": {}, "quickstart model": QUICKSTART}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes of the benchmark."""

    frames: str = "${FOUNDATION_DATA}/mptrj-1k/mptrj-random-1k.xyz"
    """The frames to train on."""
    edge_budget: int = 8000
    """Edges of a micro-batch; larger structures are left out."""
    steps: tuple[int, ...] = (40, 240)
    """Steps of a run, by model."""
    rounds: int = 3
    """Runs of each kind, taking turns."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What the log of a run says."""

    seconds: float
    """Time of a step [s]."""
    edges: float
    """Edges of a step."""
    waited: float
    """Share of the time that a process waited for data."""

    @property
    def rate(self) -> float:
        """Edges per second."""
        return self.edges / self.seconds


def run(config: Config) -> None:
    """Measure and write runs/bench/weak_scaling.json."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        manifest = _build(config, Path(folder) / "data")
        for (name, model), steps in zip(MODELS.items(), config.steps, strict=True):
            rows += _rows(config, name, model, steps, manifest, Path(folder))
    write("weak_scaling", rows)


def _build(config: Config, out: Path) -> Manifest:
    provenance = Provenance(**dict.fromkeys(Provenance.__dataclass_fields__, "benchmark"))
    return build(BuildConfig(source=AseFiles(files=(config.frames,)), provenance=provenance, out=out))


def _rows(config: Config, name: str, model: dict, steps: int, manifest: Manifest, folder: Path) -> list[Row]:
    one, two, apart = [], [], []
    for number in range(config.rounds):
        place = folder / f"{name.split()[0]}-{number}"
        one += _runs(config, model, steps, manifest, place / "one", devices=1, count=1)
        two += _runs(config, model, steps, manifest, place / "two", devices=2, count=1)
        apart.append(sum(s.rate for s in _runs(config, model, steps, manifest, place / "apart", devices=1, count=2)))
    single = statistics.median(speed.rate for speed in one)
    double = statistics.median(speed.rate for speed in two)
    separate = statistics.median(apart)
    seconds = statistics.median(speed.seconds for speed in two)
    estimate, reduce = _preflight(config, model, steps, manifest, folder)
    uneven = sample(_stream(config, manifest, 2)).unevenness(2)
    where = f"{name}, {config.edge_budget} edges a process"
    waited = statistics.median(speed.waited for speed in two)
    return [
        _row(f"{where}: one process", single, "edges/s"),
        _row(f"{where}: two processes", double, "edges/s"),
        _row(f"{where}: efficiency of two processes", double / (2 * single), "share", BAR),
        _row(f"{where}: of two runs at once that share nothing", separate / (2 * single), "share"),
        _row(f"{where}: two processes over two runs that share nothing", double / separate, "share"),
        _row(f"{where}: all-reduce of the gradient", reduce / seconds, "of a step"),
        _row(f"{where}: imbalance (largest over mean, less one)", uneven - 1, "of a step"),
        _row(f"{where}: waiting for data", waited, "of a step"),
        _row(f"{where}: step that preflight estimates, over the step measured", estimate / seconds, "ratio"),
    ]


def _stream(config: Config, manifest: Manifest, lanes: int) -> Stream:
    return Stream(
        [Dataset(manifest=manifest)], cutoff=5.0, lanes=lanes, edge_budget=config.edge_budget, oversize="skip"
    )


def _yaml(config: Config, model: dict, steps: int, manifest: Manifest, out: Path, devices: int) -> Path:
    """Write the configuration of a run, and return its file."""
    fit = {
        "steps": steps,
        "lanes": devices,
        "edge_budget": config.edge_budget,
        "oversize": "skip",
        "validate_every": 10 * steps,
        "checkpoint_every": 10 * steps,
        "log_every": steps // 4,
    }
    # a worker would compete for the cores
    machine = {"devices": devices, "num_workers": 0, "accelerator": "cpu"}
    run = {"data": str(manifest.root), "out": str(out), "model": model, "fit": fit, "machine": machine}
    file = out.with_suffix(".yaml")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(run))
    return file


def _runs(
    config: Config, model: dict, steps: int, manifest: Manifest, out: Path, *, devices: int, count: int
) -> list[Speed]:
    """Return what runs at the same time say of themselves."""
    outs = [out.with_name(f"{out.name}{number}") for number in range(count)]
    files = [_yaml(config, model, steps, manifest, one, devices) for one in outs]
    cores = range(count) if devices == 1 else [None]
    started = [_start(["pretrain", "--config", str(file)], core) for file, core in zip(files, cores, strict=True)]
    for process in started:
        _, trouble = process.communicate()
        if process.returncode:
            raise RuntimeError(trouble)
    return [_read(config, manifest, one, devices) for one in outs]


def _start(arguments: list[str], core: int | None) -> subprocess.Popen:
    """Start the command line, on a core of its own if one is given."""
    pin = [] if core is None else ["taskset", "-c", str(sorted(os.sched_getaffinity(0))[core])]
    command = [*pin, sys.executable, "-m", "launch", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def _read(config: Config, manifest: Manifest, out: Path, devices: int) -> Speed:
    """Return the speed of a run after its first logged interval, in which everything starts."""
    (log,) = out.rglob("metrics.csv")
    with log.open() as file:
        lines = [line for line in csv.DictReader(file) if line.get(RATE)]
    plan, index = _stream(config, manifest, devices).plan, manifest.index("train")
    frame_atoms, frame_edges = index.counts(0, index.num_frames)
    seconds, waited, edges = 0.0, 0.0, 0
    for before, line in itertools.pairwise(lines):
        steps = range(int(before["step"]), int(line["step"]))
        frames = np.concatenate([plan.micro_batch(step, lane) for step in steps for lane in range(devices)])
        took = float(frame_atoms[frames].sum()) / float(line[RATE])
        seconds, waited = seconds + took, waited + took * float(line[WAIT])
        edges += int(frame_edges[frames].sum())
    num_steps = int(lines[-1]["step"]) - int(lines[0]["step"])
    return Speed(seconds=seconds / num_steps, edges=edges / num_steps, waited=waited / seconds)


def _preflight(config: Config, model: dict, steps: int, manifest: Manifest, folder: Path) -> tuple[float, float]:
    """Return the time of a step of two processes as preflight estimates it, and of its all-reduce [s]."""
    report = folder / "report.json"
    file = _yaml(config, model, steps, manifest, folder / f"preflight-{steps}", 2)
    process = _start(["preflight", "pretrain", "--config", str(file), "--report", str(report)], None)
    _, trouble = process.communicate()
    if process.returncode:
        raise RuntimeError(trouble)
    numbers = json.loads(report.read_text())["numbers"]
    return numbers["seconds_per_step"], numbers["reduce_seconds"]


def _row(measure: str, value: float, unit: str, bar: float | None = None) -> Row:
    holds = None if bar is None else value >= bar
    return Row(measure=measure, value=value, unit=unit, bar=bar, holds=holds, command=COMMAND)
