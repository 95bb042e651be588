# %% [markdown]
# # Predict energies, forces and stresses
#
# SevenNet-0 is a universal potential that this package carries. `foundation.load` also takes other names, a release
# folder, a finished run, or a checkpoint of SevenNet (`.pth`).

# %%
import ase.units
import numpy as np
from ase.build import bulk
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS

import foundation
from data_pipeline import Structure, collate

potential = foundation.load("sevennet-0")
print(f"{len(potential.elements)} elements, cutoff {potential.cutoff} Å, trained on {', '.join(potential.theories)}")

# %% [markdown]
# ## One structure, with ASE
#
# Units are ASE's: eV, eV/Å and eV/Å³. Stress is positive in tension.

# %%
atoms = bulk("NaCl", "rocksalt", a=5.5, cubic=True)
atoms.calc = foundation.Calculator(potential)
print(f"energy {atoms.get_potential_energy():.4f} eV, largest force {np.abs(atoms.get_forces()).max():.1e} eV/Å")
print(f"pressure {-np.trace(atoms.get_stress(voigt=False)) / 3 / ase.units.GPa:.2f} GPa")

# %% [markdown]
# ## Relax the cell

# %%
BFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=0.01, steps=50)
print(f"relaxed lattice constant {atoms.cell.lengths()[0]:.3f} Å (experiment: 5.64 Å)")

# %% [markdown]
# ## Many structures at once
#
# A batch holds structures and their neighbour lists. One call predicts all of them.

# %%
crystals = [bulk("NaCl", "rocksalt", a=a) for a in (5.4, 5.6, 5.8)]
structures = [
    Structure.checked(numbers=c.numbers, positions=c.positions, cell=c.cell.array, pbc=c.pbc, energy=0.0)
    for c in crystals
]
prediction = potential(collate(structures, potential.cutoff))
for crystal, energy in zip(crystals, prediction.energy, strict=True):
    print(f"volume {crystal.get_volume():.2f} Å³: {float(energy):.4f} eV")
