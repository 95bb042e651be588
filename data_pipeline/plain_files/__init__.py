"""Plain files: what users have becomes a data set in one step, with everything found out and said."""

from data_pipeline.plain_files.building import Built, build_plain, is_dataset, plain_fingerprint, plain_name
from data_pipeline.plain_files.read_config import BuildFilesConfig, ReadConfig
from data_pipeline.plain_files.remarks import checks_on, choices_on, lines, remarks_on

__all__ = [
    "BuildFilesConfig",
    "Built",
    "ReadConfig",
    "build_plain",
    "checks_on",
    "choices_on",
    "is_dataset",
    "lines",
    "plain_fingerprint",
    "plain_name",
    "remarks_on",
]
