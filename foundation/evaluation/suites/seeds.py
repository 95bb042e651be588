"""Findings of several seeds as one: means and ranges."""

from collections.abc import Sequence

import numpy as np

from foundation.evaluation.suites.suite import Chart, Curve, Finding, Findings


def averaged(found: Sequence[Findings]) -> Findings:
    """Return the means of findings over seeds with their ranges as intervals; of a single seed, its own findings.

    A quantity that a seed could not determine is undetermined. A chart is that of the first seed, with the means and
    ranges of the curves that every seed has at the same abscissas; a heat map is that of the first seed.
    """
    first, *others = found
    if not others:
        return first
    return Findings(
        quantities={
            name: _mean([each.quantities[name] for each in found])
            for name in first.quantities
            if all(name in each.quantities for each in others)
        },
        charts={
            title: Chart(
                x=chart.x,
                y=chart.y,
                log_x=chart.log_x,
                log_y=chart.log_y,
                curves={
                    label: curve if curve.reference else _mean_curve([_curve(each, title, label) for each in found])
                    for label, curve in chart.curves.items()
                },
            )
            for title, chart in first.charts.items()
        },
        maps=first.maps,
    )


def _mean(findings: Sequence[Finding]) -> Finding:
    values = [each.value for each in findings if each.value is not None]
    if len(values) < len(findings):
        return Finding(value=None, unit=findings[0].unit, reference=findings[0].reference)
    return Finding(
        value=float(np.mean(values)),
        unit=findings[0].unit,
        reference=findings[0].reference,
        interval=(min(values), max(values)),
    )


def _curve(findings: Findings, title: str, label: str) -> Curve | None:
    return findings.charts[title].curves.get(label) if title in findings.charts else None


def _mean_curve(curves: Sequence[Curve | None]) -> Curve:
    """Return the mean of curves with their range; the first one if another is missing or has other abscissas."""
    first = curves[0]
    assert first is not None
    same = [each for each in curves if each is not None and each.x == first.x]
    if len(same) < len(curves) or first.points:
        return first
    columns = list(zip(*(each.y for each in same), strict=True))
    known = [[value for value in column if value is not None] for column in columns]
    whole = [values if len(values) == len(same) else None for values in known]
    return Curve(
        x=first.x,
        y=tuple(float(np.mean(values)) if values else None for values in whole),
        low=tuple(min(values) if values else None for values in whole),
        high=tuple(max(values) if values else None for values in whole),
    )
