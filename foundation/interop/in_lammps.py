"""Crystals in the installed LAMMPS, by the pair style and a compiled library."""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ase
import ase.io
import numpy as np
from ase.calculators.lammps import Prism

from data_pipeline.structure import SYMBOLS
from foundation.engine import plugin
from foundation.engine.folder import write_library
from foundation.interop.answers import Answer, Motion
from foundation.potential import Potential

START = """units metal
atom_modify map yes
newton on
read_data data.lmp
pair_style foundation
pair_coeff * * library {elements}
"""
ONCE = """thermo_style custom step pe pxx pyy pzz pxy pxz pyz
thermo_modify format float %.15g
dump forces all custom 1 forces.dump id fx fy fz
dump_modify forces sort id format float %.15g
run 0
"""
MOTION = """timestep {picoseconds}
fix motion all nve
thermo_style custom step etotal
thermo_modify format float %.15g
thermo {every}
run {steps}
"""
TIMEOUT = 3600
"""Time after which LAMMPS is given up [s]."""
BAR = 1.6021765e6
"""Bars of an eV/Å³, as LAMMPS rounds it."""


@dataclass(frozen=True, kw_only=True)
class InLammps:
    """A potential at one of its levels of theory in LAMMPS."""

    potential: Potential
    """The potential, in its float type."""
    theory: int
    """Number of the level of theory."""
    processes: int = 1
    """Number of processes."""
    table: bool = False
    """Take radial functions from a table."""

    def compute(self, crystals: list[ase.Atoms]) -> list[Answer]:
        """Return energy, forces and stress of periodic structures.

        Raises:
            FileNotFoundError: LAMMPS or MPI is not installed.
            NoCompiler: there is no compiler, or it fails.
            RuntimeError: LAMMPS fails; the message is its own.
            ValueError: the network cannot be compiled.
        """
        found = []
        with self._folder() as folder:
            for atoms in crystals:
                prism = _write(folder, atoms)
                ((_, energy, *pressure),) = self._rows(folder, atoms, ONCE)
                dump = (folder / "forces.dump").read_text().split("ITEM: ATOMS")[1].splitlines()[1:]
                forces = np.array([line.split()[1:] for line in dump], dtype=np.float64)
                xx, yy, zz, xy, xz, yz = -np.array(pressure) / BAR
                stress = prism.tensor2_to_ase(np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]]))
                found.append(Answer(energy, prism.vector_to_ase(forces), stress))
        return found

    def move(self, atoms: ase.Atoms, motion: Motion) -> list[float]:
        """Return total energies along a dynamics [eV], the first one included; see compute()."""
        text = MOTION.format(picoseconds=motion.femtoseconds / 1000, every=motion.every, steps=motion.steps)
        with self._folder() as folder:
            _write(folder, atoms)
            return [energy for _, energy in self._rows(folder, atoms, text)]

    @contextmanager
    def _folder(self) -> Iterator[Path]:
        with tempfile.TemporaryDirectory() as name:
            write_library(self.potential, self.theory, "0" * 64, Path(name) / "library", table=self.table)
            yield Path(name)

    def _rows(self, folder: Path, atoms: ase.Atoms, text: str) -> list[list[float]]:
        """Run an input and return the rows of its table."""
        (folder / "in.lammps").write_text(START.format(elements=" ".join(_symbols(atoms))) + text)
        program, environment = plugin.executable()
        mpiexec = [str(Path(sys.executable).with_name("mpiexec")), "-n", str(self.processes)]
        words = [*(mpiexec if self.processes > 1 else []), str(program), "-in", "in.lammps", "-log", "none"]
        done = subprocess.run(
            words, cwd=folder, env=environment, capture_output=True, text=True, timeout=TIMEOUT, check=False
        )
        lines = [line.split() for line in done.stdout.splitlines()]
        heads = [number for number, line in enumerate(lines) if line[:1] == ["Step"]]
        ends = [number for number, line in enumerate(lines) if line[:2] == ["Loop", "time"]]
        if done.returncode or not heads or not ends:
            raise RuntimeError(f"LAMMPS fails: {(done.stdout + done.stderr).strip()[-500:]}")
        return [[float(word) for word in line] for line in lines[heads[0] + 1 : ends[0]]]


def _symbols(atoms: ase.Atoms) -> list[str]:
    return [SYMBOLS[number] for number in np.unique(atoms.numbers)]


def _write(folder: Path, atoms: ase.Atoms) -> Prism:
    """Write a structure with its velocities and return the rotation to LAMMPS's axes."""
    prism = Prism(np.asarray(atoms.cell), atoms.pbc)
    ase.io.write(
        folder / "data.lmp",
        atoms,
        format="lammps-data",
        specorder=_symbols(atoms),
        masses=True,
        velocities=True,
        prismobj=prism,
    )
    return prism
