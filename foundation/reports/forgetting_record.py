"""Content of forgetting.json: errors of each held-out set before and after a fine-tuning, and their changes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_pipeline.store.untrusted import CorruptFile, OpenRecord, read_json, refusing, typed
from foundation.evaluation.comparison import RESAMPLING, Bootstrap, Estimate, Resampling, bootstrap, change, estimates
from foundation.evaluation.held_out import Measurement, Role, SetErrors
from foundation.evaluation.quantities import FORCE_COUNT
from foundation.evaluation.suites import Findings


@dataclass(frozen=True, kw_only=True)
class Ends:
    """Checksums of the weights before and after a fine-tuning."""

    before: str
    """Checksum of the start's weights."""
    after: str
    """Checksum of the result's weights."""


@dataclass(frozen=True, kw_only=True)
class ElementChange:
    """Force error of an element's atoms before and after."""

    num_frames: int
    """Number of frames that contain the element."""
    num_atoms: int
    """Number of its atoms with forces."""
    before: Estimate
    """Error of the start."""
    after: Estimate
    """Error of the result."""
    change: Estimate
    """Relative change of the error."""


@dataclass(frozen=True, kw_only=True)
class SetChange:
    """Quantities of a held-out set before and after.

    The change is relative for errors, (after - before) / before, and the difference for other quantities. For a
    retained set it is the forgetting; for a target, below zero, the learning.
    """

    role: Role
    """Role of the set in the comparison."""
    split: str
    """Split of the data set."""
    manifest_fingerprint: str
    """Fingerprint of the data set's manifest."""
    theory: str
    """Level of theory of the predictions."""
    num_frames: int
    """Number of frames measured."""
    num_atoms: int
    """Number of their atoms."""
    num_skipped: int
    """Number of frames left out because the potential does not know an element."""
    before: dict[str, Estimate]
    """Quantities of the start by name."""
    after: dict[str, Estimate]
    """Quantities of the result by name."""
    change: dict[str, Estimate]
    """Changes by name of the quantity."""
    by_element: dict[str, ElementChange]
    """Force errors by symbol of the element."""


@dataclass(frozen=True, kw_only=True)
class SetPoint:
    """Quantities of a held-out set at one point between start and result."""

    errors: dict[str, Estimate]
    """Quantities by name."""
    change: dict[str, Estimate]
    """Changes against the start by name of the quantity."""


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """A point on the line between start and result."""

    alpha: float
    """Position on the line: 0 is the start, 1 the result."""
    sets: dict[str, SetPoint]
    """Quantities by name of the set."""


@dataclass(frozen=True, kw_only=True)
class SuiteEnds:
    """Findings of suites before and after a fine-tuning, by name of the suite."""

    before: dict[str, Findings] = field(default_factory=dict)
    """Findings for the start."""
    after: dict[str, Findings] = field(default_factory=dict)
    """Findings for the result."""


@dataclass(frozen=True, kw_only=True)
class Forgetting(OpenRecord):
    """Learning and forgetting of a fine-tuning; every number has its interval, None if unknown."""

    facts: dict[str, Any]
    """Facts for the page: the name of the run as `run`, and numbers and texts."""
    weights_sha256: Ends
    """Weights that were measured."""
    bootstrap: Resampling
    """Options of the bootstrap."""
    sets: dict[str, SetChange]
    """Held-out sets by name."""
    curve: tuple[CurvePoint, ...]
    """Interpolations by alpha, sorted."""
    suites: SuiteEnds = field(default_factory=SuiteEnds)
    """Findings of suites before and after."""

    @staticmethod
    def from_json(file: Path) -> "Forgetting":
        """Return the content of a file.

        Raises:
            CorruptFile: it is not a report of a fine-tuning.
        """
        with refusing(file, CorruptFile, "not the report of a fine-tuning ({}); copy it again, or fine-tune again"):
            return typed(Forgetting, read_json(file), "")


def compare(
    before: Measurement,
    after: Measurement,
    curve: Mapping[float, Measurement],
    facts: dict[str, Any],
    suites: SuiteEnds | None = None,
) -> Forgetting:
    """Return the changes between two measurements of the same sets, and along the line between them."""
    sets: dict[str, SetChange] = {}
    points: dict[float, dict[str, SetPoint]] = {alpha: {} for alpha in sorted(curve)}
    for name, errors in before.sets.items():
        old = bootstrap(errors.errors)
        sets[name] = _set_change(errors, old, bootstrap(after.sets[name].errors))
        for alpha, found in points.items():
            between = bootstrap(curve[alpha].sets[name].errors, elements=False)
            found[name] = SetPoint(errors=estimates(between), change=estimates(change(old, between)))
    return Forgetting(
        facts=facts,
        weights_sha256=Ends(before=before.weights_sha256, after=after.weights_sha256),
        bootstrap=RESAMPLING,
        sets=sets,
        curve=tuple(CurvePoint(alpha=alpha, sets=found) for alpha, found in points.items()),
        suites=suites or SuiteEnds(),
    )


def _set_change(errors: SetErrors, old: Bootstrap, new: Bootstrap) -> SetChange:
    changed, frames = change(old, new), errors.errors
    by_element = {}
    for place, symbol in enumerate(frames.elements):
        name = f"force_mae/{symbol}"
        by_element[symbol] = ElementChange(
            num_frames=old[name].num_frames,
            num_atoms=int(frames.of_elements[FORCE_COUNT.name][:, place].sum()) // 3,
            before=old[name].estimate,
            after=new[name].estimate,
            change=changed[name].estimate,
        )
    return SetChange(
        role=errors.role,
        split=errors.split,
        manifest_fingerprint=errors.fingerprint,
        theory=errors.theory,
        num_frames=len(frames.ids),
        num_atoms=int(frames.num_atoms.sum()),
        num_skipped=errors.num_skipped,
        before=estimates(old),
        after=estimates(new),
        change=estimates(changed),
        by_element=by_element,
    )
