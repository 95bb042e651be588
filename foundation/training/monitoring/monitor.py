"""Monitor of a run in training: errors, speed, load balance of the processes, and cost.

Between logged steps nothing is communicated and no accelerator is waited for: sums stay on their device, sizes of
batches are known to the host, and the number of frames is reduced with the counts of labels that the loss needs anyway.
A logged step reduces one vector over the processes. Each process has its own place in it for the edges and seconds of
every step, because a step lasts as long as its slowest process: the sum over steps of the largest counts, not the
largest of the sums.
"""

import resource
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import lightning
import torch
from jaxtyping import Float64
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from data_pipeline.graphs.batch import GraphBatch
from foundation.potential import Potential, Prediction
from foundation.training.additions import Parts, StepLoader
from foundation.training.fit_config import FitConfig
from foundation.training.loss import TERMS, Counts, label_counts
from foundation.training.monitoring.flops import peak_rate, training_cost
from foundation.training.monitoring.loggers import log_row
from foundation.training.monitoring.metrics import ErrorSums, reduced
from foundation.training.monitoring.metrics_file import START

SIZES = ("frames", "atoms", "edges")
"""Sizes of a batch, in the order of a checkpoint."""


class StepCounts(NamedTuple):
    """Counts over micro-batches."""

    labels: Counts
    """Numbers of labels by term of the loss."""
    sizes: Counts
    """Numbers of frames, atoms and edges."""


def step_counts(
    parts: Parts, device: torch.device, reduce: Callable[[Tensor], Tensor] = lambda sums: sums
) -> list[StepCounts]:
    """Return the counts of each part of a step over all processes.

    Args:
        parts: This process's micro-batches.
        device: Device of the counts.
        reduce: Function that sums a tensor over processes; called once.
    """
    flat: dict[str, Tensor] = {}
    for number, part in enumerate(parts):
        labels = [label_counts(batch) for batch in part]
        for name in TERMS:
            zero = torch.zeros((), dtype=torch.float64, device=device)
            flat[f"{number}/{name}"] = sum((counts[name].to(device) for counts in labels), zero)
        sizes = [sum(sizes) for sizes in zip(*map(_sizes, part), strict=True)] or [0] * len(SIZES)
        flat[f"{number}/sizes"] = torch.tensor(sizes, dtype=torch.float64, device=device)
    sums = reduced(flat, reduce)
    return [
        StepCounts(
            labels={name: sums[f"{number}/{name}"] for name in TERMS},
            sizes=dict(zip(SIZES, sums[f"{number}/sizes"], strict=True)),
        )
        for number in range(len(parts))
    ]


def _sizes(batch: GraphBatch) -> tuple[int, ...]:
    return batch.num_graphs, len(batch.numbers), batch.num_edges


class Stopwatch:
    """Stopwatch of a device's computing time, without waiting for it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._laps: list[tuple[Any, Any]] = []

    def start(self) -> None:
        """Begin a lap."""
        self._begin = self._now()

    def stop(self) -> None:
        """End a lap."""
        self._laps.append((self._begin, self._now()))

    def take(self) -> list[float]:
        """Return the seconds of all laps and reset; waits for the device."""
        laps, self._laps = self._laps, []
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
            return [begin.elapsed_time(end) / 1000.0 for begin, end in laps]
        return [end - begin for begin, end in laps]

    def _now(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


class Monitor(Callback):
    """Callback that measures the steps of a run, called by the training module."""

    def __init__(
        self, config: FitConfig, potential: Potential, *, work: float = 1.0, extras: Sequence[str] = ()
    ) -> None:
        """Prepare for a run.

        Args:
            config: Section fit.
            potential: Potential to train.
            work: Edge budget of a whole step over that of the run's own data.
            extras: Extra parts of the loss: 'rehearsal', 'penalty'.
        """
        self._step_budget = config.lanes * config.edge_budget * work
        self._is_bf16 = config.precision == "bf16"
        self._cost = training_cost(potential, tabulated=config.radial_table > 0)
        self._errors, self._step_errors = ErrorSums(), ErrorSums()
        self._terms, self._extras, self._seen = _zeros(TERMS), _zeros(extras), _zeros(SIZES)
        self._seen_before, self._edges = dict.fromkeys(SIZES, 0.0), list[int]()
        self._device_seconds = self._waited = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return the numbers of frames, atoms and edges so far, and the total seconds of all processes."""
        return {"seen": [float(number) for number in self._seen.values()], "device_seconds": self._device_seconds_now()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the counts."""
        self._seen_before = dict(zip(SIZES, state_dict["seen"], strict=True))
        self._seen = {name: torch.tensor(seen, dtype=torch.float64) for name, seen in self._seen_before.items()}
        self._device_seconds = state_dict["device_seconds"]

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Start the clocks, measure the device's rate, and record the start of the run."""
        device = trainer.strategy.root_device
        self._watch, self._world_size = Stopwatch(device), trainer.world_size
        dtype = torch.bfloat16 if self._is_bf16 else next(pl_module.parameters()).dtype
        self._peak = peak_rate(device, dtype) if self._cost else None
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        self._first_step, self._began = trainer.global_step, time.perf_counter()
        self._since = self._began
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        facts: dict[str, Any] = {"processes": trainer.world_size, "device": name}
        if self._cost:
            facts |= {"flops_per_edge": self._cost.per_edge, "flops_per_atom": self._cost.per_atom}
        if self._peak:
            facts["peak_flops"] = self._peak
        log_row(trainer.loggers, START, trainer.global_step, facts)

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Stop the clock of the training speed."""
        self._validation_began = time.perf_counter()

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Continue the clock of the training speed."""
        self._since += time.perf_counter() - self._validation_began

    def start_step(self, parts: Parts, counts: Sequence[StepCounts]) -> None:
        """Begin a step.

        Args:
            parts: This process's micro-batches.
            counts: Counts of each part, over all processes.
        """
        for part in counts:
            self._seen = {name: self._seen[name].to(number.device) + number for name, number in part.sizes.items()}
        device = self._seen["frames"].device
        self._edges.append(sum(batch.num_edges for part in parts for batch in part))
        self._step_errors.reset()
        # with alternating parts, the other part's loss is kept: logged steps may all be of one kind
        if parts[0]:
            self._terms = _zeros(TERMS, device)
        self._extras |= _zeros([name for name in self._extras if name == "penalty" or parts[1]], device)
        self._watch.start()

    def add(self, prediction: Prediction, batch: GraphBatch, terms: Counts) -> None:
        """Record a micro-batch and its share of the terms of the loss."""
        self._terms = {name: self._terms[name] + term.detach() for name, term in terms.items()}
        self._step_errors.update(prediction, batch)

    def add_extra(self, name: str, share: Float64[Tensor, ""]) -> None:
        """Record a process's share of another part of the loss."""
        self._extras[name] = self._extras[name] + share.detach()

    def stop_computing(self) -> None:
        """Record that a process has finished its part of a step, up to the reduction of gradients."""
        self._watch.stop()

    def end_step(self, *, taken: bool) -> None:
        """End a step; the errors of a skipped one are left out."""
        if taken:
            self._errors.add(self._step_errors)

    def compute(
        self, trainer: lightning.Trainer, steps: StepLoader, reduce: Callable[[Tensor], Tensor]
    ) -> dict[str, float]:
        """Return the metrics of the last step, and of the steps since the last call; all processes call it together.

        train/loss and its terms are those of the last step on the run's own data, by its global counts; then come
        train/loss_rehearsal, train/penalty and the latter's ratio to the sum of both losses. The quantities logged in
        training are over the run's own frames since the last call, in eV/atom, eV/Å and eV/Å³. speed/* are over the
        same time without validation: data_wait is the fraction of time that the average process waited for data;
        budget_fill the edges over the edge budget; imbalance_* the largest over the mean of the processes, by edges and
        by the time to the gradient; peak_memory that of the largest process [GB]; flop_utilization counted operations
        over the measured rate of matrix products. seen/* count from the start of the run, as does run/device_hours of
        all processes together.
        """
        device, num_steps = self._seen["frames"].device, len(self._edges)
        own = torch.tensor([*self._edges, *self._watch.take(), peak_memory(device)], dtype=torch.float64)
        now = time.perf_counter()
        places = torch.zeros(self._world_size, len(own), dtype=torch.float64)
        places[trainer.global_rank] = own
        waited, self._waited = steps.waited - self._waited, steps.waited
        shared = torch.tensor([waited, self._peak or 0.0, steps.num_quarantined_frames], dtype=torch.float64)
        parts = {"errors": self._errors.sums, "shared": shared, "places": places}
        parts |= {f"term/{name}": term for name, term in self._terms.items()}
        parts |= {f"extra/{name}": value for name, value in self._extras.items()}
        sums = {name: part.cpu() for name, part in reduced({n: p.to(device) for n, p in parts.items()}, reduce).items()}
        edges, times, memory = sums["places"].split([num_steps, num_steps, 1], dim=1)
        waited, peak, quarantined = sums["shared"].tolist()
        seen, seconds = {name: float(number) for name, number in self._seen.items()}, now - self._since
        errors = self._errors.values(sums["errors"])
        del errors["frames"]
        terms, extras = (
            {name: float(sums[f"{kind}/{name}"]) for name in names}
            for kind, names in (("term", self._terms), ("extra", self._extras))
        )
        values = _of_loss(terms, extras)
        values |= {f"train/{name}": value for name, value in errors.items()}
        values |= self._of_speed(seconds, seen, peak)
        values |= {
            "speed/data_wait": waited / self._world_size / seconds,
            "speed/budget_fill": float(edges.sum()) / (num_steps * self._step_budget),
            "speed/imbalance_edges": imbalance(edges),
            "speed/imbalance_seconds": imbalance(times),
            "speed/peak_memory": float(memory.max()) / 1e9,
            **{f"seen/{name}": value for name, value in seen.items()},
            "seen/quarantined_frames": quarantined,
            "run/device_hours": self._device_seconds_now() / 3600.0,
            "run/remaining_seconds": self._remaining(trainer, now),
        }
        self._since, self._seen_before = now, seen
        self._edges.clear()
        self._errors.reset()
        return values

    def _of_speed(self, seconds: float, seen: dict[str, float], peak: float) -> dict[str, float]:
        atoms, edges = (seen[name] - self._seen_before[name] for name in ("atoms", "edges"))
        values = {"speed/atoms_per_second": atoms / seconds, "speed/edges_per_second": edges / seconds}
        if self._cost and peak:
            done = self._cost.per_atom * atoms + self._cost.per_edge * edges
            values["speed/flop_utilization"] = done / (seconds * peak)
        return values

    def _remaining(self, trainer: lightning.Trainer, now: float) -> float:
        """Return the remaining time of the run [s] at the pace of this process so far, including validation."""
        taken = trainer.global_step - self._first_step
        return (trainer.max_steps - trainer.global_step) * (now - self._began) / taken

    def _device_seconds_now(self) -> float:
        return self._device_seconds + self._world_size * (time.perf_counter() - self._began)


def _zeros(names: Iterable[str], device: torch.device | None = None) -> Counts:
    return {name: torch.zeros((), dtype=torch.float64, device=device) for name in names}


def _of_loss(terms: dict[str, float], extras: dict[str, float]) -> dict[str, float]:
    values = {"train/loss": sum(terms.values())}
    values |= {f"train/loss_{name}": term for name, term in terms.items()}
    if "rehearsal" in extras:
        values["train/loss_rehearsal"] = extras["rehearsal"]
    if "penalty" in extras:
        task = values["train/loss"] + extras.get("rehearsal", 0.0)
        values |= {"train/penalty": extras["penalty"], "train/penalty_ratio": extras["penalty"] / max(task, 1e-300)}
    return values


def imbalance(loads: Float64[Tensor, "processes steps"]) -> float:
    """Return the factor by which imbalance lengthens steps: sum of the largest loads over sum of the means."""
    mean = float(loads.mean(dim=0).sum())
    return float(loads.amax(dim=0).sum()) / mean if mean > 0 else 1.0


def peak_memory(device: torch.device) -> float:
    """Return the peak memory of this process: allocated on an accelerator, else resident [bytes]."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else 1024 * peak)
