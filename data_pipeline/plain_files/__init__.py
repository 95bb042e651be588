"""Plain files: what users have becomes a data set in one step, with everything found out and said."""

from data_pipeline.plain_files.building import Built, build_plain, is_dataset, plain_fingerprint
from data_pipeline.plain_files.read_config import ReadConfig

__all__ = ["Built", "ReadConfig", "build_plain", "is_dataset", "plain_fingerprint"]
