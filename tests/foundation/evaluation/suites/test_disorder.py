"""Disorder: the oracle has no error, no force has an error of one, trajectories are made once or are a data set."""

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.building.build import BuildConfig, build
from data_pipeline.sources import FrozenSpheres
from data_pipeline.sources.molecular_dynamics import Material
from data_pipeline.sources.rigid_ions import RigidIons
from data_pipeline.store.manifest import Provenance
from data_pipeline.structure import Structure
from foundation.evaluation.intervals import interval_over
from foundation.evaluation.suites.disorder import Disorder
from foundation.evaluation.suites.suite import Predicted, run_suites
from foundation.interop.subject import CalculatorSubject

SPHERES = FrozenSpheres(frozen_radii=(2.5, 4.51), repeats=2, trajectories=2, frames=2, interval=3, warm_up=5)
SHORT = Disorder(spheres=(SPHERES,))
PROVENANCE = Provenance(**{item.name: "test" for item in fields(Provenance)})
MGO = "MgO rocksalt, 4000 K"


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
            for name in ("median error", "mean error over mean force"):
                each = found.quantities[f"{MGO}: {name}, R {radius} Å"]
                assert each.value == pytest.approx(error, abs=1e-6)
                assert each.interval == pytest.approx((error, error), abs=1e-6)
        correlation = found.quantities[f"{MGO}: correlation, R 2.5 Å"].value
        assert correlation is None if factor == 0.0 else correlation == pytest.approx(1.0)
        radii = found.charts["Error against radius"].curves
        times = found.charts[f"Error against time, {MGO}, R 4.51 Å"].curves
        assert radii[""].x == (2.5, 4.51)
        assert radii[""].y == pytest.approx((error, error), abs=1e-6)
        assert times[""].x == (7.5, 12.0)
        assert times[""].y == pytest.approx((error, error), abs=1e-6)


def test_melting_destroys_the_crystal_outside() -> None:
    displacements = []
    for melting in (None, 40_000.0):
        source = FrozenSpheres(
            frozen_radii=(2.5,), repeats=2, trajectories=2, frames=1, interval=1, warm_up=25, melting=melting
        )
        subject = Scaled(0.5)
        found = Disorder(spheres=(source,)).run(subject).quantities
        assert found[f"{MGO}: median error, R 2.5 Å"].value == pytest.approx(0.5, abs=1e-6)
        displacements.append(found[f"{MGO}: displacement of free atoms, R 2.5 Å"].value)
        perfect, _, frozen = source.perfect(2.5)
        assert all((frame.positions[frozen] == perfect.positions[frozen]).all() for frame in subject.seen)
        free = np.delete(np.array([frame.positions - perfect.positions for frame in subject.seen]), frozen, axis=1)
        assert displacements[-1] == pytest.approx(np.sqrt((free**2).sum(axis=2).mean()))
    assert displacements[1] > 2 * displacements[0]


def test_trajectories_are_the_same_for_every_subject_and_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Scaled(1.0), Scaled(0.5)
    SHORT.run(first)
    monkeypatch.setattr(RigidIons, "calculate", lambda *_: pytest.fail("the oracle runs again"))
    second.predict = nothing_predicted(second)
    SHORT.run(second)
    assert [a.positions.tobytes() for a in first.seen] == [b.positions.tobytes() for b in second.seen]


def nothing_predicted(subject: Scaled) -> Callable[[Sequence[Structure]], list[Predicted]]:
    """Return a method that notes structures and predicts no force."""
    return lambda structures: [
        subject.seen.append(each)
        or Predicted(energy=0.0, forces=np.zeros((each.num_atoms, 3)), stress=np.zeros((3, 3)))
        for each in structures
    ]


def test_a_data_set_of_the_same_options_takes_the_place_of_the_oracle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "spheres"
    build(BuildConfig(source=SPHERES, provenance=PROVENANCE, out=out, val_fraction=0.0, test_fraction=1.0))
    monkeypatch.setattr(RigidIons, "calculate", lambda *_: pytest.fail("the oracle runs again"))
    read, made = Scaled(1.0), Scaled(1.0)
    read.predict, made.predict = nothing_predicted(read), nothing_predicted(made)
    found = Disorder(spheres=(SPHERES,), data=(str(out),)).run(read)
    assert found == SHORT.run(made)
    assert [a.positions.tobytes() for a in read.seen] == [b.positions.tobytes() for b in made.seen]
    others = replace(SPHERES, frames=3)
    with pytest.raises(ValueError, match=r"12 frames are missing in its split test.*with other options"):
        Disorder(spheres=(others,), data=(str(out),)).run(read)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Disorder(spheres=(SPHERES,), data=(str(tmp_path / "nowhere"),)).run(read)


def test_an_interval_is_over_trajectories_and_not_over_their_frames() -> None:
    alike = np.repeat(np.array([[0.1], [0.2], [0.3], [0.4]]), 50, axis=1)
    low, high = interval_over(np.median, alike)
    assert (low, high) == pytest.approx((0.1, 0.4), abs=0.05)


def test_impossible_options_are_refused() -> None:
    with pytest.raises(ValueError, match="spheres must name at least one"):
        Disorder(spheres=())
    with pytest.raises(ValueError, match="each at one temperature once"):
        Disorder(spheres=(SPHERES, SPHERES))
    with pytest.raises(ValueError, match="data must name 1 data sets"):
        Disorder(spheres=(SPHERES,), data=("a", "b"))
    strontium = FrozenSpheres(
        frozen_radii=(4.0,), material=Material(formula="Sr", prototype="fcc", lattice_constant=6.08)
    )
    assert Disorder(spheres=(SPHERES, strontium)).elements() == {8, 12, 38}
