"""The operations of a training step, counted by formula, are those that torch sees."""

import itertools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from data_pipeline.graphs.batch import collate
from data_pipeline.loading.datasets import Frames
from data_pipeline.store.manifest import Manifest
from foundation.kernels.couplings import TensorProductPaths
from foundation.kernels.cpu.codegen import operations
from foundation.kernels.dense import named_maps
from foundation.models import EquivariantConfig
from foundation.nn.computation import Computation
from foundation.potential import new_potential
from foundation.training.loss import LossConfig, label_counts, loss
from foundation.training.monitoring.flops import peak_rate, training_cost


def edges_times(kernel: str):
    """Return torch's count of an operator of ours: by its name for the paths, its last argument."""

    def count(*shapes, out_shape=None, **kwargs) -> int:
        *_, edges, paths = shapes
        num_edges = edges[1][0]  # the shape of an EdgeIndex' senders
        return getattr(operations(TensorProductPaths.named(paths)), kernel) * num_edges

    return count


def products_of_maps(inputs: list, name: str) -> list[int]:
    """Return the operations of each linear map of a number of rows."""
    sizes = [sum(b.components * b.fan_in * b.fan_out for b in each.blocks) for each in named_maps(name)]
    return [2 * rows[0] * size for rows, size in zip(inputs, sizes, strict=True)]


def mix(inputs, weights, name, **kwargs) -> int:
    return sum(products_of_maps(inputs, name))


def mix_backward(inputs, weights, gradient, wanted, name, **kwargs) -> int:
    return sum(itertools.compress(2 * products_of_maps(inputs, name), wanted))


def mix_double_backward(operands, tangents, along, wanted, name, **kwargs) -> int:
    sizes = 2 * products_of_maps(operands[: len(along) // 2], name)
    return sum(itertools.compress(sizes, along)) + sum(itertools.compress(sizes, wanted))


def layers(rows, weights) -> list[int]:
    return [2 * rows[0] * fan_in * fan_out for fan_in, fan_out in weights]


def perceptron(rows, weights, scales, **kwargs) -> int:
    return sum(layers(rows, weights))


def perceptron_backward(rows, weights, before, gradient, scales, wanted, **kwargs) -> int:
    return sum(layers(rows, weights)) + sum(itertools.compress(layers(rows, weights), wanted[1:]))


def perceptron_double_backward(rows, weights, *rest, **kwargs) -> int:
    # the derivatives of both products for weights and inputs; of the last layer, whose input is known, half
    *hidden, last = layers(rows, weights)
    return 4 * sum(hidden) + 2 * last


@pytest.mark.parametrize("num_knots", [0, 16])
@pytest.mark.parametrize(
    "model",
    [
        EquivariantConfig(irreps="16x0e+8x1e", num_blocks=2, radial_sizes=(16,), readout_channels=8),
        EquivariantConfig(irreps="128x0e+64x1e+32x2e", num_blocks=3),
    ],
    ids=["small", "large"],
)
def test_the_count_is_what_torch_counts(model: EquivariantConfig, num_knots: int, emt_manifest: Manifest) -> None:
    potential = new_potential(model, {"EMT": emt_manifest.split("train").statistics}).train()
    potential.compute_as(Computation(backend="c", radial_table=num_knots))
    frames = Frames(emt_manifest, "train")
    batch = collate([frames[number] for number in range(60)], potential.cutoff)
    operators = torch.ops.foundation
    mapping = {
        operators.convolution: edges_times("forward"),
        operators.convolution_backward: edges_times("backward"),
        operators.convolution_double_backward: edges_times("double_backward"),
        operators.mix: mix,
        operators.mix_backward: mix_backward,
        operators.mix_double_backward: mix_double_backward,
        operators.perceptron: perceptron,
        operators.perceptron_backward: perceptron_backward,
        operators.perceptron_double_backward: perceptron_double_backward,
    }
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        loss(LossConfig(), potential(batch), batch, label_counts(batch)).backward()
    cost = training_cost(potential, tabulated=num_knots > 0)
    assert cost is not None
    counted = cost.per_edge * batch.num_edges + cost.per_atom * len(batch.numbers)
    # the features that the first block sees do not move with the atoms, which saves it some of the passes
    assert counted == pytest.approx(counter.get_total_flops(), rel=0.08)


def test_a_network_of_another_kind_has_no_count(emt_manifest: Manifest) -> None:
    model = EquivariantConfig(irreps="4x0e", num_blocks=1, max_degree=0, radial_sizes=(8,), readout_channels=4)
    potential = new_potential(model, {"EMT": emt_manifest.split("train").statistics})
    potential.network = torch.nn.Linear(3, 3)
    assert training_cost(potential, tabulated=False) is None


def test_the_rate_of_the_machine_is_measured_once_and_leaves_random_numbers_alone() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    rate = peak_rate(torch.device("cpu"), torch.float32)
    assert torch.equal(torch.rand(3), expected)
    assert rate is not None
    assert 1e8 < rate < 1e15
    assert peak_rate(torch.device("cpu"), torch.float32) == rate
    assert peak_rate(torch.device("meta"), torch.float32) is None
