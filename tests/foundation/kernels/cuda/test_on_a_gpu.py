"""The own kernels where there is a GPU: numbers, bits, and what torch does with the operator there."""

import pytest
import torch
from e3nn import o3
from torch import Tensor

from data_pipeline.graphs.batch import collate
from data_pipeline.sources import EmtAlloys
from foundation.kernels.convolution import Convolution, cuda_verdict
from foundation.kernels.couplings import TensorProductPaths
from foundation.kernels.edges import EdgeIndex
from foundation.kernels.operator import convolution
from foundation.models import EquivariantConfig, EquivariantNetwork
from foundation.nn.computation import Computation
from foundation.potential import Potential
from tests.foundation.kernels.graphs import many_structures, operands, value_and_derivatives

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
CASES = {
    "sevennet-0": ("128x0e+64x1e+32x2e", "1x0e+1x1e+1x2e", "128x0e+64x1e+32x2e"),
    "parity": ("33x0e+32x1o+5x2e", "1x0e+1x1o+1x2e", "1x0e+1x1o+1x1e+1x2e"),
    "degree-3": ("32x0e+32x3e", "1x0e+1x1e+1x2e+1x3e", "1x0e+1x1e+1x2e+1x3e"),
}


def paths_of(case: str) -> TensorProductPaths:
    return TensorProductPaths(*(o3.Irreps(text) for text in CASES[case]))


def on_the_gpu(paths: TensorProductPaths, dtype: torch.dtype) -> tuple[list[Tensor], EdgeIndex]:
    edges = many_structures(4)
    arguments = [tensor.detach().cuda().requires_grad_() for tensor in operands(paths, edges, dtype)]
    return arguments, EdgeIndex(*(index.cuda() for index in edges))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASES)
def test_the_self_check_passes(case: str, dtype: torch.dtype) -> None:
    verdict = cuda_verdict(torch.cuda.current_device(), dtype, paths_of(case).name)
    assert verdict.works, verdict.finding


@pytest.mark.parametrize("case", CASES)
def test_value_and_two_derivatives_are_those_of_plain_torch(case: str) -> None:
    paths = paths_of(case)
    arguments, edges = on_the_gpu(paths, torch.float64)
    module = Convolution(paths)
    assert module.chosen("cuda", torch.float64) == "cuda"
    ours = value_and_derivatives(module(*arguments, edges), arguments)
    expected = value_and_derivatives(module.in_torch(*arguments, edges), arguments)
    for found, right in zip(ours, expected, strict=True):
        assert (found - right).abs().max() <= 1e-11 * right.abs().max()


def test_the_same_input_gives_the_same_bits() -> None:
    paths = paths_of("sevennet-0")
    arguments, edges = on_the_gpu(paths, torch.float32)
    first, second = (
        value_and_derivatives(convolution(*arguments, list(edges), paths.name), arguments) for _ in range(2)
    )
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_torch_accepts_the_operator() -> None:
    paths = paths_of("parity")
    arguments, edges = on_the_gpu(paths, torch.float64)
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(convolution.definition, (*arguments, list(edges), paths.name), test_utils=tests)


def test_a_training_step_has_the_same_result_with_every_backend() -> None:
    torch.manual_seed(0)
    batch = collate(list(EmtAlloys(num_frames=3)), 4.0)
    config = EquivariantConfig(irreps="32x0e+16x1e", num_blocks=2, max_degree=1, radial_sizes=(8,), cutoff=4.0,
                               cutoff_onset=3.5)  # fmt: skip
    elements = tuple(sorted(set(batch.numbers.tolist())))
    potential = Potential(EquivariantNetwork(config, elements, mean_neighbors=20.0), elements, ("PBE",)).train().cuda()
    results = []
    for backend in ("cuda", "torch"):
        potential.compute_as(Computation(backend=backend))
        prediction = potential(batch.to(torch.device("cuda")))
        loss = prediction.energy.sum() + prediction.forces.square().sum() + prediction.stress.square().sum()
        results.append([prediction.forces.detach(), *torch.autograd.grad(loss, list(potential.parameters()))])
    for ours, expected in zip(*results, strict=True):
        assert (ours - expected).abs().max() <= 5e-5 * expected.abs().max()
