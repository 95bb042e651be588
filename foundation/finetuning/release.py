"""What a release says of a fine-tuning: how it was done, and what it has learned and forgotten.

How is read from the provenance of the potential, so that a release needs neither the data nor the Fisher; the errors
are those that the run has measured of these very weights.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foundation.finetuning.fisher import FACT_NAMES, Fisher
from foundation.finetuning.forgetting_report import JSON_NAME, remarks, table

METHOD = "fine-tuning"
"""What the provenance of a fine-tuned potential has as its method."""
MOVED = "; all that the start predicted for these elements there has moved so, which is not in the changes of errors"
"""What it means that references are estimated again at a level of theory that the start knows."""


def fisher_facts(fisher: Fisher) -> dict[str, Any]:
    """Return what a card has to say of the Fisher of a penalty, as JSON."""
    return {name: getattr(fisher, name) for name in (*FACT_NAMES, "num_parameters", "num_unprotected")}


def card_section(run: Path, settings: dict, theory: str | None) -> dict[str, Any]:
    """Return what a model card says of a fine-tuning: rows of what and how, the table of errors, sets and remarks.

    Args:
        run: The run folder, which has forgetting/forgetting.json.
        settings: The content of config.json of what it made.
        theory: Level of theory that is released alone, whose held-out sets count; all when None.

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
    values = json.loads(file.read_text())
    if values["weights_sha256"]["after"] != settings["weights_sha256"]:
        raise ValueError(
            f"{file}: this report is of other weights than {run} has; copy the right one or fine-tune again"
        )
    kept = {name: row for name, row in values["sets"].items() if theory in (None, row["theory"])}
    if theory is not None and not kept:
        raise ValueError(f"{file}: no held-out set at {theory} was measured, so it cannot be released alone")
    if not any(row["role"] == "target" for row in values["sets"].values()):
        raise ValueError(
            f"{file}: no held-out set of the target was measured, and a release states the errors on one; name one in "
            "forgetting.target and fine-tune again"
        )
    values["sets"] = kept
    sets = [
        {"name": name} | {part: row[part] for part in ("role", "split", "theory", "manifest_fingerprint")}
        for name, row in kept.items()
    ]
    provenance = settings["provenance"]
    return {
        "rows": [(what, _cell(how)) for what, how in method_rows(provenance, values["weights_sha256"]["before"])],
        "table": table(values),
        "sets": sets,
        "remarks": remarks(values),
    }


def method_rows(provenance: Mapping[str, Any], measured_before: str) -> list[tuple[str, str]]:
    """Return what was done in a fine-tuning, in words: pairs of what and how, only what was used.

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
    return rows + _references(provenance)


def _start(start: Mapping[str, Any], measured_before: str) -> str:
    name = start.get("name") or Path(start["folder"]).name
    method = f" ({start['method']})" if "method" in start else ""
    text = f"{name}{method}, weights with SHA-256 `{start['weights_sha256']}`"
    if measured_before != start["weights_sha256"]:
        text += f"; the errors before are of it with the elements, levels and references below, `{measured_before}`"
    return text


def _rate(config: Mapping[str, Any]) -> str:
    optim = config["optim"]
    text = f"{optim['learning_rate']:g} at most, {optim['optimizer']}, {optim['schedule']}"
    text += f" after {optim['warmup_steps']} steps of warm-up" if optim["warmup_steps"] else ""
    factors = [f"times {factor:g} for `{pattern}`" for pattern, factor in config["rate_factors"].items()]
    return ", ".join([text, *factors])


def _rehearsal(config: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """Return in words what is rehearsed and how."""
    text = f"{'; '.join(each['name'] for each in facts['datasets'])} ({config['split']})"
    if config["elements"]:
        text += f", structures with {' or '.join(config['elements'])}"
    if config["fraction"] < 1:
        text += f", a fraction of {config['fraction']:g} of the structures ({config['method']})"
    labels = "the data" if config["labels"] == "data" else "the start's own predictions"
    own_loss = ", with a loss of its own" if config["loss"] else ""
    return (
        f"{text}; mode {config['mode']}, {config['ratio']:g} times the target's edge budget, loss times "
        f"{config['weight']:g}{own_loss}, labels: {labels}"
    )


def _penalty(config: Mapping[str, Any], facts: Mapping[str, Any] | None) -> str:
    if facts is None:
        return f"L2-SP, lambda {config['weight']:g}: (lambda/2) Σ (θ − θ*)²"
    text = f"EWC, lambda {config['weight']:g}, diagonal Fisher"
    data = ", ".join(f"{part['name']} ({part['split']})" for part in facts["data"])
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
        begun = ", ".join(f"{new} begins as {old}" for new, old in provenance["new_elements"].items())
        rows.append(("new elements", f"{begun}; {_moves(provenance['references_of_new_elements'])}"))
    if provenance["new_theories"]:
        rows.append(("new levels of theory", ", ".join(provenance["new_theories"])))
    text = "kept"
    if "references" in provenance:
        moved = "" if provenance["same_energies"] else MOVED
        text = f"estimated again, {_moves(provenance['references'])}{moved}"
    return [*rows, ("reference energies", text)]


def _moves(report: Mapping[str, Any]) -> str:
    """Return by how much reference energies have moved."""
    parts = []
    for theory, facts in report.items():
        moved = ", ".join(f"{symbol} {_signed(each['moved'])}" for symbol, each in facts["elements"].items())
        parts.append(f"at {theory} by {moved} eV (from {facts['num_structures']:,} structures)")
    return "; ".join(parts) if parts else "none moved"


def _signed(value: float) -> str:
    return f"{value:+.3g}".replace("-", "−")


def _code(patterns: list[str]) -> str:
    return ", ".join(f"`{pattern}`" for pattern in patterns)


def _cell(text: str) -> str:
    return text.replace("|", r"\|")
