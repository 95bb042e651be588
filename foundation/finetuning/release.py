"""What a release says of a fine-tuning: how it was done, and what it has learned and forgotten.

How is read from the provenance of the potential, so that a release needs neither the data nor the Fisher; the errors
are those that the run has measured of these very weights.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from foundation import checkpoint
from foundation.evaluation.held_out import BEFORE, read
from foundation.finetuning.fisher import FACT_NAMES, Fisher
from foundation.potential import Potential
from foundation.reports.escape import Markdown, code, markdown
from foundation.reports.forgetting_record import Forgetting, compare
from foundation.reports.forgetting_report import JSON_NAME, curve_file, curve_files, remarks, table
from foundation.surgery.weight_interpolation import interpolate

METHOD = "fine-tuning"
"""Method in the provenance of a fine-tuned potential."""
MOVED = "; all that the start predicted for these elements there has moved so, which is not in the changes of errors"
"""Consequence of estimating references again at a level of theory that the start knows."""


def fisher_facts(fisher: Fisher) -> dict[str, Any]:
    """Return what a card has to say of the Fisher of a penalty, as JSON."""
    return {name: getattr(fisher, name) for name in (*FACT_NAMES, "num_parameters", "num_unprotected")}


def interpolated(run: Path, tuned: Potential, settings: dict, alpha: float) -> tuple[Potential, dict]:
    """Return what lies between the start of a fine-tuning and its result, as the run has measured it, and its settings.

    Args:
        run: The run folder, which has a measurement at alpha in forgetting/.
        tuned: Its result.
        settings: The content of the result's config.json.
        alpha: How far to go from the start to the result, between 0 and 1.

    Raises:
        FileNotFoundError: nothing was measured at alpha, or the start is gone.
        ValueError: it is no fine-tuning, or what lies between is not what was measured.
    """
    provenance = settings["provenance"]
    if provenance["method"] != METHOD:
        raise ValueError(f"{run} is no fine-tuning, so that nothing lies between its start and its result: no alpha")
    file = curve_file(run / "forgetting", alpha)
    if not file.is_file():
        there = ", ".join(f"{each:g}" for each in curve_files(run / "forgetting")) or "none"
        raise FileNotFoundError(
            f"{file}: the run has not measured what lies at alpha {alpha:g} (measured: {there}); name it in "
            "forgetting.alphas and fine-tune again"
        )
    start = Path(provenance["start"]["folder"])
    potential = interpolate(checkpoint.load(start), tuned, alpha)
    sha256 = checkpoint.weights_sha256(potential)
    if read(file).weights_sha256 != sha256:
        raise ValueError(
            f"{file}: what lies at alpha {alpha:g} between {start} and {run} is not what was measured: another "
            "potential is there now, or the run gave the start other reference energies"
        )
    facts = provenance | {"interpolated": {"alpha": alpha, "weights_sha256": settings["weights_sha256"]}}
    return potential, settings | {"weights_sha256": sha256, "provenance": facts}


def card_section(run: Path, settings: dict, theory: str | None, alpha: float = 1.0) -> dict[str, Any]:
    """Return what a model card says of a fine-tuning: rows of what and how, the table of errors, sets and remarks.

    Args:
        run: The run folder, which has forgetting/forgetting.json.
        settings: The content of config.json of what it made.
        theory: Level of theory that is released alone, whose held-out sets count; all when None.
        alpha: How far from the start to the result of the fine-tuning the weights are.

    Raises:
        FileNotFoundError: there is no report.
        ValueError: it is of other weights, or has no held-out set of the target or of the level of theory.
    """
    file = run / "forgetting" / JSON_NAME
    if not file.is_file():
        raise FileNotFoundError(
            f"{file}: a release of a fine-tuning states what it has learned and forgotten; its run writes this file "
            "when it ends, so copy it from there or fine-tune again"
        )
    report = Forgetting.from_json(file)
    if alpha != 1:
        report = compare(read(file.parent / BEFORE), read(curve_file(file.parent, alpha)), {}, report.facts)
    if report.weights_sha256.after != settings["weights_sha256"]:
        raise ValueError(
            f"{file}: this report is of other weights than {run} has; copy the right one or fine-tune again"
        )
    kept = {name: row for name, row in report.sets.items() if theory in (None, row.theory)}
    if theory is not None and not kept:
        raise ValueError(f"{file}: no held-out set at {theory} was measured, so it cannot be released alone")
    if not any(row.role == "target" for row in report.sets.values()):
        raise ValueError(
            f"{file}: no held-out set of the target was measured, and a release states the errors on one; name one in "
            "forgetting.target and fine-tune again"
        )
    report = replace(report, sets=kept)
    return {
        "rows": method_rows(settings["provenance"], report.weights_sha256.before),
        "table": table(report),
        "sets": kept,
        "remarks": remarks(report),
    }


def method_rows(provenance: Mapping[str, Any], measured_before: str) -> list[tuple[str, Markdown]]:
    """Return what was done in a fine-tuning, in words: pairs of what and, in Markdown, how, only what was used.

    Args:
        provenance: That of the result.
        measured_before: Checksum of the weights that the errors before belong to.
    """
    config = provenance["config"]
    rows = [("begins with", _start(provenance["start"], measured_before)), ("learning rate", _rate(config))]
    if config["rehearsal"]:
        rows.append(("rehearsal", _rehearsal(config["rehearsal"], provenance["rehearsal"])))
    if config["penalty"]:
        rows.append(("penalty", _penalty(config["penalty"], provenance["fisher"])))
    trained = f"; {provenance['num_trained']:,} numbers were trained"
    if config["freeze"]:
        rows.append(("frozen", f"{_code(config['freeze'])}{trained}"))
    if config["adapters"]:
        adapters = config["adapters"]
        rows.append(
            (
                "adapters",
                f"of rank {adapters['rank']} and alpha {adapters['alpha']:g} on {_code(adapters['patterns'])}, merged "
                f"into the weights{trained}",
            )
        )
    if not (config["rehearsal"] or config["penalty"] or config["freeze"] or config["adapters"]):
        rows.append(("against forgetting", "nothing but the learning rate"))
    if "interpolated" in provenance:
        between = provenance["interpolated"]
        text = (
            f"start + {between['alpha']:g} (result − start) in all weights; the result is "
            f"{code(between['weights_sha256'])}"
        )
        rows.append(("interpolated", f"{text}. An alpha that was chosen by the errors below makes them look better"))
    return [(what, Markdown(how)) for what, how in rows + _references(provenance)]


def _start(start: Mapping[str, Any], measured_before: str) -> str:
    name = start.get("name") or Path(start["folder"]).name
    method = f" ({markdown(start['method'])})" if "method" in start else ""
    text = f"{markdown(name)}{method}, weights with SHA-256 {code(start['weights_sha256'])}"
    if measured_before != start["weights_sha256"]:
        text += f"; the errors before are of it with the elements, levels and references below, {code(measured_before)}"
    return text


def _rate(config: Mapping[str, Any]) -> str:
    optim = config["optim"]
    text = f"{optim['learning_rate']:g} at most, {markdown(optim['optimizer'])}, {markdown(optim['schedule'])}"
    text += f" after {optim['warmup_steps']} steps of warm-up" if optim["warmup_steps"] else ""
    factors = [f"times {factor:g} for {code(pattern)}" for pattern, factor in config["rate_factors"].items()]
    return ", ".join([text, *factors])


def _rehearsal(config: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """Return in words what is rehearsed and how."""
    text = f"{'; '.join(markdown(each['name']) for each in facts['datasets'])} ({markdown(config['split'])})"
    if config["elements"]:
        text += f", structures with {' or '.join(map(markdown, config['elements']))}"
    if config["fraction"] < 1:
        text += f", a fraction of {config['fraction']:g} of the structures ({markdown(config['method'])})"
    labels = "the data" if config["labels"] == "data" else "the start's own predictions"
    own_loss = ", with a loss of its own" if config["loss"] else ""
    return (
        f"{text}; mode {markdown(config['mode'])}, {config['ratio']:g} times the target's edge budget, loss times "
        f"{config['weight']:g}{own_loss}, labels: {labels}"
    )


def _penalty(config: Mapping[str, Any], facts: Mapping[str, Any] | None) -> str:
    if facts is None:
        return f"L2-SP, lambda {config['weight']:g}: (lambda/2) Σ (θ − θ*)²"
    text = f"EWC, lambda {config['weight']:g}, diagonal Fisher"
    data = ", ".join(f"{markdown(part['name'])} ({markdown(part['split'])})" for part in facts["data"])
    text += f" of {facts['num_structures']:,} structures of {data}"
    if facts["num_above_threshold"]:
        text += f", {facts['num_above_threshold']:,} with a loss above {facts['loss_threshold']:g} left out"
    return f"{text}{_scaling(config)}; {facts['num_unprotected']:,} of {facts['num_parameters']:,} weights have none"


def _scaling(config: Mapping[str, Any]) -> str:
    """Return in words what was done with a Fisher before it was used."""
    by = {"none": "", "mean": "divided by its mean", "tensor": "divided by its mean in each tensor"}
    parts = [
        f"to the power {config['power']:g}" if config["power"] != 1 else "",
        by[config["normalization"]],
        f"damping {config['damping']:g} of its mean" if config["damping"] else "",
    ]
    return "".join(f", {part}" for part in parts if part)


def _references(provenance: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what became of reference energies, elements and levels of theory."""
    rows = []
    if provenance["new_elements"]:
        begun = ", ".join(
            f"{markdown(new)} begins as {markdown(old)}" for new, old in provenance["new_elements"].items()
        )
        rows.append(("new elements", f"{begun}; {_moves(provenance['references_of_new_elements'])}"))
    if provenance["new_theories"]:
        rows.append(("new levels of theory", ", ".join(map(markdown, provenance["new_theories"]))))
    text = "kept"
    if "references" in provenance:
        moved = "" if provenance["same_energies"] else MOVED
        text = f"estimated again, {_moves(provenance['references'])}{moved}"
    return [*rows, ("reference energies", text)]


def _moves(report: Mapping[str, Any]) -> str:
    """Return by how much reference energies have moved."""
    parts = []
    for theory, facts in report.items():
        moved = ", ".join(f"{markdown(symbol)} {_signed(each['moved'])}" for symbol, each in facts["elements"].items())
        parts.append(f"at {markdown(theory)} by {moved} eV (from {facts['num_structures']:,} structures)")
    return "; ".join(parts) if parts else "none moved"


def _signed(value: float) -> str:
    return f"{value:+.3g}".replace("-", "−")


def _code(patterns: list[str]) -> str:
    return ", ".join(map(code, patterns))
