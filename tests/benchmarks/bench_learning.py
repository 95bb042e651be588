"""Held-out errors against CPU time, from random weights, of this program and its peers on a few hundred structures.

Each program trains through its own command by its authors' recipe (tests/benchmarks/learners.py). All of a command
counts: imports, graphs, validation. Whenever the CPU time of a mark is used up, a copy of what the program keeps on
disk as its best is put aside; all copies are judged on the test set at the end. A schedule that ends later is judged in
its midst, for all programs alike.

MACE and NequIP need other packages than this program: --mace and --nequip name the Python of an environment that has
them (`pip install mace-torch==0.3.16`, `pip install nequip==0.19.1`); without it they are left out.
"""

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import ase.io
import numpy as np
import psutil
from ase.calculators.singlepoint import SinglePointCalculator

from data_pipeline.sources import AseFiles, EmtAlloys, MlearnJson
from data_pipeline.structure import SYMBOLS, Structure
from tests.benchmarks import learners
from tests.benchmarks.learners import Learner
from tests.benchmarks.rows import Row, write

COMMAND = "make bench BENCH=learning"
HELD_OUT = 20
"""Every so manieth structure of the training data is for validation."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes of the benchmark."""

    data: tuple[str, ...] = ("Si", "Mo", "Li-P-S", "EMT alloys")
    """Sets of structures."""
    minutes: tuple[float, ...] = (1, 3, 10)
    """Marks [CPU minutes]."""
    steps_per_minute: float = 550
    """Steps of this program in a CPU minute, after which its schedule ends with the last mark."""
    ours: bool = True
    """Train this program."""
    sevenn: bool = True
    """Train sevenn."""
    mace: Path | None = None
    """Python of an environment with MACE; None: without it."""
    nequip: Path | None = None
    """Python of an environment with NequIP; None: without it."""
    out: Path = Path("runs/bench/learning")
    """Folder for trainings and copies. What was judged there is not trained again."""


def run(config: Config) -> None:
    """Train, judge and write runs/bench/learning.json."""
    rows: list[Row] = []
    for data in config.data:
        known, test = frames_of(data)
        zero = 1000 * float(np.abs(np.concatenate([frame.forces for frame in test])).mean())
        rows.append(Row(measure=f"zero, {data}: force MAE", value=zero, unit="meV/Å", command=COMMAND))
        for learner in present(config, known):
            folder = config.out / data.replace(" ", "-") / learner.name.split()[0]
            kept = folder / "rows.json"
            if not kept.exists():
                shutil.rmtree(folder, ignore_errors=True)
                prepare(folder, learner, known, test)
                copies = trained(learner, folder, config.minutes)
                found = [row for copy in copies for row in judged(learner, copy, folder, test, data)]
                kept.write_text(json.dumps([asdict(row) for row in found]))
            rows += [Row(**row) for row in json.loads(kept.read_text())]
            write("learning", rows)


def present(config: Config, frames: list[Structure]) -> Iterator[Learner]:
    """Yield the programs that are here."""
    if config.ours:
        yield learners.foundation(round(config.steps_per_minute * max(config.minutes)))
    if config.sevenn:
        yield learners.sevenn()
    if config.nequip is not None:
        numbers = np.unique(np.concatenate([frame.numbers for frame in frames]))
        yield learners.nequip(config.nequip, [SYMBOLS[number] for number in numbers])
    if config.mace is not None:
        yield learners.mace(config.mace)


def frames_of(data: str) -> tuple[list[Structure], list[Structure]]:
    """Return the structures of a set for training and test.

    Raises:
        ValueError: there is no such set.
    """
    if data == "EMT alloys":
        return list(EmtAlloys(num_frames=400)), list(EmtAlloys(num_frames=100, seed=1))
    if data == "Li-P-S":
        frames = list(AseFiles(files=("${FOUNDATION_DATA}/lips/lips-200.extxyz",)))
        return [frame for number, frame in enumerate(frames) if number % 4], frames[::4]
    if data not in ("Si", "Mo"):
        raise ValueError(f"set {data!r} is unknown: choose from Si, Mo, Li-P-S, EMT alloys")
    training, test = (f"${{FOUNDATION_DATA}}/mlearn/{data}/{split}.json" for split in ("training", "test"))
    return list(MlearnJson(mlearn_json=(training,))), list(MlearnJson(mlearn_json=(test,)))


def prepare(folder: Path, learner: Learner, known: list[Structure], test: list[Structure]) -> None:
    """Write the structures and a program's settings into a folder."""
    folder.mkdir(parents=True)
    splits = {
        "train": [frame for number, frame in enumerate(known) if number % HELD_OUT],
        "valid": known[::HELD_OUT],
        "test": test,
    }
    for name, some in splits.items():
        ase.io.write(folder / f"{name}.extxyz", [atoms_of(frame, "") for frame in some])
        ase.io.write(folder / f"{name}.ref.extxyz", [atoms_of(frame, "REF_") for frame in some])
    for name, text in learner.files.items():
        (folder / name).write_text(text)


def atoms_of(frame: Structure, prefix: str) -> ase.Atoms:
    """Return ASE's form of a structure: with a calculator, or with its labels under a prefix."""
    atoms = ase.Atoms(numbers=frame.numbers, positions=frame.positions, cell=frame.cell, pbc=frame.pbc)
    if prefix:
        atoms.info[f"{prefix}energy"] = frame.energy
        atoms.arrays[f"{prefix}forces"] = frame.forces
    else:
        atoms.calc = SinglePointCalculator(atoms, energy=frame.energy, forces=frame.forces)
    return atoms


def trained(learner: Learner, folder: Path, minutes: tuple[float, ...]) -> list[tuple[float, Path]]:
    """Train until the last mark, and return what was the best at each mark, if anything was."""
    with (folder / "log").open("w") as log:
        process = psutil.Popen(learner.command, cwd=folder, env=learner.environment(), stdout=log, stderr=log)
    copies = []
    try:
        for mark in sorted(minutes):
            while process.poll() is None and cpu_seconds(process) < 60 * mark:
                time.sleep(0.2)
            if process.poll() is not None and not (folder / learner.best).exists():
                raise RuntimeError(f"{learner.name} has failed; {folder / 'log'} says why")
            kept = folder / f"after-{mark:g}"
            if (folder / learner.best).exists():
                copied(folder / learner.best, kept)
                copies.append((mark, kept))
    finally:
        for each in [*process.children(recursive=True), process] if process.is_running() else []:
            each.kill()
        process.wait()
    return copies


def cpu_seconds(process: psutil.Process) -> float:
    """Return the CPU time of a process and all that it has started."""
    total = 0.0
    for each in [process, *process.children(recursive=True)]:
        try:
            total += sum(each.cpu_times()[:4])
        except psutil.NoSuchProcess:  # it has ended, and its parent has its time
            continue
    return total


def copied(path: Path, to: Path) -> None:
    """Copy a file, or a folder from which files may vanish meanwhile."""
    if path.is_file():
        shutil.copy(path, to)
        return
    for _ in range(10):
        try:
            shutil.copytree(path, to)
            return
        except shutil.Error:
            shutil.rmtree(to)
    raise RuntimeError(f"{path} changes all the time")


def judged(learner: Learner, copy: tuple[float, Path], folder: Path, test: list[Structure], data: str) -> Iterator[Row]:
    """Yield the errors of a mark's copy on the test set."""
    minutes, best = copy
    found = best.with_name(f"{best.name}.npz")
    learner.judge(best, folder / "test.extxyz", found)
    with np.load(found) as predicted:
        sizes = np.array([frame.num_atoms for frame in test])
        energies = np.abs(predicted["energies"] - [frame.energy for frame in test]) / sizes
        forces = np.abs(predicted["forces"] - np.concatenate([frame.forces for frame in test]))
    for what, errors, unit in (("energy", energies, "meV/atom"), ("force", forces, "meV/Å")):
        measure = f"{learner.name}, {data}, {minutes:g} CPU-min: {what} MAE"
        yield Row(measure=measure, value=1000 * float(errors.mean()), unit=unit, command=COMMAND)
