"""The operator on paired edges: its derivatives, its bits, and what torch does with it."""

from collections.abc import Iterator

import pytest
import torch
from e3nn import o3
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from data_pipeline.graphs.batch import GraphBatch, collate
from data_pipeline.sources import EmtAlloys
from foundation.kernels import operator
from foundation.kernels.convolution import Convolution
from foundation.kernels.couplings import TensorProductPaths
from foundation.kernels.edges import EdgeIndex
from foundation.kernels.operator import convolution, convolution_backward, convolution_double_backward
from foundation.models import EquivariantConfig, EquivariantNetwork
from foundation.nn.computation import Computation
from foundation.potential import Potential
from tests.foundation.kernels.graphs import many_structures, operands, paired_edges, value_and_derivatives

EVEN = TensorProductPaths(o3.Irreps("32x0e+16x1e+5x2e"), o3.Irreps("1x0e+1x1e+1x2e"), o3.Irreps("1x0e+1x1e+1x2e"))
SHAPES = [
    TensorProductPaths(o3.Irreps(features), o3.Irreps(harmonics), o3.Irreps(allowed))
    for features, harmonics, allowed in (
        ("1x0e", "1x0e", "1x0e"),
        ("2x0e+3x1o", "1x0e+1x1o", "1x0e+1x0o+1x1o+1x1e"),
        ("1x0o+2x0e+1x2e", "1x1e+1x2e", "1x0o+1x0e+1x1o+1x1e+1x2e"),
        ("17x0e+1x1o", "1x0e+1x1o", "1x0e+1x1o"),
        ("2x1e+1x3e", "1x0e+1x3e", "1x0e+1x3e"),
    )
]
"""Channels below, at and above a vector's width, odd harmonics, irreps out of reach, high degrees."""


@pytest.fixture
def threads() -> Iterator[None]:
    """Leave one thread behind, as all tests expect."""
    yield
    torch.set_num_threads(1)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(st.sampled_from(SHAPES), st.integers(0, 5), st.integers(0, 6), st.integers(0, 1000))
def test_numerical_first_and_second_derivatives_agree(
    paths: TensorProductPaths, num_atoms: int, num_pairs: int, seed: int
) -> None:
    edges = paired_edges(num_atoms, num_pairs, seed)
    module = Convolution(paths)
    module.backend = "c"

    def function(*values: Tensor) -> Tensor:
        return module(*values, edges)

    arguments = operands(paths, edges, seed=seed)
    assert torch.autograd.gradcheck(function, arguments, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, arguments, fast_mode=True)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.sampled_from([*SHAPES, EVEN]), st.integers(0, 8), st.integers(0, 60), st.integers(0, 1000))
def test_c_and_torch_agree_on_paired_edges(
    paths: TensorProductPaths, num_atoms: int, num_pairs: int, seed: int
) -> None:
    edges = paired_edges(num_atoms, num_pairs, seed)
    results = []
    for backend in ("c", "torch"):
        module, arguments = Convolution(paths), operands(paths, edges, seed=seed)
        module.backend = backend
        results.append(value_and_derivatives(module(*arguments, edges), arguments))
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-11)


def test_float32_is_good_to_rounding() -> None:
    edges = paired_edges(9, 90)
    exact = operands(EVEN, edges)
    rounded = [tensor.detach().float().requires_grad_() for tensor in exact]
    expected = value_and_derivatives(convolution(*exact, list(edges), EVEN.name), exact)
    output = convolution(*rounded, list(edges), EVEN.name)
    first = torch.autograd.grad(output.square().sum(), rounded)
    wanted = torch.autograd.grad(convolution(*exact, list(edges), EVEN.name).square().sum(), exact)
    for ours, theirs in zip((output, *first), (expected[0], *wanted), strict=True):
        assert (ours - theirs).abs().max() < 3e-6 * theirs.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_structures", [1, 3, 20])
def test_any_number_of_threads_gives_the_same_bits(dtype: torch.dtype, num_structures: int, threads: None) -> None:
    edges = paired_edges(30, 700, seed=3) if num_structures == 1 else many_structures(num_structures)
    results = []
    for number in (1, 2, 4, 2, 1):
        torch.set_num_threads(number)
        arguments = operands(EVEN, edges, dtype)
        results.append(value_and_derivatives(convolution(*arguments, list(edges), EVEN.name), arguments))
    for other in results[1:]:
        for ours, expected in zip(other, results[0], strict=True):
            assert torch.equal(ours, expected)


def of_hidden(paths: TensorProductPaths, edges: EdgeIndex, dtype: torch.dtype) -> tuple[Convolution, list[Tensor]]:
    """A convolution, and its arguments with hidden values and a matrix in place of the weights."""
    x, y, w = operands(paths, edges, dtype)
    generator = torch.Generator().manual_seed(5)
    shapes = ((len(w), 21), (21, w.shape[1]))
    made = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) / 4 for shape in shapes]
    return Convolution(paths), [x, y, *(each.requires_grad_() for each in made)]


@pytest.mark.parametrize("most", [0, operator.MAX_WEIGHTS])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("paths", [EVEN, *SHAPES[1:4]])
def test_weights_made_in_the_kernels_are_the_product(
    paths: TensorProductPaths, dtype: torch.dtype, tolerance: float, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operator, "MAX_WEIGHTS", most)
    # up to 150 edges of an atom: more than are made at a time
    edges = paired_edges(4, 300, seed=2)
    module, (x, y, hidden, matrix) = of_hidden(paths, edges, dtype)
    results = []
    for output in (module.of_hidden(x, y, hidden, matrix, edges), module(x, y, hidden @ matrix, edges)):
        weight = torch.linspace(-1, 1, output.numel(), dtype=dtype).view_as(output)
        results.append([output, *torch.autograd.grad((output * weight).sum(), (x, y, hidden))])
    for ours, expected in zip(*results, strict=True):
        assert (ours - expected).detach().abs().max() <= tolerance * expected.detach().abs().max()


def test_weights_made_in_the_kernels_have_all_derivatives() -> None:
    edges = paired_edges(5, 9)
    module, arguments = of_hidden(SHAPES[1], edges, torch.float64)

    def function(*values: Tensor) -> Tensor:
        return module.of_hidden(*values, edges)

    assert torch.autograd.gradcheck(function, arguments, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, arguments, fast_mode=True)


@pytest.mark.parametrize("num_structures", [1, 20])
def test_weights_made_in_the_kernels_have_the_same_bits_with_any_threads(
    num_structures: int, threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operator, "MAX_WEIGHTS", 0)
    edges = paired_edges(30, 700, seed=3) if num_structures == 1 else many_structures(num_structures)
    results = []
    for number in (1, 2, 4):
        torch.set_num_threads(number)
        module, (x, y, hidden, matrix) = of_hidden(EVEN, edges, torch.float32)
        output = module.of_hidden(x, y, hidden, matrix, edges)
        results.append([output, *torch.autograd.grad(output.square().sum(), (x, y, hidden))])
    for other in results[1:]:
        assert all(torch.equal(ours, expected) for ours, expected in zip(other, results[0], strict=True))


def test_a_third_derivative_is_refused() -> None:
    edges = paired_edges(4, 5)
    arguments = operands(EVEN, edges)
    output = convolution(*arguments, list(edges), EVEN.name)
    (first,) = torch.autograd.grad(output.square().sum(), arguments[:1], create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), arguments[:1], create_graph=True)
    with pytest.raises(NotImplementedError, match="no third derivatives"):
        torch.autograd.grad(second.square().sum(), arguments[:1])


def test_torch_accepts_the_operators() -> None:
    edges = paired_edges(4, 6)
    x, y, w = operands(EVEN, edges)
    g = convolution(x, y, w, list(edges), EVEN.name).detach().requires_grad_()
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(convolution.definition, (x, y, w, list(edges), EVEN.name), test_utils=tests)
    torch.library.opcheck(convolution_backward.definition, (x, y, w, g, list(edges), EVEN.name), test_utils=tests)
    values = [tensor.detach() for tensor in (x, y, w, g)]
    arguments = (values, values[:3], list(edges), EVEN.name)
    torch.library.opcheck(convolution_double_backward.definition, arguments, test_utils=tests[:2])


def test_under_autocast_it_computes_in_float32() -> None:
    edges = paired_edges(4, 6)
    x, y, w = operands(EVEN, edges, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        output = convolution(x, y, w.bfloat16(), list(edges), EVEN.name)
    assert output.dtype == torch.float32


@pytest.fixture(scope="module")
def batch() -> GraphBatch:
    return collate(list(EmtAlloys(num_frames=3)), 4.0)


def make_potential(batch: GraphBatch) -> Potential:
    torch.manual_seed(0)
    config = EquivariantConfig(irreps="8x0e+3x1e", num_blocks=2, max_degree=1, radial_sizes=(8,), cutoff=4.0,
                               cutoff_onset=3.5)  # fmt: skip
    elements = tuple(sorted(set(batch.numbers.tolist())))
    return Potential(EquivariantNetwork(config, elements, mean_neighbors=20.0), elements, ("PBE",)).train()


def step(potential: Potential, batch: GraphBatch) -> list[Tensor]:
    prediction = potential(batch)
    loss = prediction.energy.sum() + prediction.forces.square().sum() + prediction.stress.square().sum()
    gradients = torch.autograd.grad(loss, list(potential.parameters()))
    return [prediction.energy, prediction.forces, prediction.stress, *gradients]


def test_a_training_step_has_the_same_result_with_every_backend(batch: GraphBatch) -> None:
    potential = make_potential(batch)
    results = []
    for backend in ("c", "torch"):
        potential.compute_as(Computation(backend=backend))
        results.append(step(potential, batch))
    for ours, expected in zip(*results, strict=True):
        assert (ours - expected).abs().max() <= 2e-5 * expected.abs().max()


def test_a_prediction_and_its_derivatives_are_those_of_a_training_step(batch: GraphBatch) -> None:
    potential = make_potential(batch)
    training, prediction = potential(batch), potential.eval()(batch)
    for name in ("energy", "forces", "stress"):
        ours, expected = (getattr(each, name).detach() for each in (prediction, training))
        assert (ours - expected).abs().max() <= 2e-6 * expected.abs().max()
