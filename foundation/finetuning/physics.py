"""Physics of fine-tunings: how far what suites found is from their references, beside what errors say."""

from collections.abc import Collection, Mapping, Sequence
from itertools import permutations
from statistics import fmean

from foundation.evaluation.comparison import Estimate
from foundation.evaluation.suites import Finding, Findings
from foundation.reports.forgetting_record import SuiteEnds
from foundation.reports.tradeoff_record import Contradiction, PhysicsAxis

START = "start"
"""Name of the start among the methods."""
SMALLEST = 0.01
"""Smallest difference of two deviations that counts."""


def deviations(suites: Mapping[str, Findings]) -> dict[tuple[str, str], float | None]:
    """Return the mean of |value / reference - 1| by suite and quantity, over everything that has a reference.

    Quantities such as `Cu fcc: bulk modulus` and `MgO rocksalt: bulk modulus` are one, `bulk modulus`. None: one of the
    values is undetermined.
    """
    found: dict[tuple[str, str], list[float | None]] = {}
    for suite, findings in suites.items():
        for name, finding in findings.quantities.items():
            if finding.reference:
                found.setdefault((suite, name.rpartition(": ")[2]), []).append(_deviation(finding))
    return {key: _complete_mean(values) for key, values in found.items()}


def _deviation(finding: Finding) -> float | None:
    assert finding.reference
    return None if finding.value is None else abs(finding.value / finding.reference - 1.0)


def _complete_mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) > 0 else None


def physics_axes(methods: Mapping[str, Sequence[SuiteEnds]]) -> tuple[PhysicsAxis, ...]:
    """Return the deviations from references of the start and of all methods, as means over seeds with their range.

    Args:
        methods: Findings of each seed by name of the method.
    """
    ends = [each for runs in methods.values() for each in runs]
    start = next((deviations(each.before) for each in ends if each.before), {})
    after = {name: [deviations(each.after) for each in runs] for name, runs in methods.items()}
    keys = dict.fromkeys(key for runs in after.values() for found in runs for key in found)
    return tuple(
        PhysicsAxis(
            suite=key[0],
            quantity=key[1],
            start=start.get(key),
            methods={name: _mean([found.get(key) for found in runs]) for name, runs in after.items()},
        )
        for key in keys
    )


def _mean(values: Sequence[float | None]) -> Estimate:
    """Return the mean of all seeds with their range; nothing if one is missing, no range of a single seed."""
    mean, known = _complete_mean(values), [value for value in values if value is not None]
    several = mean is not None and len(known) > 1
    return Estimate(value=mean, low=min(known) if several else None, high=max(known) if several else None)


def contradictions(axes: Sequence[PhysicsAxis], better: Collection[tuple[str, str]]) -> tuple[Contradiction, ...]:
    """Return where the method with the smaller errors is further from the references.

    Args:
        axes: Deviations of all methods.
        better: Pairs of methods, or of a method and START, of which the first has the smaller error on every target.
    """
    found = []
    for axis in axes:
        known = {START: Estimate(value=axis.start, low=None, high=None)} | axis.methods
        for first, second in permutations(known, 2):
            if (first, second) in better and _further(known[first], known[second]):
                found.append(
                    Contradiction(suite=axis.suite, quantity=axis.quantity, by_errors=first, by_physics=second)
                )
    return tuple(found)


def _further(first: Estimate, second: Estimate) -> bool:
    """Return whether all seeds of the first are further away than all seeds of the second, by SMALLEST."""
    nearest = first.value if first.low is None else first.low
    farthest = second.value if second.high is None else second.high
    return nearest is not None and farthest is not None and nearest - farthest >= SMALLEST
