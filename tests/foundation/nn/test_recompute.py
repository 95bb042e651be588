"""Blocks that are computed again: the same numbers and gradients, and nothing kept but what goes in."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from data_pipeline.graphs.batch import GraphBatch, collate
from data_pipeline.loading.datasets import Frames
from data_pipeline.store.manifest import Manifest
from foundation.models import EquivariantConfig, equivariant
from foundation.nn.computation import Computation
from foundation.nn.recompute import recomputed
from foundation.potential import Potential, new_potential
from foundation.training.loss import LossConfig, label_counts, loss

MODEL = EquivariantConfig(irreps="32x0e+16x1o+8x2e", num_blocks=3, radial_sizes=(16,), readout_channels=4)


@pytest.fixture(scope="module")
def batch(emt_manifest: Manifest) -> GraphBatch:
    frames = Frames(emt_manifest, "train")
    return collate([frames[number] for number in range(3)], 5.0, torch.float64)


@pytest.fixture(autouse=True)
def tables_for_few_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training uses a table for these small batches too."""
    monkeypatch.setattr(equivariant, "PAIRS_PER_KNOT", 0)


@pytest.fixture
def potential(emt_manifest: Manifest) -> Potential:
    torch.manual_seed(0)
    statistics = emt_manifest.split("train").statistics
    return new_potential(replace(MODEL, theory_biases=True), {"EMT": statistics}).cast(torch.float64).train()


def gradient_of_step(potential: Potential, batch: GraphBatch) -> dict[str, Tensor]:
    potential.zero_grad()
    loss(LossConfig(), potential(batch), batch, label_counts(batch)).backward()
    return {name: parameter.grad for name, parameter in potential.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("num_knots", [0, 64])
def test_the_gradient_of_a_step_is_the_same(potential: Potential, batch: GraphBatch, num_knots: int) -> None:
    potential.compute_as(Computation(radial_table=num_knots))
    kept = gradient_of_step(potential, batch)
    potential.compute_as(Computation(radial_table=num_knots, recompute=True))
    again = gradient_of_step(potential, batch)
    assert set(again) == set(kept) == {name for name, _ in potential.named_parameters()}
    largest = max(float(gradient.abs().max()) for gradient in kept.values())
    for name, gradient in kept.items():
        assert float((again[name] - gradient).abs().max()) <= 1e-12 * largest, name


@pytest.mark.parametrize("num_knots", [0, 64])
@pytest.mark.parametrize("training", [True, False])
def test_energies_forces_and_stresses_are_the_same(
    potential: Potential, batch: GraphBatch, training: bool, num_knots: int
) -> None:
    potential.train(training)
    potential.compute_as(Computation(radial_table=num_knots))
    kept = potential(batch)
    potential.compute_as(Computation(radial_table=num_knots, recompute=True))
    again = potential(batch)
    for name in ("energy", "forces", "stress"):
        torch.testing.assert_close(getattr(again, name), getattr(kept, name), rtol=1e-12, atol=1e-12)


def test_frozen_weights_get_no_gradient_and_the_others_the_same(potential: Potential, batch: GraphBatch) -> None:
    potential.network.blocks[1].requires_grad_(False)
    potential.network.embedding.requires_grad_(False)
    kept = gradient_of_step(potential, batch)
    potential.compute_as(Computation(recompute=True))
    again = gradient_of_step(potential, batch)
    assert set(again) == set(kept)
    for name, gradient in kept.items():
        torch.testing.assert_close(again[name], gradient, rtol=1e-10, atol=1e-12)


class Storages(TorchDispatchMode):
    """Watches the memory of every result of an operator."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        for tensor in pytree.tree_leaves(results):
            if isinstance(tensor, Tensor):
                reference = StorageWeakRef(tensor.untyped_storage())
                self.seen[reference.cdata] = (reference, tensor.untyped_storage().nbytes())
        return results

    @property
    def num_bytes(self) -> int:
        """Bytes of the results that are still there."""
        return sum(size for reference, size in self.seen.values() if not reference.expired())


def test_what_is_kept_until_the_loss_is_differentiated_is_little(potential: Potential, batch: GraphBatch) -> None:
    sizes = {}
    for recompute in (False, True):
        potential.compute_as(Computation(recompute=recompute))
        with Storages() as storages:
            prediction = potential(batch)
            assert prediction.forces.requires_grad
            sizes[recompute] = storages.num_bytes
    assert sizes[True] < 0.3 * sizes[False], sizes


def test_gradients_of_gradients_agree_with_finite_differences() -> None:
    torch.manual_seed(0)
    weight = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    values = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    scale = torch.randn(2, 1, dtype=torch.float64, requires_grad=True)

    def part(x: Tensor, y: Tensor) -> Tensor:
        return torch.tanh(x @ weight) * y

    def apply(x: Tensor, y: Tensor) -> Tensor:
        return recomputed(part, [], x, y)

    assert torch.autograd.gradcheck(apply, (values, scale))
    assert torch.autograd.gradgradcheck(apply, (values, scale))


def test_an_input_of_no_influence_has_a_gradient_of_zero() -> None:
    values, unused = (torch.randn(3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    result = recomputed(lambda x, y: x**3, [], values, unused)
    first, zero = torch.autograd.grad(result.sum(), (values, unused), create_graph=True)
    (second,) = torch.autograd.grad(first.sum() + zero.sum(), values)
    assert not zero.any()
    torch.testing.assert_close(second, 6 * values)


def test_a_third_derivative_is_refused() -> None:
    values = torch.randn(3, requires_grad=True)
    (first,) = torch.autograd.grad(recomputed(torch.sin, [], values).sum(), values, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), values, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        second.sum().backward()
