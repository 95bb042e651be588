"""Recorded work on batches: on a GPU, recorded once for each of a few sizes and replayed.

A small network launches hundreds of kernels for a prediction, more than a thousand for a training step, and launching
them takes longer than running them. A CUDA graph launches them all at once, with the addresses and sizes that it was
recorded with. So a batch is filled up to a bucket of sizes (data_pipeline/graphs/padding.py) and copied to the place of
the recorded one.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from data_pipeline.graphs.batch import GraphBatch
from data_pipeline.graphs.padding import Bucket, padded
from foundation.potential import Derived, Potential, Prediction

MOST_RECORDINGS = 64
"""Number of buckets whose recordings are kept, the latest ones."""
WARM_UPS = 3
"""Runs before a recording, in which libraries allocate and compile what they need."""
NOTHING: Mapping[str, Tensor] = MappingProxyType({})

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
        self._latest: torch.cuda.CUDAGraph | None = None

    def record(self, work: Work) -> tuple[Callable[[], None], list[Tensor]]:
        """Return a function that does the work again, and the results, which it overwrites."""
        stream, current = torch.cuda.Stream(), torch.cuda.current_stream()
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                work()
        current.wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        pool = None if self._latest is None else self._latest.pool()
        # other threads, that pin memory or watch over communication, may call CUDA meanwhile
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            results = work()
        self._latest = graph
        return graph.replay, results


class _Recording(NamedTuple):
    """Recorded work on a bucket."""

    given: list[Tensor]
    """Places of what it works on."""
    replay: Callable[[], None]
    """The work."""
    results: list[Tensor]
    """Its results."""
    weights: tuple[int, ...]
    """Addresses of the weights."""


class Recordings:
    """Work on batches and a potential's weights, recorded once for each bucket of sizes."""

    def __init__(
        self,
        recorder: Recorder,
        potential: Potential,
        work: Callable[[GraphBatch, dict[str, Tensor]], list[Tensor]],
    ) -> None:
        """Prepare; nothing is recorded yet.

        Args:
            recorder: The device.
            potential: The potential.
            work: Function of a batch and other tensors, which asks the device for nothing.
        """
        self._recorder, self._potential, self._work = recorder, potential, work
        self._recordings: dict[Bucket, _Recording] = {}

    def __call__(self, batch: GraphBatch, others: Mapping[str, Tensor] = NOTHING) -> list[Tensor]:
        """Return the results of the work on a batch that is filled up; they last until the next call."""
        bucket = Bucket.of(batch)
        whole = padded(batch, bucket, self._potential.cutoff)
        given = [*whole.tensors().values(), *others.values()]
        weights = tuple(parameter.data_ptr() for parameter in self._potential.parameters())
        recording = self._recordings.pop(bucket, None)
        if recording is None or recording.weights != weights:
            recording = self._record(whole, others, weights)
        else:
            for place, value in zip(recording.given, given, strict=True):
                place.copy_(value)
        self._recordings[bucket] = recording
        for old in list(self._recordings)[:-MOST_RECORDINGS]:
            del self._recordings[old]
        recording.replay()
        return recording.results

    def _record(self, batch: GraphBatch, others: Mapping[str, Tensor], weights: tuple[int, ...]) -> _Recording:
        fixed = replace(batch, **{name: tensor.clone() for name, tensor in batch.tensors().items()}, ids=())
        beside = {name: tensor.clone() for name, tensor in others.items()}
        recorded = self._recorder.record(lambda: [each.detach() for each in self._work(fixed, beside)])
        return _Recording([*fixed.tensors().values(), *beside.values()], *recorded, weights)


class RecordedPotential:
    """A potential whose predictions are recorded; its weights must not change."""

    def __init__(self, recorder: Recorder, potential: Potential) -> None:
        """Take a potential.

        Raises:
            ValueError: the sizes of what its network computes depend on more than numbers of atoms and edges.
        """
        if not potential.network.recordable:
            raise ValueError(f"the work of a network of this kind cannot be recorded: {potential.network.describe()}")
        self.potential = potential.eval()
        potential.network.weights_are_kept = True
        self._recordings = Recordings(recorder, potential, lambda batch, _: _given(potential.derived(batch)))

    def __call__(self, batch: GraphBatch) -> Prediction:
        """Return the prediction for a batch on any device.

        Raises:
            UnknownElement: an atom's element is not among the potential's.
        """
        self.potential.check_elements(batch.numbers)
        energy, forces, stress, atom_energies, *distances = self._recordings(batch.to(self.potential.device))
        graphs, atoms = batch.num_graphs, len(batch.numbers)
        derived = Derived(
            energy[:graphs].clone(),
            forces[:atoms].clone(),
            stress[:graphs].clone(),
            atom_energies[:atoms].clone(),
            distances[0][:atoms].clone() if distances else None,
        )
        return self.potential.judged(derived, batch)


def _given(derived: Derived) -> list[Tensor]:
    return [each for each in derived if each is not None]
