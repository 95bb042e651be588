"""Composition: a potential's picture of the periodic table, and elements made from their neighbours.

Elements enter a network as vectors. If those of one group of the periodic table are alike, chemistry that was learned
for one element serves another. A harder test replaces the vector of an element by the mean of its neighbours in the
group and measures errors on structures that hold it. The vectors were trained with the element present: this says
something about their geometry, and nothing yet about elements that a training never saw.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from data_pipeline.structure import SYMBOLS, Structure
from foundation.configuration import MAY_CHANGE, check_numbers
from foundation.evaluation.quantities import MILLI_EV_PER_ANGSTROM
from foundation.evaluation.suites.labelled import frames_with_forces
from foundation.evaluation.suites.suite import Chart, Curve, Finding, Findings, HeatMap, Subject, Suite
from foundation.nn.embedding import periodic_position

LIMITS = {"permutations": (1, 1_000_000), "max_frames": (1, 1_000_000), "max_atoms": (1, 1_000_000)}
"""Smallest and largest value of each number."""
F_ELEMENTS = LANTHANIDES, ACTINIDES = "lanthanides", "actinides"
"""Elements whose group has no number; two neighbours in a period are as alike as in a group."""
NONMETALS = "groups 15 to 17 and hydrogen"
KINDS = (
    (2.5, "groups 1 and 2"),
    (12.5, "transition metals"),
    (14.5, "groups 13 and 14"),
    (17.5, NONMETALS),
    (18.5, "noble gases"),
)
"""Colours of the map: last group of each kind, and its name."""


@dataclass(frozen=True, kw_only=True)
class Composition(Suite):
    """Likeness of elements of one group, and errors with an element's vector replaced by its neighbours' mean."""

    name: ClassVar[str] = "composition"

    permutations: int = field(metadata=MAY_CHANGE)
    """Number of permutations of the groups, of which none may have as large a gap of similarity by chance."""
    frames: str | None = field(default=None, metadata=MAY_CHANGE)
    """Data set or plain file with labels, on whose structures elements are replaced, environment variables expanded;
    None: no errors are measured."""
    split: str = field(default="test", metadata=MAY_CHANGE)
    """Split of a data set; of plain files, all frames are used."""
    max_frames: int = field(default=50, metadata=MAY_CHANGE)
    """Largest number of frames of an element, the first ones that hold it."""
    max_atoms: int = field(default=60, metadata=MAY_CHANGE)
    """Largest number of atoms of a frame."""

    def __post_init__(self) -> None:
        check_numbers(self, LIMITS)

    def elements(self) -> set[int]:
        """Return no atomic number: the subject's own are compared."""
        return set()

    def run(self, subject: Subject) -> Findings:
        """Return the likeness within and between groups, a map of the elements, and errors with elements replaced.

        Raises:
            ValueError: the subject is a calculator, or its network has no vectors of elements, or the frames are
                without labels.
        """
        if subject.potential is None:
            raise ValueError(
                f"composition looks into a network, and {subject.name} is a calculator of another program; "
                "judge a potential by --model"
            )
        rows = subject.potential.network.element_vectors()
        found = likeness(subject.potential.elements, rows.double().cpu().numpy(), self.permutations)
        if self.frames is None:
            return found
        replaced = self._replaced(subject, rows)
        return dataclasses.replace(
            found, quantities=found.quantities | replaced.quantities, charts=found.charts | replaced.charts
        )

    def _replaced(self, subject: Subject, rows: Float64[Tensor, "elements channels"]) -> Findings:
        """Return errors of forces with the vector of each element that has two neighbours replaced by their mean."""
        assert self.frames is not None
        assert subject.potential is not None
        known = subject.potential.elements
        every = frames_with_forces(self.frames, self.split, known)
        frames = [each for each in every if each.num_atoms <= self.max_atoms]
        found: dict[str, Finding] = {}
        errors: list[tuple[str, float, float]] = []
        for number, neighbours in triads(known):
            held = [each for each in frames if number in each.numbers]
            if not held:
                continue
            held = held[: self.max_frames]
            own = force_error(subject, held)
            with _mean_of(rows, known.index(number), [known.index(each) for each in neighbours]):
                other = force_error(subject, held)
            label = f"{SYMBOLS[number]} from {' and '.join(SYMBOLS[each] for each in neighbours)}"
            found[f"{label}: force error"] = Finding(
                value=MILLI_EV_PER_ANGSTROM.factor * other,
                unit=MILLI_EV_PER_ANGSTROM.name,
                reference=MILLI_EV_PER_ANGSTROM.factor * own,
            )
            errors.append((SYMBOLS[number], own, other))
        if not errors:
            return Findings(quantities={"median growth of the force error": Finding(value=None)})
        growth = float(np.median([other / own for _, own, other in errors]))
        summary = {"median growth of the force error": Finding(value=growth)}
        return Findings(quantities=summary | found, charts={"Elements from their neighbours": _errors_chart(errors)})


def group_of(number: int) -> str | None:
    """Return the name of an element's group in the periodic table; None for hydrogen, which is like no other."""
    if number == 1:
        return None
    if 57 <= number <= 71:
        return LANTHANIDES
    if 89 <= number <= 103:
        return ACTINIDES
    return f"group {periodic_position(number)[0]:g}"


def triads(known: Sequence[int]) -> list[tuple[int, tuple[int, int]]]:
    """Return each known element whose neighbours above and below in its group are known, with those."""
    place = {(group_of(number), periodic_position(number)[1]): number for number in known}
    found = []
    for number in sorted(known):
        group, period = group_of(number), periodic_position(number)[1]
        above, below = place.get((group, period - 1)), place.get((group, period + 1))
        if group not in (None, *F_ELEMENTS) and above is not None and below is not None:
            found.append((number, (above, below)))
    return found


def similarities(vectors: Float64[np.ndarray, "elements channels"]) -> Float64[np.ndarray, "elements elements"]:
    """Return the cosines between rows, from which the mean row is subtracted."""
    centred = vectors - vectors.mean(axis=0)
    unit = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    return unit @ unit.T


def likeness(numbers: Sequence[int], vectors: Float64[np.ndarray, "elements channels"], permutations: int) -> Findings:
    """Return mean similarities within and between groups, the p-value of their gap, and a map of the elements.

    Args:
        numbers: Atomic numbers.
        vectors: Vector of each.
        permutations: Number of random permutations of the groups for the p-value.
    """
    groups = [group_of(number) for number in numbers]
    grouped = [place for place, group in enumerate(groups) if group is not None]
    labels = np.unique([groups[place] or "" for place in grouped], return_inverse=True)[1]
    cosines = similarities(vectors)[np.ix_(grouped, grouped)]
    same, different = _pairs(labels)
    if not same.any() or not different.any():
        return Findings(quantities={"gap of similarity": Finding(value=None)})
    gap = float(cosines[same].mean() - cosines[different].mean())
    random = np.random.default_rng(0)
    by_chance = [_gap(cosines, random.permutation(labels)) for _ in range(permutations)]
    without_f = [place for place, number in enumerate(grouped) if groups[number] not in F_ELEMENTS]
    alone = np.where(np.eye(len(cosines), dtype=bool), -np.inf, cosines)
    has_group = same.any(axis=1)
    quantities = {
        "similarity in a group": float(cosines[same].mean()),
        "similarity between groups": float(cosines[different].mean()),
        "gap of similarity": gap,
        "p-value of the gap": (1 + sum(each >= gap for each in by_chance)) / (1 + permutations),
        "gap without lanthanides and actinides": _gap(cosines[np.ix_(without_f, without_f)], labels[without_f]),
        "share whose nearest is of the group": float((labels[alone.argmax(axis=1)] == labels)[has_group].mean()),
    }
    shares, chart = element_map(numbers, vectors)
    quantities["variance in the map"] = shares
    return Findings(
        quantities={name: Finding(value=value) for name, value in quantities.items()},
        charts={"Map of the elements": chart, "Similarity of pairs": _pairs_chart(cosines, same, different)},
        maps={"Similarity of the elements": similarity_map(numbers, vectors)},
    )


def similarity_map(numbers: Sequence[int], vectors: Float64[np.ndarray, "elements channels"]) -> HeatMap:
    """Return the cosines of all pairs of elements, in the order of the groups of the periodic table."""
    order = sorted(range(len(numbers)), key=lambda place: _in_the_table(numbers[place]))
    cosines = similarities(vectors)[np.ix_(order, order)]
    ordered = [numbers[place] for place in order]
    return HeatMap(
        values=tuple(tuple(row) for row in cosines.round(4).tolist()),
        labels=tuple(SYMBOLS[number] for number in ordered),
        groups=tuple((group_of(number) or "").removeprefix("group ") for number in ordered),
        quantity="cosine of the centred vectors",
        limits=(-1.0, 1.0),
    )


def _in_the_table(number: int) -> tuple[float, int]:
    """Return a sorting key: hydrogen first, groups 1 to 18, then lanthanides and actinides, downwards in each."""
    group = group_of(number)
    if group is None:
        return 0.0, number
    places = {LANTHANIDES: 19.0, ACTINIDES: 20.0}
    return places.get(group, periodic_position(number)[0]), number


def element_map(numbers: Sequence[int], vectors: Float64[np.ndarray, "elements channels"]) -> tuple[float, Chart]:
    """Return the share of variance in the first two principal components, and the chart of the elements in them."""
    left, sizes, _ = np.linalg.svd(vectors - vectors.mean(axis=0), full_matrices=False)
    places = (left * sizes)[:, :2]
    if places.shape[1] < 2:
        places = np.pad(places, ((0, 0), (0, 2 - places.shape[1])))
    # the sign of a component is arbitrary: its largest coordinate is positive
    places = places * np.sign(places[np.abs(places).argmax(axis=0), [0, 1]])
    kinds: dict[str, list[int]] = {}
    for place in np.argsort(numbers).tolist():
        kinds.setdefault(_kind(numbers[place]), []).append(place)
    curves = {
        kind: Curve(
            x=tuple(places[chosen, 0]),
            y=tuple(places[chosen, 1]),
            points=True,
            texts=tuple(SYMBOLS[numbers[place]] for place in chosen),
        )
        for kind, chosen in kinds.items()
    }
    share = float((sizes[:2] ** 2).sum() / max((sizes**2).sum(), np.finfo(np.float64).tiny))
    return share, Chart(x="first principal component", y="second principal component", curves=curves)


def force_error(subject: Subject, structures: Sequence[Structure]) -> float:
    """Return the mean absolute error of the components of forces [eV/Å]."""
    pairs = zip(subject.predict(structures), structures, strict=True)
    return float(np.concatenate([np.abs(found.forces - each.forces).ravel() for found, each in pairs]).mean())


def _kind(number: int) -> str:
    if group_of(number) in F_ELEMENTS:
        return " and ".join(F_ELEMENTS)
    group, _ = periodic_position(number)
    return NONMETALS if number == 1 else next(name for last, name in KINDS if group <= last)


def _pairs(labels: np.ndarray) -> tuple[Bool[np.ndarray, "elements elements"], Bool[np.ndarray, "elements elements"]]:
    """Return the pairs of two elements of the same group, and those of different groups."""
    equal = labels[:, None] == labels
    return equal & ~np.eye(len(labels), dtype=bool), ~equal


def _gap(cosines: Float64[np.ndarray, "elements elements"], labels: np.ndarray) -> float:
    same, different = _pairs(labels)
    return float(cosines[same].mean() - cosines[different].mean()) if same.any() and different.any() else np.nan


@contextlib.contextmanager
def _mean_of(rows: Float64[Tensor, "elements channels"], place: int, sources: Sequence[int]) -> Iterator[None]:
    """Write the mean of rows into another one for a while."""
    kept = rows[place].clone()
    try:
        rows[place] = torch.stack([rows[source] for source in sources]).mean(dim=0)
        yield
    finally:
        rows[place] = kept


def _pairs_chart(cosines: np.ndarray, same: np.ndarray, different: np.ndarray) -> Chart:
    """Return the share of pairs below each similarity, within and between groups."""
    steps = np.linspace(-1.0, 1.0, 81)
    above = np.triu(np.ones_like(same), 1)
    curves = {}
    for label, pairs in (("one group", same & above), ("different groups", different & above)):
        values = np.sort(cosines[pairs])
        shares = np.searchsorted(values, steps, side="right") / len(values)
        curves[label] = Curve(x=tuple(steps), y=tuple(shares.tolist()))
    return Chart(x="cosine of the centred vectors", y="share of pairs below", curves=curves)


def _errors_chart(errors: Sequence[tuple[str, float, float]]) -> Chart:
    names, own, other = zip(*errors, strict=True)
    factor = MILLI_EV_PER_ANGSTROM.factor
    ends = (factor * min(own), factor * max(own))
    points = Curve(
        x=tuple(factor * each for each in own), y=tuple(factor * each for each in other), points=True, texts=names
    )
    unit = MILLI_EV_PER_ANGSTROM.name
    return Chart(
        x=f"force error with the element's own vector [{unit}]",
        y=f"with the mean of its neighbours [{unit}]",
        curves={"the same": Curve(x=ends, y=ends, reference=True), "": points},
        log_x=True,
        log_y=True,
    )
