"""Runs under torchrun: a run that rehearses, with a penalty and frozen parameters, under each of some strategies."""

import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed

from data_pipeline.graphs.batch import GraphBatch
from data_pipeline.loading.datasets import Dataset
from data_pipeline.loading.subset import Subset
from data_pipeline.store.manifest import open_manifest
from foundation.finetuning.freezing import freeze
from foundation.finetuning.penalties import L2Penalty
from foundation.models import EquivariantConfig
from foundation.potential import Potential, new_potential
from foundation.training.additions import Additions, Rehearsal
from foundation.training.fit import fit, seed_everything
from foundation.training.fit_config import FitConfig
from foundation.training.loss import LossConfig
from foundation.training.optim import OptimConfig
from foundation.training.strategy import StrategyName
from tests.machine import CPU

MODEL = EquivariantConfig(irreps="4x0e+2x1e", num_blocks=2, max_degree=1, radial_sizes=(8,), readout_channels=4)
OPTIM = OptimConfig(warmup_steps=2, learning_rate=3e-3, ema_decay=0.0, weight_decay=0.01)
STEPS = 20


def beginning(root: Path) -> Potential:
    """Return the potential that every run begins with."""
    seed_everything(0)
    potential = new_potential(MODEL, {"EMT": open_manifest(root).split("train").statistics})
    return potential.cast(torch.float64).train()


def run(root: Path, out: Path, strategy: StrategyName, world_size: int) -> dict[str, Any]:
    """Return the weights that a run ends with, and the frames that this process has rehearsed in order."""
    potential, manifest = beginning(root), open_manifest(root)
    freeze(potential, ["blocks:1"])
    config = FitConfig(
        steps=STEPS,
        lanes=4,
        edge_budget=700,
        oversize="alone",
        validate_every=STEPS,
        checkpoint_every=STEPS,
        log_every=5,
    )
    machine = dataclasses.replace(CPU, devices=world_size, strategy=strategy)
    rehearsed: list[str] = []

    def seen(batch: GraphBatch) -> GraphBatch:
        rehearsed.extend(batch.ids)
        return batch

    old = Rehearsal(datasets=(Dataset(manifest=manifest, split="test"),), ratio=0.5, relabel=seen)
    penalty = L2Penalty(potential, weight=0.1)
    fit(
        potential,
        [Dataset(manifest=manifest)],
        config=config,
        machine=machine,
        loss=LossConfig(),
        optim=OPTIM,
        out=out,
        record={},
        additions=Additions(rehearsal=old, penalty=penalty),
    )
    weights = {name: parameter.detach().clone() for name, parameter in potential.named_parameters()}
    return {"weights": weights, "rehearsed": rehearsed}


def run_apart(root: Path, out: Path) -> None:
    """Begin a run in which every process has chosen another frame to rehearse."""
    manifest, rank = open_manifest(root), int(os.environ["RANK"])
    old = Rehearsal(datasets=(Dataset(manifest=manifest, split="test", subset=Subset([rank, rank + 2])),))
    fit(
        beginning(root),
        [Dataset(manifest=manifest)],
        config=FitConfig(steps=1, lanes=2, edge_budget=3000),
        machine=dataclasses.replace(CPU, devices=2),
        loss=LossConfig(),
        optim=OPTIM,
        out=out,
        record={},
        additions=Additions(rehearsal=old),
    )


def main(root: Path, out: Path, *strategies: StrategyName) -> None:
    """Write what each strategy ends with to a file of its name; without any, do what has to be refused."""
    torch.set_num_threads(1)
    if not strategies:
        run_apart(root, out)
    for strategy in strategies:
        found = run(root, out / f"run-{strategy}", strategy, int(os.environ["WORLD_SIZE"]))
        torch.save(found, out / f"{strategy}-{torch.distributed.get_rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])  # pyright: ignore[reportArgumentType]
