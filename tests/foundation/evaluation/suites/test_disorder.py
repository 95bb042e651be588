"""Disorder: the oracle has no error, no force has an error of one, trajectories are made once, ions stay frozen."""

from collections.abc import Sequence

import numpy as np
import pytest
from ase.calculators.calculator import Calculator

from data_pipeline.sources.rigid_ions import RigidIons, crystal
from data_pipeline.structure import Structure
from foundation.evaluation.intervals import interval_over
from foundation.evaluation.suites.disorder import Disorder, sphere
from foundation.evaluation.suites.suite import Predicted, run_suites
from foundation.interop.subject import CalculatorSubject

SHORT = Disorder(
    frozen_radii=(2.5, 4.51), repeats=2, temperature=4000.0, trajectories=2, frames=2, interval=3, warm_up=5
)


class Scaled(CalculatorSubject):
    """The oracle's forces times a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__(RigidIons())
        self.factor, self.seen = factor, list[Structure]()

    def predict(self, structures: Sequence[Structure]) -> list[Predicted]:
        self.seen += structures
        return [
            Predicted(energy=each.energy, forces=self.factor * each.forces, stress=each.stress)
            for each in super().predict(structures)
        ]


def test_the_error_is_relative_to_the_oracle() -> None:
    for factor, error in ((1.0, 0.0), (0.75, 0.25), (0.0, 1.0)):
        found = run_suites([SHORT], Scaled(factor))["disorder"]
        for radius in ("2.5", "4.51"):
            median = found.quantities[f"median error, R {radius} Å"]
            assert median.value == pytest.approx(error, abs=1e-9)
            assert median.interval == pytest.approx((error, error), abs=1e-9)
        correlation = found.quantities["correlation, R 2.5 Å"].value
        assert correlation is None if factor == 0.0 else correlation == pytest.approx(1.0)
        radii, times = found.charts["Error against radius"].curves, found.charts["Error against time"].curves
        assert radii[""].x == (2.5, 4.51)
        assert radii[""].y == pytest.approx((error, error), abs=1e-9)
        assert times["R 4.51 Å"].x == (7.5, 12.0)
        assert times["R 4.51 Å"].y == pytest.approx((error, error), abs=1e-9)


def test_ions_within_the_radius_stay_and_the_others_move() -> None:
    subject = Scaled(1.0)
    SHORT.run(subject)
    assert [frame.num_atoms for frame in subject.seen] == [64] * 4 + [216] * 4
    for radius, repeats, frames in ((2.5, 2, subject.seen[:4]), (4.51, 3, subject.seen[4:])):
        perfect = crystal(repeats)
        centre, frozen = sphere(perfect, radius)
        inside = perfect.get_distances(centre, np.arange(len(perfect)), mic=True) <= radius
        assert (np.flatnonzero(inside) == frozen).all()
        for frame in frames:
            moved = (frame.positions != perfect.positions).any(axis=1)
            assert (moved == ~inside).all()


def test_melting_destroys_the_crystal_outside() -> None:
    displacements = []
    for melting in (None, 40_000.0):
        suite = Disorder(
            frozen_radii=(2.5,), repeats=2, trajectories=2, frames=1, interval=1, warm_up=25, melting=melting
        )
        subject = Scaled(0.5)
        found = suite.run(subject).quantities
        assert found["median error, R 2.5 Å"].value == pytest.approx(0.5)
        displacements.append(found["displacement of free ions, R 2.5 Å"].value)
        perfect = crystal(2)
        _, frozen = sphere(perfect, 2.5)
        assert all((frame.positions[frozen] == perfect.positions[frozen]).all() for frame in subject.seen)
    assert displacements[1] > 2 * displacements[0]


def test_trajectories_are_the_same_for_every_subject_and_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Scaled(1.0), Scaled(0.5)
    SHORT.run(first)
    monkeypatch.setattr(RigidIons, "calculate", lambda *_: pytest.fail("the oracle runs again"))
    second.predict = lambda structures: [
        second.seen.append(each) or Predicted(energy=0.0, forces=np.zeros((each.num_atoms, 3)), stress=np.zeros((3, 3)))
        for each in structures
    ]
    SHORT.run(second)
    assert [a.positions.tobytes() for a in first.seen] == [b.positions.tobytes() for b in second.seen]


def test_an_interval_is_over_trajectories_and_not_over_their_frames() -> None:
    alike = np.repeat(np.array([[0.1], [0.2], [0.3], [0.4]]), 50, axis=1)
    low, high = interval_over(np.median, alike)
    assert (low, high) == pytest.approx((0.1, 0.4), abs=0.05)


def test_impossible_options_are_refused() -> None:
    with pytest.raises(ValueError, match="frozen_radii must be lengths"):
        Disorder(frozen_radii=())
    with pytest.raises(ValueError, match="frozen_radii must be lengths"):
        Disorder(frozen_radii=(100.0,))
    with pytest.raises(ValueError, match="trajectories must be at least 2"):
        Disorder(frozen_radii=(4.0,), trajectories=1)
    assert CalculatorSubject(Calculator()).elements is None
    assert Disorder(frozen_radii=(4.0,)).elements() == {8, 12}
