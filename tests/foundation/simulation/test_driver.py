"""The driver: every task ends once, the budget holds, and rounds follow from the order of the tasks alone."""

from collections.abc import Iterator, Sequence

import pytest

from data_pipeline.structure import Structure
from foundation.simulation.driver import Task, drive, expected_edges
from foundation.simulation.outcome import Evaluated, Outcome, put_aside
from tests.foundation.simulation.analytic import gas, nothing


class Countdown:
    """A task that ends after a number of predictions."""

    def __init__(self, number: int, predictions: int, cost: int = 10) -> None:
        self.structure, self.cost, self._number, self._left = gas(2, number), cost, number, predictions

    def advance(self, found: Evaluated) -> Outcome | None:
        self._left -= 1
        return Outcome(number=self._number, id="", energy=found.energy) if self._left == 0 else None

    def failed(self, reason: str) -> Outcome:
        return put_aside(self._number, self.structure, reason)


class Counter:
    """A predictor that keeps the number of structures of each call."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, structures: Sequence[Structure]) -> list[Evaluated | str]:
        self.sizes.append(len(structures))
        return nothing(structures)


def countdowns(*predictions: int) -> Iterator[Task | Outcome]:
    return iter([Countdown(number, each) for number, each in enumerate(predictions)])


def numbers(outcomes: list[list[Outcome]]) -> list[list[int]]:
    return [[each.number for each in some] for some in outcomes]


def test_an_ended_task_makes_room_for_the_next_at_once() -> None:
    predict = Counter()
    found = list(drive(countdowns(1, 4, 1, 1, 2), predict, edge_budget=25, replace=True))
    assert numbers(found) == [[0], [2], [3], [1], [4]]
    assert predict.sizes == [2, 2, 2, 2, 1]


def test_rounds_end_together() -> None:
    predict = Counter()
    found = list(drive(countdowns(1, 4, 1, 1, 2), predict, edge_budget=25, replace=False))
    assert numbers(found) == [[0, 1], [2, 3], [4]]
    assert predict.sizes == [2, 1, 1, 1, 2, 1, 1]


def test_rounds_from_any_round_on_are_those_of_the_whole() -> None:
    costs = [7, 12, 3, 20, 9, 9, 4, 30, 2, 5]

    def tasks(first: int) -> Iterator[Task | Outcome]:
        return iter([Countdown(number, 2, cost) for number, cost in enumerate(costs) if number >= first])

    whole = numbers(list(drive(tasks(0), nothing, edge_budget=25, replace=False)))
    assert len(whole) > 3
    for number, some in enumerate(whole):
        assert numbers(list(drive(tasks(some[0]), nothing, edge_budget=25, replace=False))) == whole[number:]


@pytest.mark.parametrize("replace", [True, False])
def test_failures_and_what_needs_no_task_are_outcomes_among_the_others(replace: bool) -> None:
    def predict(structures: Sequence[Structure]) -> list[Evaluated | str]:
        return ["it exploded" if each is bad.structure else nothing([each])[0] for each in structures]

    bad, refused = Countdown(1, 3), Outcome(number=2, id="", error="unreadable")
    tasks: list[Task | Outcome] = [Countdown(0, 2), bad, refused, Countdown(3, 1)]
    found = {
        each.number: each for some in drive(iter(tasks), predict, edge_budget=1000, replace=replace) for each in some
    }
    assert sorted(found) == [0, 1, 2, 3]
    assert {number: each.error for number, each in found.items() if each.error} == {1: "it exploded", 2: "unreadable"}


def test_nothing_to_do_ends_at_once() -> None:
    assert list(drive(iter([]), nothing, edge_budget=1, replace=True)) == []


def test_expected_edges_grow_with_density_and_are_those_of_a_gas() -> None:
    assert expected_edges(gas(40), 5.0) == pytest.approx(40 * 40 / 12**3 * 4 / 3 * 3.1416 * 125, rel=0.02)
