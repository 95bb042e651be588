"""Errors of any subject on labelled frames: known ones are found, in shown units, and missing labels are no errors."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from ase.calculators.calculator import Calculator

from data_pipeline.store.manifest import Manifest
from data_pipeline.structure import Structure
from foundation.checkpoint import save
from foundation.evaluate import EvaluateConfig, evaluate
from foundation.evaluation.suites import Errors
from foundation.evaluation.suites.labelled import Labelled
from foundation.evaluation.suites.suite import Predicted
from foundation.interop.subject import CalculatorSubject, PotentialSubject
from foundation.models import EquivariantConfig
from foundation.potential import new_potential
from launch.verbs import parse


class Off(CalculatorSubject):
    """Labels with known errors."""

    def __init__(self, elements: tuple[int, ...] | None = None) -> None:
        super().__init__(Calculator())
        self.elements = elements

    def predict(self, structures: Sequence[Structure]) -> list[Predicted]:
        return [
            Predicted(
                energy=each.energy + 0.02 * each.num_atoms,
                forces=each.forces + np.array([0.3, 0.0, -0.3]),
                stress=each.stress + 0.01 * np.eye(3),
            )
            for each in structures
        ]


def test_known_errors_are_found_in_the_units_of_people(emt_manifest: Manifest) -> None:
    found = Errors(held_out=(Labelled(path=str(emt_manifest.root), name="alloys"),)).run(Off()).quantities
    assert found["alloys: frames"].value == emt_manifest.split("test").statistics.num_frames
    energy, force = found["alloys: energy MAE"], found["alloys: force MAE"]
    assert (energy.value, energy.unit) == (pytest.approx(20.0), "meV/atom")
    assert (force.value, force.unit) == (pytest.approx(200.0, rel=1e-5), "meV/Å")
    assert force.interval == pytest.approx((200.0, 200.0), rel=1e-5)
    assert found["alloys: stress MAE"].value == pytest.approx(160.2176634 * 0.03 / 9, rel=1e-5)
    assert found["alloys: softening slope"].reference == 1.0


def test_frames_with_unknown_elements_are_left_out_and_counted(emt_manifest: Manifest) -> None:
    suite = Errors(held_out=(Labelled(path=str(emt_manifest.root), max_frames=20),))
    found = suite.run(Off(elements=(13, 28, 29))).quantities
    left, known = found["data: frames left out with unknown elements"].value, found["data: frames"].value
    assert left is not None
    assert known is not None
    assert (left > 0, known > 0, left + known) == (
        True,
        True,
        min(20, emt_manifest.split("test").statistics.num_frames),
    )
    with pytest.raises(ValueError, match="no frame whose elements are all known"):
        suite.run(Off(elements=(1,)))


def test_a_potential_has_the_errors_of_its_evaluation(emt_manifest: Manifest, tmp_path: Path) -> None:
    model = EquivariantConfig(irreps="4x0e+2x1e", num_blocks=1, max_degree=1, radial_sizes=(8,), readout_channels=4)
    potential = new_potential(model, {"EMT": emt_manifest.split("train").statistics}).eval()
    found = Errors(held_out=(Labelled(path=str(emt_manifest.root), name="x"),)).run(PotentialSubject(potential))
    save(potential, tmp_path / "saved", {})
    evaluated = evaluate(EvaluateConfig(model=tmp_path / "saved", data=emt_manifest.root, out=tmp_path / "report"))
    assert found.quantities["x: force MAE"].value == pytest.approx(1e3 * evaluated.errors["force_mae"], rel=1e-4)


def test_options_are_checked_and_the_member_is_told_by_its_first_field(emt_manifest: Manifest) -> None:
    words = ["evaluate", "--model", "m", "--suites", f'{{held_out: [{{path: "{emt_manifest.root}"}}]}}']
    _, config = parse(words)
    assert isinstance(config.suites[0], Errors)
    with pytest.raises(ValueError, match="max_frames must be at least 1"):
        Labelled(path="x", max_frames=0)
