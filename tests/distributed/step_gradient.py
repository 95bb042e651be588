"""Runs under torchrun: the gradient of two optimizer steps as a real run sums it, under each of some strategies."""

import dataclasses
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed

from data_pipeline.loading.datasets import Dataset
from data_pipeline.store.manifest import open_manifest
from foundation.models import EquivariantConfig
from foundation.potential import new_potential
from foundation.training.fit import fit, seed_everything
from foundation.training.fit_config import FitConfig
from foundation.training.gradients import FlatGradients, ZeroGradients
from foundation.training.loss import LossConfig, TermConfig
from foundation.training.optim import OptimConfig
from foundation.training.strategy import StrategyName
from tests.machine import CPU

MODEL = EquivariantConfig(irreps="4x0e+2x1e", num_blocks=2, max_degree=1, radial_sizes=(8,), readout_channels=4)
LOSS = LossConfig(forces=TermConfig(weight=20.0, kind="huber", delta=0.1))
OPTIM = OptimConfig(warmup_steps=1, learning_rate=1e-30)
"""A rate so small that the second step has the weights of the first: ZeRO keeps its own copy of them in float32."""


def gradients(root: Path, out: Path, strategy: StrategyName, world_size: int) -> list[torch.Tensor]:
    """Return the gradient of each step of a run in float64, whole."""
    seed_everything(0)
    manifest = open_manifest(root)
    potential = new_potential(MODEL, {"EMT": manifest.split("train").statistics}).cast(torch.float64).train()
    config = FitConfig(
        steps=2,
        lanes=4,
        edge_budget=700,
        oversize="alone",
        validate_every=2,
        checkpoint_every=2,
        log_every=2,
    )
    machine = dataclasses.replace(CPU, devices=world_size, strategy=strategy)
    found: list[torch.Tensor] = []
    flat, zero = FlatGradients.reduce, ZeroGradients.reduce

    def watched_flat(self: FlatGradients, sums: torch.Tensor) -> Any:
        reduced = flat(self, sums)
        found.append(torch.cat([p.grad.flatten() for p in self._parameters]))
        return reduced

    def watched_zero(self: ZeroGradients, sums: torch.Tensor) -> Any:
        found.append(torch.cat([whole(self, number) for number in range(len(self.partitions()))]))
        return zero(self, sums)

    FlatGradients.reduce, ZeroGradients.reduce = watched_flat, watched_zero
    try:
        datasets = [Dataset(manifest=manifest)]
        fit(potential, datasets, config=config, machine=machine, loss=LOSS, optim=OPTIM, out=out, record={})
    finally:
        FlatGradients.reduce, ZeroGradients.reduce = flat, zero
    return found


def whole(zero: ZeroGradients, group: int) -> torch.Tensor:
    """Return the gradient of a parameter group, put together from the parts of all processes."""
    own = torch.cat([part.flatten() for part in zero.partitions()[group]])
    parts = [torch.zeros_like(own) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, own)
    size = sum(parameter.numel() for parameter in zero._strategy.zero.bit16_groups[group])
    return torch.cat(parts)[:size]


def main(root: Path, out: Path, *strategies: StrategyName) -> None:
    """Write the gradients under each strategy to a file of its name."""
    torch.set_num_threads(1)
    for strategy in strategies:
        found = gradients(root, out / f"run-{strategy}", strategy, int(os.environ["WORLD_SIZE"]))
        torch.save(found, out / f"{strategy}-{torch.distributed.get_rank()}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
