"""Diatomics: findings of curves that are known, beside a reference, with elements left out, and refusals."""

import gzip
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT

from data_pipeline.structure import Structure
from foundation.evaluation.suites.pairs.diatomics import Diatomics, tortuosity
from foundation.evaluation.suites.pairs.dimers import Dimers
from foundation.evaluation.suites.suite import Predicted, check_suites
from foundation.interop.subject import CalculatorSubject
from launch.verbs import parse

R = np.linspace(0.5, 6.0, 111)
DEPTHS = {29: 2.0, 13: 1.0}


def morse(number: int, r: float) -> float:
    return DEPTHS[number] * ((1 - np.exp(-1.5 * (r - 2.2))) ** 2 - 1)


class Pairs(CalculatorSubject):
    """Two atoms with a curve for each element; copper and aluminium alone are known."""

    def __init__(self, energy: Callable[[int, float], float] = morse) -> None:
        super().__init__(Calculator())
        self.energy, self.elements = energy, (13, 29)

    def predict(self, structures: Sequence[Structure]) -> list[Predicted]:
        found = []
        for structure in structures:
            number, r = int(structure.numbers[0]), float(structure.positions[1, 0] - structure.positions[0, 0])
            force = -(self.energy(number, r + 1e-6) - self.energy(number, r - 1e-6)) / 2e-6
            forces = np.array([[-force, 0, 0], [force, 0, 0]])
            found.append(Predicted(energy=self.energy(number, r), forces=forces, stress=np.zeros((3, 3))))
        return found


def written(path: Path, shift: float = 0.0) -> str:
    """Write curves of both elements whose wells are deeper by a shift, in any order, with another zero."""
    curves = {}
    for symbol, number in (("Cu", 29), ("Al", 13)):
        energies = [morse(number, r) - shift * (r < 5.5) + 7.0 for r in R[::-1]]
        curves[f"{symbol}-{symbol}"] = {"distances": R[::-1].tolist(), "energies": energies, "magmoms": []}
    with gzip.open(path, "wt") as file:
        json.dump({"PBE": curves, "r2SCAN": {"Cu-Cu": curves["Cu-Cu"]}}, file)
    return str(path)


def values(suite: Diatomics, subject: CalculatorSubject) -> dict[str, float | None]:
    return {name: each.value for name, each in suite.run(subject).quantities.items()}


def test_smooth_curves_have_one_minimum_and_unknown_elements_are_left_out() -> None:
    suite = Diatomics(curves=None, longest=12.0)
    check_suites([suite], Pairs().elements)
    found = values(suite, Pairs())
    assert found["elements"] == 2
    assert found["elements left out"] == 90
    assert found["median tortuosity"] == pytest.approx(1.0, abs=1e-12)
    assert found["share with a tortuosity below 1.1"] == 1
    assert found["share with at most one change of the force's sign"] == 1
    assert found["median number of changes of the force's sign"] == 1
    assert found["share repulsive at 0.6 Å"] == 1
    assert found["lowest wall of those attracted at 0.6 Å"] is None
    walls = Diatomics(curves=None, longest=12.0).run(Pairs()).charts["Wall"].curves
    assert walls["repelled there"].x == (13.0, 29.0)
    assert walls["repelled there"].y == pytest.approx((morse(13, 0.6), morse(29, 0.6)), rel=1e-5)
    assert walls["attracted there"].x == ()
    assert not [name for name in found if "difference" in name]


def test_an_element_that_collapses_and_one_with_waves_are_counted() -> None:
    def poor(number: int, r: float) -> float:
        if number == 13:
            return morse(13, r) - 300.0 * np.exp(-(((r - 0.5) / 0.3) ** 2))
        return morse(29, r) + 0.5 * np.sin(8 * r) * np.exp(-((r - 4) ** 2))

    suite = Diatomics(curves=None, symbols=("Al", "Cu"))
    findings = suite.run(Pairs(poor))
    found = {name: each.value for name, each in findings.quantities.items()}
    assert found["share repulsive at 0.6 Å"] == 0.5
    assert found["share with at most one change of the force's sign"] == 0
    assert found["share with a tortuosity below 1.1"] == 0.5  # the waves are small beside the wall
    r = np.arange(0.6, 6.01, 0.05)
    highest = max(poor(13, x) for x in r) - poor(13, r[-1])
    assert found["lowest wall of those attracted at 0.6 Å"] == pytest.approx(highest, rel=1e-6)
    assert highest < morse(13, 0.6)
    changes = findings.charts["Changes of the force's sign"].curves[""]
    assert changes.x == (13.0, 29.0)
    assert changes.y[0] == 2
    assert changes.y[1] is not None
    assert changes.y[1] >= 5


def test_differences_are_those_of_the_energies_above_the_longest_distance(tmp_path: Path) -> None:
    suite = Diatomics(curves=written(tmp_path / "curves.json.gz", shift=0.3), step=0.005, drawn=("Cu",))
    findings = suite.run(Pairs())
    found = {name: each.value for name, each in findings.quantities.items()}
    far = np.mean([r < 5.5 for r in R if r >= 0.6 and morse(29, r) - morse(29, 6.0) - 0.3 <= 10.0])
    assert found["median difference from r2SCAN"] == pytest.approx(0.3 * far, abs=1e-3)
    difference = findings.charts["Mean absolute difference from r2SCAN"].curves[""]
    assert np.isnan(difference.y[0])  # of aluminium, which has no curve there
    own, reference = (findings.charts["Cu–Cu"].curves[label] for label in ("", "PBE"))
    assert reference.reference
    assert max(own.y) <= suite.highest
    assert reference.y[-1] == own.y[-1] == 0.0
    same = values(Diatomics(curves=written(tmp_path / "same.json.gz"), step=0.005), Pairs())
    assert same["median difference from PBE"] == pytest.approx(0.0, abs=1e-3)


def test_without_the_variable_there_is_no_reference_and_it_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("NO_SUCH_FOLDER", raising=False)
    with caplog.at_level(logging.WARNING):
        found = values(Diatomics(curves="$NO_SUCH_FOLDER/curves.json.gz", symbols=("Cu",)), Pairs())
    assert "median difference from PBE" not in found
    assert "no curves of DFT are compared" in caplog.text


@pytest.mark.parametrize("content", [b"[]", b"{", b'{"PBE": {"Cu-Cu": {"distances": [1.0], "energies": []}}}', b"\xff"])
def test_what_is_no_file_of_curves_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "curves.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"curves\.json: not a file of curves of dimers"):
        Diatomics(curves=str(tmp_path / "curves.json"), symbols=("Cu",)).run(Pairs())
    (tmp_path / "curves.json.gz").write_bytes(content)
    with pytest.raises(ValueError, match=r"curves\.json\.gz: not a file of curves of dimers"):
        Diatomics(curves=str(tmp_path / "curves.json.gz"), symbols=("Cu",)).run(Pairs())


def test_impossible_diatomics_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="set curves: null"):
        Diatomics(curves=str(tmp_path / "none.json")).run(Pairs())
    with pytest.raises(ValueError, match="knows none of H; name others"):
        Diatomics(curves=None, symbols=("H",)).run(Pairs())
    with pytest.raises(ValueError, match="drawn: Cu is not among symbols"):
        Diatomics(curves=None, symbols=("H",), drawn=("Cu",))
    with pytest.raises(ValueError, match="shortest < longest"):
        Diatomics(curves=None, shortest=7.0)
    with pytest.raises(ValueError, match="step must be"):
        Diatomics(curves=None, step=3.0)


def test_the_tortuosity_counts_every_way_up_and_down() -> None:
    assert tortuosity(np.array([5.0, 0.0, 2.0])) == 1.0
    assert tortuosity(np.array([5.0, 1.0, 3.0, 0.0, 2.0])) == pytest.approx((4 + 2 + 3 + 2) / 7)
    assert np.isnan(tortuosity(np.zeros(3)))


def test_energies_and_forces_are_those_of_the_suite_of_dimers() -> None:
    subject = CalculatorSubject(EMT())
    pair = Dimers(pairs=(("Cu", "Cu"),), step=0.05).run(subject).quantities
    same = Diatomics(curves=None, symbols=("Cu",)).run(subject).charts["Wall"].curves
    assert same["repelled there"].y[0] == pytest.approx(pair["Cu–Cu: energy at 0.6 Å"].value)


def test_the_packaged_suite_is_read_by_name() -> None:
    _, config = parse(["evaluate", "--model", "m", "--suites", "diatomics"])  # configs/suite/diatomics.yaml
    assert isinstance(config.suites[0], Diatomics)
    assert len(config.suites[0].symbols) == 92
