"""Data: labelled structures to shards, shards to batches of graphs.

Never imports lightning, e3nn or foundation, so that any trainer can stream the same shards.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from data_pipeline.graphs.batch import GraphBatch, collate, to_graph
    from data_pipeline.loading.datasets import Dataset
    from data_pipeline.loading.plan import Plan, PlannedSet
    from data_pipeline.loading.stream import Stream, full_pass
    from data_pipeline.loading.subset import Subset
    from data_pipeline.statistics.sums import Statistics
    from data_pipeline.store.manifest import Manifest, open_manifest
    from data_pipeline.structure import InvalidStructure, Structure

__all__ = [
    "Dataset",
    "GraphBatch",
    "InvalidStructure",
    "Manifest",
    "Plan",
    "PlannedSet",
    "Statistics",
    "Stream",
    "Structure",
    "Subset",
    "collate",
    "full_pass",
    "open_manifest",
    "to_graph",
]
_HOMES = {
    **dict.fromkeys(("GraphBatch", "collate", "to_graph"), "graphs.batch"),
    **dict.fromkeys(("Manifest", "open_manifest"), "store.manifest"),
    **dict.fromkeys(("Plan", "PlannedSet"), "loading.plan"),
    **dict.fromkeys(("Stream", "full_pass"), "loading.stream"),
    "Dataset": "loading.datasets",
    **dict.fromkeys(("InvalidStructure", "Structure"), "structure"),
    "Statistics": "statistics.sums",
    "Subset": "loading.subset",
}
"""Module of each name, imported when the name is first used: importing torch takes a second, which `--help` must not
pay."""


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"data_pipeline.{_HOMES[name]}"), name)
