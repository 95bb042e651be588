# %% [markdown]
# # Many crystals in torch-sim
#
# A potential is a model of torch-sim (`pip install 'foundation[torch-sim]'`), which relaxes and moves many structures
# in one batch. Relaxations and dynamics of [many structures](../docs/simulation.md) need no other package.

# %%
import torch_sim
from ase.build import bulk

from foundation.interop.torch_sim_model import TorchSimModel

model = TorchSimModel("sevennet-0")
crystals = [bulk(symbol, "fcc", a=a, cubic=True) for symbol, a in (("Al", 4.2), ("Cu", 3.8), ("Ni", 3.7))]

# %% [markdown]
# ## Relax atoms and cells
#
# The batcher measures memory by itself unless it is told how many atoms fit.

# %%
relaxed = torch_sim.optimize(
    system=crystals,
    model=model,
    optimizer=torch_sim.frechet_cell_fire,
    max_steps=100,
    convergence_fn=torch_sim.generate_force_convergence_fn(force_tol=0.02, include_cell_forces=True),
    autobatcher=torch_sim.InFlightAutoBatcher(model, memory_scales_with="n_atoms", max_memory_scaler=1000),
)
lengths = relaxed.row_vector_cell[:, 0].norm(dim=1).tolist()
for crystal, length in zip(crystals, lengths, strict=True):
    print(f"{crystal.get_chemical_formula()}: {length:.3f} Å")

# %% [markdown]
# ## Dynamics

# %%
moved = torch_sim.integrate(
    system=relaxed,
    model=model,
    integrator=torch_sim.nvt_langevin,
    n_steps=5,
    temperature=600,
    timestep=0.001,
    autobatcher=False,
)
print(moved.energy.tolist())
