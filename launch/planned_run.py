"""Runs that pre-flight examines: their options, and what their data and start decide.

The run's own code finds it out, as at its start. Data sets of plain files are built into a temporary folder.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data_pipeline.loading.datasets import Dataset
from foundation import run_folder
from foundation.datasets import numbered_as_in, open_datasets, refuse_unlabelled, statistics_by_theory
from foundation.finetuning.config import FinetuneConfig
from foundation.finetuning.preparation import prepare
from foundation.finetuning.protection import carried_by
from foundation.naming import resolve
from foundation.potential import Potential
from foundation.pretrain import PretrainConfig, begin_with, with_data_sets
from foundation.run_folder import RunFolder, found_checkpoint
from foundation.training.additions import Rehearsal
from foundation.training.fit_config import FitConfig, with_defaults
from foundation.training.lengths import sized
from foundation.training.loss import LossConfig, refuse_idle_terms
from foundation.training.optim import OptimConfig
from launch.checks import Check, check_cutoff, check_files, check_folder
from launch.slurm import seconds_of


@dataclass(frozen=True, kw_only=True)
class PreflightOptions:
    """Options of checks and estimates."""

    verify: bool = False
    """Compare every file of the data with its checksum, instead of a sample of blocks."""
    memory: float | None = None
    """Memory of one device [GiB]; None: this machine's (each process's share of the CPU memory)."""
    free_disk: float | None = None
    """Disk space for the run [GB], such as the rest of a quota; None: the free space."""
    edges_per_second: float | None = None
    """Speed of one device in training [edges/s], for example from a log; None: measured here."""
    price: float | None = None
    """Price of one device for an hour, in any currency."""
    time_limit: str | None = None
    """Time limit of a job in sbatch's format, such as 24:00:00 or 2-00:00:00."""
    report: Path | None = None
    """JSON file for the report, or None."""
    strict: bool = False
    """End with exit code 1 after warnings."""

    def __post_init__(self) -> None:
        for name in ("memory", "free_disk", "edges_per_second", "price"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be positive, not {value}")
        if self.time_limit is not None:
            seconds_of(self.time_limit)


@dataclass(frozen=True, kw_only=True)
class PretrainPreflightConfig(PretrainConfig, PreflightOptions):
    """A pretraining to check and estimate instead of starting it: the options of `foundation pretrain`, and more."""

    def __post_init__(self) -> None:
        PretrainConfig.__post_init__(self)
        PreflightOptions.__post_init__(self)


@dataclass(frozen=True, kw_only=True)
class FinetunePreflightConfig(FinetuneConfig, PreflightOptions):
    """A fine-tuning to check and estimate instead of starting it: the options of `foundation finetune`, and more."""

    def __post_init__(self) -> None:
        FinetuneConfig.__post_init__(self)
        PreflightOptions.__post_init__(self)
        if self.sweep is not None:
            raise ValueError("sweep: preflight examines one run; leave --sweep out")


PreflightConfig = PretrainPreflightConfig | FinetunePreflightConfig


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """A run with all that its data and start decide."""

    config: PreflightConfig
    """Options as given, with the data sets of plain files in their place."""
    fit: FitConfig
    """Its section fit."""
    optim: OptimConfig
    """Its section optim."""
    loss: LossConfig
    """Its loss."""
    cutoff: float
    """Cutoff of its potential [Å]."""
    datasets: Sequence[Dataset] = ()
    """Its data; none if they cannot be used."""
    potential: Potential | None = None
    """Potential before the first step; None without data."""
    rehearsal: Rehearsal | None = None
    """Data to rehearse."""
    watched: Sequence[Dataset] = ()
    """Splits that are validated as well."""


def planned(config: PreflightConfig, folder: Path) -> tuple[PlannedRun | None, list[Check]]:
    """Return a run with all that its data and start decide, and the checks of these and of the run folder.

    A pretraining without usable data is returned without them; of a fine-tuning that cannot begin, None.

    Args:
        config: The options.
        folder: Temporary folder for data sets of plain files.
    """
    if isinstance(config, FinetunePreflightConfig):
        return _planned_fine_tuning(config, folder)
    return _planned_pretraining(config, folder)


def _place(config: PreflightConfig, folder: Path) -> Path:
    """Return the run folder if it holds the data that a resumed run began with, else the temporary folder."""
    return config.out if run_folder.built_by_resumed(config) else folder


def _checks_of(datasets: Sequence[Dataset], config: PreflightConfig, cutoff: float) -> list[Check]:
    """Return the checks of the files of data sets."""
    found, quarantine = list[Check](), config.fit.corrupt == "quarantine"
    for dataset in datasets:
        found.append(check_files(dataset, verify=config.verify, quarantine=quarantine))
        found.append(check_cutoff(dataset, cutoff))
    return found


def _planned_pretraining(config: PretrainPreflightConfig, folder: Path) -> tuple[PlannedRun, list[Check]]:
    out, datasets, theories, checks = config.out, list[Dataset](), tuple[str, ...](), list[Check]()
    try:
        config = replace(with_data_sets(replace(config, out=_place(config, folder))), out=out)
        datasets, theories = open_datasets(config.data)
        refuse_unlabelled(datasets)
        refuse_idle_terms(datasets, config.loss)
        checks += _checks_of(datasets, config, config.model.cutoff)
    except (ValueError, OSError) as error:
        checks.append(Check(name="data", verdict="fail", finding=str(error)))
    if any(check.verdict != "ok" for check in checks):
        datasets = []
    fit, optim, potential = with_defaults(config.fit), config.optim, None
    if datasets:
        fit, optim, reasons = sized(
            config.fit, optim, datasets, cutoff=config.model.cutoff, world_size=config.machine.world_size
        )
        checks += [Check(name="from the data", verdict="ok", finding=reason) for reason in reasons]
    elif config.fit.steps is None:
        finding = "the number of steps follows from the data, which are not here: a single one is estimated"
        checks.append(Check(name="length", verdict="warn", finding=finding, advice="give --fit.steps"))
    try:
        if datasets:
            potential, _, _ = begin_with(config, statistics_by_theory(datasets, theories))
            datasets = numbered_as_in(potential, datasets, theories)
        elif config.start is not None:
            resolve(config.start, config.checkpoint)
    except (ValueError, OSError) as error:
        checks.append(Check(name="model", verdict="fail", finding=str(error)))
    checks.insert(0, check_folder(replace(config, fit=fit, optim=optim)))
    run = PlannedRun(
        config=config,
        fit=fit,
        optim=optim,
        loss=config.loss,
        cutoff=config.model.cutoff,
        datasets=datasets,
        potential=potential,
    )
    return run, checks


def _planned_fine_tuning(config: FinetunePreflightConfig, folder: Path) -> tuple[PlannedRun | None, list[Check]]:
    given, checks = _without_missing_protection(config)
    place, in_folder = _place(config, folder), check_folder(config, settled=False)
    try:
        checkpoint = found_checkpoint(config, settled=False) if in_folder.verdict == "ok" else None
        prepared = prepare(replace(given, out=place), RunFolder(path=place, checkpoint=checkpoint, empties=False))
    except (ValueError, OSError) as error:
        return None, [in_folder, Check(name="start and data", verdict="fail", finding=str(error)), *checks]
    settled, additions = prepared.settled, prepared.additions
    theories = dict.fromkeys(settled.potential.theories[each.theory_number] for each in settled.datasets)
    start = Check(name="start", verdict="ok", finding=f"{config.start}; trained at: {', '.join(theories)}")
    run = PlannedRun(
        config=config,
        fit=settled.fit,
        optim=settled.config.optim,
        loss=settled.loss,
        cutoff=settled.potential.cutoff,
        datasets=settled.datasets,
        potential=settled.potential,
        rehearsal=additions.rehearsal,
        watched=additions.watched,
    )
    return run, [in_folder, start, *checks, *_checks_of(settled.datasets, config, run.cutoff)]


def _without_missing_protection(config: FinetunePreflightConfig) -> tuple[FinetunePreflightConfig, list[Check]]:
    """Return a fine-tuning without the protection that its start lacks, which takes minutes to make, and a warning."""
    rehearses = config.rehearsal is not None and config.rehearsal.data is None
    penalized = config.penalty is not None and config.penalty.fisher == "start"
    if not (rehearses or penalized):
        return config, []
    carried = carried_by(config.start)
    if carried is not None:
        return config, [Check(name="protection", verdict="ok", finding=f"carried by {carried}")]
    finding = f"{config.start} carries none: the run makes it, which takes some minutes; its rehearsal is not counted"
    check = Check(name="protection", verdict="warn", finding=finding, advice="make it once with `foundation protect`")
    rehearsal, penalty = None if rehearses else config.rehearsal, None if penalized else config.penalty
    return replace(config, rehearsal=rehearsal, penalty=penalty), [check]
