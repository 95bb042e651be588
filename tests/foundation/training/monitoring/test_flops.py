"""The operations of a training step, counted by formula, are those that torch sees."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from data_pipeline.graphs.batch import collate
from data_pipeline.loading.datasets import Frames
from data_pipeline.store.manifest import Manifest
from foundation.kernels.couplings import TensorProductPaths
from foundation.kernels.cpu.codegen import operations
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
