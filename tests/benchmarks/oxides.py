"""Frames to measure on: oxides of 24-60 atoms with about 50 neighbours within 5 Å, from the published mptrj-1k."""

import itertools

import numpy as np

from data_pipeline.graphs.batch import GraphBatch, collate
from data_pipeline.sources import AseFiles
from data_pipeline.statistics.sums import Statistics
from data_pipeline.structure import Structure
from foundation.models import EquivariantConfig
from foundation.potential import Potential, new_potential
from foundation.recording import CudaGraphs
from foundation.training.loss import Counts, LossConfig, label_counts, loss, loss_terms, summed
from foundation.training.optim import OptimConfig, make_optimizer
from foundation.training.replay import Computed, Replay

FILE = "${FOUNDATION_DATA}/mptrj-1k/mptrj-random-1k.xyz"
CUTOFF = 5.0
SEVENNET_0 = EquivariantConfig(irreps="128x0e+64x1e+32x2e")


def oxides(count: int) -> list[Structure]:
    """The first so many of them in the file."""

    def chosen(structure: Structure) -> bool:
        if not 24 <= structure.num_atoms <= 60 or 8 not in structure.numbers:
            return False
        return 42 <= collate([structure], CUTOFF).num_edges / structure.num_atoms <= 62

    return list(itertools.islice(filter(chosen, AseFiles(files=(FILE,))), count))


def potential_for(model: EquivariantConfig, structures: list[Structure]) -> tuple[Potential, GraphBatch]:
    """An untrained potential for some structures, and their batch."""
    statistics = Statistics(cutoffs=(model.cutoff,))
    batch = collate(structures, model.cutoff)
    statistics.add(structures, np.full((len(structures), 1), batch.num_edges // len(structures)))
    return new_potential(model, {"PBE": statistics}), batch


def training_step(potential: Potential, batch: GraphBatch):
    """A function that takes one optimizer step."""
    optimizer = make_optimizer(OptimConfig(), potential, len(potential.elements))
    counts = label_counts(batch)

    def step() -> None:
        potential.train()
        optimizer.zero_grad()
        loss(LossConfig(), potential(batch), batch, counts).backward()
        optimizer.step()

    return step


def recorded_step(potential: Potential, batch: GraphBatch):
    """A function that takes one optimizer step on a GPU, from a recording."""
    optimizer = make_optimizer(OptimConfig(), potential, len(potential.elements))
    counts = label_counts(batch)

    def computed(batch: GraphBatch, counts: Counts) -> Computed:
        prediction = potential(batch)
        terms = loss_terms(LossConfig(), prediction, batch, counts)
        return Computed(summed(terms), terms, prediction)

    replay = Replay(CudaGraphs(), potential.train(), computed)

    def step() -> None:
        _, gradients = replay(batch, counts)
        for parameter, gradient in zip(replay.parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()

    return step
