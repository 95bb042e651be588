"""Report of a study: study.json, a figure per chart and one HTML page, with all subjects side by side."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from data_pipeline.store import durable
from data_pipeline.store.untrusted import CorruptFile, OpenRecord, read_json, refusing, typed
from foundation.evaluation.suites import Findings
from foundation.evaluation.suites.seeds import averaged
from foundation.reports.page import render_page
from foundation.reports.suite_charts import draw_charts
from foundation.reports.suite_table import suite_rows

JSON_NAME = "study.json"


@dataclass(frozen=True, kw_only=True)
class Bar(OpenRecord):
    """A limit of a quantity that a subject has to keep."""

    subject: str
    """Name of the subject: of a run without its seed, or of a potential."""
    suite: str
    """Name of the suite."""
    quantity: str
    """Name of the quantity."""
    at_least: float | None = None
    """Lower limit; None: none."""
    at_most: float | None = None
    """Upper limit; None: none."""
    times: str | None = None
    """Name of another subject whose value the limits are multiplied by; None: they are absolute."""


@dataclass(frozen=True, kw_only=True)
class Judged(OpenRecord):
    """One subject of a study, of one or several seeds."""

    seeds: dict[str, dict[str, Findings]]
    """Findings by name of the suite, by seed; '' for a subject without seeds."""
    training_seconds: dict[str, float] = field(default_factory=dict)
    """CPU time of the training by seed [s]."""

    def mean(self) -> dict[str, Findings]:
        """Return the findings of all seeds by name of the suite."""
        suites = dict.fromkeys(suite for found in self.seeds.values() for suite in found)
        return {suite: averaged([found[suite] for found in self.seeds.values() if suite in found]) for suite in suites}

    def values(self, suite: str, quantity: str) -> list[float | None]:
        """Return the values of a quantity, one per seed; None where it is undetermined."""
        found = [each[suite].quantities.get(quantity) for each in self.seeds.values() if suite in each]
        return [finding and finding.value for finding in found]


@dataclass(frozen=True, kw_only=True)
class StudyRecord(OpenRecord):
    """Content of study.json."""

    title: str
    """Title of the page."""
    question: str
    """Question that the study answers."""
    quick: bool = False
    """True for the short form, whose numbers say nothing."""
    subjects: dict[str, Judged]
    """Everything found, by name of the subject."""
    bars: tuple[Bar, ...] = ()
    """Limits to keep."""
    seconds: dict[str, float] = field(default_factory=dict)
    """CPU time by stage [s]."""
    missing: tuple[str, ...] = ()
    """Names of the jobs that failed."""
    pages: dict[str, str] = field(default_factory=dict)
    """Addresses of other pages by title, from the folder of the study."""

    @staticmethod
    def from_json(file: Path) -> "StudyRecord":
        """Return the content of a file.

        Raises:
            CorruptFile: it is not a report of a study.
        """
        with refusing(file, CorruptFile, "not the report of a study ({}); run the study again"):
            return typed(StudyRecord, read_json(file), "")


@dataclass(frozen=True, kw_only=True)
class BarRow:
    """A limit, and what was found, as text."""

    title: str
    """Subject, suite and quantity."""
    limit: str
    """Limit."""
    found: str
    """Mean, and the values of all seeds."""
    kept: bool | None
    """True if the mean keeps it; None: unknown."""


def bar_rows(record: StudyRecord) -> list[BarRow]:
    """Return a row for every limit of a study."""
    return [_bar_row(bar, _values(record, bar.subject, bar), _values(record, bar.times, bar)) for bar in record.bars]


def _bar_row(bar: Bar, values: Sequence[float | None], others: Sequence[float | None]) -> BarRow:
    mean, factor, kept = _mean(values), 1.0 if bar.times is None else _mean(others), None
    if mean is not None and factor is not None:
        above = bar.at_least is None or mean >= bar.at_least * factor
        kept = above and (bar.at_most is None or mean <= bar.at_most * factor)
    relative = f" × {bar.times}" if bar.times else ""
    signs = (("≥", bar.at_least), ("≤", bar.at_most))
    limits = [f"{sign} {limit:g}{relative}" for sign, limit in signs if limit is not None]
    each = ", ".join("–" if value is None else f"{value:.3g}" for value in values)
    found = "–" if mean is None else f"{mean:.3g}"
    return BarRow(
        title=f"{bar.subject}: {bar.suite}, {bar.quantity}",
        limit=", ".join(limits),
        found=f"{found} ({each})" if len(values) > 1 else found,
        kept=kept,
    )


def write_study(record: StudyRecord, folder: Path) -> None:
    """Write page, figures and study.json, which comes last: where it is, the others are."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {name: judged.mean() for name, judged in record.subjects.items()}
    charts = draw_charts(found, folder)
    page = render_page(
        "study_report.html",
        figures=charts,
        record=record,
        names=list(found),
        rows=suite_rows(*found.values()),
        charts=list(charts),
        bars=bar_rows(record),
    )
    durable.write_whole(folder / "index.html", page)
    durable.write_whole(folder / JSON_NAME, json.dumps(asdict(record), indent=1) + "\n")


def _values(record: StudyRecord, subject: str | None, bar: Bar) -> list[float | None]:
    return record.subjects[subject].values(bar.suite, bar.quantity) if subject in record.subjects else []


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None
