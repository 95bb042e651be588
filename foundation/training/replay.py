"""Training from recordings: loss, predictions and gradient of a micro-batch as work that a GPU repeats."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from data_pipeline.graphs.batch import GraphBatch
from foundation.potential import Potential, Prediction
from foundation.recording import Recorder, Recordings
from foundation.training.fit_config import FitConfig
from foundation.training.loss import Counts
from foundation.training.machine import MachineConfig


class Computed(NamedTuple):
    """Results of a micro-batch."""

    share: Tensor
    """Its share of the loss of the step."""
    terms: Counts
    """Its share of each term."""
    prediction: Prediction
    """The predictions."""


class Replay:
    """Loss, predictions and gradient of micro-batches, recorded once for each bucket of sizes."""

    def __init__(
        self, recorder: Recorder, potential: Potential, compute: Callable[[GraphBatch, Counts], Computed]
    ) -> None:
        """Prepare; nothing is recorded yet.

        Args:
            recorder: The device.
            potential: Potential to train.
            compute: Function of a micro-batch and the counts of labels of its step.
        """
        self._potential, self._compute = potential, compute
        self._recordings = Recordings(recorder, potential, self._work)

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """The weights to train, in the order of gradients."""
        return [parameter for parameter in self._potential.parameters() if parameter.requires_grad]

    def __call__(self, batch: GraphBatch, counts: Counts) -> tuple[Computed, list[Tensor]]:
        """Return the results of a micro-batch, and the gradient of its share; all last until the next call."""
        share, energy, forces, stress, atom_energies, *others = self._recordings(batch, counts)
        prediction = Prediction(
            energy=energy[: batch.num_graphs],
            forces=forces[: len(batch.numbers)],
            stress=stress[: batch.num_graphs],
            atom_energies=atom_energies[: len(batch.numbers)],
        )
        terms = dict(zip(counts, others, strict=False))
        return Computed(share, terms, prediction), others[len(counts) :]

    def _work(self, batch: GraphBatch, counts: Counts) -> list[Tensor]:
        share, terms, found = self._compute(batch, counts)
        gradients = torch.autograd.grad(share, self.parameters, materialize_grads=True)
        predicted = (found.energy, found.forces, found.stress, found.atom_energies)
        return [share, *predicted, *(terms[name] for name in counts), *gradients]


def check_recording(config: FitConfig, machine: MachineConfig, potential: Potential, device: str) -> None:
    """Check that a run that is to record can.

    Raises:
        ValueError: it cannot.
    """
    reasons = {
        f"the run is on a {device}, and only a GPU records": device != "cuda",
        "fit.recompute asks for the state of random numbers meanwhile": config.recompute,
        f"machine.strategy {machine.strategy} takes gradients as they are made: use ddp": machine.strategy != "ddp",
        "the sizes of what this network computes depend on more than numbers of atoms and edges": (
            not potential.network.recordable
        ),
    }
    for reason, holds in reasons.items():
        if config.cuda_graphs and holds:
            raise ValueError(f"fit.cuda_graphs true is not possible: {reason}")
