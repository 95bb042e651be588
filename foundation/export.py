"""Export of a finished, evaluated run as a release folder.

The release holds model.safetensors, config.json, golden.json, README.md (the model card), SHA256SUMS, and what protects
it in fine-tunings, if the run's potential carries that. It is loaded back and must reproduce the golden predictions
before it gets its name.
"""

import datetime
import itertools
import json
import logging
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.loading.datasets import Frames
from data_pipeline.store import durable, lock
from data_pipeline.store.manifest import Manifest, open_manifest
from data_pipeline.store.manifest import Provenance as DataProvenance
from data_pipeline.store.untrusted import refusing, require
from data_pipeline.structure import SYMBOLS, Structure
from foundation import checkpoint
from foundation.checkpoint import Description
from foundation.evaluation.held_out import read
from foundation.finetuning.protection import copy_into as protection_into
from foundation.golden import GENERATED, generated, golden_record, verify_golden
from foundation.naming import Choice, SavedPotential, resolve
from foundation.nn.repulsion import DESCRIPTION
from foundation.potential import Potential
from foundation.provenance import FINE_TUNING, DataRecord, Interpolated, Provenance
from foundation.reports.card import CardFacts, check_facts, render_card
from foundation.reports.card_of_fine_tuning import CardSection, card_section
from foundation.reports.evaluation_report import Evaluation
from foundation.reports.forgetting_report import curve_file, curve_files
from foundation.reports.front_matter import Measured, front_matter
from foundation.reports.suite_table import suite_table
from foundation.reports.trust import copy_into as trust_into
from foundation.run_folder import PROTECTION
from foundation.surgery.start import with_changes
from foundation.surgery.theories import keep_theory
from foundation.surgery.weight_interpolation import interpolate

log = logging.getLogger(__name__)

MAX_GOLDEN_ATOMS = 40
"""Largest number of atoms of a structure that may be one of several golden ones."""


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Run to release, and options."""

    run: Path
    """Run folder, with report/, or forgetting/ if it is a fine-tuning."""
    checkpoint: Choice = None
    """Checkpoint of the run: `best` by its validation, `newest`, or a step; None: the potential of a finished run, and
    the newest checkpoint of an unfinished one."""
    private: bool = False
    """Release for your own use: a minimal card, which needs neither its facts nor held-out errors, and golden
    structures that are generated, so that no licence is involved. A release for others needs all of them."""
    out: Path
    """Release folder to write; an older release there is replaced once the new one is verified."""
    card: CardFacts | None = None
    """Facts of the model card; None: those of the run's configuration."""
    data: Path | None = None
    """Manifest for the golden structures; None: the run's own or, for a fine-tuning whose target has only large
    structures or no licence to pass them on, a retained or rehearsed set. If none may be passed on, and in a private
    release, they are generated."""
    num_golden: int = 3
    """Number of structures of up to 40 atoms in golden.json; if all are larger, it gets only the smallest."""
    theory: str | None = None
    """Level of theory to release alone, which must be that of the report; None: all of the potential's."""
    zbl: bool = False
    """Add a repulsion between atoms much closer than a bond to the release."""
    alpha: float = 1.0
    """Position between the start (0) and the result (1) of a fine-tuning, one of the run's forgetting.alphas."""

    def __post_init__(self) -> None:
        if not 0 < self.alpha <= 1:
            raise ValueError(f"alpha must be above 0 (the start) and at most 1 (the result), not {self.alpha}")
        if self.alpha != 1 and self.checkpoint is not None:
            raise ValueError("alpha lies between the start and the result of a run: leave checkpoint out")
        if self.num_golden < 1:
            raise ValueError(f"num_golden must be at least 1, not {self.num_golden}: a release is verified with them")


def export(config: ExportConfig) -> Path:
    """Write a release and return its folder.

    Raises:
        FileExistsError: the folder exists and is not a release, or holds other files too.
        FileNotFoundError: the run has no potential yet, was not evaluated (at alpha), or its data or start are gone.
        MissingFact: the model card lacks a fact.
        CorruptCheckpoint: the run's potential is damaged, or lacks its provenance.
        GoldenMismatch: the exported files do not reproduce the golden predictions; nothing is left behind.
        ValueError: the report belongs to other weights or another level of theory, the potential has no such level, or
            alpha is given for a run that is not a fine-tuning.
        InUse: another process writes a release there.
    """
    with lock.hold(lock.beside(config.out), config.out):
        return _export(config)


def _export(config: ExportConfig) -> Path:
    checkpoint.refuse_to_replace(config.out, "release")
    found = resolve(config.run, config.checkpoint)
    potential, described = found.read()
    with refusing(config.run, checkpoint.CorruptCheckpoint):
        needed = ("config", "method", "datasets", "num_parameters", "versions", "hardware")
        require(described.provenance, needed)
        if config.card is not None:
            facts = {"card": asdict(config.card)}
            stated = {name: each | facts if name == "config" else each for name, each in described.provenance.items()}
            described = replace(described, provenance=stated)
        card = CardFacts(**described.origin.card)
        origin, _ = described.origin, described.origin.run
    if not config.private:
        check_facts(card)
    if config.alpha != 1:
        potential, described = _interpolated(config, potential, described)
    if config.theory is not None:
        potential = keep_theory(potential, config.theory)
    measured = _measured_if_any(config, described) if config.private else _measured(config, described)
    if config.zbl:
        potential.repel()
    golden_of, structures = _golden_structures(config, described.origin, potential)
    whole = config.theory is None and config.alpha == 1 and not config.zbl
    unchanged = found.folder if whole and isinstance(found, SavedPotential) else None
    if not config.private:
        described = replace(described, provenance=_relative_paths(described.provenance, config.run.resolve()))
    with durable.whole_folder(lock.real(config.out)) as partial:
        if unchanged is not None and not config.private:
            shutil.copyfile(unchanged / checkpoint.WEIGHTS, partial / checkpoint.WEIGHTS)
            checkpoint.write_description(described, partial)
        else:
            made_from = described.provenance if config.theory is None else _of_one_theory(potential, described)
            # a protection belongs to the weights of the run
            made_from = {name: each for name, each in made_from.items() if unchanged or name != PROTECTION}
            checkpoint.write_into(partial, potential, made_from | ({"private": True} if config.private else {}))
            described = checkpoint.describe(partial)
        protection = protection_into(partial, unchanged, described) if unchanged else ""
        trust = trust_into(partial, unchanged, potential.last_layer) if unchanged else ""
        _notice_into(partial, origin)
        facts = card_facts(potential, described) | measured | {"golden_of": asdict(golden_of)}
        named = replace(card, name=card.name or config.run.resolve().name) if config.private else card
        before = ""
        if not config.private:
            before = front_matter(card, described.origin, potential.theories, _by_set(config.run, partial, measured))
        around = (before, trust + protection)
        finish(partial, potential, structures, named, facts, private=config.private, around=around)
    return config.out


def _notice_into(folder: Path, origin: Provenance) -> None:
    """Copy the licence of the nearest ancestor that has one: weights made of somebody's keep the notice."""
    while word := origin.start.folder:
        try:
            start = resolve(Path(word))
        except (OSError, ValueError):
            log.warning("%s is gone: if it had a %s, put that into the release", word, checkpoint.LICENCE)
            return
        notice = start.folder / checkpoint.LICENCE if isinstance(start, SavedPotential) else None
        if notice is not None and notice.is_file():
            shutil.copyfile(notice, folder / checkpoint.LICENCE)
            return
        origin = start.describe().origin


def _relative_paths(value: Any, run: Path) -> Any:
    """Return a part of a provenance with absolute paths made relative to the run: others need not know this machine."""
    if isinstance(value, dict):
        return {name: _relative_paths(each, run) for name, each in value.items()}
    if isinstance(value, list):
        return [_relative_paths(each, run) for each in value]
    if isinstance(value, str) and value.startswith("/") and "\n" not in value:
        return os.path.relpath(value, run)
    return value


def _by_set(run: Path, folder: Path, measured: dict) -> Measured:
    """Return the held-out errors for the card by data set and split, and write those of an evaluation."""
    for facts in measured.values():
        if isinstance(facts, CardSection):
            _take_evaluation(run, folder)
            return {
                (name, each.split): {key: estimate.value for key, estimate in each.after.items()}
                for name, each in facts.sets.items()
            }
        if isinstance(facts, Evaluation):
            return write_evaluation(folder, facts)
    return {}


def _take_evaluation(run: Path, folder: Path) -> None:
    """Write the report of an evaluation of a fine-tuning's result into its release, if it is of these weights."""
    try:
        write_evaluation(folder, _evaluation(run, checkpoint.describe(folder).weights_sha256))
    except FileNotFoundError:
        log.debug("%s was not evaluated beside its own held-out sets", run)
    except ValueError as other_weights:
        log.warning("left out of the release: %s", other_weights)


def write_evaluation(folder: Path, evaluation: Evaluation) -> Measured:
    """Write the errors that a release states, for programs that read them, and return them by data set and split."""
    durable.write_whole(folder / checkpoint.EVALUATION, json.dumps(asdict(evaluation), indent=1) + "\n")
    return {(evaluation.dataset, evaluation.split): evaluation.errors}


def finish(
    folder: Path,
    potential: Potential,
    structures: Sequence[Structure],
    card: CardFacts,
    facts: dict,
    *,
    private: bool = False,
    around: tuple[str, str] = ("", ""),
) -> None:
    """Write golden predictions, card and checksums of a release whose weights are in a folder, and verify them.

    Args:
        folder: Folder from whole_folder().
        potential: The potential.
        structures: Golden structures.
        card: Facts of the card that people stated.
        facts: Facts of the card that the program found out.
        private: Whether the card is a minimal one.
        around: Front matter of the card, and its last section.

    Raises:
        MissingFact: the card lacks a fact.
        GoldenMismatch: the files do not reproduce the golden predictions.
    """
    golden = [golden_record(potential, s, theory) for s in structures for theory in potential.theories]
    (folder / checkpoint.GOLDEN).write_text(json.dumps(golden) + "\n")
    text = render_card(card, facts | {"num_golden": len(structures)}, private=private)
    (folder / checkpoint.CARD).write_text(around[0] + text + around[1])
    checkpoint.write_checksums(folder)
    verify_golden(folder)


def _interpolated(config: ExportConfig, tuned: Potential, described: Description) -> tuple[Potential, Description]:
    """Return the potential at alpha between the start and the result of a fine-tuning, as measured by the run.

    Raises:
        FileNotFoundError: nothing was measured at alpha, or the start is gone.
        ValueError: the run is not a fine-tuning, or the potential at alpha is not the measured one.
    """
    run, alpha = config.run, config.alpha
    if described.origin.method != FINE_TUNING:
        raise ValueError(f"--alpha needs a fine-tuning run, and {run} is not one")
    file = curve_file(run / "forgetting", alpha)
    if not file.is_file():
        there = ", ".join(f"{each:g}" for each in curve_files(run / "forgetting")) or "none"
        raise FileNotFoundError(
            f"{file}: the run has not measured alpha {alpha:g} (measured: {there}); name it in "
            "forgetting.alphas and fine-tune again"
        )
    start, taken = Path(described.origin.start.folder), described.origin.start.checkpoint
    step = None if taken is None or taken.finished else taken.step
    # as measured: from the start with the references, elements and levels of theory that the run gave it
    begun = with_changes(resolve(start, step).load(), described.origin)
    potential = interpolate(begun, tuned, alpha)
    sha256 = checkpoint.weights_sha256(potential)
    if read(file).weights_sha256 != sha256:
        raise ValueError(
            f"{file}: the potential at alpha {alpha:g} between {start} and {run} is not the measured one: {start} has "
            "other weights than the run began with; put the start back, or release the result itself, without --alpha"
        )
    between = Interpolated(alpha=alpha, weights_sha256=described.weights_sha256)
    provenance = described.provenance | {"interpolated": asdict(between)}
    return potential, replace(described, weights_sha256=sha256, provenance=provenance)


def _measured(config: ExportConfig, described: Description) -> dict:
    """Return the held-out errors for the card: before and after for a fine-tuning, else the evaluation."""
    sha256, taken = described.weights_sha256, described.origin.checkpoint
    if described.origin.method == FINE_TUNING and (taken is None or taken.finished):
        section = card_section(config.run, described.origin, sha256, config.theory, config.alpha)
        return {"finetuning": section}
    evaluation = _evaluation(config.run, sha256)
    if config.theory is not None and evaluation.theory != config.theory:
        raise ValueError(
            f"the report is for {evaluation.theory}; measure the errors of {config.theory} with `foundation "
            f"evaluate --theory {config.theory}` to release it"
        )
    suites = suite_table(evaluation.suites) if evaluation.suites else None
    return {"evaluation": evaluation, "errors": evaluation.errors, "suites": suites}


def _measured_if_any(config: ExportConfig, described: Description) -> dict:
    """Return the held-out errors for the card of a private release, which need not exist."""
    try:
        return _measured(config, described)
    except (FileNotFoundError, ValueError) as missing:
        log.warning("the card has no held-out errors: %s", missing)
        return {}


def _of_one_theory(potential: Potential, described: Description) -> dict:
    """Return the provenance of a potential reduced to one level of theory."""
    return described.provenance | {
        "num_parameters": sum(p.numel() for p in potential.parameters()),
        "kept_of": {"theories": described.theories, "weights_sha256": described.weights_sha256},
    }


def _golden_sources(config: ExportConfig, origin: Provenance) -> list[tuple[Path, str | None]]:
    """Return the manifests and splits for golden structures, the best first."""
    if config.data is not None:
        return [(config.data, None)]
    run = origin.run
    if run.data is None or config.private:
        return []
    found: list[tuple[Path, str | None]] = [(path, None) for path in _paths(run.data)]
    found += [(Path(each.path), each.split) for each in run.forgetting.retained]
    rehearsed = run.rehearsal
    return found + ([(path, rehearsed.split) for path in _paths(rehearsed.data or ())] if rehearsed else [])


def _paths(data: str | Sequence[DataRecord | str]) -> list[Path]:
    """Return the manifests of the data in the record of a run: one, or several data sets."""
    every = [data] if isinstance(data, str) else data
    return [Path(each if isinstance(each, str) else each.path) for each in every]


def _evaluation(run: Path, weights_sha256: str) -> Evaluation:
    file = run / "report" / "evaluation.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"{file}: a release states its held-out errors; measure them with "
            f"`foundation evaluate --model {run} --data <manifest> --split test`"
        )
    evaluation = Evaluation.from_json(file)
    if evaluation.weights_sha256 != weights_sha256:
        raise ValueError(f"{file}: this report belongs to other weights; evaluate {run} again")
    return evaluation


def _golden_structures(
    config: ExportConfig, origin: Provenance, potential: Potential
) -> tuple[DataProvenance, list[Structure]]:
    """Return golden structures and their provenance: small ones of the first data that have any, else the smallest.

    A split of None means test, or train without one. A release is passed on, so data that must not be are left out; if
    nothing remains, the structures are generated.
    """
    found: list[tuple[DataProvenance, list[Structure]]] = []
    count = config.num_golden
    for path, split in _golden_sources(config, origin):
        manifest = open_manifest(path)
        if not manifest.provenance.redistributable:
            name, licence = manifest.provenance.name, manifest.provenance.licence
            log.info("no golden structures are taken from %s because of its licence: %r", name, licence)
            continue
        split = split or ("test" if manifest.split("test").shards else "train")
        structures = _smallest(manifest, split, potential, count)
        if structures:
            found.append((manifest.provenance, structures))
            if structures[0].num_atoms <= MAX_GOLDEN_ATOMS:
                break
    if not found:
        log.info("golden structures are generated crystals: no data of the run are taken")
        return GENERATED, generated(potential, count, instead="name golden structures with --data")
    provenance, structures = min(found, key=lambda each: max(MAX_GOLDEN_ATOMS, each[1][0].num_atoms))
    sizes = ", ".join(str(structure.num_atoms) for structure in structures)
    log.info("golden structures are from %s, with %s atoms", provenance.name, sizes)
    return provenance, structures


def _smallest(manifest: Manifest, split: str, potential: Potential, count: int) -> list[Structure]:
    """Return the first small structures of a split that can be predicted, else only the smallest one, if any."""
    frames, known = Frames(manifest, split), set(potential.elements)
    if not len(frames):
        return []
    num_atoms, _ = frames.index.counts(0, len(frames))
    order = np.argsort(np.maximum(num_atoms, MAX_GOLDEN_ATOMS), kind="stable")
    each = (frames[number] for number in order.tolist())
    found = list(itertools.islice((s for s in each if set(s.numbers.tolist()) <= known), count))
    return [structure for structure in found if structure.num_atoms <= MAX_GOLDEN_ATOMS] or found[:1]


def card_facts(potential: Potential, described: Description) -> dict:
    """Return the facts of a card that follow from a potential and its description."""
    origin = described.origin
    return {
        "datasets": list(origin.datasets),
        "num_parameters": origin.num_parameters,
        "versions": origin.versions,
        "method": origin.method,
        "rehearsed_datasets": list(origin.rehearsed),
        "earlier_datasets": list(origin.start.datasets),
        "start": origin.start.name or Path(origin.start.folder).name,
        "hardware": origin.hardware,
        "steps": origin.checkpoint.step if origin.checkpoint else origin.run.fit.steps,
        "wall_time_s": origin.wall_time_s,
        "architecture": potential.network.describe() + (f", {DESCRIPTION}" if potential.repulsion else ""),
        "cutoff": potential.cutoff,
        "theories": potential.theories,
        "elements": [SYMBOLS[z] for z in potential.elements],
        "weights_sha256": described.weights_sha256,
        "created": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
