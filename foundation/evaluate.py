"""Evaluation: a potential and a split of a data set, or suites of physical properties, become a report."""

import hashlib
import json
import logging
import re
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from data_pipeline.building.duplicates import frames_in_both
from data_pipeline.loading.datasets import Dataset
from data_pipeline.plain_files import ReadConfig, is_dataset
from data_pipeline.store import durable
from data_pipeline.store.manifest import Manifest, open_manifest
from foundation.configuration import resolved
from foundation.datasets import left_out, one_split, refuse_unlabelled
from foundation.evaluation.predictions import predict
from foundation.evaluation.suites import Findings, Subject, Suite, SuiteConfig, check_suites, run_suites
from foundation.interop.subject import CalculatorSubject, PotentialSubject
from foundation.naming import Choice, resolve
from foundation.potential import Potential
from foundation.reports.evaluation_report import Evaluated, Evaluation, write_report
from foundation.reports.suite_report import SuitesRecord, write_suites
from foundation.surgery.theories import theory_of_data

log = logging.getLogger(__name__)

UNFINISHED = "unfinished"
"""Folder of suites that are finished while others are not."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Potential to evaluate, and data, suites or both."""

    model: Path | None = None
    """Potential to evaluate: its folder, run or published name."""
    calculator: str | None = None
    """Calculator of another program to run suites with, in place of a model: the module and name of an ASE calculator's
    class, or of a function that returns one, such as ase.calculators.emt:EMT. Its module is imported and so run."""
    data: Path | tuple[Path, ...] | None = None
    """Data set, or plain files, globs or folders of files, which are read for this evaluation only; None: run suites
    alone."""
    checkpoint: Choice = None
    """Checkpoint, if the model is a run: `best` by its validation, `newest`, or a step; None: the potential of a
    finished run, and the newest checkpoint of an unfinished one."""
    split: str = "test"
    """Split of the data set to predict; of plain files, all frames are predicted."""
    read: ReadConfig = field(default_factory=ReadConfig)
    """Settings for reading plain files."""
    out: Path | None = None
    """Folder of the report; None: report/ in the run folder of the model, suites/ for suites alone, or NAME-report here
    if it has no run."""
    edge_budget: int = 20000
    """Number of directed edges of a batch; a larger structure is a batch of its own."""
    num_workers: int = 0
    """Number of worker processes that read shards and build graphs; 0 uses the main process."""
    device: str = "cpu"
    """torch's name of the device."""
    theory: str | None = None
    """Level of theory to predict, one of the potential's; None: the one in the data set's provenance, or the
    potential's only one."""
    zbl: bool = False
    """Add a repulsion between atoms much closer than a bond to the model."""
    suites: tuple[SuiteConfig, ...] = ()
    """Suites to run as well, or alone: names of packaged ones, such as eos and diatomics, or their options."""
    suites_from: Path | None = None
    """Report of suites that were run alone on the same weights (suites.json), to add to that of the data."""

    def __post_init__(self) -> None:
        if (self.model is None) == (self.calculator is None):
            raise ValueError("--model NAME or --calculator MODULE:CLASS is needed, and only one of them")
        if self.calculator is not None and self.zbl:
            raise ValueError("--zbl adds a repulsion to a model: leave it out with --calculator")
        if self.data is None and not self.suites:
            raise ValueError("--data or --suites is needed: nothing would be measured")
        if self.calculator is not None and self.data is not None:
            raise ValueError("--calculator runs suites only: leave --data out")
        if self.suites_from is not None and (self.data is None or self.suites):
            raise ValueError("--suites_from adds suites to the report of --data, in place of --suites")


def evaluate(config: EvaluateConfig) -> Evaluation:
    """Predict a split, write evaluation.json, parity.png and index.html, and return the content of the first.

    Raises:
        FileNotFoundError: no potential or no manifest there.
        ValueError: no such split, no labels, no frame whose elements are all known, one of several levels of theory
            must be named, or a suite has elements unknown to the potential.
    """
    assert config.model is not None
    assert config.data is not None
    model = resolve(_existing(config.model), config.checkpoint)
    out = report_folder(config)
    potential, described = model.read()
    potential = _ready(potential, config)
    with one_split(config.data, config.read, split=config.split, cutoff=potential.cutoff) as manifest:
        return _evaluate(config, manifest, potential, described.weights_sha256, out)


def judge(config: EvaluateConfig) -> SuitesRecord:
    """Run suites alone, write suites.json, figures and index.html, and return the content of the first.

    Raises:
        FileNotFoundError: no potential there.
        ValueError: one of several levels of theory must be named, a suite has elements unknown to the potential, or the
            calculator cannot be made.
    """
    out = report_folder(config)
    if config.calculator is not None:
        return _judged(config, CalculatorSubject.named(config.calculator), out)
    assert config.model is not None
    model = resolve(_existing(config.model), config.checkpoint)
    potential, described = model.read()
    theory = potential.theory_number(config.theory)
    subject = PotentialSubject(_ready(potential, config), theory, str(config.model))
    return _judged(config, subject, out, potential.theories[theory], described.weights_sha256)


def _ready(potential: Potential, config: EvaluateConfig) -> Potential:
    potential = potential.to(torch.device(config.device))
    return potential.repel() if config.zbl else potential


def _evaluate(
    config: EvaluateConfig, manifest: Manifest, potential: Potential, weights_sha256: str, out: Path
) -> Evaluation:
    _refuse_empty(manifest, config)
    refuse_unlabelled([Dataset(manifest=manifest, split=config.split)])
    described = manifest.provenance.level_of_theory
    theory = theory_of_data(potential, described, config.theory)
    before = _found_before(config.suites_from, weights_sha256) if config.suites_from else {}
    check_suites(config.suites, potential.elements)
    predictions = predict(
        potential,
        manifest,
        config.split,
        theory=theory,
        edge_budget=config.edge_budget,
        num_workers=config.num_workers,
    )
    findings = run_suites(config.suites, PotentialSubject(potential, theory)) if config.suites else before
    if known := _trained_on(config, manifest):
        log.warning(
            "%d of the %d frames were trained on in %s: errors on them do not measure what it predicts elsewhere; "
            "evaluate frames that it has not seen",
            known,
            manifest.split(config.split).statistics.num_frames,
            config.model,
        )
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


def _found_before(file: Path, weights_sha256: str) -> dict[str, Findings]:
    """Return the findings of a report of suites.

    Raises:
        ValueError: it is of other weights.
    """
    record = SuitesRecord.from_json(file)
    if record.weights_sha256 != weights_sha256:
        raise ValueError(f"{file}: these suites were run on other weights; run them again")
    return record.suites


def _judged(
    config: EvaluateConfig, subject: Subject, out: Path, theory: str | None = None, weights: str | None = None
) -> SuitesRecord:
    """Run suites one by one and write the report; those that an interrupted command finished are not run again."""
    check_suites(config.suites, subject.elements)
    done = [_one_suite(suite, subject, out / UNFINISHED, theory, weights) for suite in config.suites]
    record = SuitesRecord(
        subject=subject.name,
        theory=theory,
        weights_sha256=weights,
        suites={name: found for each in done for name, found in each.suites.items()},
        seconds={name: seconds for each in done for name, seconds in each.seconds.items()},
    )
    write_suites(record, out)
    shutil.rmtree(out / UNFINISHED, ignore_errors=True)
    return record


def _one_suite(suite: Suite, subject: Subject, folder: Path, theory: str | None, weights: str | None) -> SuitesRecord:
    """Return the record of one suite: of an interrupted command with the same options, or measured now."""
    options = hashlib.sha256(json.dumps(resolved(suite), sort_keys=True).encode()).hexdigest()[:16]
    file = folder / f"{suite.name.replace(' ', '-')}-{options}.json"
    if file.is_file():
        old = SuitesRecord.from_json(file)
        if (old.subject, old.theory, old.weights_sha256) == (subject.name, theory, weights):
            log.info("%s: finished before", suite.name)
            return old
    began = time.process_time()
    judged = hashlib.sha256(json.dumps([subject.name, theory, weights]).encode()).hexdigest()[:16]
    subject.kept = folder / f"{file.stem}-{judged}"
    found = run_suites([suite], subject)
    seconds = {suite.name: time.process_time() - began}
    log.info("%s: %.1f CPU-s", suite.name, seconds[suite.name])
    record = SuitesRecord(subject=subject.name, theory=theory, weights_sha256=weights, suites=found, seconds=seconds)
    folder.mkdir(parents=True, exist_ok=True)
    durable.write_whole(file, json.dumps(asdict(record), indent=1))
    shutil.rmtree(subject.kept, ignore_errors=True)
    subject.kept = None
    return record


def _trained_on(config: EvaluateConfig, manifest: Manifest) -> int:
    """Return the number of frames of plain files that the model's run has trained on, from plain files as well."""
    run = _run_of(config)
    built = run.glob("data/*/manifest.json") if run else ()
    trained = [data for data in map(open_manifest, built) if "train" in data.splits and data.split("train").shards]
    files = (config.data,) if isinstance(config.data, Path) else config.data or ()
    if not trained or any(map(is_dataset, files)):
        return 0
    frames = Dataset(manifest=manifest, split=config.split).frames()
    return len({mine for data in trained for mine, _ in frames_in_both(frames, Dataset(manifest=data).frames())})


def _refuse_empty(manifest: Manifest, config: EvaluateConfig) -> None:
    """Refuse a split without frames, and name those that have some."""
    if not manifest.split(config.split).shards:
        filled = [name for name, split in manifest.splits.items() if split.shards]
        raise ValueError(f"{config.data}: its split {config.split} is empty; choose --split {' or '.join(filled)}")


def report_folder(config: EvaluateConfig) -> Path:
    """Return the folder of the report: as configured, in the run folder that the model belongs to, or here."""
    if config.out is not None:
        return config.out
    if run := _run_of(config):
        return run / ("suites" if config.data is None else "report")
    name = config.model.resolve().name if config.model else re.sub(r"\W+", "-", config.calculator or "")
    return Path(f"{name}-report")


def _run_of(config: EvaluateConfig) -> Path | None:
    """Return the run folder that the model belongs to, or None."""
    places = (config.model, config.model.parent) if config.model else ()
    return next((place for place in places if (place / "run.json").is_file()), None)


def _existing(model: Path) -> Path:
    """Return the model's folder, or its run's if the release is not exported yet."""
    if not model.exists() and (model.parent / "run.json").is_file():
        log.warning("%s is not exported yet: evaluating the potential of its run, %s", model, model.parent)
        return model.parent
    return model
