"""Section of a model card on a fine-tuning: the method, and errors before and after.

The method is read from the potential's provenance, so that a release needs neither data nor Fisher; the errors are
those that the run measured with these weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from foundation.evaluation.held_out import BEFORE, read
from foundation.provenance import (
    FinetuneRecord,
    FisherFacts,
    MovedReferences,
    OptimRecord,
    PenaltyRecord,
    Provenance,
    RehearsalRecord,
    StartFacts,
    names_of,
)
from foundation.reports.escape import Markdown, code, markdown
from foundation.reports.forgetting_record import Forgetting, SetChange, compare
from foundation.reports.forgetting_report import JSON_NAME, curve_file, remarks, table
from foundation.reports.suite_table import suite_table

MOVED = "; all predictions of the start for these elements there have moved so, which is not in the changes of errors"
"""Consequence of refitting references at a level of theory known to the start."""


@dataclass(frozen=True, kw_only=True)
class CardSection:
    """Content of a model card on a fine-tuning."""

    rows: list[tuple[str, Markdown]]
    """Rows of the method: pairs of name and text."""
    table: Markdown
    """Errors before and after."""
    sets: dict[str, SetChange]
    """Held-out sets by name."""
    remarks: list[str]
    """Remarks that deserve attention."""
    suites: Markdown | None
    """Findings of suites before and after; None: no suites were run."""


def card_section(
    run: Path, origin: Provenance, weights_sha256: str, theory: str | None, alpha: float = 1.0
) -> CardSection:
    """Return the content of a model card on a fine-tuning.

    Args:
        run: The run folder, which has forgetting/forgetting.json.
        origin: Origin of its result.
        weights_sha256: Checksum of the weights of its result.
        theory: Level of theory that is released alone, whose held-out sets count; None: all.
        alpha: Position of the weights between the start (0) and the result (1).

    Raises:
        FileNotFoundError: no report there.
        ValueError: it belongs to other weights, or has no held-out set of the target or of the level of theory.
    """
    file = run / "forgetting" / JSON_NAME
    if not file.is_file():
        raise FileNotFoundError(
            f"{file}: not found; a release of a fine-tuning states what it learned and forgot. The run writes it "
            "when it ends, so copy it from there or fine-tune again"
        )
    report = Forgetting.from_json(file)
    if alpha != 1:
        report = compare(read(file.parent / BEFORE), read(curve_file(file.parent, alpha)), {}, report.facts)
    if report.weights_sha256.after != weights_sha256:
        raise ValueError(
            f"{file}: this report belongs to other weights than those of {run}; copy the right one or fine-tune again"
        )
    kept = {name: row for name, row in report.sets.items() if theory in (None, row.theory)}
    if theory is not None and not kept:
        raise ValueError(f"{file}: no held-out set at {theory} was measured, so it cannot be released alone")
    if not any(row.role == "target" for row in report.sets.values()):
        raise ValueError(
            f"{file}: no held-out set of the target was measured, but a release states the errors on one; name one in "
            "forgetting.target and fine-tune again"
        )
    report = replace(report, sets=kept)
    rows = method_rows(origin, report.weights_sha256.before)
    suites = suite_table(report.suites.before, report.suites.after) if report.suites.before else None
    return CardSection(rows=rows, table=table(report), sets=kept, remarks=remarks(report), suites=suites)


def method_rows(origin: Provenance, measured_before: str) -> list[tuple[str, Markdown]]:
    """Return rows on the method of a fine-tuning: pairs of name and Markdown text, only for methods used.

    Args:
        origin: Origin of the result.
        measured_before: Checksum of the weights of the errors before.
    """
    run = origin.finetuning
    rows = [("begins with", _start(origin.start, measured_before)), ("learning rate", _rate(run.optim, run))]
    if run.rehearsal:
        rows.append(("rehearsal", _rehearsal(run.rehearsal, names_of(origin.rehearsed))))
    if run.penalty:
        rows.append(("penalty", _penalty(run.penalty, origin.fisher)))
    trained = f"; {origin.num_trained:,} numbers were trained"
    if run.freeze:
        rows.append(("frozen", f"{_code(run.freeze)}{trained}"))
    if run.adapters:
        what = f"of rank {run.adapters.rank} and alpha {run.adapters.alpha:g} on {_code(run.adapters.patterns)}"
        rows.append(("adapters", f"{what}, merged into the weights{trained}"))
    if not (run.rehearsal or run.penalty or run.freeze or run.adapters):
        rows.append(("against forgetting", "only the learning rate"))
    if origin.interpolated:
        alpha, result = origin.interpolated.alpha, code(origin.interpolated.weights_sha256)
        text = f"start + {alpha:g} (result − start) in all weights; the result is {result}"
        rows.append(("interpolated", f"{text}. If alpha was chosen by the errors below, they look too good"))
    return [(what, Markdown(how)) for what, how in rows + _references(origin)]


def _start(start: StartFacts, measured_before: str) -> str:
    name = start.name or Path(start.folder).name
    method = "" if start.method is None else f" ({markdown(start.method)})"
    text = f"{markdown(name)}{method}, weights with SHA-256 {code(start.weights_sha256)}"
    if measured_before != start.weights_sha256:
        text += f"; errors before are of it with the elements, levels and references below, {code(measured_before)}"
    return text


def _rate(optim: OptimRecord, run: FinetuneRecord) -> str:
    text = f"{optim.learning_rate:g} at most, {markdown(optim.optimizer)}, {markdown(optim.schedule)}"
    text += f" after {optim.warmup_steps} steps of warm-up" if optim.warmup_steps else ""
    factors = [f"times {factor:g} for {code(pattern)}" for pattern, factor in run.rate_factors.items()]
    return ", ".join([text, *factors])


def _rehearsal(rehearsal: RehearsalRecord, names: Sequence[str]) -> str:
    """Describe the rehearsal."""
    text = f"{'; '.join(map(markdown, names))} ({markdown(rehearsal.split)})"
    if rehearsal.elements:
        text += f", structures with {' or '.join(map(markdown, rehearsal.elements))}"
    if rehearsal.fraction < 1:
        text += f", a fraction of {rehearsal.fraction:g} of the structures ({markdown(rehearsal.method)})"
    labels = "the data" if rehearsal.labels == "data" else "the start's own predictions"
    own_loss = ", with its own loss" if rehearsal.loss else ""
    return (
        f"{text}; mode {markdown(rehearsal.mode)}, {rehearsal.ratio:g} times the target's edge budget, loss times "
        f"{rehearsal.weight:g}{own_loss}, labels: {labels}"
    )


def _penalty(penalty: PenaltyRecord, fisher: FisherFacts | None) -> str:
    if fisher is None:
        return f"L2-SP, lambda {penalty.weight:g}: (lambda/2) Σ (θ − θ*)²"
    text = f"EWC, lambda {penalty.weight:g}, diagonal Fisher"
    data = ", ".join(f"{markdown(part.name)} ({markdown(part.split)})" for part in fisher.data)
    text += f" of {fisher.num_structures:,} structures of {data}"
    if fisher.num_above_threshold:
        text += f", {fisher.num_above_threshold:,} with a loss above {fisher.loss_threshold:g} left out"
    return f"{text}{_scaling(penalty)}; {fisher.num_unprotected:,} of {fisher.num_parameters:,} weights have none"


def _scaling(penalty: PenaltyRecord) -> str:
    """Describe the scaling of a Fisher."""
    by = {"none": "", "mean": "divided by its mean", "tensor": "divided by its mean in each tensor"}
    parts = [
        f"to the power {penalty.power:g}" if penalty.power != 1 else "",
        by[penalty.normalization],
        f"damping {penalty.damping:g} of its mean" if penalty.damping else "",
    ]
    return "".join(f", {part}" for part in parts if part)


def _references(origin: Provenance) -> list[tuple[str, str]]:
    """Return rows on reference energies, new elements and new levels of theory."""
    rows = []
    if origin.new_elements:
        begun = ", ".join(f"{markdown(new)} begins as {markdown(old)}" for new, old in origin.new_elements.items())
        rows.append(("new elements", f"{begun}; {_moves(origin.references_of_new_elements or {})}"))
    if origin.new_theories:
        rows.append(("new levels of theory", ", ".join(map(markdown, origin.new_theories))))
    text = "kept"
    if origin.references is not None:
        text = f"refitted, {_moves(origin.references)}{'' if origin.same_energies else MOVED}"
    return [*rows, ("reference energies", text)]


def _moves(moved: Mapping[str, MovedReferences]) -> str:
    """Return the shifts of reference energies."""
    parts = []
    for theory, facts in moved.items():
        shifts = ", ".join(f"{markdown(symbol)} {_signed(each.moved)}" for symbol, each in facts.elements.items())
        parts.append(f"at {markdown(theory)} by {shifts} eV (from {facts.num_structures:,} structures)")
    return "; ".join(parts) if parts else "none moved"


def _signed(value: float) -> str:
    return f"{value:+.3g}".replace("-", "−")


def _code(patterns: Sequence[str]) -> str:
    return ", ".join(map(code, patterns))
