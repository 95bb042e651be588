"""Composition: groups and triads of the periodic table, known vectors, elements replaced by their neighbours."""

from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch
from ase.calculators.emt import EMT

from data_pipeline.structure import SYMBOLS, Structure
from foundation.evaluation.suites.composition import Composition, element_map, group_of, likeness, triads
from foundation.interop.subject import CalculatorSubject, PotentialSubject
from foundation.models import EquivariantConfig, SymmetryFunctionsConfig
from foundation.potential import Potential
from launch.verbs import parse

METALS = (12, 20, 38, 56, 11, 19, 37)
NETWORK = EquivariantConfig(irreps="6x0e", num_blocks=1, max_degree=0, radial_sizes=(4,), readout_channels=4)


def small(elements: tuple[int, ...] = METALS) -> Potential:
    torch.manual_seed(0)
    return Potential(NETWORK.network(elements), elements, ("theory",))


def vectors_of_groups(numbers: tuple[int, ...], noise: float) -> np.ndarray:
    """Return a direction for each group, and noise."""
    random = np.random.default_rng(1)
    directions = {group: random.normal(size=40) for group in sorted({group_of(z) or "" for z in numbers})}
    return np.array([directions[group_of(z) or ""] + noise * random.normal(size=40) for z in numbers])


def test_groups_are_those_of_the_periodic_table() -> None:
    alike = [
        ("Li", "Cs"),
        ("Be", "Ba"),
        ("Sc", "Y"),
        ("Ti", "Hf"),
        ("Zn", "Hg"),
        ("B", "Tl"),
        ("He", "Xe"),
        ("La", "Lu"),
    ]
    for one, other in alike:
        assert group_of(SYMBOLS.index(one)) == group_of(SYMBOLS.index(other))
    assert group_of(1) is None
    assert len({group_of(z) for z in range(2, 95)}) == 20
    found = {SYMBOLS[z]: tuple(SYMBOLS[each] for each in pair) for z, pair in triads(range(1, 95))}
    assert found["Sr"] == ("Ca", "Ba")
    assert found["Zr"] == ("Ti", "Hf")
    assert found["Se"] == ("S", "Te")
    assert found["Na"] == ("Li", "K")
    assert not {"H", "Li", "Ce", "U", "Y"} & set(found)
    assert "Sr" not in {SYMBOLS[z] for z, _ in triads([20, 38])}


@pytest.mark.parametrize(("noise", "low", "high"), [(0.0, 1.0, 1.0), (1.0, 0.3, 0.7)])
def test_groups_of_known_vectors_are_found(noise: float, low: float, high: float) -> None:
    numbers = tuple(range(2, 95))
    found = likeness(numbers, vectors_of_groups(numbers, noise), 99).quantities
    within = found["similarity in a group"].value
    assert within is not None
    assert low - 1e-12 <= within <= high + 1e-12
    assert found["p-value of the gap"].value == 0.01
    assert found["share whose nearest is of the group"].value == pytest.approx(1.0, abs=0.05)


def test_the_heat_map_has_groups_together_and_their_cosines() -> None:
    numbers = (38, 1, 11, 26, 20, 57, 19, 92, 12, 60)
    vectors = vectors_of_groups(numbers, 0.0)
    heat = likeness(numbers, vectors, 9).maps["Similarity of the elements"]
    assert heat.labels == ("H", "Na", "K", "Mg", "Ca", "Sr", "Fe", "La", "Nd", "U")
    assert heat.groups == ("", "1", "1", "2", "2", "2", "8", "lanthanides", "lanthanides", "actinides")
    values = np.array(heat.values)
    place = dict(zip(heat.labels, range(10), strict=True))
    centred = vectors - vectors.mean(axis=0)
    one, other = centred[numbers.index(26)], centred[numbers.index(20)]
    expected = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
    assert values[place["Fe"], place["Ca"]] == pytest.approx(expected, abs=1e-4)
    assert values[place["Mg"], place["Sr"]] == pytest.approx(1.0, abs=1e-4)
    assert np.array_equal(values, values.T)


def test_vectors_without_groups_have_no_gap() -> None:
    numbers = tuple(range(2, 95))
    vectors = np.random.default_rng(6).normal(size=(93, 40))
    found = likeness(numbers, vectors, 199)
    gap, chance = found.quantities["gap of similarity"].value, found.quantities["p-value of the gap"].value
    assert gap == pytest.approx(0.0, abs=0.04)
    assert chance is not None
    assert chance > 0.05
    assert found == likeness(numbers, vectors, 199)


def test_map_keeps_the_distances_of_vectors_in_a_plane() -> None:
    random = np.random.default_rng(2)
    plane = random.normal(size=(7, 2))
    vectors = plane @ np.linalg.qr(random.normal(size=(10, 2)))[0].T + 3.0
    share, chart = element_map(METALS, vectors)
    assert share == pytest.approx(1.0)
    places = {
        name: xy for curve in chart.curves.values() for name, *xy in zip(curve.texts, curve.x, curve.y, strict=True)
    }
    assert set(places) == {SYMBOLS[z] for z in METALS}
    for one in range(7):
        for other in range(one):
            ends = (np.array(places[SYMBOLS[METALS[place]]]) for place in (one, other))
            assert np.linalg.norm(np.subtract(*ends)) == pytest.approx(np.linalg.norm(plane[one] - plane[other]))
    assert set(chart.curves) == {"groups 1 and 2"}


def test_an_element_is_replaced_by_the_mean_of_its_neighbours_for_a_while(tmp_path: Path) -> None:
    potential = small()
    subject = PotentialSubject(potential)
    frames = []
    random = np.random.default_rng(0)
    for symbols in ("SrMg", "SrNa", "BaMg", "CaK"):
        atoms = ase.Atoms(symbols, positions=[[0, 0, 0], [0, 0, 2.5]], cell=[6.0] * 3, pbc=True)
        atoms.rattle(0.3, rng=random)
        # what the potential itself says: its own error is that of the file's digits
        atoms.calc = subject.calculator()
        atoms.get_forces()
        frames.append(atoms)
    file = tmp_path / "frames.extxyz"
    ase.io.write(file, frames)
    before = {name: tensor.clone() for name, tensor in subject._exact.state_dict().items()}
    found = Composition(permutations=9, frames=str(file)).run(subject)
    for name, tensor in subject._exact.state_dict().items():
        assert torch.equal(tensor, before[name])
    label = "Sr from Ca and Ba: force error"
    error = found.quantities[label]
    assert error.reference == pytest.approx(0.0, abs=0.1)
    rows = potential.cast(torch.float64).network.element_vectors()
    rows[2] = (rows[1] + rows[3]) / 2
    structures = [subject.predict([each]) for each in _structures(frames[:2])]
    swapped = [PotentialSubject(potential).predict([each]) for each in _structures(frames[:2])]
    by_hand = np.abs([a[0].forces - b[0].forces for a, b in zip(structures, swapped, strict=True)]).mean()
    assert error.value == pytest.approx(1e3 * by_hand, rel=1e-2)
    assert by_hand > 1e-3
    assert "Ca from Mg and Sr: force error" in found.quantities
    chart = found.charts["Elements from their neighbours"].curves[""]
    assert set(chart.texts) == {"Ca", "K", "Sr"}


def _structures(frames: list[ase.Atoms]) -> list[Structure]:
    return [
        Structure.checked(numbers=f.numbers, positions=f.positions, cell=np.asarray(f.cell), pbc=f.pbc, energy=0.0)
        for f in frames
    ]


def test_subjects_without_vectors_are_refused_by_name() -> None:
    suite = Composition(permutations=9)
    with pytest.raises(ValueError, match="EMT is a calculator of another program; judge a potential by --model"):
        suite.run(CalculatorSubject(EMT(), "EMT"))
    config = SymmetryFunctionsConfig(radial_functions=((1.0, 2.0),), hidden_sizes=(4,))
    functions = Potential(config.network((29,)), (29,), ("theory",))
    with pytest.raises(ValueError, match="no embedding of elements"):
        suite.run(PotentialSubject(functions))


def test_few_elements_have_no_gap() -> None:
    found = Composition(permutations=9).run(PotentialSubject(small((1, 8)))).quantities
    assert found["gap of similarity"].value is None


def test_the_packaged_suite_compares_vectors_only() -> None:
    _, config = parse(["evaluate", "--model", "m", "--suites", "composition"])  # configs/suite/composition.yaml
    assert config.suites == (Composition(permutations=1000),)
