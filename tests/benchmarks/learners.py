"""Programs that train from random weights by the recipe of their own authors: their commands, settings and results.

sevenn learns by its `preset base`, MACE by the example of its documentation, NequIP by its configs/tutorial.yaml, and
this program by configs/pretrain/workstation.yaml. Where a recipe asks for a GPU or for wandb, it does without.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import yaml

RECIPE = Path("configs/pretrain/workstation.yaml")
"""This program's recipe."""
MACE = [
    "--name=mace",
    "--train_file=train.ref.extxyz",
    "--valid_file=valid.ref.extxyz",
    "--device=cpu",
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
METRIC = "val0_epoch/weighted_sum"
LOADER = {"_target_": "torch.utils.data.DataLoader", "num_workers": 0}
NEQUIP = {
    "run": ["train"],
    "data": {
        "_target_": "nequip.data.datamodule.ASEDataModule",
        "seed": 456,
        "train_file_path": "train.extxyz",
        "val_file_path": "valid.extxyz",
        "transforms": [
            {
                "_target_": "nequip.data.transforms.ChemicalSpeciesToAtomTypeMapper",
                "model_type_names": "${symbols}",
                "chemical_species_to_atom_type_map": "${list_to_identity_dict:${symbols}}",
            },
            {"_target_": "nequip.data.transforms.NeighborListTransform", "r_max": 5.0},
        ],
        "train_dataloader": LOADER | {"batch_size": 5, "shuffle": True},
        "val_dataloader": LOADER | {"batch_size": 10},
        "stats_manager": {
            "_target_": "nequip.data.CommonDataStatisticsManager",
            "dataloader_kwargs": {"batch_size": 10},
            "type_names": "${symbols}",
        },
    },
    "trainer": {
        "_target_": "lightning.Trainer",
        "accelerator": "cpu",
        "max_epochs": 1000,
        "enable_progress_bar": False,
        "logger": False,
        "callbacks": [
            {
                "_target_": "lightning.pytorch.callbacks.ModelCheckpoint",
                "monitor": METRIC,
                "dirpath": ".",
                "filename": "best",
            }
        ],
    },
    "training_module": {
        "_target_": "nequip.train.EMALightningModule",
        "ema_decay": 0.999,
        "loss": {
            "_target_": "nequip.train.EnergyForceLoss",
            "per_atom_energy": True,
            "coeffs": {"total_energy": 1.0, "forces": 1.0},
        },
        "val_metrics": {
            "_target_": "nequip.train.EnergyForceMetrics",
            "coeffs": {"total_energy_mae": 1.0, "forces_mae": 1.0},
        },
        "optimizer": {"_target_": "torch.optim.Adam", "lr": 0.01},
        "lr_scheduler": {
            "scheduler": {
                "_target_": "torch.optim.lr_scheduler.ReduceLROnPlateau",
                "factor": 0.6,
                "patience": 5,
                "threshold": 0.2,
                "min_lr": 1e-6,
            },
            "monitor": METRIC,
            "interval": "epoch",
            "frequency": 1,
        },
        "model": {
            "_target_": "nequip.model.NequIPGNNModel",
            "compile_mode": "eager",  # its advice for GPUs is to compile, which takes half of ten minutes here
            "seed": 456,
            "model_dtype": "float32",
            "type_names": "${symbols}",
            "r_max": 5.0,
            "num_bessels": 8,
            "bessel_trainable": False,
            "polynomial_cutoff_p": 6,
            "num_layers": 4,
            "l_max": 1,
            "parity": True,
            "num_features": 32,
            "radial_mlp_depth": 2,
            "radial_mlp_width": 64,
            "avg_num_neighbors": "${training_data_stats:num_neighbors_mean}",
            "per_type_energy_scales": "${training_data_stats:per_type_forces_rms}",
            "per_type_energy_shifts": "${training_data_stats:per_atom_energy_mean}",
            "pair_potential": {
                "_target_": "nequip.nn.pair_potential.ZBL",
                "units": "metal",
                "chemical_species": "${symbols}",
            },
        },
    },
    "global_options": {"allow_tf32": False},
}
"""NequIP's configs/tutorial.yaml."""
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
"""Program that computes energies and forces of a file by a calculator."""


@dataclass(frozen=True)
class Learner:
    """A program that trains on train.extxyz and valid.extxyz of the folder it runs in.

    Where a program reads labels only by names of its own, the same structures are in train.ref.extxyz and
    valid.ref.extxyz, as REF_energy and REF_forces.
    """

    name: str
    """Name in the table."""
    command: list[str]
    """Its command."""
    best: str
    """Its best so far, a file or folder."""
    python: str
    """Python that has it."""
    make: str
    """Lines that make an ASE `calculator` of the path sys.argv[1]."""
    files: dict[str, str] = field(default_factory=dict)
    """Texts of its settings by file name."""

    def judge(self, best: Path, structures: Path, out: Path) -> None:
        """Write energies and forces of the structures of a file, by a copy of its best, into a NumPy archive."""
        script = JUDGE.format(make=self.make)
        subprocess.run([self.python, "-c", script, best, structures, out], check=True, env=self.environment())

    def environment(self) -> dict[str, str]:
        """Return the variables of its processes, which compute with one thread."""
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        found = os.environ | dict.fromkeys(names, "1") | {"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}
        found.pop("PYTHONPATH", None)
        return found if self.python != sys.executable else found | {"PYTHONPATH": str(Path.cwd())}


def foundation(steps: int) -> Learner:
    """Return this program, whose schedule ends after a number of steps."""
    ours = yaml.safe_load(RECIPE.read_text()) | {"data": ["train.extxyz"], "val": ["valid.extxyz"], "out": "run"}
    ours["read"], ours["loss"]["stress"] = {"test_fraction": 0.0}, {"weight": 0.0}
    ours["fit"]["steps"] = steps
    return Learner(
        "foundation",
        [sys.executable, "-m", "launch", "pretrain", "--config", "ours.yaml"],
        "run",
        sys.executable,
        "import foundation, foundation.naming\n"
        "best = foundation.naming.resolve(sys.argv[1], 'best').load()\n"
        "calculator = foundation.Calculator(best, dtype='float32')",
        {"ours.yaml": yaml.safe_dump(ours)},
    )


def sevenn() -> Learner:
    """Return sevenn by its `preset base`."""
    command = str(Path(sys.executable).with_name("sevenn"))
    preset = subprocess.run([command, "preset", "base"], check=True, capture_output=True, text=True).stdout
    settings = yaml.safe_load(preset)
    settings["train"] |= {"epoch": 100_000, "per_epoch": 100_000, "is_train_stress": False}
    settings["data"].pop("load_testset_path", None)
    settings["data"] |= {"load_trainset_path": ["train.extxyz"], "load_validset_path": ["valid.extxyz"]}
    return Learner(
        "sevenn 0.13",
        [command, "train", "sevenn.yaml"],
        "checkpoint_best.pth",
        sys.executable,
        "from sevenn.calculator import SevenNetCalculator\ncalculator = SevenNetCalculator(sys.argv[1], device='cpu')",
        {"sevenn.yaml": yaml.safe_dump(settings)},
    )


def mace(python: Path) -> Learner:
    """Return MACE by its documentation's example."""
    return Learner(
        "MACE 0.3",
        [str(python), "-c", KEEP_MACE, *MACE],
        "best.model",
        str(python),
        "from mace.calculators import MACECalculator\n"
        "calculator = MACECalculator(model_paths=sys.argv[1], device='cpu', default_dtype='float32')",
    )


def nequip(python: Path, symbols: list[str]) -> Learner:
    """Return NequIP by its tutorial, for the elements of the training."""
    return Learner(
        "NequIP 0.19",
        [str(python.with_name("nequip-train")), "-cn", "nequip.yaml", "hydra.run.dir=."],
        "best.ckpt",
        str(python),
        "from nequip.integrations.ase import NequIPCalculator\n"
        "calculator = NequIPCalculator._from_saved_model(\n"
        "    sys.argv[1], device='cpu', chemical_species_to_atom_type_map=True)",
        {"nequip.yaml": json.dumps({"symbols": symbols} | NEQUIP, indent=2)},
    )
