"""Unseen element: structures that hold an element which a training lacked, its vector made from its neighbours'.

The element's vector becomes the mean of those of known elements, such as Ca and Ba for Sr; beside it stand the vector
of each of these alone, and random ones with the mean and spread of all known vectors. A potential that knows the
element is judged with its own vector as well, which tells what training with it is worth. Only forces are compared: the
energy of an atom of an unseen element is not known from anything.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from data_pipeline.structure import Structure, atomic_number
from foundation.configuration import MAY_CHANGE, check_numbers
from foundation.evaluation.intervals import interval_over
from foundation.evaluation.quantities import MILLI_EV_PER_ANGSTROM
from foundation.evaluation.suites.labelled import Labelled, frames_with_forces
from foundation.evaluation.suites.suite import Finding, Findings, Subject, Suite
from foundation.potential import Potential
from foundation.surgery.elements import add_elements

LIMITS = {"random_vectors": (1, 1000)}
"""Smallest and largest value of each number."""


@dataclass(frozen=True, kw_only=True)
class UnseenElement(Suite):
    """Errors of forces with the vector of an element made from those of others."""

    name: ClassVar[str] = "unseen element"

    inserted: str = field(metadata=MAY_CHANGE)
    """Symbol of the element."""
    neighbours: tuple[str, ...] = field(metadata=MAY_CHANGE)
    """Symbols of the known elements whose vectors are averaged."""
    frames: tuple[Labelled, ...] = field(metadata=MAY_CHANGE)
    """Sets of frames with labelled forces; of each, the first `max_frames` that hold the element beside known ones."""
    random_vectors: int = field(default=10, metadata=MAY_CHANGE)
    """Number of random vectors."""

    def __post_init__(self) -> None:
        check_numbers(self, LIMITS)
        if not self.neighbours or self.inserted in self.neighbours:
            raise ValueError(f"neighbours must be one or more elements other than {self.inserted}")
        for symbol in (self.inserted, *self.neighbours):
            atomic_number(symbol)

    def elements(self) -> set[int]:
        """Return the atomic numbers of the neighbours: the element itself may be unknown."""
        return {atomic_number(symbol) for symbol in self.neighbours}

    def run(self, subject: Subject) -> Findings:
        """Return errors of forces with each vector.

        Raises:
            FileNotFoundError: there are no such frames.
            ValueError: the subject is a calculator, its network has no vectors of elements, or no labelled frame holds
                the element beside known ones only.
        """
        if subject.potential is None:
            raise ValueError(
                f"unseen element looks into a network, and {subject.name} is a calculator of another program; "
                "judge a potential by --model"
            )
        number = atomic_number(self.inserted)
        known = number in subject.potential.elements
        like = {number: atomic_number(self.neighbours[0])}
        grown = subject.potential if known else add_elements(subject.potential, [number], like=like)
        found: dict[str, Finding] = {}
        for item in self.frames:
            frames = self._frames(item, grown.elements, number)
            found |= {f"{item.label}: {title}": each for title, each in self._judged(grown, number, frames, known)}
        return Findings(quantities=found)

    def _judged(
        self, potential: Potential, number: int, frames: Sequence[Structure], known: bool
    ) -> list[tuple[str, Finding]]:
        """Return the errors with each vector of the element, which has its own again afterwards."""
        rows = potential.network.element_vectors()
        place = potential.elements.index(number)
        own = rows[place].clone()
        found = [("frames", Finding(value=float(len(frames))))]
        try:
            if known:
                found.append(("with its own vector", _finding(_errors(potential, frames))))
            for title, vector in self._vectors(potential, rows):
                rows[place] = vector
                found.append((title, _finding(_errors(potential, frames))))
            drawn = []
            for vector in _random(rows, place, self.random_vectors):
                rows[place] = vector
                drawn.append(_finding(_errors(potential, frames)).value)
        finally:
            rows[place] = own
        middle = Finding(
            value=float(np.median(drawn)), unit=MILLI_EV_PER_ANGSTROM.name, interval=(min(drawn), max(drawn))
        )
        found.append(("with random vectors, the middle one", middle))
        return [*found, ("with forces of zero", _finding(_errors(None, frames)))]

    def _vectors(self, potential: Potential, rows: Float64[Tensor, "elements channels"]) -> list[tuple[str, Tensor]]:
        """Return the mean of the neighbours' vectors and each of them alone, with titles."""
        sources = {each: rows[potential.elements.index(atomic_number(each))].clone() for each in self.neighbours}
        mean = torch.stack(list(sources.values())).mean(dim=0)
        alone = [(f"with the vector of {symbol}", vector) for symbol, vector in sources.items()]
        return [(f"with the mean of {' and '.join(sources)}", mean), *(alone if len(alone) > 1 else [])]

    def _frames(self, item: Labelled, elements: Sequence[int], number: int) -> list[Structure]:
        """Return the first frames with the element.

        Raises:
            FileNotFoundError: there is no such data set.
            ValueError: no frame holds the element beside known ones only.
        """
        held = [each for each in frames_with_forces(item.path, item.split, elements) if number in each.numbers]
        if not held:
            raise ValueError(
                f"{item.path}: no frame of split {item.split!r} with forces holds {self.inserted} and known elements "
                "only (frames of the suite unseen element names it)"
            )
        return held[: item.max_frames]


def _random(rows: Float64[Tensor, "elements channels"], place: int, count: int) -> Iterator[Tensor]:
    """Yield random vectors with the mean and the spread of the other elements' in every channel."""
    others = torch.cat([rows[:place], rows[place + 1 :]]).double().cpu().numpy()
    random = np.random.default_rng(0)
    for _ in range(count):
        drawn = random.normal(others.mean(axis=0), others.std(axis=0))
        yield torch.from_numpy(drawn).to(rows.dtype).to(rows.device)


def _errors(potential: Potential | None, frames: Sequence[Structure]) -> Float64[np.ndarray, "frames 2"]:
    """Return the sum of absolute errors of force components [eV/Å] and their number by frame; None predicts zero."""
    if potential is None:
        return np.array([[np.abs(each.forces).sum(dtype=np.float64), each.forces.size] for each in frames])
    sums = []
    for each, predicted in zip(frames, potential.predict(frames, theory=0), strict=True):
        difference = predicted.forces.double().cpu().numpy() - each.forces
        sums.append([np.abs(difference).sum(), each.forces.size])
    return np.array(sums)


def _finding(sums: Float64[np.ndarray, "frames 2"]) -> Finding:
    """Return the mean absolute error with its interval over frames."""

    def mean(rows: Float64[np.ndarray, "frames 2"]) -> float:
        return MILLI_EV_PER_ANGSTROM.factor * float(rows[:, 0].sum() / rows[:, 1].sum())

    interval = interval_over(mean, sums) if len(sums) > 1 else None
    return Finding(value=mean(sums), unit=MILLI_EV_PER_ANGSTROM.name, interval=interval)
