"""Batches of structures of any sizes: budgets, order, and structures without a neighbour list."""

import numpy as np
import pytest
import torch

from data_pipeline.graphs.batch import collate
from data_pipeline.graphs.packing import Pack, Refused, packed
from data_pipeline.structure import Structure

CUTOFF = 3.0


def chain(num_atoms: int, distance: float = 1.5) -> Structure:
    positions = np.zeros((num_atoms, 3))
    positions[:, 0] = distance * np.arange(num_atoms)
    return Structure.checked(
        numbers=np.full(num_atoms, 6), positions=positions, cell=np.zeros((3, 3)), pbc=[False] * 3, energy=0.0
    )


def batches(structures: list[Structure], **budgets: int) -> list[Pack | Refused]:
    return list(packed(structures, CUTOFF, **budgets))


def num_edges(pack: Pack | Refused) -> int:
    assert isinstance(pack, Pack)
    return pack.batch(torch.float32).num_edges


def test_every_structure_is_in_one_batch_in_order_and_budgets_hold() -> None:
    random = np.random.default_rng(0)
    structures = [chain(int(number)) for number in random.integers(2, 40, 200)]
    for budgets in ({"edge_budget": 300}, {"atom_budget": 90}, {"edge_budget": 250, "atom_budget": 60}):
        found = batches(structures, **budgets)
        places = [place for pack in found if isinstance(pack, Pack) for place in pack.places]
        assert places == list(range(200))
        assert len(found) > 10
        for pack in found:
            assert num_edges(pack) <= budgets.get("edge_budget", 10**9)
            assert isinstance(pack, Pack)
            assert sum(each.num_atoms for each in pack.structures) <= budgets.get("atom_budget", 10**9)


def test_a_batch_ends_only_where_the_next_structure_exceeds_the_budget() -> None:
    edges = collate([chain(10)], CUTOFF).num_edges
    assert [len(p.places) for p in batches([chain(10)] * 7, edge_budget=3 * edges) if isinstance(p, Pack)] == [3, 3, 1]


def test_batches_from_a_first_structure_on_are_the_same_as_if_the_structures_began_there() -> None:
    structures = [chain(number) for number in (5, 30, 8, 9, 22, 3, 4, 17, 28, 6)]
    found = [pack.places for pack in batches(structures, edge_budget=70) if isinstance(pack, Pack)]
    assert len(found) > 3
    for number, first in enumerate(found):
        rest = batches(structures[first[0] :], edge_budget=70)
        assert [[place + first[0] for place in p.places] for p in rest if isinstance(p, Pack)] == found[number:]


def test_a_structure_above_the_budget_is_a_batch_of_its_own() -> None:
    found = batches([chain(3), chain(50), chain(3)], edge_budget=40)
    assert [pack.places for pack in found if isinstance(pack, Pack)] == [[0], [1], [2]]


def test_a_batch_equals_what_collate_makes_of_its_structures() -> None:
    structures = [chain(number) for number in (3, 9, 5)]
    for dtype in (torch.float32, torch.float64):
        (pack,) = batches(structures)
        assert isinstance(pack, Pack)
        made, expected = pack.batch(dtype, theory=2), collate(structures, CUTOFF, dtype, [2, 2, 2])
        for name in ("senders", "receivers", "shifts", "positions", "theory", "reverse"):
            assert torch.equal(getattr(made, name), getattr(expected, name))
        assert made.shifts.dtype == dtype


def test_structures_without_a_neighbour_list_are_put_aside_and_the_others_stay_together() -> None:
    found = batches([chain(4), chain(4, distance=0.01), chain(4)])
    assert [each.place for each in found if isinstance(each, Refused)] == [1]
    assert "two atoms at the same place" in next(str(each.error) for each in found if isinstance(each, Refused))
    assert [each.places for each in found if isinstance(each, Pack)] == [[0, 2]]


@pytest.mark.parametrize("budgets", [{"edge_budget": 0}, {"atom_budget": -1}])
def test_budgets_must_be_positive(budgets: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        batches([chain(2)], **budgets)


def test_no_structure_makes_no_batch() -> None:
    assert batches([]) == []
