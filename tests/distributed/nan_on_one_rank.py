"""Runs under torchrun: two runs of four steps, in the third of which the second process has no finite gradient."""

import dataclasses
import sys
from pathlib import Path

import torch
import torch.distributed

from data_pipeline.loading.datasets import Dataset
from data_pipeline.store.manifest import open_manifest
from foundation.potential import new_potential
from foundation.training.fit import fit, seed_everything
from foundation.training.fit_config import FitConfig
from foundation.training.gradients import FlatGradients, ZeroGradients
from foundation.training.module import TrainingModule
from foundation.training.optim import OptimConfig
from foundation.training.strategy import StrategyName
from tests.distributed.step_gradient import LOSS, MODEL
from tests.machine import CPU


def run(root: Path, out: Path, strategy: StrategyName) -> list[torch.Tensor]:
    """Return the weights after each step."""
    seed_everything(0)
    manifest, weights = open_manifest(root), list[torch.Tensor]()
    potential = new_potential(MODEL, {"EMT": manifest.split("train").statistics}).train()
    step_as_written = TrainingModule.training_step

    def watched(module: TrainingModule, batches: list, step: int) -> None:
        step_as_written(module, batches, step)
        weights.append(torch.cat([p.detach().flatten().clone() for p in module.potential.parameters()]))

    adders = {gradients: gradients.add for gradients in (FlatGradients, ZeroGradients)}

    def poisoned(self: FlatGradients | ZeroGradients, share: torch.Tensor, *, last: bool) -> None:
        if len(weights) == 2 and torch.distributed.get_rank() == 1:
            share.register_hook(lambda gradient: gradient * float("nan"))
        adders[type(self)](self, share, last=last)

    TrainingModule.training_step = watched
    FlatGradients.add = ZeroGradients.add = poisoned
    config = FitConfig(
        steps=4,
        lanes=2,
        edge_budget=1500,
        validate_every=4,
        checkpoint_every=4,
        log_every=4,
    )
    machine = dataclasses.replace(CPU, devices=2, strategy=strategy)
    try:
        data = [Dataset(manifest=manifest)]
        optim = OptimConfig(warmup_steps=1)
        fit(potential, data, config=config, machine=machine, loss=LOSS, optim=optim, out=out, record={})
    finally:
        TrainingModule.training_step = step_as_written
        FlatGradients.add, ZeroGradients.add = adders[FlatGradients], adders[ZeroGradients]
    return weights


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[3:]:
        found = run(Path(sys.argv[1]), Path(sys.argv[2]) / f"run-{name}", name)
        torch.save(found, Path(sys.argv[2]) / f"{name}-{torch.distributed.get_rank()}.pt")
