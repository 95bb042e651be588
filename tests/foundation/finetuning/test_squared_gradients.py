"""Squared derivatives are of single structures, add up over ranks, and leave the potential as it was."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from data_pipeline.building.duplicates import content_key
from data_pipeline.graphs.batch import GraphBatch, collate
from data_pipeline.loading.datasets import Dataset, Frames
from data_pipeline.loading.subset import Subset
from data_pipeline.store.manifest import Manifest
from foundation.finetuning.freezing import freeze
from foundation.finetuning.squared_gradients import SquaredGradients, squared_gradients
from foundation.models import EquivariantConfig
from foundation.potential import Potential, new_potential
from foundation.training.loss import LossConfig, TermConfig, label_counts, loss

CONFIG = EquivariantConfig(irreps="4x0e+2x1e", num_blocks=1, max_degree=1, radial_sizes=(8,), readout_channels=4)
LOSS = LossConfig(
    energy=TermConfig(weight=1.0, kind="huber"),
    forces=TermConfig(weight=1.0, kind="huber"),
    stress=TermConfig(weight=0.5, kind="huber"),
)


@pytest.fixture
def potential(emt_manifest: Manifest) -> Potential:
    torch.manual_seed(0)
    return new_potential(CONFIG, {"EMT": emt_manifest.split("train").statistics}).cast(torch.float64).eval()


@pytest.fixture
def dataset(emt_manifest: Manifest) -> Dataset:
    return Dataset(manifest=emt_manifest, split="val")


def graphs(dataset: Dataset) -> list[GraphBatch]:
    return [collate([structure], 5.0, torch.float64) for structure in Frames(dataset.manifest, dataset.split)]


def loss_of(potential: Potential, batch: GraphBatch) -> Tensor:
    return loss(LOSS, potential.train()(batch), batch, label_counts(batch))


def gradient(potential: Potential, batch: GraphBatch) -> Tensor:
    parts = torch.autograd.grad(loss_of(potential, batch), list(potential.parameters()), materialize_grads=True)
    return torch.cat([part.flatten() for part in parts])


def test_the_sums_are_of_squares_of_single_structures(potential: Potential, dataset: Dataset) -> None:
    found = squared_gradients(potential, [dataset], LOSS)
    by_hand = torch.stack([gradient(potential, batch).square() for batch in graphs(dataset)]).sum(dim=0)
    torch.testing.assert_close(found.sums, by_hand, rtol=1e-12, atol=0.0)
    assert found.counts.tolist() == [len(graphs(dataset)), 0, 0]
    assert found.sums.dtype == torch.float64


def test_they_are_not_squares_of_the_gradient_of_a_batch(potential: Potential, dataset: Dataset) -> None:
    structures = list(Frames(dataset.manifest, dataset.split))
    together = gradient(potential, collate(structures, 5.0, torch.float64)).square()
    found = squared_gradients(potential, [dataset], LOSS)
    assert float(together.sum()) < 0.9 * float(found.sums.sum()) / len(structures)


@pytest.mark.parametrize("max_structures", [None, 5])
def test_the_sums_of_several_ranks_add_up_to_those_of_one(
    potential: Potential, dataset: Dataset, max_structures: int | None
) -> None:
    def share(rank: int, world_size: int) -> SquaredGradients:
        return squared_gradients(
            potential, [dataset], LOSS, rank=rank, world_size=world_size, max_structures=max_structures
        )

    alone, both = share(0, 1), share(0, 2) + share(1, 2)
    torch.testing.assert_close(both.sums, alone.sums, rtol=1e-12, atol=0.0)
    assert both.counts.tolist() == alone.counts.tolist()
    assert torch.equal(both.keys, alone.keys)
    assert len(set(alone.keys.tolist()) - {0}) == int(alone.counts[0])
    assert max_structures is None or int(alone.counts[0]) == max_structures


def test_more_ranks_than_structures_leave_some_with_nothing(potential: Potential, dataset: Dataset) -> None:
    idle = squared_gradients(potential, [dataset], LOSS, rank=1, world_size=2, max_structures=1)
    assert idle.counts.tolist() == [0, 0, 0]
    assert not idle.sums.any()


def test_the_choice_follows_the_seed(potential: Potential, dataset: Dataset) -> None:
    first, again, other = (
        squared_gradients(potential, [dataset], LOSS, max_structures=3, seed=seed).sums for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_structures_above_the_threshold_of_the_loss_are_left_out_and_counted(
    potential: Potential, dataset: Dataset
) -> None:
    batches = graphs(dataset)
    losses = torch.stack([loss_of(potential, batch).detach() for batch in batches])
    threshold = float(losses.median())
    found = squared_gradients(potential, [dataset], LOSS, loss_threshold=threshold)
    kept = [batch for batch, value in zip(batches, losses, strict=True) if value <= threshold]
    assert found.counts.tolist() == [len(kept), len(batches) - len(kept), 0]
    assert 0 < len(kept) < len(batches)
    assert found.keys.tolist() == [
        content_key(frame) if value <= threshold else 0 for frame, value in zip(dataset.frames(), losses, strict=True)
    ]
    by_hand = torch.stack([gradient(potential, batch).square() for batch in kept]).sum(dim=0)
    torch.testing.assert_close(found.sums, by_hand, rtol=1e-12, atol=0.0)


def test_structures_with_an_unknown_element_are_left_out_and_counted(
    potential: Potential, dataset: Dataset, emt_manifest: Manifest
) -> None:
    structures = list(Frames(dataset.manifest, dataset.split))
    gone = potential.elements[0]
    statistics = emt_manifest.split("train").statistics
    torch.manual_seed(0)
    smaller = new_potential(CONFIG, {"EMT": statistics}).cast(torch.float64)
    smaller.elements = potential.elements[1:]
    with_it = sum(bool((structure.numbers == gone).any()) for structure in structures)
    found = squared_gradients(smaller, [dataset], LOSS)
    assert found.counts.tolist() == [len(structures) - with_it, 0, with_it]
    assert 0 < with_it < len(structures)


def test_a_weight_of_a_data_set_multiplies_the_loss(potential: Potential, dataset: Dataset) -> None:
    plain = squared_gradients(potential, [dataset], LOSS)
    heavy = squared_gradients(potential, [replace(dataset, weight=3.0)], LOSS)
    torch.testing.assert_close(heavy.sums, 9.0 * plain.sums, rtol=1e-12, atol=0.0)


def test_the_potential_is_left_as_it_was_and_frozen_parameters_count(potential: Potential, dataset: Dataset) -> None:
    before = squared_gradients(potential, [dataset], LOSS, max_structures=2)
    frozen = freeze(potential, ["all-but-readout"])
    after = squared_gradients(potential, [dataset], LOSS, max_structures=2)
    assert torch.equal(before.sums, after.sums)
    assert not potential.training
    assert [name for name, parameter in potential.named_parameters() if not parameter.requires_grad] == frozen
    assert all(parameter.grad is None for parameter in potential.parameters())


def test_only_the_frames_of_a_subset_are_used(potential: Potential, dataset: Dataset) -> None:
    found = squared_gradients(potential, [replace(dataset, subset=Subset([1, 3]))], LOSS)
    by_hand = torch.stack([gradient(potential, graphs(dataset)[number]).square() for number in (1, 3)]).sum(dim=0)
    torch.testing.assert_close(found.sums, by_hand, rtol=1e-12, atol=0.0)
    assert found.counts.tolist() == [2, 0, 0]


def test_wrong_choices_are_refused(potential: Potential, dataset: Dataset) -> None:
    with pytest.raises(ValueError, match="rank 2 is not one of 2"):
        squared_gradients(potential, [dataset], LOSS, rank=2, world_size=2)
    with pytest.raises(ValueError, match="max_structures must be at least 1, not 0"):
        squared_gradients(potential, [dataset], LOSS, max_structures=0)
    with pytest.raises(ValueError, match="loss_threshold must be positive, not -1"):
        squared_gradients(potential, [dataset], LOSS, loss_threshold=-1.0)
    with pytest.raises(ValueError, match="no split 'exam'"):
        squared_gradients(potential, [replace(dataset, split="exam")], LOSS)


def test_a_derivative_that_is_not_finite_names_the_structure(potential: Potential, dataset: Dataset) -> None:
    with torch.no_grad():
        next(potential.parameters()).fill_(torch.nan)
    name = Frames(dataset.manifest, dataset.split)[0].id
    with pytest.raises(ValueError, match=f"{name}.*not finite"):
        squared_gradients(potential, [dataset], LOSS)
