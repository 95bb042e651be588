"""The build, frames/s of CPU time on one core, beside its own reader alone in the same run; and where the time goes."""

import cProfile
import pstats
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import ase.db
import ase.io
import numpy as np
import vesin

from data_pipeline.building.build import BuildConfig, build
from data_pipeline.building.edge_count import EdgeCounter
from data_pipeline.graphs.batch import neighbor_list
from data_pipeline.sources import AseFiles, Source
from data_pipeline.store.block import encode_block
from data_pipeline.store.manifest import Provenance
from data_pipeline.structure import Structure
from tests.benchmarks.rows import Row, interleaved, write

COMMAND = "make bench BENCH=build"
FACTS = dict.fromkeys(("name", "licence", "level_of_theory", "energy_convention", "citation", "source"), "benchmark")


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes of the benchmark."""

    files: str = "${FOUNDATION_DATA}/mptrj-1k/mptrj-random-1k.xyz"
    """Frames to build from, in extxyz."""
    copies: int = 16
    """How many times each frame occurs."""
    rounds: int = 3
    """Measured rounds, reader and build taking turns in each; one more warms up."""


def run(config: Config) -> None:
    """Measure and write runs/bench/build.json."""
    frames = [structure for structure in AseFiles(files=(config.files,))]
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for form, source in _sources(config, folder).items():
            rows += _measured(form, source, folder / "data", config)
    write("build", [*rows, *_counting(frames, config.rounds)])


def _sources(config: Config, folder: Path) -> dict[str, Source]:
    """Return the same frames as sources of both formats; only those that this version reads."""
    frames = ase.io.read(AseFiles(files=(config.files,)).parts()[0].read.args[0], index=":")
    copies = []
    for number in range(config.copies):
        path = folder / f"{number}.extxyz"
        ase.io.write(path, frames)
        copies.append(str(path))
    sources: dict[str, Source] = {"extxyz": AseFiles(files=tuple(copies), group_key="mptrj_traj_id")}
    try:
        from data_pipeline.sources.aselmdb import AseLmdb
    except ImportError:
        return sources
    with ase.db.connect(folder / "frames.aselmdb", type="aselmdb") as database:
        for atoms in frames * config.copies:
            database.write(atoms, data={"info": atoms.info})
    return {**sources, "aselmdb": AseLmdb(aselmdb=(str(folder / "frames.aselmdb"),))}


def _measured(form: str, source: Source, out: Path, config: Config) -> list[Row]:
    settings = BuildConfig(source=source, provenance=Provenance(**FACTS), out=out, overwrite=True)
    seconds = interleaved({"read": lambda: _count(source), "build": lambda: build(settings)}, config.rounds)
    number = _count(source)
    rates = {name: number / value for name, value in seconds.items()}
    rows = [
        Row(
            measure=f"build from {form}, {number:,} frames",
            value=rates["build"],
            unit="frames/s, one core",
            peer="the reader alone",
            peer_value=rates["read"],
            ratio=rates["build"] / rates["read"],
            bar=0.6,
            holds=rates["build"] >= 0.6 * rates["read"],
            command=COMMAND,
        )
    ]
    return rows + _profile(form, settings)


def _count(source: Source) -> int:
    return sum(1 for part in source.parts() for _ in part.read())


STAGES = {
    "reading": ("staging.py", "_read"),
    "counting edges": ("edge_count.py", "__call__"),
    "measuring": ("staging.py", "_measured"),
    "encoding and writing blocks, staged and final": ("shards.py", "write"),
    "reading staged blocks": ("staging.py", "selected_frames"),
    "statistics": ("statistics.py", "add"),
    "deciding": ("build.py", "_decide"),
    "manifest": ("build.py", "_finish"),
}
"""Stages of a build and the function that spends the time of each, disjoint."""


def _profile(form: str, settings: BuildConfig) -> list[Row]:
    """Return the share of each stage under the profiler, which slows what makes many calls."""
    profile = cProfile.Profile(time.process_time)
    profile.runcall(build, settings)
    stats = pstats.Stats(profile).stats  # pyright: ignore[reportAttributeAccessIssue]
    cumulative = {(Path(file).name, name): values[3] for (file, _, name), values in stats.items()}
    total = cumulative["build.py", "build"]
    shares = {stage: cumulative.get(place, 0.0) / total for stage, place in STAGES.items()}
    shares["the rest"] = 1.0 - sum(shares.values())
    return [
        Row(measure=f"share of the build from {form}: {stage}", value=share, unit="share (profiled)", command=COMMAND)
        for stage, share in shares.items()
    ]


def _counting(frames: list[Structure], rounds: int) -> list[Row]:
    """Compare ways to count edges at 5 Å, and what else is done to each frame."""
    counter, pairs = EdgeCounter((5.0,)), vesin.NeighborList(cutoff=5.0, full_list=False, n_threads=1)

    def half_list() -> None:
        for frame in frames:
            arrays = {"points": frame.positions, "box": frame.cell, "periodic": frame.pbc}
            np.count_nonzero(pairs.compute(**arrays, quantities="d", copy=False)[0] < 5.0)

    tasks: dict[str, Callable[[], object]] = {
        "vesin, half list": half_list,
        "matrix product": lambda: [counter(block) for block in _blocks(frames)],
        "sorted full list": lambda: [neighbor_list(frame, 5.0) for frame in frames],
        "encoding": lambda: [encode_block(block) for block in _blocks(frames)],
    }
    seconds = interleaved(tasks, rounds)
    rates = {name: len(frames) / value for name, value in seconds.items()}
    peer = "vesin, half list"
    return [
        Row(
            measure=f"{'' if name == 'encoding' else 'counting edges at 5 Å: '}{name}",
            value=rate,
            unit="frames/s, one core",
            peer=None if name == "encoding" else peer,
            peer_value=None if name == "encoding" else rates[peer],
            ratio=None if name == "encoding" else rate / rates[peer],
            command=COMMAND,
        )
        for name, rate in rates.items()
        if name != peer
    ]


def _blocks(frames: list[Structure]) -> list[list[Structure]]:
    return [frames[first : first + 256] for first in range(0, len(frames), 256)]
