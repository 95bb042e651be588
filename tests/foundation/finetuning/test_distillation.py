"""Labels from a frozen potential: they are its predictions, whatever becomes of the one it was copied from."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from data_pipeline.graphs.batch import GraphBatch, collate
from data_pipeline.loading.datasets import Frames
from data_pipeline.store.manifest import Manifest
from data_pipeline.structure import Structure
from foundation.finetuning.adapters import add_adapters
from foundation.finetuning.distillation import Teacher
from foundation.models import EquivariantConfig, EquivariantNetwork
from foundation.potential import Potential, UnknownElement
from foundation.training.loss import LossConfig, label_counts, loss

CONFIG = EquivariantConfig(irreps="6x0e+2x1o", num_blocks=2, max_degree=1, radial_sizes=(8,), readout_channels=4)
METALS = (13, 28, 29, 46, 47, 78, 79)
LABELS = ("energy", "forces", "stress", "has_forces", "has_stress")


@pytest.fixture
def potential() -> Potential:
    torch.manual_seed(0)
    made = Potential(EquivariantNetwork(CONFIG, METALS, 12.0, 2), METALS, ("PBE", "SCAN")).eval()
    made.get_buffer("reference_energies").normal_()
    return made


@pytest.fixture
def unlabelled(emt_manifest: Manifest) -> GraphBatch:
    """Two crystals at different levels of theory and a molecule in no cell, without labels."""
    frames = [Frames(emt_manifest, "train")[number] for number in (0, 1)]
    crystals = [replace(s, energy=0.0, forces=0 * s.forces, has_forces=False, has_stress=False) for s in frames]
    positions, cell, pbc = np.array([[0.0, 0.0, 0.0], [2.4, 0.0, 0.0]]), np.zeros((3, 3)), [False] * 3
    dimer = Structure.checked(numbers=[29, 79], positions=positions, cell=cell, pbc=pbc, energy=0.0)
    return collate([*crystals, dimer], 5.0, theories=[0, 1, 0])


def test_labels_are_what_the_potential_says(potential: Potential, unlabelled: GraphBatch) -> None:
    labelled, expected = Teacher(potential).relabel(unlabelled), potential(unlabelled)
    for name in ("energy", "forces", "stress"):
        assert torch.equal(getattr(labelled, name), getattr(expected, name)), name
        assert not getattr(labelled, name).requires_grad, name
    assert labelled.has_forces.tolist() == [True, True, True]
    assert labelled.has_stress.tolist() == [True, True, False]
    assert not labelled.stress[2].any()
    for field in fields(GraphBatch):
        if field.name not in LABELS:
            assert getattr(labelled, field.name) is getattr(unlabelled, field.name), field.name
    assert not unlabelled.has_forces.any()


def test_labels_stay_when_the_potential_is_trained(potential: Potential, unlabelled: GraphBatch) -> None:
    teacher, before = Teacher(potential.train()), Teacher(potential).relabel(unlabelled)
    assert potential.training
    assert all(parameter.requires_grad for parameter in potential.parameters())
    optimizer = torch.optim.SGD(potential.parameters(), lr=1e-2)
    value = loss(LossConfig(), potential(unlabelled), before, label_counts(before))
    # in training mode sums round differently
    assert float(value.detach()) < 1e-5
    for parameter in potential.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    with torch.no_grad():
        after = teacher.relabel(unlabelled)
    assert torch.equal(after.forces, before.forces)
    assert torch.equal(after.energy, before.energy)
    assert not torch.equal(potential.eval()(unlabelled).forces, before.forces)


def test_labels_have_the_float_type_of_the_batch(potential: Potential, unlabelled: GraphBatch) -> None:
    teacher = Teacher(potential.cast(torch.float64))
    labelled = teacher.relabel(unlabelled)
    assert labelled.forces.dtype == labelled.stress.dtype == torch.float32
    wide = teacher.relabel(unlabelled.to(dtype=torch.float64))
    assert wide.forces.dtype == torch.float64


def test_an_empty_batch_stays_empty(potential: Potential) -> None:
    assert Teacher(potential).relabel(collate([], 5.0)).num_graphs == 0


def test_what_the_start_does_not_know_it_cannot_teach(potential: Potential, unlabelled: GraphBatch) -> None:
    numbers = torch.full_like(unlabelled.numbers, 92)
    with pytest.raises(UnknownElement, match="does not know U"):
        Teacher(potential).relabel(replace(unlabelled, numbers=numbers))


def test_an_adapted_potential_is_no_start(potential: Potential) -> None:
    add_adapters(potential, rank=2, alpha=2.0)
    with pytest.raises(ValueError, match="before adding them"):
        Teacher(potential)
