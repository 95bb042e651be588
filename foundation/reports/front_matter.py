"""Front matter of a card: what the Hugging Face hub reads of it, as YAML before the text.

Every release for others has it, so that a release is the same bytes on the hub, on a web server and on a disk. Values
are written as JSON, which is YAML on one line.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from foundation.evaluation.quantities import QUANTITIES
from foundation.provenance import Provenance, names_of
from foundation.releases.addresses import hub_name
from foundation.reports.card import CardFacts

HUB_LICENCES = {
    *("mit", "apache-2.0", "bsd-2-clause", "bsd-3-clause", "isc", "mpl-2.0", "gpl-2.0", "gpl-3.0", "lgpl-3.0"),
    *("agpl-3.0", "unlicense", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0"),
}
"""Licences that the hub knows, by its names, which are those of SPDX in small letters."""
LIBRARY = "foundation"
TASK = {"type": "other", "name": "interatomic potential"}
Measured = Mapping[tuple[str, str], Mapping[str, float | None]]
"""Errors by name, of data sets by name and split."""


def front_matter(card: CardFacts, origin: Provenance, theories: Sequence[str], errors: Measured) -> str:
    """Return the front matter of a card.

    Args:
        card: Facts that people stated.
        origin: Origin of the potential.
        theories: Its levels of theory.
        errors: Its held-out errors.
    """
    licence = card.licence.strip().lower()
    known = licence in HUB_LICENCES
    values: dict[str, Any] = {"license": licence if known else "other"}
    if not known:
        values |= {"license_name": card.licence.strip()}
    values |= {
        "library_name": LIBRARY,
        "tags": ["interatomic-potential", "molecular-dynamics", "materials-science", "chemistry", *theories],
    }
    # only a potential of the hub has a page there to point to
    if base := hub_name(origin.start.folder):
        values |= {"base_model": base, "base_model_relation": "finetune"}
    used = names_of(origin.datasets + origin.rehearsed + origin.start.datasets)
    values |= {"datasets": list(dict.fromkeys(used))}
    if results := _results(errors):
        values |= {"model-index": [{"name": card.name, "results": results}]}
    lines = [f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in values.items()]
    return "\n".join(["---", *lines, "---", "", ""])


def _results(errors: Measured) -> list[dict[str, Any]]:
    """Return held-out errors as results of the hub's model index."""
    return [
        {"task": TASK, "dataset": {"name": name, "type": name, "split": split}, "metrics": _metrics(values)}
        for (name, split), values in errors.items()
    ]


def _metrics(errors: Mapping[str, float | None]) -> list[dict[str, Any]]:
    """Return the known ones of errors in the units of their titles."""
    known = {key: value for key, value in errors.items() if value is not None and math.isfinite(value)}
    return [
        {"type": key, "name": each.title, "value": float(f"{each.unit.factor * known[key]:.5g}")}
        for key, each in QUANTITIES.items()
        if key in known
    ]
