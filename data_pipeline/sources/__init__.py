"""One file per on-disk format; each turns it into Structures and is the only place that converts units and signs."""

from data_pipeline.sources.ase_files import AseFiles
from data_pipeline.sources.aselmdb import AseLmdb
from data_pipeline.sources.emt import EmtAlloys
from data_pipeline.sources.pymatgen_json import AlexandriaJson, MatpesJson, MlearnJson, MptrjJson
from data_pipeline.sources.source import Frame, Part, Source

__all__ = [
    "AlexandriaJson",
    "AseFiles",
    "AseLmdb",
    "EmtAlloys",
    "Frame",
    "MatpesJson",
    "MlearnJson",
    "MptrjJson",
    "Part",
    "Source",
    "SourceConfig",
]

SourceConfig = AseFiles | AseLmdb | EmtAlloys | MlearnJson | MptrjJson | MatpesJson | AlexandriaJson
"""The sources that a YAML can name; told apart by their fields."""
