# %% [markdown]
# # A crystal in OpenMM
#
# `pip install 'foundation[openmm]'` registers the name `foundation` with OpenMM's package openmmml. The options of
# `foundation.Calculator` follow the name: `mode="md"`, `engine="compiled"`, `theory`.

# %%
from ase.build import bulk
from openmm import LangevinMiddleIntegrator, Platform, app, unit
from openmmml import MLPotential

atoms = bulk("MgO", "rocksalt", a=4.21, cubic=True)
atoms.rattle(0.05, seed=0)

# %% [markdown]
# ## The system

# %%
topology = app.Topology()
residue = topology.addResidue("MgO", topology.addChain())
for symbol in atoms.symbols:
    topology.addAtom(symbol, app.Element.getBySymbol(symbol), residue)
topology.setPeriodicBoxVectors(atoms.cell[:] * unit.angstrom)
system = MLPotential("foundation", model="sevennet-0").createSystem(topology)

# %% [markdown]
# ## Dynamics
#
# Forces come from Python, so the platform matters little; `Reference` computes in double precision.

# %%
integrator = LangevinMiddleIntegrator(300 * unit.kelvin, 1 / unit.picosecond, 1 * unit.femtosecond)
simulation = app.Simulation(topology, system, integrator, Platform.getPlatformByName("Reference"))
simulation.context.setPositions(atoms.positions * unit.angstrom)
start = simulation.context.getState(getEnergy=True, getForces=True)
simulation.step(5)
end = simulation.context.getState(getEnergy=True)
print(start.getPotentialEnergy(), end.getPotentialEnergy())
