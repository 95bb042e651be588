"""Positions in the periodic table, and first features that are alike where those are near."""

import math
from itertools import combinations

import pytest
import torch

from foundation.nn.embedding import GROUP_LENGTH, PERIOD_LENGTH, periodic_features, periodic_position

KNOWN = {
    1: (1, 1), 2: (18, 1),
    3: (1, 2), 4: (2, 2), 5: (13, 2), 6: (14, 2), 9: (17, 2), 10: (18, 2),
    11: (1, 3), 12: (2, 3), 13: (13, 3), 18: (18, 3),
    20: (2, 4), 21: (3, 4), 26: (8, 4), 29: (11, 4), 30: (12, 4), 31: (13, 4), 36: (18, 4),
    39: (3, 5), 47: (11, 5), 54: (18, 5),
    55: (1, 6), 56: (2, 6), 57: (3, 6), 72: (4, 6), 79: (11, 6), 82: (14, 6), 86: (18, 6),
    87: (1, 7), 89: (3, 7), 104: (4, 7), 118: (18, 7),
}  # fmt: skip
"""Group and period by atomic number."""


@pytest.mark.parametrize(("number", "position"), KNOWN.items())
def test_group_and_period_of_known_elements(number: int, position: tuple[float, float]) -> None:
    assert periodic_position(number) == position


@pytest.mark.parametrize(("first", "last", "period"), [(58, 70, 6), (90, 102, 7)])
def test_f_elements_lie_between_groups_3_and_4_in_order(first: int, last: int, period: int) -> None:
    positions = [periodic_position(number) for number in range(first, last + 1)]
    groups = [group for group, _ in positions]
    assert {p for _, p in positions} == {period}
    assert groups[0] > 3
    assert groups == sorted(set(groups))
    assert groups[-1] < 4


def test_no_two_elements_share_a_position() -> None:
    by_position: dict[tuple[float, float], list[int]] = {}
    for number in range(1, 119):
        by_position.setdefault(periodic_position(number), []).append(number)
    assert [numbers for numbers in by_position.values() if len(numbers) > 1] == []


def test_features_correlate_as_the_gaussian_of_the_distance() -> None:
    torch.manual_seed(0)
    elements = (3, 11, 12, 9, 26, 27, 79)
    features = periodic_features(elements, 40000)
    assert features.shape == (7, 40000)
    covariance = features @ features.T / 40000
    for (i, a), (j, b) in combinations(enumerate(elements), 2):
        (group_a, period_a), (group_b, period_b) = periodic_position(a), periodic_position(b)
        squared = ((group_a - group_b) / GROUP_LENGTH) ** 2 + ((period_a - period_b) / PERIOD_LENGTH) ** 2
        assert covariance[i, j].item() == pytest.approx(math.exp(-squared / 2), abs=0.02)
    assert covariance.diagonal().sub(1).abs().max() < 0.02


def test_nearby_elements_are_more_alike_than_distant_ones() -> None:
    torch.manual_seed(0)
    lithium, sodium, fluorine, iron, cobalt = periodic_features((3, 11, 9, 26, 27), 4096)
    assert lithium @ sodium > lithium @ iron
    assert lithium @ sodium > sodium @ fluorine
    assert iron @ cobalt > iron @ sodium
