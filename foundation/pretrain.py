"""Pretraining: a manifest and a model config become a run folder with a potential."""

import dataclasses
import importlib.metadata
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch

from data_pipeline.loading.datasets import Dataset
from data_pipeline.plain_files import ReadConfig
from data_pipeline.statistics.sums import Statistics
from foundation import run_folder
from foundation.checkpoint import save
from foundation.configuration import COMPARED, DECIDES, MAY_CHANGE
from foundation.datasets import (
    Data,
    dataset_facts,
    numbered_as_in,
    open_datasets,
    refuse_unlabelled,
    statistics_by_theory,
    with_plain_built,
)
from foundation.models import ModelConfig
from foundation.naming import Choice, StartWeights, read_start
from foundation.potential import Potential, new_potential
from foundation.reports.card import CardFacts
from foundation.run_folder import RunFolder
from foundation.surgery import references
from foundation.surgery.start import start_facts, start_from
from foundation.training.fault_tolerance.reading import WholeCheckpoint
from foundation.training.fault_tolerance.stored_potential import take_best
from foundation.training.fit import fit, seed_everything
from foundation.training.fit_config import FitOptions
from foundation.training.lengths import announce, sized
from foundation.training.loss import LossConfig, refuse_idle_terms
from foundation.training.machine import MachineConfig, check_lanes
from foundation.training.optim import OptimConfig
from foundation.training.strategy import is_rank_zero

SAMPLE = 500
"""Largest number of structures by which a new network scales its inputs."""


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """A pretraining run. Elements, references, scale and mean neighbours are those of the data."""

    data: Data = field(metadata=COMPARED)
    """Plain files, globs or folders of files, or data sets that are built, to train on together."""
    val: tuple[Path, ...] = field(default=(), metadata=COMPARED)
    """Plain files for validation, in place of a part of the data."""
    test: tuple[Path, ...] = field(default=(), metadata=COMPARED)
    """Plain files for the final evaluation, in place of a part of the data."""
    read: ReadConfig = field(default_factory=ReadConfig, metadata=COMPARED)
    """Settings for reading plain files."""
    out: Path = field(metadata=MAY_CHANGE)
    """Run folder to write."""
    fit: FitOptions = field(default_factory=FitOptions)
    """Length of the run and batch composition; what is left out is taken from the data."""
    machine: MachineConfig = field(default_factory=MachineConfig)
    """Hardware."""
    start: Path | None = field(default=None, metadata=DECIDES)
    """Base potential whose weights the run starts from: its folder, run or published name; None: random weights. The
    architecture must be the same; reference energies and scale stay those of the start."""
    checkpoint: Choice = field(default=None, metadata=DECIDES)
    """Checkpoint, if the start is a run: `best` by its validation, `newest`, or a step; None: the potential of a
    finished run, and the newest checkpoint of an unfinished one."""
    start_weights: StartWeights | None = field(default=None, metadata=COMPARED)
    """Weights with which the run began, written by the run into its record, so that it resumes with the same; None:
    those that the start has now."""
    model: ModelConfig
    """Architecture, without default: the first of its options selects it."""
    loss: LossConfig = field(default_factory=LossConfig)
    """Loss terms."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimizer and schedule."""
    card: CardFacts = field(default_factory=CardFacts)
    """Facts for the model card of a release; may be completed at export."""
    overwrite: bool = field(default=False, metadata=MAY_CHANGE)
    """Replace an existing run."""

    def __post_init__(self) -> None:
        if self.fit.lanes is not None:
            check_lanes(self.fit.lanes, self.machine)


def pretrain(config: PretrainConfig) -> Potential:
    """Train a potential from scratch or from another, and return it with the moving average of its weights.

    The run folder gets run.json (the resolved configuration), checkpoints/, logs/ and, at the end, potential/.

    Raises:
        InUse: another run holds the run folder.
        FileExistsError: the run folder exists, and neither resume nor overwrite is set.
        FileNotFoundError: no manifest, no potential to start from, or nothing to resume.
        ValueError: the configuration does not fit the data, or the start does not fit them.
    """
    with run_folder.opened(config) as folder:
        return _pretrain(config, folder)


Config = TypeVar("Config", bound=PretrainConfig)


def with_data_sets(config: Config) -> Config:
    """Return the configuration of a pretraining with data sets built from plain files in their place.

    Raises:
        ValueError: see with_plain_built().
    """
    plain = run_folder.plain_files(config, config.model.cutoff)
    data = with_plain_built(config.data, plain, val=config.val, test=config.test)
    return dataclasses.replace(config, data=data, val=(), test=())


def _pretrain(config: PretrainConfig, folder: RunFolder) -> Potential:
    config = with_data_sets(config)
    datasets, theories = open_datasets(config.data)
    refuse_unlabelled(datasets)
    refuse_idle_terms(datasets, config.loss)
    lengths, optim, reasons = sized(
        config.fit,
        config.optim,
        datasets,
        cutoff=config.model.cutoff,
        world_size=config.machine.world_size,
        begun=folder.checkpoint and folder.checkpoint.config,
    )
    announce(reasons)
    seed_everything(config.fit.seed)
    statistics = statistics_by_theory(datasets, theories)
    potential, taken, begun = begin_with(config, statistics, folder.checkpoint)
    folder = folder.settled(dataclasses.replace(config, fit=lengths, optim=optim, start_weights=taken))
    datasets = numbered_as_in(potential, datasets, theories)
    if config.start is None and folder.checkpoint is None and potential.network.standardizes:
        potential.standardize(references.Choice(datasets, None, SAMPLE, seed=0).batches(potential))
    started = time.time()
    provenance = provenance_of(datasets, potential) | begun | {"config": folder.record}
    facts = fit(
        potential,
        datasets,
        config=lengths,
        machine=config.machine,
        loss=config.loss,
        optim=optim,
        out=folder.path,
        record=folder.record,
        provenance=provenance,
        checkpoint=folder.checkpoint,
        begin=folder.begin,
    )
    if is_rank_zero():
        folder.refuse_lost()
        facts |= take_best(potential, folder.path, lengths.steps)
        facts |= {"wall_time_s": round(time.time() - started, 1)}
        save(potential, config.out / "potential", provenance | facts)
    return potential


def begin_with(
    config: PretrainConfig, statistics: dict[str, Statistics], resumed: WholeCheckpoint | None = None
) -> tuple[Potential, StartWeights | None, dict]:
    """Return the potential before the first step, the weights of its start, and facts of it for the provenance.

    Args:
        config: The run.
        statistics: Sums over the training data by level of theory.
        resumed: Checkpoint to resume from, or None.

    Raises:
        FileNotFoundError: no potential to start from.
        ValueError: it does not fit the data or the model.
    """
    if config.start is None:
        return new_potential(config.model, statistics), None, {}
    start, described, taken = read_start(config.start, config.checkpoint, config.start_weights, resumed)
    facts = dataclasses.asdict(start_facts(config.start, described))
    return start_from(start, config.start, config.model, statistics), taken, {"start": facts}


def provenance_of(datasets: Sequence[Dataset], potential: Potential) -> dict:
    """Return the provenance of a potential trained on data, as JSON."""
    packages = ("foundation", "torch", "e3nn", "lightning")
    return {
        "method": "pretraining",
        "datasets": [dataset_facts(dataset, potential.theories) for dataset in datasets],
        "num_parameters": sum(p.numel() for p in potential.parameters()),
        "hardware": hardware(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }


def hardware() -> str:
    """Describe the machine."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"{os.cpu_count()} CPU cores ({platform.machine()})"
