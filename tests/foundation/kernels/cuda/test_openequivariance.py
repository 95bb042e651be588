"""OpenEquivariance behind the same module, on a CUDA device only."""

import pytest
import torch
from e3nn import o3

from foundation.kernels.backend import Backend
from foundation.kernels.convolution import Convolution
from foundation.kernels.couplings import TensorProductPaths
from foundation.kernels.cuda import openequivariance
from foundation.kernels.edges import EdgeIndex
from tests.foundation.kernels.graphs import many_structures, operands, value_and_derivatives

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or not openequivariance.available(),
        reason="needs a CUDA device and OpenEquivariance",
    ),
]
EVEN = ("32x0e+32x1e+32x2e", "1x0e+1x1e+1x2e", "1x0e+1x1e+1x2e")
PARITY = ("32x0e+32x1o", "1x0e+1x1o+1x2e", "1x0e+1x1o+1x1e")


@pytest.mark.parametrize("irreps", [EVEN, PARITY])
def test_value_and_two_derivatives_are_those_of_plain_torch(irreps: tuple[str, str, str]) -> None:
    paths = TensorProductPaths(*(o3.Irreps(text) for text in irreps))
    edges = EdgeIndex(*(index.cuda() for index in many_structures(4)))
    results = []
    backends: tuple[Backend, ...] = ("openequivariance", "torch")
    for backend in backends:
        module = Convolution(paths)
        module.backend = backend
        arguments = operands(paths, EdgeIndex(*(index.cpu() for index in edges)))
        arguments = [tensor.detach().cuda().requires_grad_() for tensor in arguments]
        results.append(value_and_derivatives(module(*arguments, edges), arguments))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10 * float(expected.abs().max()))


def test_the_same_input_gives_the_same_bits() -> None:
    paths = TensorProductPaths(*(o3.Irreps(text) for text in EVEN))
    edges = many_structures(8)
    arguments = [tensor.detach().float().cuda() for tensor in operands(paths, edges)]
    module, index = Convolution(paths), EdgeIndex(*(tensor.cuda() for tensor in edges))
    module.backend = "openequivariance"
    assert torch.equal(module(*arguments, index), module(*arguments, index))
