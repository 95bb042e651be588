"""Training from recordings: on a GPU, the work of a micro-batch is recorded once for each of a few sizes.

A step of a small network launches more than a thousand kernels, and launching them takes longer than running them. A
CUDA graph launches them all at once, with the addresses and sizes that it was recorded with. So a micro-batch is filled
up to a bucket of sizes (data_pipeline/graphs/padding.py) and copied to the place of the recorded one.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from data_pipeline.graphs.batch import GraphBatch
from data_pipeline.graphs.padding import Bucket, padded
from foundation.potential import Potential, Prediction
from foundation.training.fit_config import FitConfig
from foundation.training.machine import MachineConfig

MOST_RECORDINGS = 64
"""Number of buckets whose recordings are kept, the latest ones."""
WARM_UPS = 3
"""Runs before a recording, in which libraries allocate and compile what they need."""

Work = Callable[[], list[Tensor]]
"""Work on tensors at fixed addresses; its results."""


@runtime_checkable
class Recorder(Protocol):
    """A device that records work."""

    def record(self, work: Work) -> tuple[Callable[[], None], list[Tensor]]:
        """Return a function that does the work again, and the results, which it overwrites."""
        ...


class CudaGraphs:
    """Recorder of CUDA graphs, which share their memory: the results of one last until another is replayed."""

    def __init__(self) -> None:
        self._graphs: list[torch.cuda.CUDAGraph] = []

    def record(self, work: Work) -> tuple[Callable[[], None], list[Tensor]]:
        """Return a function that does the work again, and the results, which it overwrites."""
        stream, current = torch.cuda.Stream(), torch.cuda.current_stream()
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                work()
        current.wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._graphs[0].pool() if self._graphs else None):
            results = work()
        self._graphs = [graph]
        return graph.replay, results


class Computed(NamedTuple):
    """Results of a micro-batch."""

    share: Tensor
    """Its share of the loss of the step."""
    terms: dict[str, Tensor]
    """Its share of each term."""
    prediction: Prediction
    """The predictions."""


class _Recording(NamedTuple):
    """Recorded work on a bucket."""

    given: list[Tensor]
    replay: Callable[[], None]
    results: list[Tensor]
    weights: tuple[int, ...]
    """Addresses of the weights."""


class Replay:
    """Loss, predictions and gradient of micro-batches, recorded once for each bucket of sizes."""

    def __init__(
        self,
        recorder: Recorder,
        potential: Potential,
        compute: Callable[[GraphBatch, dict[str, Tensor]], Computed],
    ) -> None:
        """Prepare; nothing is recorded yet.

        Args:
            recorder: The device.
            potential: Potential to train.
            compute: Function of a micro-batch and the counts of labels of its step.
        """
        self._recorder, self._potential, self._compute = recorder, potential, compute
        self._recordings: dict[Bucket, _Recording] = {}

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """The weights to train, in the order of gradients."""
        return [parameter for parameter in self._potential.parameters() if parameter.requires_grad]

    def __call__(self, batch: GraphBatch, counts: dict[str, Tensor]) -> tuple[Computed, list[Tensor]]:
        """Return what is computed from a micro-batch, and the gradient of its share; all last until the next call."""
        bucket = Bucket.of(batch)
        whole = padded(batch, bucket, self._potential.cutoff)
        given, names = [*whole.tensors().values(), *counts.values()], list(counts)
        weights = tuple(parameter.data_ptr() for parameter in self.parameters)
        recording = self._recordings.pop(bucket, None)
        if recording is None or recording.weights != weights:
            recording = self._record(whole, names, given, weights)
        else:
            for place, value in zip(recording.given, given, strict=True):
                place.copy_(value)
        self._recordings[bucket] = recording
        for old in list(self._recordings)[:-MOST_RECORDINGS]:
            del self._recordings[old]
        recording.replay()
        share, *results = recording.results
        terms, results = dict(zip(names, results, strict=False)), results[len(names) :]
        energy, forces, stress, atom_energies, *gradients = results
        prediction = Prediction(
            energy=energy[: batch.num_graphs],
            forces=forces[: len(batch.numbers)],
            stress=stress[: batch.num_graphs],
            atom_energies=atom_energies[: len(batch.numbers)],
        )
        return Computed(share, terms, prediction), gradients

    def _record(
        self, batch: GraphBatch, names: list[str], given: Sequence[Tensor], weights: tuple[int, ...]
    ) -> _Recording:
        places = [tensor.clone() for tensor in given]
        tensors, counts = places[: -len(names)], dict(zip(names, places[-len(names) :], strict=True))
        fixed = replace(batch, **dict(zip(batch.tensors(), tensors, strict=True)), ids=())

        def work() -> list[Tensor]:
            computed = self._compute(fixed, counts)
            gradients = torch.autograd.grad(computed.share, self.parameters, materialize_grads=True)
            found = computed.prediction
            predicted = (found.energy, found.forces, found.stress, found.atom_energies)
            return [each.detach() for each in (computed.share, *computed.terms.values(), *predicted, *gradients)]

        return _Recording(places, *self._recorder.record(work), weights)


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
