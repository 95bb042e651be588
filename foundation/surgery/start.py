"""Training that starts from a potential: compatibility checks, and the treatment of reference energies.

The references and the scale of the start stay, because its weights were trained relative to them: refitted to other
data they would move every prediction. Only a level of theory unknown to the start gets new references; its biases in
the network start as the mean of the others. In pretraining these references are fitted to the energies of the new data,
which are broad. In fine-tuning they are the start's, refitted at most to the residuals: the energies of a single
material do not determine its elements' energies, and its binding would be counted twice.
"""

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from data_pipeline.loading.datasets import Dataset
from data_pipeline.statistics.sums import Statistics
from data_pipeline.store.untrusted import refusing, require
from data_pipeline.structure import SYMBOLS
from foundation.checkpoint import CorruptCheckpoint, Description
from foundation.datasets import numbered_as_in
from foundation.models import Architecture
from foundation.potential import Potential
from foundation.provenance import MovedReferences, StartChanges, StartFacts
from foundation.surgery.contradictions import refuse_contradictions
from foundation.surgery.elements import add_elements, nearest_element
from foundation.surgery.energy_zero import energy_zero
from foundation.surgery.references import refit_references
from foundation.surgery.theories import add_theory

log = logging.getLogger(__name__)

NUMBERS: dict[str, int] = {symbol: number for number, symbol in enumerate(SYMBOLS)}
"""Atomic numbers by symbol."""
References = Literal["auto", "keep", "refit"]
"""Treatment of reference energies of elements in the data."""


def start_from(
    potential: Potential, folder: Path, model: Architecture, statistics: Mapping[str, Statistics]
) -> Potential:
    """Return a potential ready to be trained on data at levels of theory by name.

    Args:
        potential: The potential to start from.
        folder: Its folder or name, for messages.
        model: The architecture in the configuration of the training.
        statistics: The training data's, by level of theory.

    Raises:
        ValueError: the potential has another architecture, or does not know an element of the data.
    """
    different = _differences(potential.network.config, model)
    if different:
        raise ValueError(f"{folder} has another architecture than `model`: {'; '.join(different)}. Make them agree.")
    advice = "start from a potential that does, or build the data without these elements"
    _refuse_unknown(potential, folder, statistics, advice)
    for theory, sums in statistics.items():
        if theory not in potential.theories:
            log.info(
                "%s does not know the level of theory %s: it is added, its references from the data", folder, theory
            )
            potential = add_theory(potential, theory, reference_energies=_references(potential, sums))
    return potential.train()


def prepare_start(
    start: Potential,
    folder: Path,
    statistics: Mapping[str, Statistics],
    datasets: Sequence[Dataset],
    *,
    references: References = "keep",
    new_elements: Literal["refuse", "add"] = "refuse",
) -> tuple[Potential, StartChanges]:
    """Return a copy of a potential, ready to be fine-tuned on data, and what was done to it.

    An unknown level of theory is added, with the references of the start (the mean over its levels); so are new
    elements, if allowed, as in elements.py, with references always fitted to residuals. Predictions of the start for
    its elements at its levels stay, with one exception: refitting the references at a known level moves all predictions
    at this level for the elements of the data. That is right for data with another energy convention than the level's
    name states, and forgetting otherwise.

    Args:
        start: The potential, which is not modified.
        folder: Its folder or name, for messages.
        statistics: The training data's, by level of theory, in the order of the numbers that `datasets` have.
        datasets: The training data.
        references: Whether references of the elements in the data are kept or refitted (references.py); 'auto' refits
            them at a level of theory whose data have another zero of energy (energy_zero.py).
        new_elements: Treatment of elements in the data that the start does not know.

    Raises:
        ValueError: there is such an element, and it must not be added; or labels contradict the start's ('auto').
    """
    new = tuple(sorted(set().union(*(sums.elements for sums in statistics.values())) - set(start.elements)))
    if new and new_elements == "refuse":
        advice = "set --new_elements add, start from a potential that does, or build the data without these elements"
        _refuse_unknown(start, folder, statistics, advice)
    donors = {SYMBOLS[z]: SYMBOLS[nearest_element(z, start.elements)] for z in new}
    if new:
        log.info("%s gets new elements: %s", folder, ", ".join(f"{z} begins as {old}" for z, old in donors.items()))
    added = [theory for theory in statistics if theory not in start.theories]
    for theory in added:
        log.info(
            "%s does not know the level of theory %s: it is added, with the references of the start", folder, theory
        )
    potential = _grown(start, donors, added)
    datasets = numbered_as_in(potential, datasets, list(statistics))
    of_new_elements = _refit(potential, datasets, new) if new else None
    moving = datasets if references == "refit" else []
    if references == "auto":
        moving = _of_another_zero(potential, datasets)
    moved = _refit(potential, moving, None) if moving else None
    _warn_of_moves(moved or {}, start, folder)
    return potential.train(), StartChanges(
        new_elements=donors,
        new_theories=tuple(added),
        same_energies=not any(theory in start.theories for theory in moved or {}),
        references_of_new_elements=of_new_elements,
        references=moved,
    )


def with_changes(start: Potential, changes: StartChanges) -> Potential:
    """Return a copy of a potential with the changes that prepare_start() once made to it, bit for bit.

    Args:
        start: The potential, which is not modified.
        changes: The changes, as recorded.

    Raises:
        ValueError: they do not fit the potential.
    """
    potential = _grown(start, changes.new_elements, changes.new_theories)
    references = potential.get_buffer("reference_energies")
    for report in (changes.references_of_new_elements, changes.references):
        for theory, facts in (report or {}).items():
            for symbol, each in facts.elements.items():
                place = potential.elements.index(NUMBERS[symbol])
                references[potential.theory_number(theory), place] = each.after
    return potential


def _grown(start: Potential, donors: Mapping[str, str], theories: Sequence[str]) -> Potential:
    """Return a copy of a potential with new elements, each with the element it begins as, and levels of theory."""
    potential, like = copy.deepcopy(start), {NUMBERS[new]: NUMBERS[old] for new, old in donors.items()}
    if like:
        potential = add_elements(potential, sorted(like), like=like)
    for theory in theories:
        potential = add_theory(potential, theory)
    return potential


def _differences(theirs: Architecture, ours: Architecture) -> list[str]:
    """Return descriptions of the differences of two architectures; a None in ours follows from the data."""
    if theirs.architecture != ours.architecture:
        return [f"it is {theirs.architecture} there and {ours.architecture} here"]
    there = asdict(theirs)
    found = {name: value for name, value in asdict(ours).items() if value is not None and there[name] != value}
    return [f"{name} is {there[name]} there and {value} here" for name, value in found.items()]


def _refuse_unknown(potential: Potential, folder: Path, statistics: Mapping[str, Statistics], advice: str) -> None:
    for theory, sums in statistics.items():
        unknown = sorted(set(sums.elements) - set(potential.elements))
        if unknown:
            raise ValueError(
                f"{folder} does not know {', '.join(SYMBOLS[z] for z in unknown)}, which the data at {theory} have: "
                f"{advice}"
            )


def _of_another_zero(potential: Potential, datasets: Sequence[Dataset]) -> list[Dataset]:
    """Return the data sets at levels of theory whose data have another zero of energy, and log why."""
    found = []
    for theory in sorted({dataset.theory_number for dataset in datasets}):
        own = [dataset for dataset in datasets if dataset.theory_number == theory]
        zero, sentence = energy_zero(potential, own)
        refuse_contradictions(potential, own)
        log.info("%s", sentence)
        found += own if zero == "another" else []
    return found


def _refit(
    potential: Potential, datasets: Sequence[Dataset], elements: Sequence[int] | None
) -> dict[str, MovedReferences]:
    """Fit the references of elements to the residuals in place, and return the report."""
    energies, report = refit_references(potential, datasets, elements=elements)
    potential.get_buffer("reference_energies").copy_(energies)
    for theory, facts in report.items():
        moved = ", ".join(f"{symbol} {each.moved:+.3g}" for symbol, each in facts.elements.items())
        error = facts.energy_error
        log.info(
            "reference energies at %s [eV]: %s; the error of the energy goes from %.3g to %.3g eV per atom (root mean "
            "square over %d structures)",
            *(theory, moved, error.before.rmse, error.after.rmse, facts.num_structures),
        )
    return report


def _warn_of_moves(report: Mapping[str, MovedReferences], start: Potential, folder: Path) -> None:
    """Log where predictions of the start have moved."""
    for theory, facts in report.items():
        moved = {symbol: each.moved for symbol, each in facts.elements.items()}
        known = {SYMBOLS[z]: moved[SYMBOLS[z]] for z in start.elements if SYMBOLS[z] in moved}
        if theory in start.theories and known:
            furthest = max(known, key=lambda symbol: abs(known[symbol]))
            log.warning(
                "warning: %s already knows the level of theory %s: all its predictions there for %s move by up to "
                "%.3g eV per atom (%s). Keep the references if the data follow its convention (--references keep), or "
                "name a level of theory of their own (--theory NAME).",
                *(folder, theory, ", ".join(known), abs(known[furthest]), furthest),
            )


def _references(potential: Potential, sums: Statistics) -> Float64[Tensor, " elements"]:
    """Return references for a new level of theory [eV]; elements without data get those of the start, shifted alike."""
    elements = list(potential.elements)
    fitted = torch.from_numpy(sums.reference_energies()[elements])
    seen = torch.from_numpy(sums.atoms_of_element[elements] > 0)
    known = potential.get_buffer("reference_energies").mean(dim=0)
    return torch.where(seen, fitted, known + (fitted - known)[seen].mean())


def start_facts(folder: Path, described: Description) -> StartFacts:
    """Return what a card has to say of the weights that a training began with: all data they have seen.

    Args:
        folder: Folder of the start, or its published name.
        described: Its description.

    Raises:
        CorruptCheckpoint: the description lacks the potential's provenance.
    """
    with refusing(folder, CorruptCheckpoint):
        require(described.provenance, ("config", "method", "datasets"))
    origin = described.origin
    return StartFacts(
        folder=str(folder),
        name=origin.name,
        method=origin.method,
        weights_sha256=described.weights_sha256,
        checkpoint=origin.checkpoint,
        datasets=origin.datasets + origin.rehearsed + origin.start.datasets,
    )
