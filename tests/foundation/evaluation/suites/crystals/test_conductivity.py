"""Thermal conductivity: phono3py by hand, a scaled energy, imaginary modes, references of modes, refusals."""

import sys
from pathlib import Path
from typing import Any

import ase
import h5py
import numpy as np
import pytest
from ase.calculators.emt import EMT

from foundation.evaluation.suites.crystals.conductivity import Conductivity
from foundation.evaluation.suites.crystals.equation_of_state import Crystal, relaxed
from foundation.evaluation.suites.suite import Findings, check_suites
from foundation.interop.subject import CalculatorSubject
from launch.verbs import parse

COPPER = Crystal(elements=("Cu",), prototype="fcc", lattice_constant=3.6)
HOT: dict[str, Any] = {"mesh": 4, "temperature": 3000.0}
VALUE, ERROR = "Cu fcc: conductivity at 3000 K", "Cu fcc: error of the modes' conductivities"


class Stiffer(EMT):
    """Effective medium with twice the energy."""

    def calculate(self, *args: Any, **options: Any) -> None:
        super().calculate(*args, **options)
        self.results = {name: 2.0 * value for name, value in self.results.items()}


def found(calculator: EMT, **options: Any) -> Findings:
    return Conductivity(conducting=(COPPER,), **{**HOT, **options}).run(CalculatorSubject(calculator))


@pytest.fixture(scope="module")
def modes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """File of phono3py's own with the conductivities of copper's modes."""
    phono3py = pytest.importorskip("phono3py")
    cells = pytest.importorskip("phonopy.structure.atoms")
    cell = relaxed(COPPER, CalculatorSubject(EMT()))
    assert cell is not None
    unit = cells.PhonopyAtoms(symbols=["Cu"] * 4, cell=cell.cell, positions=cell.positions)
    crystal = phono3py.Phono3py(unit, supercell_matrix=np.diag([2, 2, 2]), primitive_matrix="F")
    crystal.generate_displacements()
    forces = []
    for each in crystal.supercells_with_displacements:
        atoms = ase.Atoms(each.symbols, cell=each.cell, positions=each.positions, pbc=True, calculator=EMT())
        forces.append(atoms.get_forces())
    crystal.forces = forces
    crystal.produce_fc3()
    crystal.symmetrize_fc3()
    crystal.symmetrize_fc2()
    crystal.mesh_numbers = [4, 4, 4]
    crystal.init_phph_interaction()
    folder = tmp_path_factory.mktemp("modes")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        crystal.run_thermal_conductivity(temperatures=[300.0, 3000.0], is_isotope=True, write_kappa=True)
    return folder / "kappa-m444.hdf5"


def test_conductivities_are_those_of_phono3py_by_hand(modes: Path) -> None:
    findings = found(EMT(), modes={"Cu fcc": modes}, references={"Cu fcc": 1.0})
    with h5py.File(modes) as group:
        theirs = np.asarray(group["kappa"])[1, :3].mean()
    quantities = findings.quantities
    assert quantities[VALUE].value == pytest.approx(theirs, rel=1e-6)
    assert (quantities[VALUE].unit, quantities[VALUE].reference) == ("W/m/K", 1.0)
    assert quantities[ERROR].value == pytest.approx(0.0, abs=1e-6)
    assert quantities["mean error of the modes' conductivities"].value == quantities[ERROR].value
    curves = findings.charts["Conductivity of Cu fcc over frequency"].curves
    assert curves[""].y[-1] == pytest.approx(quantities[VALUE].value)
    assert curves["reference"].y[-1] == pytest.approx(theirs)
    assert curves["reference"].reference


def test_twice_the_energy_conducts_by_its_power_of_three_halves_when_hot(modes: Path) -> None:
    # classically, twice the energy is half the temperature, where κ is twice as large, and a time shorter by √2
    options = {"modes": {"Cu fcc": modes}}
    once, twice = found(EMT(), **options).quantities, found(Stiffer(), **options).quantities
    ratio = (twice[VALUE].value or 0.0) / (once[VALUE].value or 1.0)
    assert ratio == pytest.approx(2**1.5, rel=0.02)
    # all modes alike, so that the error is that of the whole
    assert twice[ERROR].value == pytest.approx(2 * (ratio - 1) / (ratio + 1), rel=1e-3)


def test_a_crystal_with_imaginary_modes_or_without_a_minimum_has_no_conductivity() -> None:
    pytest.importorskip("phono3py")
    body_centred = Crystal(elements=("Cu",), prototype="bcc", lattice_constant=2.87)
    far = Crystal(elements=("Cu",), prototype="fcc", lattice_constant=5.0)
    suite = Conductivity(conducting=(body_centred, far), references={"Cu fcc": 1.0}, **HOT)
    findings = suite.run(CalculatorSubject(EMT()))
    assert [each.value for each in findings.quantities.values()] == [None, None]
    assert findings.quantities[VALUE].reference == 1.0
    assert findings.charts == {}


def test_a_failure_has_the_largest_error(modes: Path) -> None:
    far = Crystal(elements=("Cu",), prototype="fcc", lattice_constant=5.0)
    suite = Conductivity(conducting=(far,), modes={"Cu fcc": modes}, **HOT)
    findings = suite.run(CalculatorSubject(EMT()))
    assert findings.quantities[ERROR].value == 2.0
    assert list(findings.charts["Conductivity of Cu fcc over frequency"].curves) == ["reference"]


def test_references_of_modes_must_fit(modes: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"mesh \[4, 4, 4\] and the temperatures .*the suite needs \[5, 5, 5\]"):
        found(EMT(), modes={"Cu fcc": modes}, mesh=5)
    with pytest.raises(ValueError, match=r"and 500 K"):
        found(EMT(), modes={"Cu fcc": modes}, temperature=500.0)
    with pytest.raises(FileNotFoundError, match="missing"):
        found(EMT(), modes={"Cu fcc": tmp_path / "missing.hdf5"})
    (tmp_path / "text.hdf5").write_text("no HDF5")
    with pytest.raises(ValueError, match=r"text\.hdf5 has no conductivities of modes"):
        found(EMT(), modes={"Cu fcc": tmp_path / "text.hdf5"})


def test_without_phono3py_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "phono3py", None)
    with pytest.raises(ValueError, match=r"pip install 'foundation\[conductivity\]'"):
        check_suites([Conductivity(conducting=(COPPER,))], [29])
    with pytest.raises(ValueError, match=r"pip install 'foundation\[conductivity\]'"):
        found(EMT())


def test_impossible_conductivities_are_refused() -> None:
    for options, words in (
        ({"supercell": 0}, "supercell must be at least 1"),
        ({"mesh": 101}, "mesh must be at most 100"),
        ({"temperature": 0.0}, "temperature must be between"),
        ({"displacement": 1.0}, "displacement must be between"),
        ({"references": {"Al fcc": 1.0}}, "'Al fcc' is not one of Cu fcc"),
        ({"modes": {"Al fcc": Path("x")}}, "'Al fcc' is not one of Cu fcc"),
    ):
        with pytest.raises(ValueError, match=words):
            Conductivity(**{"conducting": (COPPER,), **options})


def test_the_packaged_suite_is_read_by_name() -> None:
    _, config = parse(["evaluate", "--model", "m", "--suites", "conductivity"])  # configs/suite/conductivity.yaml
    assert isinstance(config.suites[0], Conductivity)
    assert config.suites[0].references["MgO rocksalt"] == 60
