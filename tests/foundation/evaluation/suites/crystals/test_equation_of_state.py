"""Equations of state: the same as ASE's fit for ASE's EMT, prototypes as ASE builds them, and refusals."""

from pathlib import Path

import ase
import ase.build
import numpy as np
import pytest
from ase.calculators.emt import EMT
from ase.eos import EquationOfState as AseEquationOfState

from data_pipeline.sources.atoms import to_atoms
from foundation.evaluation.suites.crystals.equation_of_state import (
    PROTOTYPES,
    Crystal,
    EquationOfState,
    birch_murnaghan,
    relaxed,
)
from foundation.interop.subject import CalculatorSubject
from launch.verbs import parse

COPPER = Crystal(elements=("Cu",), prototype="fcc", lattice_constant=3.6, volume=11.8, bulk_modulus=140.0)


EFFECTIVE_MEDIUM = CalculatorSubject(EMT())


@pytest.mark.parametrize(("symbol", "lattice_constant"), [("Cu", 3.6), ("Al", 4.0), ("Pt", 3.95)])
def test_findings_are_those_of_ase(symbol: str, lattice_constant: float) -> None:
    crystal = Crystal(elements=(symbol,), prototype="fcc", lattice_constant=lattice_constant)
    found = EquationOfState(crystals=(crystal,)).run(EFFECTIVE_MEDIUM)
    volumes, energies = [], []
    for factor in np.linspace(0.88, 1.12, 11):
        atoms = ase.build.bulk(symbol, "fcc", lattice_constant * factor ** (1 / 3))
        atoms.calc = EMT()
        volumes.append(atoms.get_volume())
        energies.append(atoms.get_potential_energy())
    theirs = AseEquationOfState(volumes, energies, eos="birchmurnaghan")
    volume, _, modulus = theirs.fit()
    values = [each.value for each in found.quantities.values()]
    assert values == pytest.approx([volume, modulus * 160.21766208, theirs.eos_parameters[2]], rel=1e-5)


def test_the_parameters_of_an_exact_curve_come_back() -> None:
    volumes, (v0, b0, slope) = np.linspace(9.0, 13.0, 9), (11.0, 0.8, 4.7)
    eta = (v0 / volumes) ** (2 / 3)
    energies = 9 * v0 * b0 / 16 * ((eta - 1) ** 3 * slope + (eta - 1) ** 2 * (6 - 4 * eta))
    assert birch_murnaghan(volumes, energies) == pytest.approx((v0, b0, slope), rel=1e-9)


def test_a_relaxed_cell_is_under_no_pressure() -> None:
    aluminium = Crystal(elements=("Al",), prototype="fcc", lattice_constant=4.0)
    cell = relaxed(aluminium, EFFECTIVE_MEDIUM)
    assert cell is not None
    stress = EFFECTIVE_MEDIUM.predict([cell])[0].stress
    # [GPa]; one fit over ± 12 % leaves 0.07
    assert np.trace(stress) / 3 * 160.21766208 == pytest.approx(0.0, abs=2e-3)


@pytest.mark.parametrize("energies", [np.linspace(0, 1, 7), -(np.linspace(-1, 1, 7) ** 2), np.full(7, np.nan)])
def test_a_curve_without_a_minimum_has_no_parameters(energies: np.ndarray) -> None:
    assert birch_murnaghan(np.linspace(9.0, 13.0, 7), energies) is None


def test_a_crystal_without_a_minimum_in_the_scan_is_found_undetermined_with_its_reference() -> None:
    far = Crystal(elements=("Cu",), prototype="fcc", lattice_constant=5.0, bulk_modulus=140.0)
    found = EquationOfState(crystals=(far,)).run(EFFECTIVE_MEDIUM)
    assert [each.value for each in found.quantities.values()] == [None] * 3
    assert [each.reference for each in found.quantities.values()] == [None, 140.0, None]


NAMES = {"caesium chloride": "cesiumchloride"}


@pytest.mark.parametrize("prototype", PROTOTYPES)
def test_prototypes_have_the_distances_of_ase(prototype: str) -> None:
    symbols = ("Na", "Cl")[: len(PROTOTYPES[prototype])]
    ours = to_atoms(Crystal(elements=symbols, prototype=prototype, lattice_constant=5.0).scaled(1.0))
    theirs = ase.build.bulk("".join(symbols), NAMES.get(prototype, prototype), a=5.0, cubic=True)
    assert ours.get_chemical_formula() == theirs.get_chemical_formula()
    for symbol in symbols:
        distances = [
            np.sort(atoms.repeat(3).get_distances([a.symbol for a in atoms].index(symbol), range(27), mic=True))
            for atoms in (ours, theirs)
        ]
        assert len(ours) == len(theirs)
        assert np.sort(ours.get_all_distances(mic=True), axis=None) == pytest.approx(
            np.sort(theirs.get_all_distances(mic=True), axis=None)
        )
        assert distances[0][0] == distances[1][0] == 0


@pytest.mark.parametrize(
    ("crystal", "message"),
    [
        ("{elements: [Na, Cl], prototype: fcc, lattice_constant: 5}", "fcc has 1 elements, not 2"),
        ("{elements: [Xx], prototype: fcc, lattice_constant: 5}", "'Xx' is not the symbol of an element"),
        ("{elements: [Cu], prototype: fcc, lattice_constant: 500}", "lattice_constant must be between 1 and 30 Å"),
    ],
)
def test_impossible_crystals_are_refused(crystal: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        parse(["evaluate", "--model", "m", "--data", "d", "--suites", f"[{{crystals: [{crystal}]}}]"])


def test_impossible_scans_are_refused() -> None:
    with pytest.raises(ValueError, match="span must be between"):
        EquationOfState(crystals=(COPPER,), span=1.5)
    with pytest.raises(ValueError, match="num_volumes must be between 5"):
        EquationOfState(crystals=(COPPER,), num_volumes=3)
    with pytest.raises(ValueError, match="Cu fcc occurs twice"):
        EquationOfState(crystals=(COPPER, COPPER))
