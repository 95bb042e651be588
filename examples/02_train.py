# %% [markdown]
# # Train a potential
#
# The verbs `build`, `pretrain`, `evaluate` and `export` as Python calls, on alloys that are labelled by a classical
# potential (effective medium theory) and need no download. Seconds on one core; the result is a demonstration.

# %%
from pathlib import Path

from ase.build import bulk
from ase.calculators.emt import EMT

import foundation
from data_pipeline.building.build import BuildConfig, build
from data_pipeline.sources import EmtAlloys
from data_pipeline.store.manifest import Provenance
from foundation.evaluate import EvaluateConfig, evaluate
from foundation.export import ExportConfig, export
from foundation.models import EquivariantConfig
from foundation.pretrain import PretrainConfig, pretrain
from foundation.reports.card import CardFacts
from foundation.training.fit_config import FitConfig
from foundation.training.machine import MachineConfig
from foundation.training.optim import OptimConfig

FOLDER = Path("runs/examples")

# %% [markdown]
# ## Build the data set
#
# `EmtAlloys` is a source. For files of your own it is `AseFiles(files=("frames.extxyz",))`. The provenance is what
# every potential that is trained on the data has to state.

# %%
build(
    BuildConfig(
        source=EmtAlloys(num_frames=300),
        provenance=Provenance(
            name="emt-alloys",
            licence="CC0-1.0",
            level_of_theory="effective medium theory",
            energy_convention="total energy relative to the bulk elements",
            citation="Jacobsen, Stoltze and Nørskov, Surf. Sci. 366, 394 (1996)",
            source="made by data_pipeline/sources/emt.py",
        ),
        out=FOLDER / "alloys",
        overwrite=True,
    )
)

# %% [markdown]
# ## Pretrain
#
# An optimizer step is `lanes` micro-batches of `edge_budget` edges. Everything else has a default.

# %%
pretrain(
    PretrainConfig(
        data=FOLDER / "alloys",
        out=FOLDER / "train",
        overwrite=True,
        model=EquivariantConfig(irreps="16x0e+8x1e", num_blocks=2, max_degree=1, radial_sizes=(16,)),
        optim=OptimConfig(learning_rate=0.02, warmup_steps=5, ema_decay=0.9),
        fit=FitConfig(steps=60, lanes=1, edge_budget=2000, validate_every=60),
        machine=MachineConfig(accelerator="cpu", num_workers=0),
    )
)

# %% [markdown]
# ## Evaluate on compositions that were not trained on, and export

# %%
evaluate(EvaluateConfig(model=FOLDER / "train", data=FOLDER / "alloys"))
export(
    ExportConfig(
        run=FOLDER / "train",
        out=FOLDER / "train" / "release",
        card=CardFacts(
            name="example",
            description="A potential for alloys of seven metals, trained for seconds.",
            authors="whoever ran this example",
            licence="CC0-1.0",
            intended_use="Trying out this software.",
            limitations="It imitates a classical potential. Do not use it for materials.",
            citation="See the README of foundation.",
        ),
    )
)

# %% [markdown]
# ## Use the release

# %%
atoms = bulk("Cu", "fcc", a=3.61)
atoms.calc = foundation.Calculator(foundation.load(FOLDER / "train" / "release"))
labelled = EMT().get_potential_energy(atoms)
print(f"copper: {atoms.get_potential_energy():.3f} eV; effective medium theory says {labelled:.3f} eV")
