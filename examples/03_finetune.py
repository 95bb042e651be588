# %% [markdown]
# # Fine-tune on your own file, and see what is forgotten
#
# `python examples/03_finetune.py my.extxyz` takes your frames, with energies, forces and stresses, in any format that
# ASE reads. Without an argument the file is a stand-in: molecular dynamics of a copper-gold alloy with effective medium
# theory.
#
# The base potential is the one of `02_train.py`, so that everything runs in seconds; it knows Al, Ni, Cu, Pd, Ag, Pt
# and Au. For real work set `BASE` to the folder of a universal potential, and `PRETRAINING` to data of the kind that it
# was trained on.

# %%
import runpy
import sys
from pathlib import Path

import ase.io
import ase.units
import numpy as np
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.md.langevin import Langevin

from data_pipeline.building.build import BuildConfig, build
from data_pipeline.sources import AseFiles
from data_pipeline.store.manifest import Provenance
from foundation.finetune import FinetuneConfig, finetune
from foundation.finetuning.forgetting import ForgettingConfig, HeldOutConfig
from foundation.finetuning.rehearsal import RehearsalConfig
from foundation.reports.forgetting_record import Forgetting
from foundation.reports.forgetting_report import summary
from foundation.training.fit_config import FitConfig
from foundation.training.machine import MachineConfig
from foundation.training.optim import OptimConfig

FOLDER = Path("runs/examples")
BASE, PRETRAINING = FOLDER / "train" / "release", FOLDER / "alloys"
FILE = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER / "my.extxyz"

if not BASE.is_dir():
    runpy.run_path(str(Path(__file__).with_name("02_train.py")))

# %% [markdown]
# ## The file

# %%
if len(sys.argv) == 1:
    atoms = bulk("Cu", "fcc", a=3.8, cubic=True) * (2, 1, 1)
    atoms.numbers[::4] = 79
    atoms.calc = EMT()
    rng = np.random.default_rng(0)
    dynamics = Langevin(atoms, 2 * ase.units.fs, temperature_K=900, friction=0.05, fixcm=False, rng=rng)
    FILE.unlink(missing_ok=True)
    for _ in range(40):
        dynamics.run(5)
        atoms.get_stress()  # the file gets what the calculator has computed
        ase.io.write(FILE, atoms, append=True)

# %% [markdown]
# ## Build it into a data set
#
# Consecutive frames of molecular dynamics are alike. `split_by="order"` trains on the first frames and keeps the last
# for the test.

# %%
build(
    BuildConfig(
        source=AseFiles(files=(str(FILE),)),
        provenance=Provenance(
            name="my-frames",
            licence="CC0-1.0",
            level_of_theory="effective medium theory",
            energy_convention="total energy relative to the bulk elements",
            citation="none",
            source="molecular dynamics at 900 K",
        ),
        out=FOLDER / "mine",
        split_by="order",
        val_fraction=0.2,
        test_fraction=0.2,
        overwrite=True,
    )
)

# %% [markdown]
# ## Fine-tune with rehearsal
#
# Every step also trains on pretraining structures, labelled by the base potential itself (distillation). The retained
# set is held-out pretraining data: its errors before and after tell what is forgotten.

# %%
finetune(
    FinetuneConfig(
        start=BASE,
        data=FOLDER / "mine",
        out=FOLDER / "finetune",
        overwrite=True,
        optim=OptimConfig(learning_rate=0.003, weight_decay=0.0, ema_decay=0.0, warmup_steps=5),
        rehearsal=RehearsalConfig(data=PRETRAINING, labels="start"),
        forgetting=ForgettingConfig(retained=(HeldOutConfig(path=PRETRAINING),)),
        fit=FitConfig(steps=40, lanes=1, edge_budget=1500, validate_every=40),
        machine=MachineConfig(accelerator="cpu", num_workers=0),
    )
)

# %% [markdown]
# ## What was learned and forgotten
#
# The page `runs/examples/finetune/forgetting/index.html` has figures and intervals. The numbers are in a file.

# %%
report = Forgetting.from_json(FOLDER / "finetune" / "forgetting" / "forgetting.json")
print("\n".join(summary(report)))
