"""Preparation of a fine-tuning: start, data and methods against forgetting, checked before anything is written.

Plain files become data sets, and what the configuration leaves out follows from the data; the record of the run then
has all of it.
"""

import copy
import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from data_pipeline.loading.datasets import Dataset
from data_pipeline.store.shards import sha256
from data_pipeline.store.untrusted import OpenRecord, typed
from foundation import checkpoint, run_folder
from foundation.datasets import (
    dataset_facts,
    numbered_as_in,
    of_run,
    open_datasets,
    refuse_unlabelled,
    statistics_by_theory,
    with_plain_built,
)
from foundation.evaluation.held_out import HeldOut
from foundation.evaluation.suites import check_suites
from foundation.finetuning import fisher, fisher_by_term
from foundation.finetuning.adapters import add_adapters
from foundation.finetuning.config import FinetuneConfig
from foundation.finetuning.distillation import Teacher
from foundation.finetuning.fisher import Fisher
from foundation.finetuning.forgetting import ForgettingConfig, HeldOutConfig, held_out_sets, with_plain_sets_built
from foundation.finetuning.freezing import freeze, rate_factors
from foundation.finetuning.loss_weights import balanced_loss
from foundation.finetuning.penalties import EwcPenalty, L2Penalty, carried_importance, scaled_importance
from foundation.finetuning.protection import found_or_made, rehearsal_of
from foundation.finetuning.rehearsal import (
    refuse_fisher_held_out,
    refuse_held_out,
    rehearsal_datasets,
)
from foundation.finetuning.step_zero import check_step_zero, first_batches
from foundation.naming import read_start
from foundation.potential import Potential
from foundation.provenance import FINE_TUNING, StartChanges, StartFacts
from foundation.run_folder import PROTECTION, RunFolder
from foundation.surgery.start import prepare_start, start_facts, with_changes
from foundation.surgery.theories import theories_of_data
from foundation.training.additions import Additions, Rehearsal
from foundation.training.fault_tolerance.checkpoints import WholeCheckpoint
from foundation.training.fit import seed_everything
from foundation.training.fit_config import FitConfig
from foundation.training.lengths import announce, sized
from foundation.training.loss import TERMS, LossConfig, Penalty, without_labels

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Settled:
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
class Comparison:
    """Start and held-out sets of a fine-tuning, for the errors before and after it."""

    settled: Settled
    """Configuration, data, and the potential to be trained."""
    folder: RunFolder
    """Run folder, with this configuration as the record."""
    begun: Potential
    """Potential before the first step, as measured before the run."""
    held_out: list[HeldOut]
    """Held-out sets evaluated before and after."""


@dataclass(frozen=True, kw_only=True)
class Prepared(Comparison):
    """A prepared and checked fine-tuning."""

    additions: Additions
    """Rehearsal, penalty and learning-rate factors."""
    facts: dict
    """Facts for the provenance."""


def _with_data_sets(config: FinetuneConfig, start: Potential) -> FinetuneConfig:
    """Return the configuration with data sets built from plain files in their place."""
    plain = run_folder.plain_files(config, start.cutoff)
    data = with_plain_built(config.data, plain, val=config.val, test=config.test, theory=config.theory)
    rehearsal = config.rehearsal
    if rehearsal is not None and rehearsal.data is not None:
        rehearsal = dataclasses.replace(rehearsal, data=with_plain_built(rehearsal.data, plain.all_in("train")))
    forgetting = with_plain_sets_built(config.forgetting, plain.all_in("test"))
    return dataclasses.replace(config, data=data, val=(), test=(), rehearsal=rehearsal, forgetting=forgetting)


def settle(config: FinetuneConfig, resumed: WholeCheckpoint | None) -> Settled:
    """Open start and data, and return them with the configuration that follows.

    Args:
        config: Configuration as given.
        resumed: Checkpoint to resume from, or None.

    Raises:
        FileNotFoundError: no potential or data there.
        ValueError: start and data do not fit together.
    """
    start, described, taken = read_start(config.start, config.checkpoint, config.start_weights, resumed)
    config = _with_data_sets(config, start)
    datasets, theories = open_datasets(config.data)
    refuse_unlabelled(datasets)
    if config.loss is not None:
        _check_terms(config, datasets, config.loss, "loss")
    seed_everything(config.fit.seed)
    given = {each.theory for each in of_run(config.data) if each.theory}
    theories, told = theories_of_data(start, theories, given)
    lengths, optim, reasons = sized(
        config.fit,
        config.optim,
        datasets,
        cutoff=start.cutoff,
        world_size=config.machine.world_size,
        begun=resumed and resumed.config,
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
    return Settled(
        config=dataclasses.replace(
            config,
            start_weights=taken,
            fit=lengths,
            optim=optim,
            loss=loss,
            references="keep" if changes.references is None else "refit",
        ),
        fit=lengths,
        loss=loss,
        start=start,
        origin=start_facts(config.start, described),
        potential=potential,
        changes=changes,
        datasets=datasets,
    )


def compare(given: FinetuneConfig, folder: RunFolder) -> Comparison:
    """Return start and held-out sets of a fine-tuning.

    Args:
        given: Configuration as given.
        folder: Run folder, held.

    Raises:
        FileNotFoundError: no potential or data there.
        ValueError: parts do not fit together.
    """
    settled = settle(given, folder.checkpoint)
    config, potential = settled.config, settled.potential
    folder = folder.settled(config)
    held_out = held_out_sets(_with_target(config, settled.datasets), potential)
    refuse_unlabelled([each.dataset for each in held_out])
    check_suites(config.suites, potential.elements)
    refuse_held_out(settled.datasets, [each.dataset for each in held_out], "trained on")
    return Comparison(settled=settled, folder=folder, begun=copy.deepcopy(potential).eval(), held_out=held_out)


def prepare(given: FinetuneConfig, folder: RunFolder) -> Prepared:
    """Return a fine-tuning that is ready to begin.

    Args:
        given: Configuration as given.
        folder: Run folder, held.

    Raises:
        FileNotFoundError: no potential, data or Fisher there.
        ValueError: parts do not fit together.
    """
    compared = compare(given, folder)
    settled, begun, held_out = compared.settled, compared.begun, compared.held_out
    config, start, potential, datasets = settled.config, settled.start, settled.potential, settled.datasets
    protection = _protection(config, start)
    rehearsal = _rehearsal(_with_carried(config, protection, start), settled.loss, begun, held_out)
    importance = _importance(config, settled, held_out, protection)
    penalty = _limit(config, settled, importance)
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
        "fisher": _fisher_facts(config, importance, protection),
        "num_trained": sum(each.numel() for each in potential.parameters() if each.requires_grad),
    }
    return Prepared(**vars(compared), additions=additions, facts=facts)


def _compare_step_zero(settled: Settled, datasets: Sequence[Dataset]) -> None:
    """Check that the potential predicts as the start on the first frames of data sets."""
    batches = first_batches(settled.start, datasets)
    same = settled.changes.same_energies
    count, largest = check_step_zero(settled.start, settled.potential, batches, same_references=same)
    if count:
        log.info("before step 1 forces are the start's within %.1g eV/Å (%d frames compared)", largest, count)
    else:
        log.warning("step 0 is not compared with the start: all of the first frames have elements unknown to it")


@dataclass(frozen=True, kw_only=True)
class _LossOfRun(OpenRecord):
    """Loss in the record of a run."""

    loss: LossConfig | None = None
    """The loss; None if the record lacks it."""


def _loss(
    config: FinetuneConfig, potential: Potential, datasets: Sequence[Dataset], resumed: WholeCheckpoint | None
) -> tuple[LossConfig, tuple[str, ...]]:
    """Return the loss of the run, and a sentence on each choice that the configuration leaves to its data."""
    if config.loss is not None:
        return config.loss, ()
    # measured anew, on another machine, weights might differ in the last digit
    record = resumed.config if resumed is not None and isinstance(resumed.config, dict) else {}
    begun = typed(_LossOfRun, record, "config").loss
    if begun is not None:
        return begun, ()
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
    config: FinetuneConfig, settled: Settled, held_out: Sequence[HeldOut], protection: Path | None
) -> Fisher | None:
    """Return the Fisher of the penalty, if requested, checked against held-out data."""
    start = settled.start
    if config.penalty is None or config.penalty.fisher is None:
        return None
    if isinstance(config.penalty.fisher, Path):
        importance = fisher.load(config.penalty.fisher, start, settled.loss)
    else:
        assert protection is not None
        importance = fisher_by_term.read(protection / checkpoint.FISHER, start).of(settled.loss, start)
    refuse_fisher_held_out(importance, [each.dataset for each in held_out])
    return importance


def _fisher_facts(config: FinetuneConfig, importance: Fisher | None, protection: Path | None) -> dict[str, Any] | None:
    """Return the facts of the Fisher of the penalty with the checksum of its file, if there is one."""
    if importance is None or config.penalty is None:
        return None
    file = config.penalty.fisher
    if not isinstance(file, Path):
        assert protection is not None
        file = protection / checkpoint.FISHER
    return importance.facts() | {"sha256": sha256(file)}


def _limit(config: FinetuneConfig, settled: Settled, importance: Fisher | None) -> Penalty | None:
    """Freeze, add adapters and return the penalty, as requested."""
    potential = settled.potential
    if config.freeze:
        freeze(potential, config.freeze)
    if config.adapters is not None:
        add_adapters(potential, config.adapters.rank, config.adapters.alpha, config.adapters.patterns)
    if config.penalty is None:
        return None
    if importance is None:
        return L2Penalty(potential, weight=config.penalty.weight)
    values = scaled_importance(importance.values, config.penalty)
    values = carried_importance(values, settled.start, partial(with_changes, changes=settled.changes))
    present = {name: parameter.detach().clone() for name, parameter in potential.named_parameters()}
    return EwcPenalty(potential, values, present, weight=config.penalty.weight)
