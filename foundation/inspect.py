"""Contents of a data set, with checks of its labels, and the page that shows them."""

from dataclasses import dataclass, field
from pathlib import Path

from data_pipeline.inspection import Inspection, inspect_manifest
from data_pipeline.plain_files import ReadConfig
from data_pipeline.store.manifest import Manifest
from foundation.datasets import one_split
from foundation.reports.data_report import write_data_report


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """Data set to describe."""

    data: Path | tuple[Path, ...]
    """Data set, or plain files, globs or folders of files."""
    verify: bool = False
    """Compare every file with its checksum as well."""
    out: Path | None = None
    """Folder for a page with figures: index.html, inspection.json and the figures as PNG; None writes no page."""
    read: ReadConfig = field(default_factory=ReadConfig)
    """Settings for reading plain files."""
    cutoff: float = 5.0
    """Cutoff for counting the edges of plain files [Å]."""


def inspect(config: InspectConfig) -> tuple[Manifest, Inspection]:
    """Return a data set and its facts, and write the page if requested.

    Raises:
        FileNotFoundError: the manifest or a file is missing.
        ValueError: with verify, a file differs from its checksum.
    """
    with one_split(config.data, config.read, split="train", cutoff=config.cutoff) as opened:
        if config.verify:
            opened.verify()
        found = inspect_manifest(opened) if config.out is None else write_data_report(opened, config.out)
        return opened, found
