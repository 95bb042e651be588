"""Table of the findings of suites, for pages, cards and the screen."""

from collections.abc import Mapping
from typing import NamedTuple

from foundation.evaluation.suites import Finding, Findings
from foundation.reports.escape import Markdown


class SuiteRow(NamedTuple):
    """A quantity of a suite, as text."""

    title: str
    """Suite, quantity and unit."""
    values: tuple[str, ...]
    """Values, one per potential; a dash if undetermined."""
    reference: str
    """Reference; a dash without one."""


def suite_rows(*found: Mapping[str, Findings]) -> list[SuiteRow]:
    """Return a row for every quantity of suites for one or several potentials; a dash where one was not measured."""
    known: dict[tuple[str, str], Finding] = {}
    for each in found:
        for suite, findings in each.items():
            known |= {
                (suite, name): finding for name, finding in findings.quantities.items() if (suite, name) not in known
            }
    return [
        SuiteRow(
            f"{suite}, {name}{f' [{finding.unit}]' if finding.unit else ''}",
            tuple(_shown(each[suite].quantities.get(name)) if suite in each else "–" for each in found),
            _text(finding.reference),
        )
        for (suite, name), finding in known.items()
    ]


def suite_table(*found: Mapping[str, Findings]) -> Markdown:
    """Return the rows as a table in Markdown; before and after a fine-tuning in one cell."""
    lines = ["| suite, quantity | value | reference |", "|---|---|---|"]
    for title, values, reference in suite_rows(*found):
        lines.append(f"| {title} | {' → '.join(values)} | {reference} |")
    return Markdown("\n".join(lines))


def _shown(finding: Finding | None) -> str:
    """Return a value with half the width of its interval."""
    if finding is None or finding.value is None or finding.interval is None:
        return _text(finding and finding.value)
    low, high = finding.interval
    return f"{finding.value:.4g} ± {(high - low) / 2:.2g}"


def _text(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
