"""Softening: slopes that are known, by size of the force and by chemistry, from plain files and data sets; refusals."""

from collections.abc import Sequence
from pathlib import Path

import ase
import ase.io
import numpy as np
import pytest
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator

from data_pipeline.store.manifest import Manifest
from data_pipeline.structure import Structure
from foundation.evaluation.suites.softening import Softening, family
from foundation.evaluation.suites.suite import Predicted, check_suites
from foundation.interop.subject import CalculatorSubject
from launch.verbs import parse

COMPOSITIONS = ("MgO", "Mg2", "NaCl", "H2O", "PS")


class Soft(CalculatorSubject):
    """Labelled forces times 0.9 below 1 eV/Å and 0.7 above; phosphorus is unknown."""

    def __init__(self) -> None:
        super().__init__(Calculator())
        self.elements = (1, 8, 11, 12, 17)

    def predict(self, structures: Sequence[Structure]) -> list[Predicted]:
        found = []
        for each in structures:
            forces = each.forces.astype(np.float64)
            factors = np.where(np.linalg.norm(forces, axis=1) < 1.0, 0.9, 0.7)
            found.append(Predicted(energy=0.0, forces=factors[:, None] * forces, stress=np.zeros((3, 3))))
        return found


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file of eight frames of each composition, with small forces in oxides and large ones in the others."""
    random, frames = np.random.default_rng(0), []
    for number, formula in enumerate(8 * COMPOSITIONS):
        size = len(ase.Atoms(formula))
        atoms = ase.Atoms(formula, positions=2.0 * np.arange(3 * size).reshape(size, 3), cell=[20.0] * 3, pbc=True)
        directions = random.normal(size=(size, 3))
        sizes = random.uniform(0.1, 0.9, size) if "O" in formula else random.uniform(1.1, 1.9, size)
        forces = directions / np.linalg.norm(directions, axis=1, keepdims=True) * sizes[:, None]
        atoms.calc = SinglePointCalculator(atoms, energy=-float(number), forces=forces)
        frames.append(atoms)
    path = tmp_path_factory.mktemp("labelled") / "frames.xyz"
    ase.io.write(path, frames, format="extxyz")
    return path


def test_slopes_are_by_size_of_the_force_and_by_chemistry(labelled: Path) -> None:
    suite = Softening(labelled=str(labelled), edges=(0.0, 1.0, 2.0, 50.0))
    check_suites([suite], Soft().elements)
    findings = suite.run(Soft())
    found = findings.quantities
    assert found["frames"].value == 32
    assert found["frames left out with unknown elements"].value == 8
    for name, slope in (
        ("slope of forces of 0 to 1 eV/Å", 0.9),
        ("slope of forces of 1 to 2 eV/Å", 0.7),
        ("slope of oxides", 0.9),
        ("slope of chlorides", 0.7),
        ("slope of others", 0.7),
    ):
        assert found[name].value == pytest.approx(slope, abs=1e-6), name
        assert found[name].interval == pytest.approx((slope, slope), abs=1e-6), name
        assert found[name].reference == 1.0
    whole = found["slope"]
    assert whole.value is not None
    assert whole.interval is not None
    assert 0.7 < whole.interval[0] < whole.value < whole.interval[1] < 0.9
    assert found["slope of forces of 2 to 50 eV/Å"].value is None
    assert "slope of sulfides" not in found
    curve = findings.charts["Slope by size of the force"].curves[""]
    assert curve.x == (0.5, 1.5, 26.0)
    assert curve.y[2] is None


def test_few_frames_have_no_slope_and_some_frames_are_spread_evenly(labelled: Path) -> None:
    found = Softening(labelled=str(labelled), max_frames=10).run(Soft()).quantities
    assert found["frames"].value == 7  # ten of forty, three of them with phosphorus
    assert found["slope"].value is not None
    assert found["slope of oxides"].value is None


def test_a_data_set_labelled_by_the_subject_has_the_slope_one(emt_manifest: Manifest) -> None:
    suite = Softening(labelled=str(emt_manifest.root), split="val", max_frames=12)
    found = suite.run(CalculatorSubject(EMT())).quantities
    assert found["slope"].value == pytest.approx(1.0, abs=1e-5)
    assert found["slope of others"].value == pytest.approx(1.0, abs=1e-5)


def test_frames_belong_to_their_most_electronegative_anion() -> None:
    def of(formula: str) -> str:
        atoms = ase.Atoms(formula)
        return family(
            Structure.checked(
                numbers=atoms.numbers,
                positions=3.0 * np.arange(3 * len(atoms)).reshape(-1, 3),
                cell=np.zeros((3, 3)),
                pbc=[False] * 3,
                energy=0.0,
            )
        )

    assert [of(each) for each in ("Li3PO4", "LiPF6", "Li6PS5Cl", "GaAs", "InP", "Cu3Au", "TiH2")] == [
        "oxides",
        "fluorides",
        "chlorides",
        "arsenides",
        "phosphides",
        "others",
        "hydrides",
    ]


def test_impossible_labels_are_refused(labelled: Path, emt_manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_FOLDER", raising=False)
    with pytest.raises(FileNotFoundError, match=r"\$NO_SUCH_FOLDER/x\.xyz: the environment variable"):
        Softening(labelled="$NO_SUCH_FOLDER/x.xyz").run(Soft())
    with pytest.raises(FileNotFoundError, match=r"none\.xyz"):
        Softening(labelled=str(labelled.parent / "none.xyz")).run(Soft())
    with pytest.raises(ValueError, match="has no frame whose elements are all known"):
        Softening(labelled=str(emt_manifest.root), split="val").run(Soft())
    with pytest.raises(ValueError, match="edges must be"):
        Softening(labelled="x", edges=(1.0, 1.0))
    with pytest.raises(ValueError, match="must be at least 1"):
        Softening(labelled="x", max_frames=0)


def test_the_packaged_suite_is_read_by_name() -> None:
    _, config = parse(["evaluate", "--model", "m", "--suites", "softening"])  # configs/suite/softening.yaml
    assert isinstance(config.suites[0], Softening)
