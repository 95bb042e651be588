"""The convolution against e3nn's TensorProduct, with every backend that runs on a CPU."""

from collections.abc import Iterator

import pytest
import torch
from e3nn import o3
from torch import Tensor

from foundation.kernels.backend import Backend
from foundation.kernels.convolution import Convolution
from foundation.kernels.couplings import TensorProductPaths
from foundation.kernels.edges import EdgeIndex
from tests.foundation.layout import swap_layout

CASES = {
    "even": ("8x0e+3x1e+1x2e", "1x0e+1x1e+1x2e", "1x0e+1x1e+1x2e"),
    "degree-3": ("3x0e+1x1e+3x2e+1x3e", "1x0e+1x1e+1x2e+1x3e", "1x0e+1x1e+1x2e+1x3e"),
    "parity": ("1x0o+3x0e+8x1o+3x1e+1x2e", "1x0e+1x1o+1x2e", "1x0o+1x0e+1x1o+1x1e+1x2o+1x2e"),
    "parity-degree-3": ("3x0e+1x1o+3x3o", "1x0e+1x1o+1x2e+1x3o", "1x0e+1x1o+1x2e+1x3o+1x3e"),
    "from-scalars": ("8x0e", "1x0e+1x1o+1x2e+1x3o", "1x0e+1x1o+1x2e+1x3o"),
    "to-scalars": ("8x0e+3x1e+3x2e", "1x0e+1x1e+1x2e", "1x0e"),
    "unused-input": ("3x0e+8x3e", "1x0e+1x1e", "1x0e+1x1e"),
}


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    """Both sides hold their coefficients in the default float type."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(params=["c", "torch"])
def backend(request: pytest.FixtureRequest) -> Backend:
    return request.param


def convolution_of(paths: TensorProductPaths, backend: Backend) -> Convolution:
    convolution = Convolution(paths)
    convolution.backend = backend
    return convolution


def paths_of(case: str) -> TensorProductPaths:
    return TensorProductPaths(*(o3.Irreps(text) for text in CASES[case]))


def oracle(paths: TensorProductPaths) -> tuple[o3.TensorProduct, o3.Irreps]:
    """The tensor product as NequIP and SevenNet set it up, and its irreps with equal neighbours merged."""
    middle, found = [], []
    for i, item in enumerate(paths.irreps_in):
        for j, harmonic in enumerate(paths.irreps_harmonics):
            for output in item.ir * harmonic.ir:
                if output in paths.irreps_allowed:
                    found.append((i, j, len(middle)))
                    middle.append((item.mul, output))
    irreps_middle, place, _ = o3.Irreps(middle).sort()
    instructions = sorted(((i, j, place[k], "uvu", True) for i, j, k in found), key=lambda entry: entry[2])
    product = o3.TensorProduct(
        paths.irreps_in,
        paths.irreps_harmonics,
        irreps_middle,
        instructions,
        shared_weights=False,
        internal_weights=False,
    )
    return product, irreps_middle.simplify()


def random_inputs(paths: TensorProductPaths, num_atoms: int = 5, num_edges: int = 17) -> tuple[list[Tensor], EdgeIndex]:
    """Features, harmonics and weights of random edges; the last atom receives none."""
    generator = torch.Generator().manual_seed(0)
    widths = (paths.irreps_in.dim, paths.irreps_harmonics.dim, paths.num_weights)
    rows = (num_atoms, num_edges, num_edges)
    arguments = [torch.randn(n, w, generator=generator).requires_grad_() for n, w in zip(rows, widths, strict=True)]
    senders = torch.randint(num_atoms, (num_edges,), generator=generator)
    receivers = torch.randint(num_atoms - 1, (num_edges,), generator=generator).sort().values
    return arguments, EdgeIndex.single(senders, receivers, num_atoms)


def value_and_derivatives(output: Tensor, arguments: list[Tensor]) -> list[Tensor]:
    """The output, its first derivatives along a direction, and the derivatives of those along others."""
    generator = torch.Generator().manual_seed(1)
    direction = torch.randn(output.shape, generator=generator).requires_grad_()
    first = torch.autograd.grad(output, arguments, direction, create_graph=True)
    inner = sum((torch.randn(g.shape, generator=generator) * g).sum() for g in first)
    second = torch.autograd.grad(inner, [*arguments, direction])
    return [output, *first, *second]


@pytest.mark.parametrize("case", CASES)
def test_value_and_two_derivatives_are_those_of_e3nn(case: str, backend: Backend) -> None:
    paths = paths_of(case)
    arguments, edges = random_inputs(paths)
    features, harmonics, weights = arguments
    ours = value_and_derivatives(convolution_of(paths, backend)(*arguments, edges), arguments)

    product, irreps_out = oracle(paths)
    inputs = swap_layout(features, paths.irreps_in, to_e3nn=True)
    messages = swap_layout(product(inputs[edges.senders], harmonics, weights), irreps_out, to_e3nn=False)
    summed = torch.zeros(len(features), irreps_out.dim).index_add(0, edges.receivers(), messages)
    expected = value_and_derivatives(summed, arguments)

    names = ("value", "d/dx", "d/dY", "d/dW", "d2/dx", "d2/dY", "d2/dW", "d2/dg")
    for name, found, wanted in zip(names, ours, expected, strict=True):
        scale = wanted.abs().max()
        assert scale > 0.1, name
        assert (found - wanted).abs().max() < 1e-10 * scale, name


@pytest.mark.parametrize("case", CASES)
def test_irreps_and_weight_count_are_those_of_e3nn(case: str) -> None:
    paths = paths_of(case)
    product, irreps_out = oracle(paths)
    assert paths.irreps_out == irreps_out
    assert paths.num_weights == product.weight_numel


def test_numerical_second_derivatives_agree(backend: Backend) -> None:
    paths = TensorProductPaths(o3.Irreps("1x0e+2x1o"), o3.Irreps("1x0e+1x1o"), o3.Irreps("1x0e+1x1o+1x1e"))
    arguments, edges = random_inputs(paths, num_atoms=3, num_edges=4)
    convolution = convolution_of(paths, backend)

    def function(*values: Tensor) -> Tensor:
        return convolution(*values, edges)

    assert torch.autograd.gradcheck(function, arguments)
    assert torch.autograd.gradgradcheck(function, arguments)


def test_no_edges_give_zeros_and_zero_derivatives(backend: Backend) -> None:
    paths = paths_of("parity")
    arguments, edges = random_inputs(paths, num_atoms=3, num_edges=0)
    output = convolution_of(paths, backend)(*arguments, edges)
    assert output.shape == (3, paths.irreps_out.dim)
    assert not output.any()
    gradients = torch.autograd.grad(output.sum(), arguments, materialize_grads=True)
    assert [g.shape for g in gradients] == [a.shape for a in arguments]
    assert not gradients[0].any()


def test_no_atoms_give_an_empty_result(backend: Backend) -> None:
    paths = paths_of("even")
    nothing = torch.zeros(0, dtype=torch.int64)
    empty = [torch.zeros(0, w) for w in (paths.irreps_in.dim, paths.irreps_harmonics.dim, paths.num_weights)]
    output = convolution_of(paths, backend)(*empty, EdgeIndex.single(nothing, nothing, 0))
    assert output.shape == (0, paths.irreps_out.dim)


def test_an_atom_without_edges_gets_zeros_and_the_others_do_not(backend: Backend) -> None:
    paths = paths_of("even")
    arguments, edges = random_inputs(paths)
    output = convolution_of(paths, backend)(*arguments, edges)
    assert 4 not in edges.receivers()
    assert not output[4].any()
    assert output[:4].abs().sum(dim=1).min() > 0


def test_an_edge_reaches_its_receiver_only(backend: Backend) -> None:
    paths = paths_of("even")
    arguments, _ = random_inputs(paths, num_atoms=3, num_edges=1)
    edges = EdgeIndex.single(torch.tensor([2]), torch.tensor([1]), 3)
    output = convolution_of(paths, backend)(*arguments, edges)
    assert output[1].any()
    assert not output[[0, 2]].any()


def test_the_order_of_a_receivers_edges_does_not_matter(backend: Backend) -> None:
    paths = paths_of("degree-3")
    (features, harmonics, weights), edges = random_inputs(paths)
    convolution, receivers = convolution_of(paths, backend), edges.receivers()
    shuffled = torch.randperm(17, generator=torch.Generator().manual_seed(2))
    order = shuffled[torch.argsort(receivers[shuffled], stable=True)]
    assert not torch.equal(order, torch.arange(17))
    ordered = convolution(features, harmonics, weights, edges)
    other = EdgeIndex.single(edges.senders[order], receivers[order], 5)
    torch.testing.assert_close(convolution(features, harmonics[order], weights[order], other), ordered)


def test_a_module_made_in_float32_has_exact_coefficients_in_float64(backend: Backend) -> None:
    paths = paths_of("degree-3")
    torch.set_default_dtype(torch.float32)
    convolution = convolution_of(paths, backend).to(torch.float64)
    torch.set_default_dtype(torch.float64)
    arguments, edges = random_inputs(paths)
    expected = convolution_of(paths, backend)(*arguments, edges)
    torch.testing.assert_close(convolution(*arguments, edges), expected, rtol=1e-13, atol=1e-13)


def test_weights_of_sevennet_0_are_ordered_by_output_then_input_then_harmonic() -> None:
    hidden, harmonics = o3.Irreps("128x0e+64x1e+32x2e"), o3.Irreps("1x0e+1x1e+1x2e")
    paths = TensorProductPaths(hidden, harmonics, hidden)
    order = [(path.output.l, path.input, path.harmonic, path.channels) for path in paths.paths]
    assert order == [
        (0, 0, 0, 128), (0, 1, 1, 64), (0, 2, 2, 32),
        (1, 0, 1, 128), (1, 1, 0, 64), (1, 1, 1, 64), (1, 1, 2, 64), (1, 2, 1, 32), (1, 2, 2, 32),
        (2, 0, 2, 128), (2, 1, 1, 64), (2, 1, 2, 64), (2, 2, 0, 32), (2, 2, 1, 32), (2, 2, 2, 32),
    ]  # fmt: skip
    assert paths.num_weights == 960
    assert str(paths.irreps_out) == "224x0e+384x1e+352x2e"
