"""Another zero of energy is told from another unit, from energies per atom, and from errors of the start."""

import numpy as np
import pytest

from foundation.surgery.energy_zero import compared, variation_factor
from foundation.surgery.references import Energies

REFERENCES = np.array([-3.2, -5.1, -1.9])


def energies(*, num: int = 60, one_material: bool = False, error: float = 0.02, size: int = 24) -> Energies:
    """Predictions of a potential whose errors are small, and labels with its zero."""
    rng = np.random.default_rng(0)
    fractions = np.tile([0.5, 0.3, 0.2], (num, 1)) if one_material else rng.dirichlet(np.ones(3), num)
    predictions = fractions @ REFERENCES + rng.normal(0, 0.05, num)
    labels = predictions + rng.normal(0, error, num)
    sizes = np.full(num, float(size)) if one_material else rng.integers(2, 40, num).astype(np.float64)
    return Energies(fractions=fractions, num_atoms=sizes, labels=labels, predictions=predictions)


def changed(found: Energies, labels: np.ndarray) -> Energies:
    return Energies(fractions=found.fractions, num_atoms=found.num_atoms, labels=labels, predictions=found.predictions)


@pytest.mark.parametrize("one_material", [False, True])
def test_small_errors_are_the_same_zero(one_material: bool) -> None:
    zero, sentence = compared(energies(one_material=one_material), "mine")
    assert zero == "same"
    assert "mine agree with the start to 0.0" in sentence
    assert compared(energies(one_material=one_material, num=1), "mine")[0] == "same"


@pytest.mark.parametrize("one_material", [False, True])
@pytest.mark.parametrize("shift", [[0.5, 0.5, 0.5], [-18843.0, -400.0, -12000.0], [3.2, 5.1, 1.9], [0.0, 0.0, 3.0]])
def test_energies_of_elements_are_another_zero(one_material: bool, shift: list[float]) -> None:
    found = energies(one_material=one_material)
    zero, sentence = compared(changed(found, found.labels + found.fractions @ np.array(shift)), "mine")
    assert zero == "another"
    assert "composition explains all but 0.0" in sentence


def test_a_frame_or_three_of_one_material_have_another_zero_too() -> None:
    for num in (1, 3):
        found = energies(one_material=True, num=num)
        assert compared(changed(found, found.labels - 7.0), "mine")[0] == "another"


@pytest.mark.parametrize("one_material", [False, True])
@pytest.mark.parametrize(
    ("factor", "unit"),
    [(1 / 27.211386, "Hartree"), (1 / 13.605693, "Rydberg"), (23.060548, "kcal/mol"), (96.485332, "kJ/mol")],
)
def test_another_unit_is_a_contradiction_and_named(one_material: bool, factor: float, unit: str) -> None:
    found = energies(one_material=one_material)
    with pytest.raises(ValueError, match=rf"energies of mine contradict the start's.*as energies in {unit} would"):
        compared(changed(found, factor * found.labels), "mine")


@pytest.mark.parametrize("one_material", [False, True])
@pytest.mark.parametrize("num", [3, 60])
def test_energies_per_atom_given_as_totals_are_a_contradiction(one_material: bool, num: int) -> None:
    found = energies(one_material=one_material, num=num)
    with pytest.raises(ValueError, match=r"as energies per atom would.*--read\.energy_key.*--references keep"):
        compared(changed(found, found.labels / found.num_atoms), "mine")


def test_another_unit_with_another_zero_is_a_contradiction() -> None:
    found = energies(one_material=True)
    with pytest.raises(ValueError, match=r"they vary 0\.03\d* times as much, as energies in Hartree would"):
        compared(changed(found, found.labels / 27.211386 - 600.0), "mine")


def test_energies_of_other_structures_are_a_contradiction() -> None:
    found = energies()
    shuffled = np.random.default_rng(1).normal(-4.0, 5.0, len(found.labels))
    with pytest.raises(ValueError, match=r"contradict the start's: they differ by .* eV per atom in the median"):
        compared(changed(found, shuffled), "mine")


def test_large_errors_that_composition_does_not_explain_leave_the_zero() -> None:
    found = energies(error=0.5)
    assert compared(found, "mine")[0] == "same"


def test_the_factor_is_that_of_the_variation_and_unknown_where_nothing_varies() -> None:
    found = energies()
    assert variation_factor(changed(found, 5.0 * found.predictions - 100.0)) == pytest.approx(5.0)
    assert variation_factor(energies(num=5)) is None
    still = found.fractions @ REFERENCES
    assert (
        variation_factor(
            Energies(fractions=found.fractions, num_atoms=found.num_atoms, labels=found.labels, predictions=still)
        )
        is None
    )
