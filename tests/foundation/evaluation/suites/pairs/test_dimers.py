"""Dimers: findings of curves that are known, and refusals."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from ase.calculators.calculator import Calculator

from data_pipeline.structure import Structure
from foundation.evaluation.suites.pairs.dimers import Dimers
from foundation.evaluation.suites.suite import Predicted
from foundation.interop.subject import CalculatorSubject

PAIR = ("Cu", "Al")


class Pair(CalculatorSubject):
    """Two atoms with a curve of the energy."""

    def __init__(self, energy: Callable[[float], float]) -> None:
        super().__init__(Calculator())
        self.energy = energy

    def predict(self, structures: Sequence[Structure]) -> list[Predicted]:
        found = []
        for structure in structures:
            r = float(np.linalg.norm(structure.positions[1] - structure.positions[0]))
            force = -(self.energy(r + 1e-6) - self.energy(r - 1e-6)) / 2e-6
            forces = np.array([[-force, 0, 0], [force, 0, 0]])
            found.append(Predicted(energy=self.energy(r), forces=forces, stress=np.zeros((3, 3))))
        return found


def values(energy: Callable[[float], float], **options: float) -> list[float | None]:
    return [each.value for each in Dimers(pairs=(PAIR,), **options).run(Pair(energy)).quantities.values()]


def morse(r: float) -> float:
    return 2.0 * ((1 - np.exp(-1.5 * (r - 2.2))) ** 2 - 1)


def test_a_morse_curve_has_its_bond_length_its_depth_and_one_change_of_sign() -> None:
    length, depth, short, changes = values(morse, longest=10.0)
    assert length == pytest.approx(2.2, abs=0.011)
    assert depth == pytest.approx(2.0, abs=1e-4)
    assert short == pytest.approx(morse(0.6), abs=1e-4)
    assert changes == 1


def test_a_potential_that_attracts_at_short_distances_is_seen() -> None:
    def collapsing(r: float) -> float:
        return morse(r) - 400.0 * np.exp(-(((r - 0.6) / 0.3) ** 2))

    _, _, short, changes = values(collapsing)
    assert short is not None
    assert short < -30.0
    assert changes is not None
    assert changes >= 2


def test_atoms_that_only_repel_or_only_attract_have_no_bond() -> None:
    assert values(lambda r: 1 / r) == [None, None, pytest.approx(1 / 0.6 - 1 / 6), 0]
    assert values(lambda r: -1 / r) == [None, None, pytest.approx(1 / 6 - 1 / 0.6), 0]


def test_impossible_dimers_are_refused() -> None:
    with pytest.raises(ValueError, match="'Xx' is not the symbol of an element"):
        Dimers(pairs=(("Cu", "Xx"),))
    with pytest.raises(ValueError, match="shortest < longest"):
        Dimers(pairs=(PAIR,), shortest=5.0, longest=3.0)
    with pytest.raises(ValueError, match="step must be at least"):
        Dimers(pairs=(PAIR,), step=0.0)
