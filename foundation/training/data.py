"""Data of a run for Lightning: training steps, validation passes, and the check on resume."""

import bisect
import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import lightning

from data_pipeline.graphs.batch import GraphBatch
from data_pipeline.loading.datasets import Dataset
from data_pipeline.loading.stream import FullPass, Stream, differences, full_pass
from foundation.datasets import left_out
from foundation.potential import Potential
from foundation.training.additions import Additions, StepLoader
from foundation.training.fit_config import FitConfig
from foundation.training.strategy import is_rank_zero

log = logging.getLogger(__name__)


class TrainingData(lightning.LightningDataModule):
    """Streams for training, full passes for validation; its state is the fingerprint of the stream."""

    def __init__(
        self,
        datasets: Sequence[Dataset],
        potential: Potential,
        config: FitConfig,
        additions: Additions,
        *,
        num_workers: int,
    ) -> None:
        """Prepare the streams.

        Args:
            datasets: Training data of the run.
            potential: Potential to train.
            config: Section fit.
            additions: Rehearsal to train on as well, and splits to validate as well.
            num_workers: Number of worker processes per rank; 0 prepares batches in the training process.
        """
        super().__init__()
        self.datasets, self.config = datasets, config
        rehearsal, watched = self.rehearsal, self.watched = additions.rehearsal, additions.watched
        self.cutoff, self.elements, self.num_workers = potential.cutoff, potential.elements, num_workers
        own = [replace(each, split="val", subset=None) for each in datasets if each.manifest.split("val").shards]
        self.validated = (*own, *watched)
        """Validated splits: those of the data sets with frames in val, then the watched ones."""
        # made here once, before any process starts, so that a wrong budget fails at once
        streams = self._streams()
        self.fingerprint = streams[0].fingerprint
        if rehearsal is not None:
            parts = streams[1].fingerprint | {"weight": rehearsal.weight, "mode": rehearsal.mode}
            parts |= {"labels": "predicted" if rehearsal.relabel else "of the data"}
            self.fingerprint |= {f"rehearsal, {name}": value for name, value in parts.items()}
        num_skipped = sum(stream.plan.num_skipped for stream in streams)
        if num_skipped and is_rank_zero():
            log.warning("%d structures are larger than the budget and left out", num_skipped)
        if (missing := self._without_validation()) and is_rank_zero():
            log.warning("%s", missing)

    def _streams(self, rank: int = 0, world_size: int = 1, num_workers: int = 0) -> list[Stream]:
        """Return the stream of each part."""
        streams = [self._stream(self.datasets, 1.0, rank, world_size, num_workers)]
        if self.rehearsal is not None:
            datasets, ratio = self.rehearsal.datasets, self.rehearsal.ratio
            try:
                streams.append(self._stream(datasets, ratio, rank, world_size, num_workers))
            except ValueError as error:
                raise ValueError(f"rehearsal, with {ratio:g} times the budgets: {error}") from error
        return streams

    def _stream(
        self, datasets: Sequence[Dataset], ratio: float, rank: int, world_size: int, num_workers: int
    ) -> Stream:
        config = self.config
        return Stream(
            datasets,
            cutoff=self.cutoff,
            lanes=config.lanes,
            edge_budget=max(1, round(ratio * config.edge_budget)),
            atom_budget=None if config.atom_budget is None else max(1, round(ratio * config.atom_budget)),
            seed=config.seed,
            oversize=config.oversize,
            corrupt=config.corrupt,
            rank=rank,
            world_size=world_size,
            num_workers=num_workers,
            pin_memory=True,
        )

    def train_dataloader(self) -> StepLoader:
        """Return the steps from the trainer's current one to the last."""
        assert self.trainer is not None
        streams = self._streams(self.trainer.global_rank, self.trainer.world_size, self.num_workers)
        first, last = self.trainer.global_step, self.config.steps
        if self.rehearsal is None:
            return StepLoader(streams[0], first, last)
        return StepLoader(streams[0], first, last, rehearsed=streams[1], mode=self.rehearsal.mode)

    def val_dataloader(self) -> "ValidationLoader":
        """Return every validation frame whose elements the potential knows, once over all ranks."""
        assert self.trainer is not None
        passes = [self._full_pass(dataset, self.trainer) for dataset in self.validated]
        return ValidationLoader(passes, self.validated, self.elements, num_watched=len(self.watched))

    def _without_validation(self) -> str | None:
        """Return a sentence on the data sets that are not validated; None if all are."""
        empty = [each.manifest.provenance.name for each in self.datasets if not each.manifest.split("val").shards]
        if not empty:
            return None
        where = "in this run" if len(empty) == len(self.datasets) and not self.watched else f"on {', '.join(empty)}"
        return (
            f"no validation {where}: {', '.join(empty)} without frames in split val (--val names files for it, "
            "--read.val_fraction 0.1 takes a part of plain files; build a data set with --val_fraction 0.1)"
        )

    def _full_pass(self, dataset: Dataset, trainer: lightning.Trainer) -> FullPass:
        return full_pass(
            dataset.manifest,
            dataset.split,
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
        """Return the facts that must agree on resume."""
        return {"fingerprint": self.fingerprint}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse to continue with another stream.

        Raises:
            ValueError: data, split, cutoff, seed, lanes or budgets differ from the checkpoint's.
        """
        theirs = state_dict["fingerprint"]
        if not isinstance(theirs, dict):
            raise ValueError("cannot resume: an older version of this program wrote the checkpoint; start a new run")
        different = differences(self.fingerprint, theirs)
        if different:
            raise ValueError(
                f"cannot resume with another stream of data. {'; '.join(different)}. "
                "Restore the configuration of the checkpoint, or start a new run."
            )


class ValidationLoader:
    """Validation batches of all data sets, one after another; the last ones may be watched only."""

    def __init__(
        self, passes: Sequence[FullPass], datasets: Sequence[Dataset], elements: Sequence[int], *, num_watched: int = 0
    ) -> None:
        """Chain full passes over data sets; among equal names, all but the first get a number.

        Args:
            passes: Pass over each data set.
            datasets: The data sets.
            elements: Atomic numbers; frames with another one are left out.
            num_watched: Number of last data sets excluded from sums over data sets.
        """
        self.passes, self.names, self.num_watched = passes, list[str](), num_watched
        self._datasets, self._elements = datasets, elements
        for number, dataset in enumerate(datasets, start=1):
            name = dataset.manifest.provenance.name
            self.names.append(f"{name} ({number})" if name in self.names else name)
        self._ends = list(itertools.accumulate(len(each) for each in passes))

    def dataset_of(self, number: int) -> int:
        """Return the number of the data set of a batch."""
        return bisect.bisect_right(self._ends, number)

    def left_out(self, errors: Mapping[str, float]) -> list[str]:
        """Return a sentence on each data set with frames of unknown elements, from the errors of a validation."""
        found = []
        for name, dataset in zip(self.names, self._datasets, strict=True):
            statistics = dataset.manifest.split(dataset.split).statistics
            # if all elements are known, missing frames could not be read, which is logged elsewhere
            if not set(statistics.elements) <= set(self._elements):
                number = statistics.num_frames - round(errors.get(f"{name}/frames", errors["frames"]))
                found += left_out(dataset.manifest, dataset.split, number, self._elements)
        return found

    def __len__(self) -> int:
        return sum(len(each) for each in self.passes)

    def __iter__(self) -> Iterator[GraphBatch]:
        return itertools.chain.from_iterable(self.passes)
