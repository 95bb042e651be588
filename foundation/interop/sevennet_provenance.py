"""Provenance of potentials that are read from SevenNet's checkpoints."""

import importlib.metadata
from pathlib import Path
from typing import Any

from data_pipeline.store.shards import sha256
from foundation.interop.published import NOT_STATED, published_of
from foundation.potential import Potential


def provenance_of_sevennet(path: Path, values: dict[str, Any], potential: Potential) -> dict:
    """Return the provenance of a SevenNet checkpoint, given its content, as JSON; unknown facts read 'not stated'."""
    digest = sha256(path)
    epoch = values.get("epoch")
    facts = ("name", "licence", "level_of_theory", "energy_convention", "citation", "source")
    unknown = dict.fromkeys(facts, NOT_STATED)
    published = published_of(digest)
    known = published.datasets if published else [unknown | {"theory": name} for name in potential.theories]
    not_counted = {"repeat": 1.0, **dict.fromkeys(("num_frames", "num_atoms", "manifest_fingerprint"), NOT_STATED)}
    return {
        "method": "converted from SevenNet",
        "converted_from": {
            "name": published.name if published else "",
            "file": path.name,
            "sha256": digest,
            "sevenn": values["config"]["version"],
            "epoch": epoch if isinstance(epoch, int) else NOT_STATED,
            "citation": published.citation if published else NOT_STATED,
        },
        "datasets": [not_counted | dataset for dataset in known],
        "num_parameters": sum(p.numel() for p in potential.parameters()),
        "hardware": NOT_STATED,
        "versions": {name: importlib.metadata.version(name) for name in ("foundation", "torch", "e3nn")},
        "config": {},
    }
