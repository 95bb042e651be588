"""The compiled engine of the ASE calculator beside the torch engine with its table, and beside sevenn's calculator.

A step is a move of all atoms, then energy, forces and stress in float32 on one core, neighbour lists included. Memory
and the time to the first step are those of processes of their own.
"""

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import ase
import ase.build
import numpy as np
import torch

import foundation
from data_pipeline.graphs.batch import neighbor_list
from data_pipeline.graphs.verlet_list import VerletList
from data_pipeline.sources.exploration import read_cells, repeated
from data_pipeline.structure import Structure
from foundation.potential import to_structure
from foundation.releases.registry import registry
from launch.yaml_files import PACKAGED
from tests.benchmarks.bench_ase import PEER, step
from tests.benchmarks.rows import Row, interleaved, write

COMMAND = "make bench BENCH=engine"
MODEL = "sevennet-0"
SMALL_BAR, LARGE_BAR, THREADS_BAR = 2.0, 1.6, 1.85
STUDENT_BAR, STUDENT_LENGTH = 8.0, 20.0
CUTOFF = 5.0
RNG = np.random.default_rng(0)
GIGABYTES_BAR, COLD_BAR, WARM_BAR = 0.5, 20.0, 0.3
PROGRAM = """
import json, re, sys, time
import torch
torch.set_num_threads(1)
import foundation
from tests.benchmarks.bench_engine import crystal

potential, atoms = foundation.load(sys.argv[1]), crystal(json.loads(sys.argv[3]))

def kilobytes(field):
    return int(re.search(field + r":\\s*(\\d+) kB", open("/proc/self/status").read())[1])

held, started = kilobytes("VmRSS"), time.perf_counter()
atoms.calc = foundation.Calculator(potential, mode="md", engine=sys.argv[2])
atoms.get_forces()
seconds = time.perf_counter() - started
print(json.dumps({"seconds": seconds, "gigabytes": (kilobytes("VmHWM") - held) * 1024 / 1e9}))
"""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes of the benchmark."""

    repeats: tuple[tuple[int, int, int], ...] = ((2, 2, 2), (5, 5, 5), (5, 10, 25))
    """Conventional cells of MgO (8 atoms) along each side: 64, 1,000 and 10,000 atoms."""
    most_of_peer: int = 1000
    """Number of atoms up to which sevenn's calculator takes part; beyond, its memory does not suffice."""
    rounds: int = 5
    """Measured rounds, all taking turns in each; one more warms up."""


def crystal(repeat: int | tuple[int, int, int]) -> ase.Atoms:
    """Return a crystal of MgO, a number of conventional cells along each axis, whose atoms are a little displaced."""
    atoms = ase.build.bulk("MgO", "rocksalt", a=4.21, cubic=True).repeat(repeat)
    atoms.rattle(0.05, seed=0)
    return atoms


def run(config: Config) -> None:
    """Measure and write runs/bench/engine.json."""
    torch.set_num_threads(1)
    potential = foundation.load(MODEL)
    calculators = {name: foundation.Calculator(potential, mode="md", engine=name) for name in ("compiled", "torch")}
    with warnings.catch_warnings():
        # sevenn 0.13 and what it imports warn of torch's scripting and of missing accelerators
        warnings.simplefilter("ignore")
        from sevenn.calculator import SevenNetCalculator

        peer = SevenNetCalculator("7net-0", device="cpu")
    rows = []
    for repeat in config.repeats:
        boxes = {name: crystal(repeat) for name in (*calculators, "sevenn")}
        if len(boxes["sevenn"]) > config.most_of_peer:
            del boxes["sevenn"]
        for name, atoms in boxes.items():
            atoms.calc = calculators.get(name, peer)
        seconds = interleaved({name: step(atoms) for name, atoms in boxes.items()}, config.rounds)
        bar = SMALL_BAR if repeat == min(config.repeats) else LARGE_BAR
        for other, label in (("torch", "the torch engine with its table"), ("sevenn", PEER)):
            if other in seconds:
                measure = f"step through ASE, {MODEL}, MgO of {len(boxes['torch']):,} atoms"
                rows.append(
                    _row(measure, seconds["compiled"], seconds[other], label, bar if other == "torch" else None)
                )
    rows += [_threads(calculators["compiled"], config), *_processes(max(config.repeats))]
    rows += [*_students(calculators["compiled"], config), *_neighbours(config)]
    write("engine", rows)


def _row(measure: str, seconds: float, peer: float, label: str, bar: float | None) -> Row:
    ratio = peer / seconds
    return Row(
        measure=f"{measure}: its time over ours",
        value=seconds,
        unit="CPU s",
        peer=label,
        peer_value=peer,
        ratio=ratio,
        bar=bar,
        holds=None if bar is None else ratio >= bar,
        command=COMMAND,
    )


def _students(teacher: foundation.Calculator, config: Config) -> Iterator[Row]:
    """Yield the times of a step of every shipped student beside the teacher's, in the student's own material."""
    for release in registry().releases:
        if not release.name.startswith("student-"):
            continue
        cells = PACKAGED / "distill" / f"{release.name.split('-')[1]}.xyz"
        boxes = {name: repeated(read_cells(cells)[0], STUDENT_LENGTH) for name in ("student", "teacher")}
        boxes["student"].calc = foundation.Calculator(release.name, mode="md", engine="compiled")
        boxes["teacher"].calc = teacher
        seconds = interleaved({name: step(atoms) for name, atoms in boxes.items()}, 5 * config.rounds)
        measure = f"step through ASE, {release.name}, {len(boxes['student']):,} atoms"
        yield _row(measure, seconds["student"], seconds["teacher"], f"{MODEL}, the same engine", STUDENT_BAR)


def _neighbours(config: Config) -> Iterator[Row]:
    """Yield the time of the neighbours of atoms that have moved a little, beside a search."""
    for repeat in config.repeats:
        atoms, listed = crystal(repeat), VerletList(CUTOFF)

        def structure(atoms: ase.Atoms = atoms) -> Structure:
            atoms.rattle(0.005, rng=RNG)
            return to_structure(atoms)

        for _ in range(3):
            listed(structure())
        moves = {
            "list": lambda listed=listed, structure=structure: listed(structure()),
            "search": lambda structure=structure: neighbor_list(structure(), CUTOFF),
        }
        seconds = interleaved(moves, 5 * config.rounds)
        measure = f"neighbours of {len(atoms):,} atoms of MgO within {CUTOFF:g} Å, in motion"
        yield _row(measure, seconds["list"], seconds["search"], "a search in every step", None)


def _threads(calculator: foundation.Calculator, config: Config) -> Row:
    """Return how much faster two threads are than one, by the clock."""
    atoms = crystal(sorted(config.repeats)[len(config.repeats) // 2])
    atoms.calc = calculator
    move, seconds = step(atoms), {1: [], 2: []}
    for _ in range(config.rounds):
        for threads, times in seconds.items():
            torch.set_num_threads(threads)
            times.append(_clock(move))
    torch.set_num_threads(1)
    one, two = (statistics.median(times) for times in seconds.values())
    return Row(
        measure=f"step of {len(atoms):,} atoms with two threads: the time with one over it, by the clock",
        value=two,
        unit="s",
        peer="one thread",
        peer_value=one,
        ratio=one / two,
        bar=THREADS_BAR,
        holds=one / two >= THREADS_BAR,
        command=COMMAND,
    )


def _clock(task: Callable[[], object]) -> float:
    started = time.perf_counter()
    task()
    return time.perf_counter() - started


def _processes(repeat: tuple[int, int, int]) -> list[Row]:
    """Return memory of the largest crystal, and times to the first step of a small one, cold and warm."""
    with tempfile.TemporaryDirectory() as cache:
        cold, warm = (_measured("compiled", (2, 2, 2), {"XDG_CACHE_HOME": cache})["seconds"] for _ in range(2))
    ours, torchs = (_measured(engine, repeat, {})["gigabytes"] for engine in ("compiled", "torch"))
    atoms = 8 * math.prod(repeat)
    memory = Row(
        measure=f"memory of a step of {atoms:,} atoms above imports and potential",
        value=ours,
        unit="GB",
        peer="the torch engine with its table",
        peer_value=torchs,
        ratio=ours / torchs,
        bar=GIGABYTES_BAR,
        holds=ours <= GIGABYTES_BAR,
        command=COMMAND,
    )
    times = [
        Row(
            measure=f"from a loaded potential to the first step of 64 atoms, {name}",
            value=seconds,
            unit="s",
            bar=bar,
            holds=seconds <= bar,
            command=COMMAND,
        )
        for name, seconds, bar in (("nothing compiled yet", cold, COLD_BAR), ("compiled before", warm, WARM_BAR))
    ]
    return [memory, *times]


def _measured(engine: str, repeat: tuple[int, int, int], variables: dict[str, str]) -> dict[str, float]:
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1", **variables}
    words = [sys.executable, "-W", "ignore", "-c", PROGRAM, MODEL, engine, json.dumps(repeat)]
    done = subprocess.run(words, env=environment, capture_output=True, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])
