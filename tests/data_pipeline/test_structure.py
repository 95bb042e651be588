"""Structure: conversion at the door, and what physics forbids."""

import numpy as np
import pytest

from data_pipeline.structure import InvalidStructure, Structure

WATER = {
    "numbers": [8, 1, 1],
    "positions": [[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]],
    "cell": np.zeros((3, 3)),
    "pbc": [False, False, False],
    "energy": -14.2,
}
BOX = {"cell": 9.0 * np.eye(3), "pbc": [True, True, True]}


def water(**changes: object) -> Structure:
    return Structure.checked(**{**WATER, **changes})


def test_lists_become_arrays_of_the_types_on_disk() -> None:
    structure = water(forces=np.ones((3, 3)).tolist(), stress=np.eye(3).tolist(), **BOX)
    assert structure.numbers.dtype == np.uint8
    assert structure.positions.dtype == structure.cell.dtype == np.float64
    assert structure.forces.dtype == structure.stress.dtype == np.float32
    assert structure.pbc.dtype == np.bool_
    assert structure.numbers.tolist() == [8, 1, 1]
    assert structure.positions[1].tolist() == [0.96, 0.0, 0.0]
    assert structure.num_atoms == 3


def test_a_missing_label_is_a_false_in_a_mask_and_zeros() -> None:
    structure = water()
    assert (structure.has_forces, structure.has_stress) == (False, False)
    assert not structure.forces.any()
    assert structure.forces.shape == (3, 3)
    assert not structure.stress.any()


def test_a_label_of_zeros_is_not_a_missing_label() -> None:
    structure = water(forces=np.zeros((3, 3)), stress=np.zeros((3, 3)), **BOX)
    assert (structure.has_forces, structure.has_stress) == (True, True)


def test_volume_of_a_left_handed_cell_is_positive() -> None:
    left_handed = [[0, 2, 0], [3, 0, 0], [0, 0, 4]]
    assert water(cell=left_handed, pbc=[True] * 3).volume == pytest.approx(24.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"energy": float("nan")}, "energy is nan, not a finite number"),
        ({"energy": float("-inf")}, "energy is -inf, not a finite number"),
        ({"forces": [[0, 0, 0], [0, np.nan, 0], [0, 0, 0]]}, "forces has a value that is not finite.*row 1"),
        ({"stress": np.diag([0, 0, np.inf])}, "stress has a value that is not finite.*row 2"),
        (
            {"positions": [[np.nan] * 3, [1, 0, 0], [0, 1, 0]]},
            "positions has a value that is not finite.*row 0",
        ),
        ({"cell": np.full((3, 3), np.nan)}, "cell has a value that is not finite"),
        ({"forces": np.zeros((2, 3))}, r"forces has shape \(2, 3\), expected \(3, 3\)"),
        ({"forces": np.zeros((3, 2))}, r"forces has shape \(3, 2\), expected \(3, 3\)"),
        ({"positions": np.zeros((4, 3))}, r"positions has shape \(4, 3\), expected \(3, 3\)"),
        ({"stress": np.zeros(6)}, r"stress has shape \(6,\), expected \(3, 3\)"),
        ({"pbc": [True]}, r"pbc has shape \(1,\), expected \(3,\)"),
        ({"cell": np.zeros(3)}, r"cell has shape \(3,\), expected \(3, 3\)"),
        ({"numbers": [], "positions": np.zeros((0, 3))}, "at least one atom"),
        ({"numbers": [8, 0, 1]}, "unknown element: atomic number 0"),
        ({"numbers": [8, 1, 119]}, "unknown element: atomic number 119"),
        ({"numbers": [8, 1, 264]}, "unknown element: atomic number 264"),
        ({"numbers": [8, -1, 1]}, "unknown element: atomic number -1"),
        ({"stress": [[0, 1, 0], [0, 0, 0], [0, 0, 0]]}, "stress is not symmetric"),
    ],
)
def test_what_physics_forbids_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(InvalidStructure, match=message):
        water(**changes)


def test_an_atomic_number_that_is_not_whole_is_refused() -> None:
    with pytest.raises(InvalidStructure, match="atomic number"):
        water(numbers=[8.0, 1.0, 1.5])


@pytest.mark.parametrize(
    ("cell", "pbc"),
    [
        (np.zeros((3, 3)), [True, True, True]),
        (np.diag([3.0, 3.0, 0.0]), [True, True, True]),
        ([[3, 0, 0], [6, 0, 0], [0, 0, 3]], [True, True, True]),
        ([[3, 0, 0], [0, 3, 0], [3, 3, 0]], [True, True, True]),
        ([[3, 0, 0], [-3, 0, 0], [0, 0, 9]], [True, True, False]),
        (np.diag([3.0, 3.0, 0.0]), [False, False, True]),
    ],
)
def test_periodic_vectors_without_volume_are_refused(cell: np.ndarray, pbc: list[bool]) -> None:
    with pytest.raises(InvalidStructure, match="periodic cell without volume"):
        water(cell=cell, pbc=pbc)


@pytest.mark.parametrize(
    ("cell", "pbc"),
    [
        (np.zeros((3, 3)), [False, False, False]),
        (np.diag([3.0, 3.0, 0.0]), [True, True, False]),
        ([[3, 0, 0], [0, 3, 0], [3, 3, 0]], [True, True, False]),
        (np.diag([0.0, 3.0, 0.0]), [False, True, False]),
        ([[3, 0, 0], [2.999, 0.01, 0], [0, 0, 40]], [True, True, True]),
    ],
)
def test_vectors_that_do_not_repeat_need_no_volume(cell: np.ndarray, pbc: list[bool]) -> None:
    assert water(cell=cell, pbc=pbc).pbc.tolist() == pbc


def test_rounding_of_printed_stress_is_not_asymmetry() -> None:
    stress = [[1.0, 0.25, 0.0], [0.2500004, 1.0, 0.0], [0.0, 0.0, 1.0]]
    assert water(stress=stress, **BOX).has_stress
