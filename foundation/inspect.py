"""Contents of a data set, with checks of its labels, and the page that shows them."""

from dataclasses import dataclass
from pathlib import Path

from data_pipeline.inspection import Inspection, inspect_manifest
from data_pipeline.store.manifest import Manifest, open_manifest
from foundation.reports.data_report import write_data_report


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """Data set to describe."""

    data: Path
    """Manifest, or its folder."""
    verify: bool = False
    """Compare every file with its checksum as well."""
    out: Path | None = None
    """Folder for a page with figures: index.html, inspection.json and the figures as PNG; None writes no page."""


def inspect(config: InspectConfig) -> tuple[Manifest, Inspection]:
    """Return a data set and its facts, and write the page if requested.

    Raises:
        FileNotFoundError: the manifest or a file is missing.
        ValueError: with verify, a file differs from its checksum.
    """
    opened = open_manifest(config.data)
    if config.verify:
        opened.verify()
    found = inspect_manifest(opened) if config.out is None else write_data_report(opened, config.out)
    return opened, found
