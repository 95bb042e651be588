"""Matrix products in bfloat16: what is rounded, what is not, and derivatives of any order."""

from collections.abc import Iterator

import pytest
import torch

from data_pipeline.graphs.batch import collate
from data_pipeline.loading.datasets import Frames
from data_pipeline.store.manifest import Manifest
from foundation.models import EquivariantConfig
from foundation.nn.computation import Computation
from foundation.nn.matmul import Matmul, describe_precision
from foundation.potential import Potential, new_potential
from foundation.training.loss import LossConfig, label_counts, loss

MODEL = EquivariantConfig(irreps="8x0e+4x1e", num_blocks=2, max_degree=1, radial_sizes=(8,), readout_channels=4)


@pytest.fixture(autouse=True)
def _process_setting() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.fixture
def potential(emt_manifest: Manifest) -> Potential:
    torch.manual_seed(0)
    return new_potential(MODEL, {"EMT": emt_manifest.split("train").statistics})


def rounded(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.bfloat16).to(tensor.dtype)


def test_factors_are_rounded_and_the_sum_is_not() -> None:
    torch.manual_seed(0)
    left, right = torch.randn(5, 400), torch.randn(400, 3)
    product = Matmul()
    assert torch.equal(product(left, right), left @ right)
    product.rounded = True
    exact = rounded(left).double() @ rounded(right).double()
    result = product(left, right)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result.double(), exact, rtol=1e-5, atol=1e-5)
    assert float((result - left @ right).abs().max()) > 1e-3


def test_the_products_of_gradients_are_rounded_in_the_same_way() -> None:
    torch.manual_seed(0)
    left, right = torch.randn(5, 7, requires_grad=True), torch.randn(7, 3, requires_grad=True)
    product, gradient = Matmul(), torch.randn(5, 3, requires_grad=True)
    product.rounded = True
    by_left, by_right = torch.autograd.grad(product(left, right), (left, right), gradient, create_graph=True)
    torch.testing.assert_close(by_left, rounded(gradient) @ rounded(right).t())
    torch.testing.assert_close(by_right, rounded(left).t() @ rounded(gradient))
    # and those of the gradient's gradient
    direction = torch.randn(5, 7)
    again = torch.autograd.grad(by_left, (gradient, right), direction)
    torch.testing.assert_close(again[0], rounded(direction) @ rounded(right))
    torch.testing.assert_close(again[1], rounded(direction).t() @ rounded(gradient))


def test_a_step_in_bf16_has_about_the_gradient_of_one_in_float32(potential: Potential, emt_manifest: Manifest) -> None:
    frames = Frames(emt_manifest, "train")
    batch = collate([frames[0], frames[1]], 5.0)

    def gradient() -> torch.Tensor:
        potential.zero_grad()
        loss(LossConfig(), potential(batch), batch, label_counts(batch)).backward()
        return torch.cat([p.grad.flatten() for p in potential.parameters() if p.grad is not None])

    exact = gradient()
    potential.compute_as(Computation(precision="bf16"))
    prediction, rough = potential(batch), gradient()
    error = float((rough - exact).norm() / exact.norm())
    assert 1e-5 < error < 0.05
    assert prediction.energy.dtype == torch.float64
    assert prediction.forces.dtype == torch.float32
    potential.compute_as(Computation(precision="float32"))
    assert torch.equal(gradient(), exact)


def test_outside_training_nothing_is_rounded(potential: Potential, emt_manifest: Manifest) -> None:
    batch = collate([Frames(emt_manifest, "train")[0]], 5.0)
    exact = potential.eval()(batch)
    potential.compute_as(Computation(precision="bf16"))
    assert torch.equal(potential(batch).forces, exact.forces)
    assert not torch.equal(potential.train()(batch).forces, exact.forces)


def test_every_linear_map_and_radial_network_is_switched(potential: Potential) -> None:
    potential.compute_as(Computation(precision="bf16"))
    switches = [module.rounded for module in potential.modules() if isinstance(module, Matmul)]
    # the embedding, two layers of the readout, and of each block three linear maps and the radial network
    assert switches == [True] * (1 + 2 + 2 * 4)


def test_tf32_is_asked_of_the_process_and_taken_back(potential: Potential) -> None:
    potential.compute_as(Computation(precision="tf32"))
    assert torch.get_float32_matmul_precision() == "high"
    assert not any(module.rounded for module in potential.modules() if isinstance(module, Matmul))
    potential.compute_as(Computation(precision="bf16"))
    assert torch.get_float32_matmul_precision() == "highest"


def test_the_log_says_that_a_cpu_has_no_tf32_and_emulates_bf16() -> None:
    cpu = torch.device("cpu")
    assert "no TF32" in describe_precision("tf32", cpu)
    assert "emulated" in describe_precision("bf16", cpu)
    assert describe_precision("float32", cpu) == "float32"


def test_the_choice_is_not_in_the_weights(potential: Potential) -> None:
    names = set(potential.state_dict())
    potential.compute_as(Computation(precision="bf16"))
    assert set(potential.state_dict()) == names
    assert not any("product" in name for name in names)
