"""Fine-tuning of a pretrained potential without forgetting.

Everything is prepared and checked before anything is written; then the start is evaluated on held-out sets, the run is
a fit() like any other, and the result is evaluated again. The methods against forgetting can be combined freely:
rehearsal, penalties, freezing, adapters, small and separate learning rates.
"""

import copy
import dataclasses
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from data_pipeline.loading.datasets import Dataset
from data_pipeline.plain_files import ReadConfig
from data_pipeline.store.untrusted import typed
from foundation import checkpoint, run_folder
from foundation.configuration import COMPARED, DECIDES, MAY_CHANGE
from foundation.datasets import (
    Data,
    PlainFiles,
    left_out,
    numbered_as_in,
    of_run,
    open_datasets,
    refuse_unlabelled,
    statistics_by_theory,
    with_plain_built,
)
from foundation.evaluation import held_out as held_out_errors
from foundation.evaluation.held_out import BEFORE, HeldOut, Measurement, measure
from foundation.evaluation.suites import SuiteConfig, check_suites, run_suites
from foundation.finetuning import fisher, fisher_by_term
from foundation.finetuning.adapters import add_adapters
from foundation.finetuning.distillation import Teacher
from foundation.finetuning.fisher import Fisher
from foundation.finetuning.forgetting import ForgettingConfig, HeldOutConfig, held_out_sets, with_plain_sets_built
from foundation.finetuning.freezing import freeze, rate_factors
from foundation.finetuning.loss_weights import balanced_loss
from foundation.finetuning.penalties import EwcPenalty, L2Penalty, PenaltyConfig, scaled_importance
from foundation.finetuning.protection import found_or_made, rehearsal_of
from foundation.finetuning.rehearsal import (
    RehearsalConfig,
    refuse_fisher_held_out,
    refuse_held_out,
    rehearsal_datasets,
)
from foundation.finetuning.step_zero import check_step_zero, first_batches
from foundation.naming import Choice, resolve
from foundation.potential import Potential
from foundation.pretrain import dataset_facts, provenance_of
from foundation.provenance import FINE_TUNING, StartChanges, StartFacts
from foundation.reports.card import CardFacts
from foundation.reports.forgetting_record import SuiteEnds
from foundation.reports.forgetting_report import summary, warnings, write_forgetting
from foundation.run_folder import PROTECTION, RunFolder, reporting
from foundation.surgery.adapters import merge_adapters
from foundation.surgery.start import References, prepare_start, start_facts
from foundation.surgery.theories import theories_of_data
from foundation.surgery.weight_interpolation import interpolate
from foundation.training.additions import Additions, Rehearsal
from foundation.training.fault_tolerance.checkpoints import WholeCheckpoint
from foundation.training.fault_tolerance.stored_potential import take_best
from foundation.training.fit import fit, seed_everything
from foundation.training.fit_config import FitConfig, FitOptions
from foundation.training.lengths import announce, sized
from foundation.training.loss import TERMS, LossConfig, Penalty, without_labels
from foundation.training.machine import MachineConfig, check_lanes
from foundation.training.optim import OptimConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """Low-rank adapters, trained instead of the weights."""

    rank: int = field(default=8, metadata=DECIDES)
    """Rank of the addition to each matrix."""
    alpha: float = field(default=8.0, metadata=DECIDES)
    """Numerator of the scale of the addition, alpha / rank."""
    patterns: tuple[str, ...] = field(default=("*",), metadata=DECIDES)
    """Presets and patterns that select weights made of matrices."""


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """A fine-tuning run: a potential, the data of a domain, and methods against forgetting."""

    start: Path = field(metadata=DECIDES)
    """Base potential whose weights the run starts from: its folder, run or published name, such as sevennet-0."""
    checkpoint: Choice = field(default=None, metadata=DECIDES)
    """Checkpoint, if the start is a run: `best` by its validation, `newest`, or a step; None: the potential of a
    finished run, and the newest checkpoint of an unfinished one."""
    data: Data = field(metadata=COMPARED)
    """The target: plain files, globs or folders of files, or data sets that are built, to train on together."""
    val: tuple[Path, ...] = field(default=(), metadata=COMPARED)
    """Plain files for validation, in place of a part of the data."""
    test: tuple[Path, ...] = field(default=(), metadata=COMPARED)
    """Plain files for the final evaluation, in place of a part of the data."""
    read: ReadConfig = field(default_factory=ReadConfig, metadata=COMPARED)
    """Settings for reading plain files."""
    theory: str | None = field(default=None, metadata=DECIDES)
    """Level of theory of data given without options: one of the start's if they are compatible, or another name to add
    it; None: the one in the data's provenance."""
    out: Path = field(metadata=MAY_CHANGE)
    """Run folder to write."""
    fit: FitOptions = field(default_factory=FitOptions)
    """Length of the run and batch composition; what is left out is taken from the data."""
    machine: MachineConfig = field(default_factory=MachineConfig)
    """Hardware."""
    loss: LossConfig | None = field(default=None, metadata=DECIDES)
    """Loss terms, the same for target and rehearsal; None: that of the Fisher's file if there is one, else weights for
    which no label of the target gets worse than it is at the start."""
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(learning_rate=7e-4, weight_decay=0.0, ema_decay=0.0))
    """Optimizer and schedule; defaults differ from pretraining: low learning rate, no weight decay, no average."""
    rehearsal: RehearsalConfig | None = field(default=None, metadata=DECIDES)
    """Pretraining data to continue training on."""
    penalty: PenaltyConfig | None = field(default=None, metadata=DECIDES)
    """Penalty on leaving the start: EWC or L2-SP."""
    freeze: tuple[str, ...] = field(default=(), metadata=DECIDES)
    """Parameters to freeze: embedding, blocks:K, all-but-readout, or patterns over their names."""
    rate_factors: dict[str, float] = field(default_factory=dict, metadata=DECIDES)
    """Factors of learning rates, by preset or pattern; if several match, the last one applies."""
    adapters: AdapterConfig | None = field(default=None, metadata=DECIDES)
    """Low-rank adapters to train instead of the weights; they are merged into the weights at the end."""
    references: References = field(default="auto", metadata=DECIDES)
    """Reference energies of the elements in the data: those of the start (keep), or refitted for data with another zero
    of energy, which moves all predictions for these elements at this level of theory. auto: refitted if the energies
    differ from the start's by more than 0.2 eV per atom, and composition explains it."""
    new_elements: Literal["refuse", "add"] = field(default="refuse", metadata=DECIDES)
    """Treatment of elements in the data that the start does not know."""
    missing_forces: Literal["refuse", "allow"] = field(default="refuse", metadata=MAY_CHANGE)
    """Treatment of a data set without forces if the loss has a term for them."""
    missing_stress: Literal["refuse", "allow"] = field(default="refuse", metadata=MAY_CHANGE)
    """Treatment of a data set without stress if the loss has a term for it."""
    forgetting: ForgettingConfig = field(default_factory=ForgettingConfig)
    """Held-out sets evaluated before, during and after the run."""
    suites: tuple[SuiteConfig, ...] = field(default=(), metadata=MAY_CHANGE)
    """Suites run for the start and for the result, at the level of theory of the target."""
    card: CardFacts = field(default_factory=CardFacts)
    """Facts for the model card of a release; may be completed at export."""
    overwrite: bool = field(default=False, metadata=MAY_CHANGE)
    """Replace an existing run."""
    sweep: Path | None = field(default=None, metadata=MAY_CHANGE)
    """YAML file of a sweep: runs that differ from this configuration, done in folders inside `out`, and compared. It
    has `runs` (options by name of the run), `grid` (values by option, all combinations), `seeds`, `jobs` (number of
    runs at a time) and `threads` (of each); `runs: {base: {}, slow: {optim.learning_rate: 1.0e-4}}` is enough."""
    run: str | None = field(default=None, metadata=MAY_CHANGE)
    """Name of the only run of the sweep to do; an entry of its `runs` means all its values and seeds."""

    def __post_init__(self) -> None:
        if self.fit.lanes is not None:
            check_lanes(self.fit.lanes, self.machine)
        if self.run is not None and self.sweep is None:
            raise ValueError("run names a run of a sweep: give the sweep's file as well")
        if self.adapters is not None and self.penalty is not None:
            raise ValueError("adapters freeze the weights that a penalty holds: leave one of the two out")
        if self.adapters is not None and self.freeze:
            raise ValueError("adapters freeze all weights: choose which to adapt with adapters.patterns, not freeze")


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


def _with_data_sets(config: FinetuneConfig, start: Potential) -> FinetuneConfig:
    """Return the configuration with data sets built from plain files in their place."""
    plain = PlainFiles(
        folder=config.out / run_folder.DATA,
        read=config.read,
        cutoff=start.cutoff,
        begun=run_folder.built_by_resumed(config),
    )
    data = with_plain_built(config.data, plain, val=config.val, test=config.test, theory=config.theory)
    rehearsal = config.rehearsal
    if rehearsal is not None and rehearsal.data is not None:
        rehearsal = dataclasses.replace(rehearsal, data=with_plain_built(rehearsal.data, plain.all_in("train")))
    forgetting = with_plain_sets_built(config.forgetting, plain.all_in("test"))
    return dataclasses.replace(config, data=data, val=(), test=(), rehearsal=rehearsal, forgetting=forgetting)


def _finetune(config: FinetuneConfig, folder: RunFolder) -> Potential:
    prepared, before = _prepare(config, folder), None
    config, folder = prepared.config, prepared.folder

    def begin() -> None:
        nonlocal before
        before = _begin(config, folder, prepared)

    began = time.time()
    provenance = provenance_of(prepared.datasets, prepared.potential) | prepared.facts | {"config": folder.record}
    facts = fit(
        prepared.potential,
        prepared.datasets,
        config=prepared.fit,
        machine=config.machine,
        loss=prepared.loss,
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
        facts |= take_best(prepared.potential, folder.path, prepared.fit.steps)
        facts |= {"wall_time_s": round(time.time() - began, 1)}
    if config.adapters is not None:
        merge_adapters(prepared.potential)
    prepared.potential.requires_grad_(True).eval()
    if before is not None:
        facts |= {"num_parameters": sum(p.numel() for p in prepared.potential.parameters())}
        _finish(config, prepared, before, provenance | facts)
    return prepared.potential


def _begin(config: FinetuneConfig, folder: RunFolder, prepared: "_Prepared") -> Measurement:
    """Prepare the run folder and return the errors of the start, measured now unless an earlier run did."""
    known = _measured_already(config, prepared)
    # before anything is written: a set without a usable frame is refused here
    before = known or measure(prepared.start, prepared.held_out, edge_budget=config.forgetting.edge_budget)
    folder.begin()
    if known is None:
        held_out_errors.save(before, config.out / "forgetting" / BEFORE)
    for item in prepared.held_out:
        data, number = item.dataset, before.sets[item.name].num_skipped
        for sentence in left_out(data.manifest, data.split, number, prepared.start.elements):
            log.warning("%s", sentence)
    return before


@dataclass(frozen=True, kw_only=True)
class _Settled:
    """Start and data of a fine-tuning, and its configuration with all that they decide."""

    config: FinetuneConfig
    """Configuration without anything left to the data."""
    fit: FitConfig
    """Its section fit."""
    loss: LossConfig
    """Its section loss."""
    start: Potential
    """The start."""
    origin: StartFacts
    """Its origin."""
    potential: Potential
    """Copy of the start with additions for the data."""
    changes: StartChanges
    """Changes made to it."""
    datasets: list[Dataset]
    """The target, at the levels of theory of the copy."""


@dataclass(frozen=True, kw_only=True)
class _Prepared:
    """A prepared and checked fine-tuning."""

    config: FinetuneConfig
    """Configuration without anything left to the data."""
    fit: FitConfig
    """Its section fit."""
    loss: LossConfig
    """Its section loss."""
    folder: RunFolder
    """Run folder, with this configuration as the record."""
    start: Potential
    """Start as measured before the run, with additions for the data."""
    potential: Potential
    """Potential to be trained."""
    datasets: list[Dataset]
    """The target."""
    held_out: list[HeldOut]
    """Held-out sets evaluated before and after."""
    additions: Additions
    """Rehearsal, penalty and learning-rate factors."""
    facts: dict
    """Facts for the provenance."""


def _settled(config: FinetuneConfig, resumed: WholeCheckpoint | None) -> _Settled:
    """Open start and data, and return them with the configuration that follows."""
    named = resolve(config.start, config.checkpoint)
    start = named.load()
    config = _with_data_sets(config, start)
    datasets, theories = open_datasets(config.data)
    refuse_unlabelled(datasets)
    if config.loss is not None:
        _check_terms(config, datasets, config.loss, "loss")
    seed_everything(config.fit.seed)
    given = {each.theory for each in of_run(config.data) if each.theory}
    theories, told = theories_of_data(start, theories, given)
    lengths, optim, reasons = sized(
        config.fit, config.optim, datasets, cutoff=start.cutoff, world_size=config.machine.world_size
    )
    potential, changes = prepare_start(
        start,
        config.start,
        statistics_by_theory(datasets, theories),
        datasets,
        references=config.references,
        new_elements=config.new_elements,
    )
    datasets = numbered_as_in(potential, datasets, theories)
    loss, why = _loss(config, potential, datasets, resumed)
    announce((*told, *reasons, *why))
    return _Settled(
        config=dataclasses.replace(
            config,
            fit=lengths,
            optim=optim,
            loss=loss,
            references="keep" if changes.references is None else "refit",
        ),
        fit=lengths,
        loss=loss,
        start=start,
        origin=start_facts(config.start, named.describe()),
        potential=potential,
        changes=changes,
        datasets=datasets,
    )


def _prepare(given: FinetuneConfig, folder: RunFolder) -> _Prepared:
    settled = _settled(given, folder.checkpoint)
    config, start, potential, datasets = settled.config, settled.start, settled.potential, settled.datasets
    folder = folder.settled(config)
    held_out = held_out_sets(_with_target(config, datasets), potential)
    refuse_unlabelled([each.dataset for each in held_out])
    check_suites(config.suites, potential.elements)
    refuse_held_out(datasets, [each.dataset for each in held_out], "trained on")
    begun = copy.deepcopy(potential).eval()
    protection = _protection(config, start)
    rehearsal = _rehearsal(_with_carried(config, protection, start), settled.loss, begun, held_out)
    importance = _importance(config, settled, held_out, protection)
    penalty = _limit(config, potential, importance)
    retained = [each.dataset for each in held_out if each.role == "retained"]
    _compare_step_zero(settled, [*datasets, *retained])
    additions = Additions(
        rehearsal=rehearsal,
        penalty=penalty,
        rate_factors=rate_factors(potential, config.rate_factors),
        watched=retained,
    )
    changes = dataclasses.asdict(settled.changes)
    facts = {name: each for name, each in changes.items() if each is not None} | {
        "method": FINE_TUNING,
        "start": dataclasses.asdict(settled.origin),
        "rehearsal": rehearsal
        and {"datasets": [dataset_facts(each, potential.theories) for each in rehearsal.datasets]},
        "fisher": importance and importance.facts(),
        "num_trained": sum(each.numel() for each in potential.parameters() if each.requires_grad),
    }
    return _Prepared(
        config=config,
        fit=settled.fit,
        loss=settled.loss,
        folder=folder,
        start=begun,
        potential=potential,
        datasets=datasets,
        held_out=held_out,
        additions=additions,
        facts=facts,
    )


def _compare_step_zero(settled: _Settled, datasets: Sequence[Dataset]) -> None:
    """Check that the potential predicts as the start on the first frames of data sets."""
    batches = first_batches(settled.start, datasets)
    same = settled.changes.same_energies
    count, largest = check_step_zero(settled.start, settled.potential, batches, same_references=same)
    if count:
        log.info("step 0: the start's predictions on %d frames, forces to %.1g eV/Å", count, largest)
    else:
        log.warning("step 0 is not compared with the start: all of the first frames have elements unknown to it")


def _loss(
    config: FinetuneConfig, potential: Potential, datasets: Sequence[Dataset], resumed: WholeCheckpoint | None
) -> tuple[LossConfig, tuple[str, ...]]:
    """Return the loss of the run, and a sentence on each choice that the configuration leaves to its data."""
    if config.loss is not None:
        return config.loss, ()
    if resumed is not None and isinstance(resumed.config, dict) and "loss" in resumed.config:
        # measured anew, on another machine, weights might differ in the last digit
        return typed(LossConfig, resumed.config["loss"], "loss"), ()
    if config.penalty is not None and isinstance(config.penalty.fisher, Path):
        return fisher.read(config.penalty.fisher).loss, (f"loss of the Fisher {config.penalty.fisher}",)
    return balanced_loss(potential, datasets)


def _check_terms(config: FinetuneConfig, datasets: Sequence[Dataset], loss: LossConfig, name: str) -> None:
    """Refuse a weighted loss term for which a data set has no label."""
    for dataset in datasets:
        for term, sentence in without_labels(dataset, loss).items():
            label = TERMS[term].label
            if getattr(config, f"missing_{label}", "refuse") == "refuse":
                raise ValueError(
                    f"{sentence.replace('loss.', f'{name}.')}: set it to 0, or set --missing_{label} allow if other "
                    f"data of the run have {term}"
                )


def _with_target(config: FinetuneConfig, datasets: Sequence[Dataset]) -> ForgettingConfig:
    """Return the held-out sets; the target's own held-out frames if none are named."""
    if config.forgetting.target:
        return config.forgetting
    own = []
    for item, dataset in zip(of_run(config.data), datasets, strict=True):
        split = next((name for name in ("test", "val") if dataset.manifest.split(name).shards), None)
        if split is not None:
            own.append(HeldOutConfig(path=item.path, split=split, theory=item.theory))
    return dataclasses.replace(config.forgetting, target=tuple(own))


def _protection(config: FinetuneConfig, start: Potential) -> Path | None:
    """Return the folder with the start's protection, if the run uses it."""
    carried = config.rehearsal is not None and config.rehearsal.data is None
    if carried or (config.penalty is not None and config.penalty.fisher == "start"):
        return found_or_made(config.start, start, config.out / PROTECTION)
    return None


def _with_carried(config: FinetuneConfig, protection: Path | None, start: Potential) -> FinetuneConfig:
    """Return the configuration with the data of the protection, if it is to rehearse these."""
    if protection is None or config.rehearsal is None or config.rehearsal.data is not None:
        return config
    data = rehearsal_of(protection, start)
    return dataclasses.replace(config, rehearsal=dataclasses.replace(config.rehearsal, data=data))


def _rehearsal(
    config: FinetuneConfig, loss: LossConfig, start: Potential, held_out: Sequence[HeldOut]
) -> Rehearsal | None:
    """Return the pretraining data to rehearse, checked against held-out data."""
    if config.rehearsal is None:
        return None
    datasets = rehearsal_datasets(config.rehearsal, start)
    if config.rehearsal.labels == "data":
        own = config.rehearsal.loss
        _check_terms(config, datasets, own or loss, "rehearsal.loss" if own else "loss")
    refuse_held_out(datasets, [each.dataset for each in held_out], "rehearsed")
    return Rehearsal(
        datasets=tuple(datasets),
        ratio=config.rehearsal.ratio,
        weight=config.rehearsal.weight,
        mode=config.rehearsal.mode,
        loss=config.rehearsal.loss,
        relabel=Teacher(start).relabel if config.rehearsal.labels == "start" else None,
    )


def _importance(
    config: FinetuneConfig, settled: _Settled, held_out: Sequence[HeldOut], protection: Path | None
) -> Fisher | None:
    """Return the Fisher of the penalty, if requested, checked against held-out data."""
    start, potential = settled.start, settled.potential
    if config.penalty is None or config.penalty.fisher is None:
        return None
    if (potential.elements, potential.theories) != (start.elements, start.theories):
        raise ValueError(
            "a Fisher belongs to the weights of the start, but elements or a level of theory added for the "
            "data change these: give the data a `theory` that the start knows, or leave penalty.fisher out, for L2-SP"
        )
    if isinstance(config.penalty.fisher, Path):
        importance = fisher.load(config.penalty.fisher, potential, settled.loss)
    else:
        assert protection is not None
        importance = fisher_by_term.read(protection / checkpoint.FISHER, start).of(settled.loss, start)
    refuse_fisher_held_out(importance, [each.dataset for each in held_out])
    return importance


def _limit(config: FinetuneConfig, potential: Potential, importance: Fisher | None) -> Penalty | None:
    """Freeze, add adapters and return the penalty, as requested."""
    if config.freeze:
        freeze(potential, config.freeze)
    if config.adapters is not None:
        add_adapters(potential, config.adapters.rank, config.adapters.alpha, config.adapters.patterns)
    if config.penalty is None:
        return None
    if importance is None:
        return L2Penalty(potential, weight=config.penalty.weight)
    values = scaled_importance(importance.values, config.penalty)
    return EwcPenalty(potential, values, importance.theta_star, weight=config.penalty.weight)


def _measured_already(config: FinetuneConfig, prepared: _Prepared) -> Measurement | None:
    """Return the measurement of the start by an earlier run if one is named, or by this one on resume."""
    if config.forgetting.before is not None:
        return held_out_errors.load(config.forgetting.before / BEFORE, prepared.start, prepared.held_out)
    file = config.out / "forgetting" / BEFORE
    if config.fit.resume and file.is_file():
        return held_out_errors.load(file, prepared.start, prepared.held_out)
    return None


def _finish(config: FinetuneConfig, prepared: _Prepared, before: Measurement, facts: dict) -> None:
    """Save the result of a run; only then evaluate it and write the report."""
    checkpoint.save(prepared.potential, config.out / "potential", facts)
    with reporting(config.out, "finetune"):
        _report(config, prepared, before)


def _report(config: FinetuneConfig, prepared: _Prepared, before: Measurement) -> None:
    """Evaluate the result of a run and write the report of learning and forgetting."""
    if not prepared.held_out:
        log.warning("no held-out frames, neither of the target nor others: what the run learned is not measured")
    start, potential = prepared.start, prepared.potential
    budget = config.forgetting.edge_budget
    after = measure(potential, prepared.held_out, edge_budget=budget)
    between = {alpha: interpolate(start, potential, alpha) for alpha in config.forgetting.alphas}
    curve = {alpha: measure(each, prepared.held_out, edge_budget=budget) for alpha, each in between.items()}
    theory = prepared.datasets[0].theory_number
    suites = SuiteEnds(
        **{name: run_suites(config.suites, each, theory) for name, each in (("before", start), ("after", potential))}
    )
    title = {"run": config.out.resolve().name}
    values = write_forgetting(config.out / "forgetting", before, after, curve, title, suites)
    for line in summary(values):
        log.info("%s", line)
    for line in warnings(values):
        log.warning("%s", line)
    log.info("report of learning and forgetting: %s", config.out / "forgetting" / "index.html")
