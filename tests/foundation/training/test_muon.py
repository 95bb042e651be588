"""Muon: what an update of a matrix is, block by block of a flat weight, and AdamW for all the rest."""

import math

import pytest
import torch
from e3nn import o3

from foundation.models import EquivariantConfig, EquivariantNetwork
from foundation.nn.linear import Linear
from foundation.training.muon import RMS_OF_ADAM, Muon, orthogonalized
from foundation.training.optim import OptimConfig, make_optimizer, matrix_shapes

MODEL = EquivariantConfig(
    irreps="8x0e+4x1e", num_blocks=2, max_degree=1, radial_sizes=(8,), readout_channels=4, theory_biases=True
)


@pytest.mark.parametrize("shape", [(6, 6), (3, 20), (20, 3), (1, 5)], ids=str)
def test_an_orthogonalized_matrix_keeps_its_directions_and_has_singular_values_near_one(
    shape: tuple[int, int],
) -> None:
    torch.manual_seed(0)
    matrix = 100 * torch.randn(*shape)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    result = orthogonalized(matrix)
    inside = left.T @ result @ right.T
    values = inside.diagonal()
    assert values.min() > 0.6
    assert values.max() < 1.3
    torch.testing.assert_close(inside, torch.diag(values), atol=1e-4, rtol=0)


def test_nothing_stays_nothing() -> None:
    assert not orthogonalized(torch.zeros(3, 4)).any()


def test_each_irrep_of_a_flat_weight_is_a_matrix_of_its_own() -> None:
    torch.manual_seed(0)
    linear = Linear(o3.Irreps("6x0e+3x1e"), o3.Irreps("5x0e+4x1e"))
    assert linear.matrix_shapes == [(6, 5), (3, 4)]
    before = linear.weight.detach().clone()
    optimizer = Muon(
        [{"params": [linear.weight], "shapes": linear.matrix_shapes}], lr=0.5, momentum=0.0, betas=(0.9, 0.999)
    )
    # gradients of very different size: normalised together, the first would hide the second
    first, second = 1e3 * torch.randn(6, 5), 1e-3 * torch.randn(3, 4)
    linear.weight.grad = torch.cat([first.flatten(), second.flatten()])
    optimizer.step()
    moved = before - linear.weight.detach()
    expected = [RMS_OF_ADAM * math.sqrt(6) * orthogonalized(first), RMS_OF_ADAM * 2 * orthogonalized(second)]
    torch.testing.assert_close(moved, 0.5 * torch.cat([part.flatten() for part in expected]), rtol=1e-4, atol=1e-6)


def test_an_update_is_of_the_size_of_adams() -> None:
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.zeros(40, 30))
    weight.grad = torch.randn(40, 30)
    Muon([{"params": [weight], "shapes": [(40, 30)]}], lr=1.0, momentum=0.95, betas=(0.9, 0.999)).step()
    assert weight.detach().square().mean().sqrt().item() == pytest.approx(RMS_OF_ADAM, rel=0.2)


def test_momentum_is_nesterovs() -> None:
    weight = torch.nn.Parameter(torch.zeros(2, 2))
    optimizer = Muon([{"params": [weight], "shapes": [(2, 2)]}], lr=1.0, momentum=0.5, betas=(0.9, 0.999))
    gradients = torch.tensor([[1.0, 2.0], [3.0, -1.0]]), torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    for gradient in gradients:
        weight.grad = gradient
        before = weight.detach().clone()
        optimizer.step()
    momentum = 0.5 * (0.5 * gradients[0]) + 0.5 * gradients[1]
    ahead = 0.5 * gradients[1] + 0.5 * momentum
    torch.testing.assert_close(before - weight.detach(), RMS_OF_ADAM * math.sqrt(2) * orthogonalized(ahead))


def test_what_is_no_matrix_moves_as_with_adamw() -> None:
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Parameter(torch.linspace(-1, 1, 7)) for _ in range(2))
    muon = Muon([{"params": [ours], "weight_decay": 0.1}], lr=0.01, momentum=0.95, betas=(0.9, 0.99))
    adamw = torch.optim.AdamW([{"params": [theirs], "weight_decay": 0.1}], lr=0.01, betas=(0.9, 0.99), foreach=False)
    for _ in range(5):
        ours.grad = theirs.grad = torch.randn(7)
        muon.step()
        adamw.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def test_muon_is_for_the_matrices_between_hidden_channels() -> None:
    torch.manual_seed(0)
    network = EquivariantNetwork(MODEL, (1, 8, 26), 4.0, 2)
    shapes = matrix_shapes(network)
    parameters = dict(network.named_parameters())
    for name, parts in shapes.items():
        assert parameters[name].numel() == sum(rows * columns for rows, columns in parts), name
    rest = sorted(set(parameters) - set(shapes))
    biases = [f"blocks.{n}.self_interaction_{k}.theory_weight" for n in (0, 1) for k in (1, 2)]
    assert rest == [
        *biases,
        "embedding.weight",
        "radial_basis.wave_numbers",
        "readout.0.theory_weight",
        "readout.1.weight",
    ]
    assert shapes["blocks.0.radial.layer0.weight"] == [(8, 8)]
    optimizer = make_optimizer(OptimConfig(optimizer="muon", weight_decay=0.1), network, 3)
    assert {group["name"]: group["shapes"] for group in optimizer.param_groups if group["shapes"]} == shapes
    assert {group["weight_decay"] for group in optimizer.param_groups if group["shapes"]} == {0.1}


def test_decay_shrinks_a_matrix_by_the_learning_rate_times_it() -> None:
    weight = torch.nn.Parameter(torch.ones(3, 3))
    weight.grad = torch.zeros(3, 3)
    group = {"params": [weight], "shapes": [(3, 3)], "weight_decay": 0.5}
    Muon([group], lr=0.1, momentum=0.95, betas=(0.9, 0.999)).step()
    torch.testing.assert_close(weight.detach(), torch.full((3, 3), 0.95))
