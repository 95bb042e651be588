"""Disagreement: none with itself, a known one with scaled forces; the second subject is found by its word."""

from pathlib import Path

import numpy as np
import pytest
from ase.calculators.emt import EMT

from data_pipeline.sources.rigid_ions import RigidIons
from data_pipeline.store.manifest import Manifest
from foundation import checkpoint
from foundation.evaluation.suites.crystals.equation_of_state import Crystal
from foundation.evaluation.suites.disagreement import Disagreement
from foundation.interop.subject import CalculatorSubject, PotentialSubject, subject_of
from foundation.models import EquivariantConfig
from foundation.potential import new_potential
from launch.verbs import parse

MGO = Crystal(elements=("Mg", "O"), prototype="rocksalt", lattice_constant=4.21)
HERE = "tests.foundation.evaluation.suites.test_disagreement"


class Weaker(RigidIons):
    """Rigid ions with 0.6 of the forces."""

    def calculate(self, *args: object, **options: object) -> None:
        super().calculate(*args, **options)
        self.results["forces"] = 0.6 * self.results["forces"]


def suite(word: str) -> Disagreement:
    return Disagreement(compared_with=word, melted=(MGO,), radius=3.0, trajectories=2, frames=2, interval=2, warm_up=4)


def test_a_potential_agrees_with_itself_and_differs_from_a_weaker_one() -> None:
    subject = CalculatorSubject(RigidIons())
    same = suite("data_pipeline.sources.rigid_ions:RigidIons").run(subject).quantities
    assert same["MgO rocksalt: disagreement"].value == 0.0
    assert same["MgO rocksalt: correlation"].value == pytest.approx(1.0)
    weaker = suite(f"{HERE}:Weaker").run(subject).quantities
    # (1 - 0.6) |F| over (1 + 0.6) / 2 |F|
    assert weaker["MgO rocksalt: disagreement"].value == pytest.approx(0.5)
    assert weaker["MgO rocksalt: disagreement"].interval == pytest.approx((0.5, 0.5))
    assert weaker["MgO rocksalt: correlation"].value == pytest.approx(1.0)
    assert weaker["MgO rocksalt: mean force"].value == pytest.approx(0.8 * same["MgO rocksalt: mean force"].value)


def test_a_word_is_a_calculator_or_a_potential(emt_manifest: Manifest, tmp_path: Path) -> None:
    assert isinstance(subject_of("ase.calculators.emt:EMT").calculator(), EMT)
    network = EquivariantConfig(irreps="4x0e", num_blocks=1, max_degree=0, radial_sizes=(8,), readout_channels=4)
    potential = new_potential(network, {"emt": emt_manifest.split("train").statistics})
    checkpoint.save(potential, tmp_path / "small", {})
    second = CalculatorSubject(RigidIons()).another(str(tmp_path / "small"))
    assert isinstance(second, PotentialSubject)
    assert second.name == str(tmp_path / "small")
    with pytest.raises(ValueError, match=r"does not know the elements \[8, 12\]"):
        suite(str(tmp_path / "small")).run(CalculatorSubject(RigidIons()))
    with pytest.raises(FileNotFoundError, match="sevennet-99"):
        suite("sevennet-99").run(CalculatorSubject(RigidIons()))


def test_packaged_suites_of_crystals_are_known_by_name() -> None:
    for name in ("disagreement", "force-constants"):
        _, config = parse(["evaluate", "--model", "m", "--suites", name])
        assert {8, 12, 38} <= config.suites[0].elements()


def test_impossible_options_are_refused() -> None:
    with pytest.raises(ValueError, match="radius must be 0 to 20"):
        Disagreement(compared_with="a", melted=(MGO,), radius=np.inf)
    with pytest.raises(ValueError, match="trajectories must be at least 2"):
        Disagreement(compared_with="a", melted=(MGO,), trajectories=1)
