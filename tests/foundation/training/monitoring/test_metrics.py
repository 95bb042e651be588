"""Validation errors by data set and element are numpy's, in one reduction over any number of processes."""

import numpy as np
import pytest
import torch
from torch import Tensor

from data_pipeline.graphs.batch import collate
from data_pipeline.loading.datasets import Frames
from data_pipeline.store.manifest import Manifest
from data_pipeline.structure import SYMBOLS, Structure
from foundation.evaluation.quantities import followed
from foundation.models import EquivariantConfig
from foundation.potential import Potential, new_potential
from foundation.training.monitoring.metrics import ValidationErrors

MODEL = EquivariantConfig(irreps="4x0e+2x1e", num_blocks=1, max_degree=1, radial_sizes=(8,), readout_channels=4)
NAMES = ("first", "second")


@pytest.fixture(scope="module")
def structures(emt_manifest: Manifest) -> list[Structure]:
    """Real frames, the third without forces."""
    frames = Frames(emt_manifest, "train")
    chosen = [frames[number] for number in range(0, 60, 6)]
    bare = Structure.checked(
        numbers=chosen[2].numbers,
        positions=chosen[2].positions,
        cell=chosen[2].cell,
        pbc=chosen[2].pbc,
        energy=chosen[2].energy,
        forces=None,
        stress=None,
    )
    return [*chosen[:2], bare, *chosen[3:]]


@pytest.fixture(scope="module")
def potential(emt_manifest: Manifest) -> Potential:
    torch.manual_seed(0)
    return new_potential(MODEL, {"EMT": emt_manifest.split("train").statistics}).cast(torch.float64).eval()


def measured(potential: Potential, groups: list[list[Structure]], datasets: list[int]) -> ValidationErrors:
    errors = ValidationErrors(NAMES)
    for structures, dataset in zip(groups, datasets, strict=True):
        batch = collate(structures, potential.cutoff, torch.float64)
        errors.update(potential(batch), batch, dataset)
    return errors


def by_numpy(potential: Potential, structures: list[Structure], number: int) -> dict[str, float]:
    """Return the errors of an element, one structure at a time."""
    forces, energies = [], []
    for structure in structures:
        if number in structure.numbers:
            batch = collate([structure], potential.cutoff, torch.float64)
            prediction = potential(batch)
            energies.append(abs(prediction.energy.item() - structure.energy) / structure.num_atoms)
            if batch.has_forces.item():
                error = np.abs(prediction.forces.numpy() - structure.forces)
                forces.append(error[structure.numbers == number])
    values = {"energy_mae": float(np.mean(energies)), "frames": len(energies)}
    return {
        "force_mae": float(np.concatenate(forces).mean()),
        "atoms": sum(len(part) for part in forces),
        **values,
    }


def test_errors_of_elements_are_numpys(potential: Potential, structures: list[Structure]) -> None:
    errors = measured(potential, [structures[:4], structures[4:]], [0, 0])
    _, by_element = errors.compute(lambda sums: sums)
    present = {int(number) for structure in structures for number in structure.numbers}
    assert set(by_element) == {SYMBOLS[number] for number in present}
    for number in present:
        expected = by_numpy(potential, structures, number)
        assert by_element[SYMBOLS[number]] == pytest.approx(expected, rel=1e-12)


def test_errors_of_data_sets_stand_beside_those_of_everything(
    potential: Potential, structures: list[Structure]
) -> None:
    values, _ = measured(potential, [structures[:4], structures[4:]], [0, 1]).compute(lambda sums: sums)
    for name, part in zip(NAMES, (structures[:4], structures[4:]), strict=True):
        alone, _ = measured(potential, [part], [0]).compute(lambda sums: sums)
        for error in ("energy_mae", "force_mae", "stress_mae", "frames"):
            assert values[f"{name}/{error}"] == pytest.approx(alone[error], rel=1e-12)
    together, _ = measured(potential, [structures], [0]).compute(lambda sums: sums)
    assert values["force_mae"] == pytest.approx(together["force_mae"], rel=1e-12)
    assert values["force_mae"] != pytest.approx(values["first/force_mae"], rel=1e-3)


def test_one_data_set_is_not_named(potential: Potential, structures: list[Structure]) -> None:
    errors = ValidationErrors(["only"])
    batch = collate(structures, potential.cutoff, torch.float64)
    errors.update(potential(batch), batch, 0)
    assert set(errors.compute(lambda sums: sums)[0]) == {*followed(), "frames"}


def test_processes_add_up_in_one_reduction(potential: Potential, structures: list[Structure]) -> None:
    """The third process has nothing to validate."""
    handed_over: list[Tensor] = []
    for groups, datasets in (([structures[6:]], [1]), ([], [])):
        measured(potential, groups, datasets).compute(lambda sums: handed_over.append(sums) or sums)
    own = measured(potential, [structures[:4], structures[4:6]], [0, 1])
    assert len(handed_over) == 2
    values, by_element = own.compute(lambda sums: sums + handed_over[0] + handed_over[1])
    expected, elements = measured(potential, [structures[:4], structures[4:]], [0, 1]).compute(lambda sums: sums)
    assert values == pytest.approx(expected, rel=1e-12)
    assert by_element.keys() == elements.keys()
    for symbol, errors in elements.items():
        assert by_element[symbol] == pytest.approx(errors, rel=1e-12)


def test_data_sets_that_are_only_watched_count_in_no_error_of_the_run(
    potential: Potential, structures: list[Structure]
) -> None:
    errors = ValidationErrors(("old",), num_watched=1)
    batch = collate(structures, potential.cutoff, torch.float64)
    errors.update(potential(batch), batch, 0)
    values, by_element = errors.compute(lambda sums: sums)
    assert values["old/force_mae"] > 0
    assert values["old/frames"] == len(structures)
    assert values["frames"] == 0
    assert "force_mae" not in values
    assert not by_element
