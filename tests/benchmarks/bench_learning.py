"""Held-out errors against CPU time, from random weights, of this program and its peers on a few hundred structures.

Each program trains through its own command with the recipe of its authors: sevenn's `preset base`, MACE's example with
averaged weights, this program's of the study `mlearn`. All of a command counts: imports, graphs, validation. Whenever
the CPU time of a mark is used up, a copy of what the program keeps on disk as its best is put aside; all copies are
judged on the test set at the end. A schedule that ends later is judged in its midst, for all programs alike.

MACE needs e3nn 0.4, with which this program does not run: --mace names the Python of an environment that has it
(`pip install mace-torch==0.3.16`); without it MACE is left out.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import ase.io
import numpy as np
import psutil
import yaml
from ase.calculators.singlepoint import SinglePointCalculator

from data_pipeline.sources import MlearnJson
from data_pipeline.structure import Structure
from tests.benchmarks.rows import Row, write

COMMAND = "make bench BENCH=learning"
HELD_OUT = 20
"""Every so manieth structure of the training file is for validation."""
STUDY = Path("configs/study/mlearn.yaml")
"""This program's settings."""
MACE = [
    "--E0s=average",
    "--model=MACE",
    "--hidden_irreps=128x0e + 128x1o",
    "--r_max=5.0",
    "--batch_size=10",
    "--max_num_epochs=1500",
    "--ema",
    "--ema_decay=0.99",
    "--amsgrad",
    "--default_dtype=float32",
    "--energy_key=REF_energy",
    "--forces_key=REF_forces",
]
"""The example of MACE's own documentation, in float32, which is quicker than its default."""
KEEP_MACE = """
import os, runpy, sys, torch
from mace.tools import checkpoint
save = checkpoint.CheckpointHandler.save
def kept(self, state, *arguments, **options):
    torch.save(state.model, "best.part")
    os.replace("best.part", "best.model")
    save(self, state, *arguments, **options)
checkpoint.CheckpointHandler.save = kept
runpy.run_module("mace.cli.run_train", run_name="__main__")
"""
"""MACE's command, which keeps the whole of its best network: its checkpoints are weights without a network."""
JUDGE = """
import sys, ase.io, numpy as np, torch
torch.set_num_threads(1)
{make}
found = []
for atoms in ase.io.read(sys.argv[2], ":"):
    atoms.calc = calculator
    found.append((atoms.get_potential_energy(), atoms.get_forces()))
np.savez(sys.argv[3], energies=[e for e, _ in found], forces=np.concatenate([f for _, f in found]))
"""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes of the benchmark."""

    materials: tuple[str, ...] = ("Si", "Mo")
    """Elements of mlearn."""
    minutes: tuple[float, ...] = (1, 3, 10)
    """Marks [CPU minutes]."""
    steps_per_minute: float = 360
    """Steps of this program in a CPU minute, after which its schedule ends with the last mark."""
    mace: Path | None = None
    """Python of an environment with MACE; None: without it."""
    sevenn: bool = True
    """Train sevenn."""
    out: Path = Path("runs/bench/learning")
    """Folder for trainings and copies."""


@dataclass(frozen=True)
class Learner:
    """A program that trains."""

    name: str
    """Name in the table."""
    command: list[str]
    """Its command, which runs in its folder."""
    best: str
    """Its best so far, a file or folder."""
    python: str
    """Python that has it."""
    make: str
    """Lines that make an ASE `calculator` of the path sys.argv[1]."""


def run(config: Config) -> None:
    """Train, judge and write runs/bench/learning.json."""
    rows: list[Row] = []
    for material in config.materials:
        test = frames(material, "test")
        zero = 1000 * float(np.abs(np.concatenate([frame.forces for frame in test])).mean())
        rows.append(Row(measure=f"zero, {material}: force MAE", value=zero, unit="meV/Å", command=COMMAND))
        for learner in learners(config, material):
            folder = config.out / material / learner.name.split()[0]
            shutil.rmtree(folder, ignore_errors=True)
            prepare(folder, material)
            for minutes, found in trained(learner, folder, config.minutes):
                rows += judged(learner, found, folder / "test.extxyz", test, f"{material}, {minutes:g} CPU-min")
                write("learning", rows)


def learners(config: Config, material: str) -> list[Learner]:
    """Return the programs that are here."""
    found = [
        Learner(
            "foundation",
            [sys.executable, "-m", "launch", "pretrain", "--config", "ours.yaml", *settings(config, material)],
            "run",
            sys.executable,
            "import foundation, foundation.naming\n"
            "best = foundation.naming.resolve(sys.argv[1], 'best').load()\n"
            "calculator = foundation.Calculator(best, dtype='float32')",
        )
    ]
    if config.sevenn:
        found.append(
            Learner(
                "sevenn 0.13",
                [str(Path(sys.executable).with_name("sevenn")), "train", "sevenn.yaml"],
                "checkpoint_best.pth",
                sys.executable,
                "from sevenn.calculator import SevenNetCalculator\n"
                "calculator = SevenNetCalculator(sys.argv[1], device='cpu')",
            )
        )
    if config.mace is not None:
        files = ["--name=mace", "--train_file=train.ref.extxyz", "--valid_file=valid.ref.extxyz", "--device=cpu"]
        found.append(
            Learner(
                "MACE 0.3",
                [str(config.mace), "-c", KEEP_MACE, *files, *MACE],
                "best.model",
                str(config.mace),
                "from mace.calculators import MACECalculator\n"
                "calculator = MACECalculator(model_paths=sys.argv[1], device='cpu', default_dtype='float32')",
            )
        )
    return found


def frames(material: str, split: str) -> list[Structure]:
    """Return the structures of a file of mlearn."""
    return list(MlearnJson(mlearn_json=(f"${{FOUNDATION_DATA}}/mlearn/{material}/{split}.json",)))


def settings(config: Config, material: str) -> list[str]:
    """Return this program's options for a material: the study's, with checkpoints as often as a pass of the peers."""
    own = yaml.safe_load(STUDY.read_text())["runs"][f"messages-{material}"]
    del own["data"]
    own |= {"fit.steps": round(config.steps_per_minute * max(config.minutes))}
    own |= {"fit.validate_every": 50, "fit.checkpoint_every": 50}
    return [f"--{name}={value}" for name, value in own.items()]


def prepare(folder: Path, material: str) -> None:
    """Write the structures and the programs' settings into a folder."""
    folder.mkdir(parents=True)
    known = frames(material, "training")
    splits = {
        "train": [frame for number, frame in enumerate(known) if number % HELD_OUT],
        "valid": known[::HELD_OUT],
        "test": frames(material, "test"),
    }
    for name, some in splits.items():
        ase.io.write(folder / f"{name}.extxyz", [atoms_of(frame, "") for frame in some])
        ase.io.write(folder / f"{name}.ref.extxyz", [atoms_of(frame, "REF_") for frame in some])
    ours = {"data": ["train.extxyz"], "val": ["valid.extxyz"], "out": "run"}
    ours |= yaml.safe_load(STUDY.read_text())["pretrain"]
    (folder / "ours.yaml").write_text(yaml.safe_dump(ours))
    preset = [str(Path(sys.executable).with_name("sevenn")), "preset", "base"]
    theirs = yaml.safe_load(subprocess.run(preset, check=True, capture_output=True, text=True).stdout)
    theirs["train"] |= {"epoch": 100_000, "per_epoch": 100_000, "is_train_stress": False}
    theirs["data"].pop("load_testset_path", None)
    theirs["data"] |= {"load_trainset_path": ["train.extxyz"], "load_validset_path": ["valid.extxyz"]}
    (folder / "sevenn.yaml").write_text(yaml.safe_dump(theirs))


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
        process = psutil.Popen(learner.command, cwd=folder, env=environment(learner), stdout=log, stderr=log)
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


def environment(learner: Learner) -> dict[str, str]:
    """Return the variables of a learner's processes, which compute with one thread."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    found = os.environ | dict.fromkeys(names, "1") | {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}
    found.pop("PYTHONPATH", None)
    return found if learner.python != sys.executable else found | {"PYTHONPATH": str(Path.cwd())}


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


def judged(learner: Learner, best: Path, file: Path, test: list[Structure], when: str) -> Iterator[Row]:
    """Yield the errors of a copy on the test set."""
    found = best.with_name(f"{best.name}.npz")
    script = JUDGE.format(make=learner.make)
    subprocess.run([learner.python, "-c", script, best, file, found], check=True, env=environment(learner))
    with np.load(found) as predicted:
        sizes = np.array([frame.num_atoms for frame in test])
        energies = np.abs(predicted["energies"] - [frame.energy for frame in test]) / sizes
        forces = np.abs(predicted["forces"] - np.concatenate([frame.forces for frame in test]))
    for what, errors, unit in (("energy", energies, "meV/atom"), ("force", forces, "meV/Å")):
        measure = f"{learner.name}, {when}: {what} MAE"
        yield Row(measure=measure, value=1000 * float(errors.mean()), unit=unit, command=COMMAND)
