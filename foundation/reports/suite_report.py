"""Report of suites that were run alone: suites.json, a figure per chart and one HTML page."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from data_pipeline.store import durable
from data_pipeline.store.untrusted import CorruptFile, OpenRecord, read_json, refusing, typed
from foundation.evaluation.suites import Findings
from foundation.reports.page import render_page
from foundation.reports.suite_charts import draw_charts
from foundation.reports.suite_table import suite_rows

JSON_NAME = "suites.json"


@dataclass(frozen=True, kw_only=True)
class SuitesRecord(OpenRecord):
    """Content of suites.json."""

    subject: str
    """Name of the potential or calculator."""
    theory: str | None = None
    """Level of theory that was predicted; None: a calculator of another program."""
    weights_sha256: str | None = None
    """Checksum of the potential's weights; None: a calculator of another program."""
    suites: dict[str, Findings]
    """Findings by name of the suite."""
    seconds: dict[str, float] = field(default_factory=dict)
    """CPU time by name of the suite [s]."""

    @staticmethod
    def from_json(file: Path) -> "SuitesRecord":
        """Return the content of a file.

        Raises:
            CorruptFile: it is not a report of suites.
        """
        with refusing(file, CorruptFile, "not a report of suites ({}); run them again"):
            return typed(SuitesRecord, read_json(file), "")


def write_suites(record: SuitesRecord, folder: Path) -> None:
    """Write page, figures and suites.json, which comes last: where it is, the others are."""
    folder.mkdir(parents=True, exist_ok=True)
    charts = draw_charts({record.subject: record.suites}, folder)
    page = render_page(
        "suite_report.html", figures=charts, record=record, rows=suite_rows(record.suites), charts=list(charts)
    )
    durable.write_whole(folder / "index.html", page)
    durable.write_whole(folder / JSON_NAME, json.dumps(asdict(record), indent=1) + "\n")
