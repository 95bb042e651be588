"""What the trainer costs: a step of a real fit() beside nothing but forward, backward and optimizer step.

Both take the same micro-batches in turns, inside the run: after each of fit()'s steps, the bare loop takes one with a
potential of its own. fit()'s time runs from the end of the bare step to the end of its own next one, so it holds
whatever the trainer does between steps: taking batches from the worker, metrics, moving average, logs, guard rails.
Counted is the CPU time of the training process; batches are made by a worker, on a core of its own. Validations are
left out, whose number is the user's; a checkpoint's cost is measured apart and spread over the steps between two.
"""

import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from data_pipeline.building.build import BuildConfig, build
from data_pipeline.graphs.batch import GraphBatch
from data_pipeline.loading.datasets import Dataset
from data_pipeline.sources import AseFiles, EmtAlloys
from data_pipeline.store.manifest import Provenance
from foundation.models import EquivariantConfig
from foundation.potential import Potential, new_potential
from foundation.training.fault_tolerance.checkpoints import Checkpoints
from foundation.training.fit import fit
from foundation.training.fit_config import FitConfig
from foundation.training.lightning_internals import callbacks_of
from foundation.training.loss import LossConfig, loss
from foundation.training.module import TrainingModule
from foundation.training.monitoring.monitor import step_counts
from foundation.training.optim import OptimConfig, make_optimizer
from tests.benchmarks.bench_step import QUICKSTART
from tests.benchmarks.oxides import FILE, SEVENNET_0
from tests.benchmarks.rows import Row, write
from tests.machine import CPU

COMMAND = "make bench BENCH=overhead"
BAR = 0.05
"""Largest share of a step at SevenNet-0's size."""
WARM_UP = 5
"""Steps that are not counted."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """Sizes of the benchmark."""

    steps: int = 200
    """Steps of the quickstart model, of the micro-batches of configs/quickstart.yaml."""
    steps_large: int = 30
    """Steps at SevenNet-0's size."""
    edge_budget_large: int = 6000
    """Directed edges of their micro-batches, one a step: two or three oxides. The fewer, the larger the share."""


def run(config: Config) -> None:
    """Measure and write runs/bench/overhead.json."""
    torch.set_num_threads(1)
    rows = _measure("quickstart size", QUICKSTART, EmtAlloys(num_frames=600), config.steps, 5000)
    oxides = AseFiles(files=(FILE,), group_key="mptrj_traj_id", id_key="mptrj_snapshot_id")
    rows += _measure("SevenNet-0 size", SEVENNET_0, oxides, config.steps_large, config.edge_budget_large, bar=BAR)
    write("overhead", rows)


def _measure(
    name: str,
    model: EquivariantConfig,
    source: EmtAlloys | AseFiles,
    steps: int,
    edge_budget: int,
    bar: float | None = None,
) -> list[Row]:
    torch.manual_seed(0)
    facts = ("licence", "level_of_theory", "energy_convention", "citation", "source")
    provenance = Provenance(name=name, **dict.fromkeys(facts, "of no account"))
    fit_config = FitConfig(
        steps=steps,
        lanes=1,
        edge_budget=edge_budget,
        oversize="skip",
        validate_every=steps + 1,
        checkpoint_every=steps + 1,
    )
    with tempfile.TemporaryDirectory() as folder:
        manifest = build(BuildConfig(source=source, provenance=provenance, out=Path(folder) / "data"))
        potential = new_potential(model, {"-": manifest.split("train").statistics})
        turns = Turns(potential, steps)
        with turns:
            fit(
                potential,
                [Dataset(manifest=manifest)],
                config=fit_config,
                machine=CPU,
                loss=LossConfig(),
                optim=OptimConfig(),
                out=Path(folder) / "run",
                record={"fit": {"steps": steps}},
            )
    return _rows(name, turns, bar)


def _rows(name: str, turns: "Turns", bar: float | None) -> list[Row]:
    """Return the share of the trainer (means: they hold the logged steps in proportion) and its time (medians)."""
    share = 1.0 - statistics.mean(turns.bare_seconds) / statistics.mean(turns.seconds)
    ours, bare = statistics.median(turns.seconds), statistics.median(turns.bare_seconds)
    return [
        Row(
            measure=f"{name}, {turns.num_edges} edges a step: the trainer's share of a step",
            value=share,
            unit="of the CPU time",
            bar=bar,
            holds=None if bar is None else share <= bar,
            command=COMMAND,
        ),
        Row(
            measure=f"{name}: the trainer, a step that is not logged",
            value=1e3 * (ours - bare),
            unit="ms",
            peer="forward, backward, optimizer",
            peer_value=1e3 * bare,
            ratio=(ours - bare) / bare,
            command=COMMAND,
        ),
        Row(
            measure=f"{name}: a checkpoint, spread over the steps between two",
            value=1e3 * turns.checkpoint_seconds / FitConfig(steps=1).checkpoint_every,
            unit="ms a step",
            command=COMMAND,
        ),
    ]


class Turns:
    """Lets every step of fit() be followed by a bare one of the same micro-batches, and measures both."""

    def __init__(self, potential: Potential, num_steps: int) -> None:
        self._bare = copy.deepcopy(potential).train()
        self._optimizer = make_optimizer(OptimConfig(), self._bare, len(potential.elements))
        self._num_steps, self._as_written = num_steps, TrainingModule.training_step
        self.seconds, self.bare_seconds = list[float](), list[float]()
        self.checkpoint_seconds, self.num_edges = 0.0, 0

    def __enter__(self) -> None:
        turns = self

        def step(self: TrainingModule, micro_batches: list[GraphBatch], step: int) -> None:
            turns._as_written(self, micro_batches, step)
            turns._take(self, micro_batches, step)

        TrainingModule.training_step = step
        self._mark = time.process_time()

    def __exit__(self, *error: object) -> None:
        TrainingModule.training_step = self._as_written

    def _take(self, module: TrainingModule, batches: list[GraphBatch], number: int) -> None:
        ours = time.process_time() - self._mark
        bare = _seconds(lambda: self._step(batches))
        if number >= WARM_UP:
            self.seconds.append(ours)
            self.bare_seconds.append(bare)
        if number == self._num_steps - 1:
            self.num_edges = sum(batch.num_edges for batch in batches)
            self.checkpoint_seconds = _seconds(lambda: _save(module))
        self._mark = time.process_time()

    def _step(self, batches: list[GraphBatch]) -> None:
        (counts,) = step_counts([batches], torch.device("cpu"))
        self._optimizer.zero_grad()
        for batch in batches:
            loss(LossConfig(), self._bare(batch), batch, counts.labels).backward()
        self._optimizer.step()


def _save(module: TrainingModule) -> None:
    (checkpoints,) = callbacks_of(module.trainer, Checkpoints)
    checkpoints.save(module.trainer)
    checkpoints.writer.teardown()


def _seconds(task: Callable[[], object]) -> float:
    started = time.process_time()
    task()
    return time.process_time() - started
