"""Sources: one file per format, which turns it into Structures; units and signs are converted nowhere else."""

from data_pipeline.sources.ase_files import AseFiles
from data_pipeline.sources.aselmdb import AseLmdb
from data_pipeline.sources.coulomb import CoulombMedia
from data_pipeline.sources.crystal_variants import CrystalVariants
from data_pipeline.sources.deepmd_npy import DeepmdNpy
from data_pipeline.sources.electrolyte import Electrolyte
from data_pipeline.sources.emt import EmtAlloys
from data_pipeline.sources.exploration import Exploration
from data_pipeline.sources.joined import FileSource, Joined
from data_pipeline.sources.mace_hdf5 import MaceHdf5
from data_pipeline.sources.molecular_dynamics import CrystalDynamics, FrozenSpheres
from data_pipeline.sources.pymatgen_json import AlexandriaJson, MatpesJson, MlearnJson, MptrjJson
from data_pipeline.sources.random_crystals import RandomCrystals
from data_pipeline.sources.source import Frame, MachineLearned, Part, Source

__all__ = [
    "AlexandriaJson",
    "AseFiles",
    "AseLmdb",
    "CoulombMedia",
    "CrystalDynamics",
    "CrystalVariants",
    "DeepmdNpy",
    "Electrolyte",
    "EmtAlloys",
    "Exploration",
    "FileSource",
    "Frame",
    "FrozenSpheres",
    "Joined",
    "MaceHdf5",
    "MachineLearned",
    "MatpesJson",
    "MlearnJson",
    "MptrjJson",
    "Part",
    "RandomCrystals",
    "Source",
    "SourceConfig",
]

SourceConfig = (
    AseFiles
    | AseLmdb
    | CoulombMedia
    | CrystalDynamics
    | CrystalVariants
    | DeepmdNpy
    | Electrolyte
    | EmtAlloys
    | Exploration
    | FrozenSpheres
    | Joined
    | RandomCrystals
    | MaceHdf5
    | MlearnJson
    | MptrjJson
    | MatpesJson
    | AlexandriaJson
)
"""The sources of a YAML file, distinguished by their first field."""
