"""Fine-tuning of a pretrained potential without forgetting.

Everything is prepared and checked before anything is written; then the start is evaluated on held-out sets, the run is
a fit() like any other, and the result is evaluated again. The methods against forgetting can be combined freely:
rehearsal, penalties, freezing, adapters, small and separate learning rates.
"""

import logging
import time
from dataclasses import replace
from pathlib import Path

from data_pipeline.store.untrusted import CorruptFile
from foundation import checkpoint, run_folder
from foundation.datasets import left_out
from foundation.evaluation import held_out as held_out_errors
from foundation.evaluation.held_out import AFTER, BEFORE, Measurement, measure
from foundation.evaluation.suites import run_suites
from foundation.finetuning.config import AdapterConfig, FinetuneConfig
from foundation.finetuning.preparation import Comparison, Prepared, compare, prepare
from foundation.interop.subject import PotentialSubject
from foundation.potential import Potential
from foundation.pretrain import provenance_of
from foundation.provenance import FINE_TUNING
from foundation.reports.forgetting_record import SuiteEnds
from foundation.reports.forgetting_report import summary, warnings, write_forgetting
from foundation.run_folder import RunFolder, reporting
from foundation.surgery.adapters import merge_adapters
from foundation.surgery.weight_interpolation import interpolate
from foundation.training.fault_tolerance.stored_potential import take_best
from foundation.training.fit import fit

__all__ = ["AdapterConfig", "FinetuneConfig", "finetune"]

log = logging.getLogger(__name__)


def finetune(config: FinetuneConfig) -> Potential:
    """Fine-tune a potential, measure learning and forgetting, and return it.

    The run folder gets run.json, checkpoints/, logs/, potential/ and, at the very end, forgetting/.

    Raises:
        ReportFailed: the potential is saved, but could not be measured or its report not be made.
        InUse: another run holds the run folder.
        FileExistsError: the run folder exists, and neither resume nor overwrite is set.
        FileNotFoundError: no manifest, potential or Fisher there, or nothing to resume.
        ValueError: parts do not fit together: start and data, Fisher and start or loss, rehearsed and held-out data; or
            no parameter remains trainable.
    """
    with run_folder.opened(config) as folder:
        return _finetune(config, folder)


def _finetune(config: FinetuneConfig, folder: RunFolder) -> Potential:
    prepared, before = prepare(config, folder), None
    settled, folder = prepared.settled, prepared.folder
    config, potential = settled.config, settled.potential

    def begin() -> None:
        nonlocal before
        before = _begin(prepared)

    began = time.time()
    provenance = provenance_of(settled.datasets, potential) | prepared.facts | {"config": folder.record}
    facts = fit(
        potential,
        settled.datasets,
        config=settled.fit,
        machine=config.machine,
        loss=settled.loss,
        optim=config.optim,
        out=folder.path,
        record=folder.record,
        provenance=provenance,
        checkpoint=folder.checkpoint,
        additions=prepared.additions,
        begin=begin,
    )
    if before is not None:
        folder.refuse_lost()
        facts |= take_best(potential, folder.path, settled.fit.steps)
        facts |= {"wall_time_s": round(time.time() - began, 1)}
    if config.adapters is not None:
        merge_adapters(potential)
    potential.requires_grad_(True).eval()
    if before is not None:
        facts |= {"num_parameters": sum(p.numel() for p in potential.parameters())}
        # saved first: a failing report costs no training
        checkpoint.save(potential, config.out / "potential", provenance | facts)
        with reporting(config.out):
            _report(prepared, before, potential)
    return potential


def lacks_report(run: Path) -> bool:
    """Return whether a folder is a finished fine-tuning without the report of its potential."""
    folder, report = run / "potential", run / "forgetting"
    if not folder.is_dir():
        return False
    described = checkpoint.describe(folder)
    if described.origin.method != FINE_TUNING:
        return False
    try:
        measured = held_out_errors.read(report / AFTER)
    except (FileNotFoundError, CorruptFile):
        return True
    return measured.weights_sha256 != described.weights_sha256 or not (report / "index.html").is_file()


def report_again(config: FinetuneConfig) -> None:
    """Measure the potential of a finished fine-tuning and write its report, without training.

    Args:
        config: Configuration of the run, as in its record.

    Raises:
        ReportFailed: the potential could not be measured or its report not be made.
        InUse: another process holds the run folder.
        FileNotFoundError: start or data are gone.
        ValueError: they are not those of the run.
    """
    config = replace(config, fit=replace(config.fit, resume="auto"))
    with run_folder.opened(config) as folder:
        compared = compare(config, folder)
        with reporting(config.out):
            budget = config.forgetting.edge_budget
            before = _measured_already(compared) or measure(compared.begun, compared.held_out, edge_budget=budget)
            _report(compared, before, checkpoint.load(config.out / "potential"))


def _begin(prepared: Prepared) -> Measurement:
    """Prepare the run folder and return the errors of the start, measured now unless an earlier run did."""
    config, known = prepared.settled.config, _measured_already(prepared)
    # before anything is written: a set without a usable frame is refused here
    before = known or measure(prepared.begun, prepared.held_out, edge_budget=config.forgetting.edge_budget)
    prepared.folder.begin()
    if known is None:
        held_out_errors.save(before, config.out / "forgetting" / BEFORE)
    for item in prepared.held_out:
        data, number = item.dataset, before.sets[item.name].num_skipped
        for sentence in left_out(data.manifest, data.split, number, prepared.begun.elements):
            log.warning("%s", sentence)
    return before


def _measured_already(compared: Comparison) -> Measurement | None:
    """Return the measurement of the start by an earlier run if one is named, or by this one on resume."""
    config = compared.settled.config
    if config.forgetting.before is not None:
        return held_out_errors.load(config.forgetting.before / BEFORE, compared.begun, compared.held_out)
    file = config.out / "forgetting" / BEFORE
    if config.fit.resume and file.is_file():
        return held_out_errors.load(file, compared.begun, compared.held_out)
    return None


def _report(compared: Comparison, before: Measurement, potential: Potential) -> None:
    """Evaluate the result of a run and write the report of learning and forgetting."""
    if not compared.held_out:
        log.warning("no held-out frames, neither of the target nor others: what the run learned is not measured")
    config, start = compared.settled.config, compared.begun
    budget = config.forgetting.edge_budget
    after = measure(potential, compared.held_out, edge_budget=budget)
    between = {alpha: interpolate(start, potential, alpha) for alpha in config.forgetting.alphas}
    curve = {alpha: measure(each, compared.held_out, edge_budget=budget) for alpha, each in between.items()}
    theory = compared.settled.datasets[0].theory_number
    suites = SuiteEnds()
    if config.suites:
        suites = SuiteEnds(
            before=run_suites(config.suites, PotentialSubject(start, theory)),
            after=run_suites(config.suites, PotentialSubject(potential, theory)),
        )
    title = {"run": config.out.resolve().name}
    values = write_forgetting(config.out / "forgetting", before, after, curve, title, suites)
    for line in summary(values):
        log.info("%s", line)
    for line in warnings(values):
        log.warning("%s", line)
    log.info("report of learning and forgetting: %s", config.out / "forgetting" / "index.html")
