"""The data side: labelled structures to shards, shards to batches of graphs.

Never imports lightning, e3nn or foundation, so that any trainer can stream the same shards. Building is not imported
here: who trains or predicts does not wait for the libraries of every format (half a second).
"""

from data_pipeline.graph import GraphBatch, collate, to_graph
from data_pipeline.manifest import Manifest, open_manifest
from data_pipeline.plan import Plan, PlannedSet
from data_pipeline.statistics import Statistics
from data_pipeline.stream import Dataset, Stream, sweep
from data_pipeline.structure import InvalidStructure, Structure
from data_pipeline.subset import Subset

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
    "open_manifest",
    "sweep",
    "to_graph",
]
