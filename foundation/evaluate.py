"""Evaluation: a potential and a split of a data set become a report."""

import logging
from dataclasses import dataclass, field
from pathlib import Path

import torch

from data_pipeline.loading.datasets import Dataset
from data_pipeline.plain_files import ReadConfig
from data_pipeline.store.manifest import Manifest
from foundation.datasets import left_out, one_split, refuse_unlabelled
from foundation.evaluation.predictions import predict
from foundation.evaluation.suites import SuiteConfig, check_suites, run_suites
from foundation.naming import Choice, resolve
from foundation.potential import Potential
from foundation.reports.evaluation_report import Evaluated, Evaluation, write_report
from foundation.surgery.theories import theory_of_data

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Potential to evaluate, and data."""

    model: Path
    """Potential to evaluate: its folder, run or published name."""
    data: Path | tuple[Path, ...]
    """Data set, or plain files, globs or folders of files, which are read for this evaluation only."""
    checkpoint: Choice = None
    """Checkpoint, if the model is a run: `best` by its validation, `newest`, or a step; None: the potential of a
    finished run, and the newest checkpoint of an unfinished one."""
    split: str = "test"
    """Split of the data set to predict; of plain files, all frames are predicted."""
    read: ReadConfig = field(default_factory=ReadConfig)
    """Settings for reading plain files."""
    out: Path | None = None
    """Folder of the report; None: report/ in the run folder of the model. Required for a model without a run."""
    edge_budget: int = 20000
    """Number of directed edges of a batch; a larger structure is a batch of its own."""
    num_workers: int = 0
    """Number of worker processes that read shards and build graphs; 0 uses the main process."""
    device: str = "cpu"
    """torch's name of the device."""
    theory: str | None = None
    """Level of theory to predict, one of the potential's; None: the one in the data set's provenance, or the
    potential's only one."""
    suites: tuple[SuiteConfig, ...] = ()
    """Suites to run as well."""


def evaluate(config: EvaluateConfig) -> Evaluation:
    """Predict a split, write evaluation.json, parity.png and index.html, and return the content of the first.

    Raises:
        FileNotFoundError: no potential or no manifest there.
        ValueError: no such split, no labels, no frame whose elements are all known, one of several levels of theory
            must be named, or a suite has elements unknown to the potential.
    """
    model = resolve(_existing(config.model), config.checkpoint)
    out = report_folder(config)
    potential = model.load().to(torch.device(config.device))
    with one_split(config.data, config.read, split=config.split, cutoff=potential.cutoff) as manifest:
        return _evaluate(config, manifest, potential, model.describe().weights_sha256, out)


def _evaluate(
    config: EvaluateConfig, manifest: Manifest, potential: Potential, weights_sha256: str, out: Path
) -> Evaluation:
    _refuse_empty(manifest, config)
    refuse_unlabelled([Dataset(manifest=manifest, split=config.split)])
    described = manifest.provenance.level_of_theory
    theory = theory_of_data(potential, described, config.theory)
    check_suites(config.suites, potential.elements)
    predictions = predict(
        potential,
        manifest,
        config.split,
        theory=theory,
        edge_budget=config.edge_budget,
        num_workers=config.num_workers,
    )
    findings = run_suites(config.suites, potential, theory)
    for sentence in left_out(manifest, config.split, predictions.num_skipped, potential.elements):
        log.warning("%s", sentence)
    evaluated = Evaluated(
        dataset=manifest.provenance.name,
        split=config.split,
        manifest_fingerprint=manifest.fingerprint,
        level_of_theory=described,
        theory=potential.theories[theory],
        weights_sha256=weights_sha256,
    )
    return write_report(predictions, out, evaluated, findings)


def _refuse_empty(manifest: Manifest, config: EvaluateConfig) -> None:
    """Refuse a split without frames, and name those that have some."""
    if not manifest.split(config.split).shards:
        filled = [name for name, split in manifest.splits.items() if split.shards]
        raise ValueError(f"{config.data}: its split {config.split} is empty; choose --split {' or '.join(filled)}")


def report_folder(config: EvaluateConfig) -> Path:
    """Return the folder of the report: as configured, or report/ in the run folder that the model belongs to.

    Raises:
        ValueError: neither exists.
    """
    if config.out is not None:
        return config.out
    for run in (config.model, config.model.parent):
        if (run / "run.json").is_file():
            return run / "report"
    raise ValueError(f"{config.model} does not belong to a run: name a folder for the report with --out")


def _existing(model: Path) -> Path:
    """Return the model's folder, or its run's if the release is not exported yet."""
    if not model.exists() and (model.parent / "run.json").is_file():
        log.warning("%s is not exported yet: evaluating the potential of its run, %s", model, model.parent)
        return model.parent
    return model
