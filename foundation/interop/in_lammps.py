"""One crystal in the installed LAMMPS, by the pair style and a compiled library."""

import subprocess
import sys
import tempfile
from pathlib import Path

import ase
import ase.io
import numpy as np
from ase.calculators.lammps import Prism
from jaxtyping import Float64

from data_pipeline.structure import SYMBOLS
from foundation.engine import plugin
from foundation.engine.folder import write_library
from foundation.potential import Potential

INPUT = """units metal
atom_modify map yes
newton on
read_data data.lmp
pair_style foundation
pair_coeff * * library {elements}
thermo_style custom step pe
thermo_modify format float %.15g
dump forces all custom 1 forces.dump id fx fy fz
dump_modify forces sort id format float %.15g
run 0
"""
TIMEOUT = 300
"""Time after which LAMMPS is given up [s]."""


def computed_in_lammps(
    potential: Potential, theory: int, crystals: list[ase.Atoms], processes: int = 1
) -> list[tuple[float, Float64[np.ndarray, "_ 3"]]]:
    """Return energy [eV] and forces [eV/Å] of crystals, by the potential's library without a table.

    Raises:
        FileNotFoundError: LAMMPS or MPI is not installed.
        NoCompiler: there is no compiler, or it fails.
        RuntimeError: LAMMPS fails; the message is its own.
        ValueError: the network cannot be compiled.
    """
    program, environment = plugin.executable()
    mpiexec = [str(Path(sys.executable).with_name("mpiexec")), "-n", str(processes)] if processes > 1 else []
    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_library(potential, theory, "0" * 64, folder / "library", table=False)
        for atoms in crystals:
            symbols = [SYMBOLS[number] for number in np.unique(atoms.numbers)]
            prism = Prism(np.asarray(atoms.cell), atoms.pbc)
            ase.io.write(
                folder / "data.lmp", atoms, format="lammps-data", specorder=symbols, masses=True, prismobj=prism
            )
            (folder / "in.lammps").write_text(INPUT.format(elements=" ".join(symbols)))
            words = [*mpiexec, str(program), "-in", "in.lammps", "-log", "none"]
            done = subprocess.run(
                words, cwd=folder, env=environment, capture_output=True, text=True, timeout=TIMEOUT, check=False
            )
            lines = [line.split() for line in done.stdout.splitlines()]
            if done.returncode or ["Step", "PotEng"] not in lines:
                raise RuntimeError(f"LAMMPS fails: {(done.stdout + done.stderr).strip()[-500:]}")
            energy = float(lines[lines.index(["Step", "PotEng"]) + 1][1])
            dump = (folder / "forces.dump").read_text().split("ITEM: ATOMS")[1].splitlines()[1:]
            forces = np.array([line.split()[1:] for line in dump], dtype=np.float64)
            found.append((energy, prism.vector_to_ase(forces)))
    return found
