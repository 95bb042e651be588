"""Driver: tasks that each need predictions again and again share batches, and give their outcomes when they end.

With `replace`, an ended task makes room for the next at once. Without, tasks run in rounds: the next begin when all of
a round have ended. Rounds follow from the order of the tasks alone, so a process that was killed and goes on makes the
same batches again, and its results are the same to the last digit.
"""

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import numpy as np

from data_pipeline.structure import Structure
from foundation.simulation.outcome import Evaluated, Outcome
from foundation.simulation.predictor import Predictor

NEIGHBORS = 40
"""Assumed number of neighbours of an atom in a structure that does not repeat in all directions."""


@runtime_checkable
class Task(Protocol):
    """A structure on its way."""

    @property
    def structure(self) -> Structure:
        """Structure to be predicted next."""
        ...

    @property
    def cost(self) -> int:
        """Expected number of directed edges, the same in every run."""
        ...

    def advance(self, found: Evaluated) -> Outcome | None:
        """Take the prediction for the structure; return the outcome if this was the last one."""
        ...

    def failed(self, reason: str) -> Outcome:
        """Return the outcome of a structure that cannot be predicted."""
        ...


def expected_edges(structure: Structure, cutoff: float) -> int:
    """Return about how many directed edges a structure has within a cutoff [Å], from its density."""
    atoms = structure.num_atoms
    if not structure.pbc.all() or structure.volume <= 0:
        return atoms * min(atoms - 1, NEIGHBORS) + 1
    return int(atoms * min(atoms / structure.volume, 1.0) * 4 / 3 * np.pi * cutoff**3) + 1


def drive(
    tasks: Iterator[Task | Outcome], predict: Predictor, *, edge_budget: int, replace: bool
) -> Iterator[list[Outcome]]:
    """Run tasks, as many at a time as the budget of edges has room for, and yield outcomes that belong together.

    Args:
        tasks: Tasks in order, or outcomes of structures that need none.
        predict: Function that predicts structures.
        edge_budget: Expected number of directed edges of the tasks at a time.
        replace: Whether an ended task makes room for the next at once.
    """
    queue = _Queue(tasks, edge_budget)
    active = queue.fill([])
    while active or queue.ended:
        if active:
            found = predict([task.structure for task in active])
            outcomes = [
                task.failed(each) if isinstance(each, str) else task.advance(each)
                for task, each in zip(active, found, strict=True)
            ]
            active = [task for task, each in zip(active, outcomes, strict=True) if each is None]
            queue.ended += [each for each in outcomes if each is not None]
        if queue.ended and (replace or not active):
            yield queue.ended
            queue.ended = []
        if replace or not active:
            active = queue.fill(active)


class _Queue:
    """Tasks that have not begun, and outcomes not yet given away."""

    def __init__(self, tasks: Iterator[Task | Outcome], edge_budget: int) -> None:
        self._tasks, self._edge_budget = tasks, edge_budget
        self._next: Task | Outcome | None = next(tasks, None)
        self.ended: list[Outcome] = []

    def fill(self, active: list[Task]) -> list[Task]:
        """Return the active tasks and those for which there is room; outcomes on the way have ended."""
        active = [*active]
        load = sum(task.cost for task in active)
        while self._next is not None:
            if isinstance(self._next, Outcome):
                self.ended.append(self._next)
            elif active and load + self._next.cost > self._edge_budget:
                break
            else:
                active.append(self._next)
                load += self._next.cost
            self._next = next(self._tasks, None)
        return active
