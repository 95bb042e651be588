"""The streams of a run as Lightning takes them: training steps, validation sweeps, and what must agree on resume."""

import bisect
import itertools
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import lightning

from data_pipeline.graph import GraphBatch
from data_pipeline.stream import Dataset, Stream, Sweep, differences, sweep
from foundation.potential import Potential
from foundation.training.fit_config import FitConfig
from foundation.training.strategy import is_rank_zero

log = logging.getLogger(__name__)


class TrainingData(lightning.LightningDataModule):
    """Streams for training, sweeps for validation; its state is the fingerprint of the stream."""

    def __init__(self, datasets: Sequence[Dataset], potential: Potential, config: FitConfig) -> None:
        super().__init__()
        self.datasets, self.config = datasets, config
        self.cutoff, self.elements = potential.cutoff, potential.elements
        # made once here, before any process starts, so that a wrong budget is an error at once
        stream = self._stream()
        self.fingerprint = stream.fingerprint
        if stream.plan.num_skipped and is_rank_zero():
            log.warning("%d structures are larger than the budget and left out", stream.plan.num_skipped)

    def _stream(self, rank: int = 0, world_size: int = 1, num_workers: int = 0) -> Stream:
        config = self.config
        return Stream(
            self.datasets,
            cutoff=self.cutoff,
            lanes=config.lanes,
            edge_budget=config.edge_budget,
            atom_budget=config.atom_budget,
            seed=config.seed,
            oversize=config.oversize,
            corrupt=config.corrupt,
            rank=rank,
            world_size=world_size,
            num_workers=num_workers,
            pin_memory=True,
        )

    def train_dataloader(self) -> "Run":
        """Return the steps from the trainer's current one to the last."""
        assert self.trainer is not None
        stream = self._stream(self.trainer.global_rank, self.trainer.world_size, self.config.num_workers)
        return Run(stream, self.trainer.global_step, self.config.steps)

    def val_dataloader(self) -> "Sweeps | list":
        """Return every validation frame whose elements the potential knows, once over all ranks."""
        assert self.trainer is not None
        held_out = [dataset for dataset in self.datasets if dataset.manifest.split("val").shards]
        names = [dataset.manifest.provenance.name for dataset in held_out]
        return Sweeps([self._sweep(dataset, self.trainer) for dataset in held_out], names) if held_out else []

    def _sweep(self, dataset: Dataset, trainer: lightning.Trainer) -> Sweep:
        return sweep(
            dataset.manifest,
            "val",
            cutoff=self.cutoff,
            edge_budget=self.config.edge_budget,
            elements=self.elements,
            theory=dataset.theory_number,
            corrupt=self.config.corrupt,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            pin_memory=True,
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what must be the same on resume."""
        return {"fingerprint": self.fingerprint}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse to go on with another stream.

        Raises:
            ValueError: data, split, cutoff, seed, lanes or budgets differ from the checkpoint's.
        """
        theirs = state_dict["fingerprint"]
        if not isinstance(theirs, dict):
            raise ValueError("cannot resume: the checkpoint is of an older version of this program; start a new run")
        different = differences(self.fingerprint, theirs)
        if different:
            raise ValueError(
                f"cannot resume with another stream of data. {'; '.join(different)}. "
                "Restore the configuration that the checkpoint was made with, or start a new run."
            )


class Run:
    """The steps of a run as Lightning wants a loader: its length is the whole run's, so progress and resume agree."""

    def __init__(self, stream: Stream, first_step: int, last_step: int) -> None:
        self.steps, self.last_step = stream.from_step(first_step, last_step), last_step

    def __len__(self) -> int:
        return self.last_step

    def __iter__(self) -> Iterator[list[GraphBatch]]:
        return iter(self.steps)

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the step is the trainer's."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do nothing: the step is the trainer's."""


class Sweeps:
    """The validation batches of all data sets, one after another."""

    def __init__(self, sweeps: Sequence[Sweep], names: Sequence[str]) -> None:
        """Chain sweeps; of data sets with the same name, all but the first get a number."""
        self.sweeps, self.names = sweeps, list[str]()
        for number, name in enumerate(names, start=1):
            self.names.append(f"{name} ({number})" if name in self.names else name)
        self._ends = list(itertools.accumulate(len(sweep) for sweep in sweeps))

    def dataset_of(self, number: int) -> int:
        """Return which data set a batch belongs to."""
        return bisect.bisect_right(self._ends, number)

    def __len__(self) -> int:
        return sum(len(sweep) for sweep in self.sweeps)

    def __iter__(self) -> Iterator[GraphBatch]:
        return itertools.chain.from_iterable(self.sweeps)
