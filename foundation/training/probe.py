"""Measurement of the cost of a step on this machine before a run, in separate processes.

Processes are separate for three reasons: the peak memory of a process never falls, so only a fresh one shows the peak
of a step; a step that does not fit gets its process killed, which must not end the report; and the all-reduce is that
of a real process group, whose members all compute as in the run. It costs the start of a process and about ten
micro-batches.
"""

import copy
import math
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import torch.distributed
from jaxtyping import Int64

from data_pipeline.graphs.batch import GraphBatch
from data_pipeline.loading.datasets import Dataset
from data_pipeline.loading.stream import Stream
from foundation.kernels.backend import describe_backend
from foundation.potential import Potential
from foundation.training.fit import keep_freed_memory, seed_everything
from foundation.training.fit_config import FitConfig, computation_of
from foundation.training.loss import LossConfig, label_counts, loss
from foundation.training.machine import MachineConfig
from foundation.training.optim import OptimConfig, make_optimizer
from foundation.training.strategy import device_type

REDUCTIONS = 10
"""Number of all-reduces timed together."""
PLENTY = 0.25
"""Fraction of a device's memory up to which a larger micro-batch than those of the run is tried."""

Frames = Int64[np.ndarray, " _"]


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Subject of the measurement: a run's configuration, and frames of some micro-batches as numbered by its plan."""

    potential: Potential
    """Potential before the first step."""
    datasets: Sequence[Dataset]
    """Data of the run."""
    fit: FitConfig
    """Its loop."""
    machine: MachineConfig
    """Section machine; `devices` is the number of processes that measure together."""
    loss: LossConfig
    """Its loss."""
    optim: OptimConfig
    """Its optimizer."""
    ladder: Sequence[Frames]
    """Micro-batches of growing size, to which lines are fitted."""
    kinds: Mapping[str, Frames]
    """Special micro-batches that must fit, by their property."""
    beyond: Frames | None = None
    """Micro-batch larger than those of the run, for the memory per edge; it is left out if it might not fit."""
    folder: Path
    """Folder on the file system of the run, for writing a checkpoint to an unnamed file."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One forward and backward pass."""

    name: str
    """Property of the micro-batch."""
    num_graphs: int
    """Structures."""
    num_atoms: int
    """Atoms."""
    num_edges: int
    """Directed edges."""
    seconds: float
    """Time of the passes [s]."""
    peak: int
    """Peak memory so far: of the process, or on CUDA as allocated by torch [bytes]."""
    trouble: str = ""
    """Error, or empty."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Measurements of one process."""

    convolution: str
    """Backend of the convolutions."""
    num_parameters: int
    """Trained parameters."""
    gradient_bytes: int
    """Size of the gradient [bytes]."""
    ladder: tuple[Trial, ...]
    """Passes of the micro-batches of growing size."""
    kinds: tuple[Trial, ...]
    """Passes of the special micro-batches."""
    beyond: Trial | None = None
    """Passes of the micro-batch larger than those of the run; None if it was left out."""
    optimizer_seconds: float
    """Time of an optimizer step [s]."""
    inference_seconds: float
    """Time of the largest micro-batch of the ladder in validation [s]."""
    prepare_seconds: float
    """Time to read that micro-batch and to find its neighbours [s]."""
    reduce_seconds: float | None
    """Time of an all-reduce of the gradient [s]; None for a single process."""
    checkpoint_bytes: int
    """Size of the state of a run, with optimizer and moving average [bytes]."""
    checkpoint_seconds: float
    """Time to write it [s]."""


class OutOfMemory(OSError):
    """A process was killed during the measurement, probably because memory ran out."""


def memory_of_device(kind: str) -> int:
    """Return the memory of a device here: of the first GPU, or of the whole machine [bytes]."""
    if kind == "cuda":
        return torch.cuda.get_device_properties(0).total_memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def measure(probe: Probe) -> list[Measured]:
    """Return the measurements of `probe.machine.devices` processes together on this node.

    Raises:
        OutOfMemory: a process was killed.
        ValueError: the backend does not work here, or the model does not fit the data.
    """
    count = probe.machine.devices
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(count, mp_context=get_context("spawn")) as executor,
    ):
        tasks = [executor.submit(_measure, probe, rank, Path(folder) / "rendezvous") for rank in range(count)]
        try:
            return [task.result() for task in tasks]
        except BrokenProcessPool as error:
            raise OutOfMemory("a process was killed during the measurement, probably because memory ran out") from error


def _measure(probe: Probe, rank: int, rendezvous: Path) -> Measured:
    """Measure in this process, as one of `devices`."""
    world_size, kind = probe.machine.devices, device_type(probe.machine.accelerator)
    device = torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
    if world_size > 1:
        # as Lightning does for several processes of a node
        torch.set_num_threads(max(1, torch.get_num_threads() // world_size))
        backend = "nccl" if kind == "cuda" else "gloo"
        torch.distributed.init_process_group(
            backend, init_method=f"file://{rendezvous}", rank=rank, world_size=world_size
        )
    try:
        return _Bench(probe, device).measured()
    finally:
        if world_size > 1:
            torch.distributed.destroy_process_group()


class _Bench:
    """A potential in training on a device, and the micro-batches to measure."""

    def __init__(self, probe: Probe, device: torch.device) -> None:
        keep_freed_memory()
        seed_everything(probe.fit.seed)
        self.probe, self.device = probe, device
        # processes get the same memory for it
        self.potential = copy.deepcopy(probe.potential).to(device).train()
        self.potential.compute_as(computation_of(probe.fit))
        self.optimizer = make_optimizer(probe.optim, self.potential, len(self.potential.elements))
        fit = probe.fit
        # the plan is not used: frames come with the probe
        self.stream = Stream(
            probe.datasets,
            cutoff=self.potential.cutoff,
            lanes=1,
            edge_budget=fit.edge_budget,
            oversize="alone",
            corrupt=fit.corrupt,
        )
        self.average = copy.deepcopy(self.potential.state_dict())

    def measured(self) -> Measured:
        """Measure everything with growing sizes, because the peak of a larger one would hide that of a smaller one."""
        probe, parameters = self.probe, [p for p in self.potential.parameters() if p.requires_grad]
        convolution = describe_backend(self.potential, self.device)
        self._trial("warm-up", probe.ladder[0])
        optimizer_seconds = min(self._seconds(self.optimizer.step) for _ in range(2))
        ladder = tuple(self._trial("", frames, repeats=2) for frames in probe.ladder)
        prepare_seconds, batch = self._prepared(probe.ladder[-1])
        kinds = tuple(self._trial(name, frames) for name, frames in probe.kinds.items())
        beyond = self._beyond()
        size, checkpoint_seconds = self._checkpoint()
        return Measured(
            convolution=convolution,
            num_parameters=sum(p.numel() for p in parameters),
            gradient_bytes=sum(p.numel() * p.element_size() for p in parameters),
            ladder=ladder,
            kinds=kinds,
            beyond=beyond,
            optimizer_seconds=optimizer_seconds,
            inference_seconds=self._inference(batch),
            prepare_seconds=prepare_seconds,
            reduce_seconds=self._reduction(parameters),
            checkpoint_bytes=size,
            checkpoint_seconds=checkpoint_seconds,
        )

    def _beyond(self) -> Trial | None:
        """Return the passes of the micro-batch larger than those of the run, if there is plenty of memory for it."""
        share = self.probe.machine.devices if self.device.type == "cpu" else 1
        if self.probe.beyond is None or _peak(self.device) > PLENTY * memory_of_device(self.device.type) / share:
            return None
        return self._trial("larger than those of the run", self.probe.beyond)

    def _prepared(self, frames: Frames) -> tuple[float, GraphBatch]:
        """Return the time to prepare a micro-batch [s], and the micro-batch."""
        started = time.perf_counter()
        batch = self.stream.prepare(frames)
        return time.perf_counter() - started, batch

    def _trial(self, name: str, frames: Frames, repeats: int = 1) -> Trial:
        """Return the result of the passes of a micro-batch; the time is the shortest of some repeats."""
        _, batch = self._prepared(frames)
        seconds, trouble = math.inf, ""
        moved = batch.to(self.device)
        try:
            for _ in range(repeats):
                self.optimizer.zero_grad()
                seconds = min(seconds, self._seconds(lambda: self._passes(moved)))
            trouble = self._not_finite()
        except RuntimeError as error:  # torch raises this on CPUs as well, without a specific class
            if "memory" not in str(error):
                raise
            trouble = "out of memory"
        return Trial(
            name=name,
            num_graphs=batch.num_graphs,
            num_atoms=len(batch.numbers),
            num_edges=batch.num_edges,
            seconds=seconds,
            peak=_peak(self.device),
            trouble=trouble,
        )

    def _passes(self, batch: GraphBatch) -> None:
        loss(self.probe.loss, self.potential(batch), batch, label_counts(batch)).backward()

    def _not_finite(self) -> str:
        bad = [
            name
            for name, parameter in self.potential.named_parameters()
            if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all())
        ]
        return f"the gradient of {len(bad)} parameters is not finite, for example of {bad[0]}" if bad else ""

    def _inference(self, batch: GraphBatch) -> float:
        moved = batch.to(self.device)
        self.potential.eval()
        seconds = self._seconds(lambda: self.potential(moved))
        self.potential.train()
        return seconds

    def _reduction(self, parameters: Sequence[torch.Tensor]) -> float | None:
        """Return the time of an all-reduce of the gradient in one flat buffer [s]."""
        if not torch.distributed.is_initialized():
            return None
        flat = torch.zeros(sum(p.numel() for p in parameters), dtype=self.potential.dtype, device=self.device)
        torch.distributed.all_reduce(flat)
        return self._seconds(lambda: [torch.distributed.all_reduce(flat) for _ in range(REDUCTIONS)]) / REDUCTIONS

    def _checkpoint(self) -> tuple[int, float]:
        """Return the size of the state of a run [bytes], and the time to write it to its file system [s]."""
        state = {
            "state_dict": self.average,
            "current_model_state": self.potential.state_dict(),
            "optimizer_states": [self.optimizer.state_dict()],
        }
        with tempfile.TemporaryFile(dir=self.probe.folder) as file:
            started = time.perf_counter()
            torch.save(state, file)
            file.flush()
            return file.tell(), time.perf_counter() - started

    def _seconds(self, task: Callable[[], object]) -> float:
        """Return the time of a task [s]."""
        self._wait()
        started = time.perf_counter()
        task()
        self._wait()
        return time.perf_counter() - started

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _peak(device: torch.device) -> int:
    """Return the peak of the memory so far [bytes]."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform != "linux":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    # getrusage would count the parent's memory at the start of this process
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
