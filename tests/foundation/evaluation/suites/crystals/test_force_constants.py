"""Force constants: a known law is found; those of charges are dipoles'; a short-ranged potential has none."""

from collections.abc import Sequence

import numpy as np
import pytest
from ase.build import bulk
from ase.units import Bohr, Hartree

from data_pipeline.sources.rigid_ions import RigidIons
from data_pipeline.structure import Structure
from foundation.evaluation.suites.crystals.equation_of_state import Crystal, repeated
from foundation.evaluation.suites.crystals.force_constants import ForceConstants
from foundation.evaluation.suites.suite import Predicted
from foundation.interop.subject import CalculatorSubject

MGO = Crystal(elements=("Mg", "O"), prototype="rocksalt", lattice_constant=4.21)
LABEL = "MgO rocksalt, O displaced"


class Power(CalculatorSubject):
    """Forces of a harmonic crystal whose force constants are isotropic and a power of the distance."""

    def __init__(self, perfect: Structure, exponent: float, reach: float = 100.0) -> None:
        super().__init__(RigidIons())
        self.perfect, self.exponent, self.reach = perfect, exponent, reach

    def predict(self, structures: Sequence[Structure]) -> list[Predicted]:
        found, side = [], self.perfect.cell[0, 0]
        for structure in structures:
            moved = structure.positions - self.perfect.positions
            atom = int(np.linalg.norm(moved, axis=1).argmax())
            vectors = self.perfect.positions - self.perfect.positions[atom]
            distances = np.linalg.norm(vectors - side * np.rint(vectors / side), axis=1)
            distances[atom] = 1.0
            sizes = np.where(distances < self.reach, 7.0 * distances**self.exponent, 0.0)
            found.append(Predicted(energy=0.0, forces=-sizes[:, None] * moved[atom], stress=np.zeros((3, 3))))
        return found


def test_the_exponent_and_the_size_of_a_known_law_are_found() -> None:
    suite = ForceConstants(displaced=(MGO,), shortest=3.0, longest=8.0)
    found = suite.run(Power(repeated(MGO.scaled(1.0), 4), -4.5))
    exponent = found.quantities[f"{LABEL}: exponent"]
    assert exponent.value == pytest.approx(-4.5, abs=1e-3)
    assert exponent.interval == pytest.approx((-4.5, -4.5), abs=1e-2)
    # Frobenius norm of 7 r^-4.5 times the unit matrix
    assert found.quantities[f"{LABEL}: |Φ| at 8 Å"].value == pytest.approx(3**0.5 * 7 * 8**-4.5, rel=1e-3)
    curve = found.charts["Force constants against distance"].curves[LABEL]
    assert all(3.0 <= x <= 8.0 for x in curve.x)
    assert curve.y == pytest.approx([3**0.5 * 7 * x**-4.5 for x in curve.x], rel=2e-3)


def test_force_constants_of_rigid_ions_are_those_of_their_charges() -> None:
    suite = ForceConstants(displaced=(MGO,), shortest=5.0, longest=6.3)
    found = suite.run(CalculatorSubject(RigidIons()))
    curve = found.charts["Force constants against distance"].curves[LABEL]
    # unscreened charges of 2 e; the images of a periodic cell change it a little
    expected = [6**0.5 * 4 * Hartree * Bohr / x**3 for x in curve.x]
    assert curve.y == pytest.approx(expected, rel=0.25)


def test_beyond_the_reach_of_a_potential_there_is_no_law() -> None:
    suite = ForceConstants(displaced=(MGO,), shortest=5.0, longest=8.0)
    found = suite.run(Power(repeated(MGO.scaled(1.0), 4), -3.0, reach=4.0))
    assert all(each.value is None for each in found.quantities.values())
    assert found.charts["Force constants against distance"].curves[LABEL].x == ()


def test_a_supercell_is_that_of_ase() -> None:
    ours, theirs = repeated(MGO.scaled(1.0), 3), bulk("MgO", "rocksalt", 4.21, cubic=True).repeat(3)
    assert sorted(ours.numbers) == sorted(theirs.numbers)
    for number in (8, 12):
        places = [
            set(map(tuple, np.rint(positions[numbers == number] / 2.105).astype(int) % 6))
            for positions, numbers in ((ours.positions, ours.numbers), (theirs.positions, theirs.numbers))
        ]
        assert len(places[0]) == 108
        assert places[0] in (places[1], {((x + 1) % 6, y, z) for x, y, z in places[1]})


def test_impossible_options_are_refused() -> None:
    with pytest.raises(ValueError, match="need 1 <= shortest < longest <= 25 Å"):
        ForceConstants(displaced=(MGO,), shortest=9.0, longest=8.0)
    with pytest.raises(ValueError, match="crystals: MgO rocksalt occurs twice"):
        ForceConstants(displaced=(MGO, MGO))
