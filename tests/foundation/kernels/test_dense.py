"""Products, linear maps, gates and radial networks in C: plain torch as the oracle, derivatives, and bits."""

import itertools
from collections.abc import Callable, Iterator
from functools import cache

import pytest
import torch
from e3nn import o3
from torch import Tensor

from foundation.kernels import dense
from foundation.kernels.cpu import compiler
from foundation.kernels.cpu.dense import library, multiply
from foundation.kernels.dense import gate, mix, name_of_maps, named_maps, perceptron
from foundation.kernels.edges import EdgeIndex
from foundation.nn.computation import Computation, set_layers
from foundation.nn.interaction import InteractionBlock
from foundation.nn.radial import RadialNetwork

DTYPES = [(torch.float32, 2e-6), (torch.float64, 1e-14)]


@pytest.fixture
def threads() -> Iterator[None]:
    """Leave one thread behind, as all tests expect."""
    yield
    torch.set_num_threads(1)


def random(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize(
    ("rows", "inner", "columns"), [(1, 1, 1), (3, 5, 7), (14, 64, 96), (15, 300, 33), (29, 700, 64), (70, 0, 130)]
)
@pytest.mark.parametrize("turned", list(itertools.product([False, True], repeat=2)))
def test_a_product_of_any_strides_is_torchs(
    rows: int, inner: int, columns: int, turned: tuple[bool, bool], dtype: torch.dtype, tolerance: float
) -> None:
    left = random(inner, rows, dtype=dtype).t() if turned[0] else random(rows, inner, dtype=dtype)
    right = (
        random(columns, inner, dtype=dtype, seed=1).t() if turned[1] else random(inner, columns, dtype=dtype, seed=1)
    )
    expected = 1.5 * (left.double() @ right.double())
    found = multiply(left, right, 1.5)
    scale = 1.0 + inner
    assert float((found - expected).abs().max()) <= tolerance * scale
    multiply(left, right, 1.5, found, add=True)
    assert float((found - 2 * expected).abs().max()) <= 2 * tolerance * scale


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_row_has_the_same_bits_in_any_product_and_with_any_threads(dtype: torch.dtype, threads: None) -> None:
    left, right = random(145, 700, dtype=dtype), random(700, 200, dtype=dtype, seed=1)
    whole = multiply(left, right)
    for rows in (1, 13, 30):
        assert torch.equal(multiply(left[:rows], right), whole[:rows])
    for number in (2, 3, 4):
        torch.set_num_threads(number)
        assert torch.equal(multiply(left, right), whole)
        assert torch.equal(multiply(left[:20], right), whole[:20])


@pytest.mark.skipif(compiler.vector_bits() < 256, reason="needs AVX")
@pytest.mark.parametrize("tuning", ["haswell", "znver3"])
def test_a_row_has_the_same_bits_however_the_compiler_tunes(monkeypatch: pytest.MonkeyPatch, tuning: str) -> None:
    flags = (*compiler.FLAGS, "-mno-avx512f", f"-mtune={tuning}")
    monkeypatch.setattr(compiler, "FLAGS", flags)
    compiled = cache(library.__wrapped__)
    monkeypatch.setattr("foundation.kernels.cpu.dense.library", compiled)
    left, right = random(13, 70, dtype=torch.float32), random(70, 40, dtype=torch.float32, seed=1)
    whole = multiply(left, right)
    for rows in range(1, 13):
        assert torch.equal(multiply(left[:rows], right), whole[:rows])


def derivatives(function: Callable[..., Tensor], arguments: list[Tensor]) -> list[Tensor]:
    """The value, the gradients of a function of it, and the gradients of a function of those."""
    value = function(*arguments)
    first = torch.autograd.grad(value.sin().sum(), arguments, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), arguments)
    return [value, *first, *second]


@pytest.mark.parametrize("sizes", [(3, 4), (3, 5, 4), (8, 17, 33, 6)])
def test_numerical_derivatives_of_a_radial_network_agree(sizes: tuple[int, ...]) -> None:
    weights = [random(a, b, seed=a).requires_grad_() for a, b in itertools.pairwise(sizes)]
    rows, scales = random(5, sizes[0]).requires_grad_(), [0.5 + 0.1 * n for n in range(len(weights))]

    def function(rows: Tensor, *weights: Tensor) -> Tensor:
        return perceptron(rows, list(weights), scales)[0]

    assert torch.autograd.gradcheck(function, (rows, *weights), fast_mode=True)
    assert torch.autograd.gradgradcheck(function, (rows, *weights), fast_mode=True)


def make_block(irreps_in: str, hidden: str, dtype: torch.dtype, num_theories: int = 0) -> InteractionBlock:
    torch.manual_seed(0)
    harmonics = o3.Irreps("1x0e+1x1o+1x2e" if "o" in hidden else "1x0e+1x1e+1x2e")
    return InteractionBlock(o3.Irreps(irreps_in), harmonics, o3.Irreps(hidden), [5, 8, 8], 2.0, num_theories).to(dtype)


SHAPES = [("4x0e", "4x0e+3x1e+2x2e"), ("2x0o+20x0e+3x1o+17x1e", "2x0o+20x0e+3x1o+17x1e"), ("7x0e+5x1e", "9x0e")]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 2e-4)])
@pytest.mark.parametrize(("irreps_in", "hidden"), SHAPES)
@pytest.mark.parametrize("num_theories", [0, 2])
def test_a_block_and_its_derivatives_are_those_of_plain_torch(
    irreps_in: str, hidden: str, num_theories: int, dtype: torch.dtype, tolerance: float
) -> None:
    block = make_block(irreps_in, hidden, dtype, num_theories)
    senders, receivers = torch.randint(6, (2, 20), generator=torch.Generator().manual_seed(1))
    edges = EdgeIndex.single(senders, receivers.sort().values, 6)
    inputs = [random(6, block.self_interaction_1.irreps_in.dim, dtype=dtype), random(20, 9, dtype=dtype, seed=2)]
    arguments = [each.requires_grad_() for each in [*inputs, random(20, 5, dtype=dtype, seed=3)]]
    theory = torch.arange(6) % 2

    def found() -> list[Tensor]:
        value = block(*arguments, edges, theory)
        first = torch.autograd.grad(value.square().sum(), arguments, create_graph=True)
        total = sum(each.sin().sum() for each in first) + value.sum()
        assert isinstance(total, Tensor)
        return [value, *first, *torch.autograd.grad(total, [*arguments, *block.parameters()])]

    ours = found()
    set_layers(block, Computation(backend="torch"))
    for one, expected in zip(ours, found(), strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one, expected, rtol=tolerance, atol=tolerance * float(expected.detach().abs().max()))


@pytest.mark.parametrize(("irreps_in", "hidden"), SHAPES)
def test_numerical_derivatives_of_maps_and_gate_agree(irreps_in: str, hidden: str) -> None:
    block = make_block(irreps_in, hidden, torch.float64)
    maps = named_maps(block._maps)
    inputs = [random(3, each.inputs, seed=n) for n, each in enumerate(maps)]
    weights = [layer.weight.detach() for layer in (block.self_interaction_2, block.self_connection)]
    arguments = tuple(each.clone().requires_grad_() for each in (*inputs, *weights))

    def function(*tensors: Tensor) -> Tensor:
        return gate(mix(list(tensors[:2]), list(tensors[2:]), block._maps), block.gate.name)

    assert torch.autograd.gradcheck(function, arguments, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, arguments, fast_mode=True)


def test_any_number_of_threads_gives_the_same_bits(threads: None) -> None:
    network, block = RadialNetwork([8, 32, 300]), make_block(*SHAPES[1], torch.float32)
    rows, maps = random(900, 8, dtype=torch.float32), named_maps(block._maps)
    inputs = [random(900, each.inputs, dtype=torch.float32, seed=n) for n, each in enumerate(maps)]
    weights = [layer.weight.detach() for layer in (block.self_interaction_2, block.self_connection)]
    results = []
    for number in (1, 2, 4):
        torch.set_num_threads(number)
        leaves = [each.clone().requires_grad_() for each in (rows, *inputs, *weights)]
        found = derivatives(lambda rows: network(rows), leaves[:1])
        found += derivatives(
            lambda *tensors: gate(mix(list(tensors[:2]), list(tensors[2:]), block._maps), block.gate.name), leaves[1:]
        )
        results.append(found)
    for other in results[1:]:
        assert all(torch.equal(ours, expected) for ours, expected in zip(other, results[0], strict=True))


def test_large_inputs_saturate_the_gate_without_overflow() -> None:
    z = torch.tensor([[-1e4, -200.0, -1.0, 0.0, 1.0, 200.0, 1e4]])
    name = dense.name_of_gate(dense.Nonlinearity(0, 7, (), 1.0, 1.0))
    torch.testing.assert_close(gate(z, name), torch.nn.functional.silu(z), rtol=1e-6, atol=1e-6)


def test_weights_get_no_gradient_while_forces_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    network, rows = RadialNetwork([3, 5, 4]).double(), random(6, 3).requires_grad_()
    asked = []
    backward = dense.perceptron_backward

    def watched(*arguments: object) -> object:
        asked.append(arguments[-1])
        return backward(*arguments)

    monkeypatch.setattr(dense, "perceptron_backward", watched)
    torch.autograd.grad(network(rows).sum(), rows)
    network(rows.detach()).sum().backward()
    assert asked == [[True, False, False], [False, True, True]]


def test_a_third_derivative_is_refused() -> None:
    rows = random(4, 3).requires_grad_()
    value = RadialNetwork([3, 5, 4]).double()(rows)
    (first,) = torch.autograd.grad(value.square().sum(), rows, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), rows, create_graph=True)
    with pytest.raises(NotImplementedError, match="no third derivatives"):
        torch.autograd.grad(second.square().sum(), rows)


def test_torch_accepts_the_operators() -> None:
    block = make_block(*SHAPES[0], torch.float64)
    maps = named_maps(block._maps)
    inputs = [random(3, each.inputs, seed=n).requires_grad_() for n, each in enumerate(maps)]
    weights = [layer.weight.detach() for layer in (block.self_interaction_2, block.self_connection)]
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    arguments = (inputs, weights, name_of_maps(maps))
    torch.library.opcheck(mix.definition, arguments, test_utils=tests)
    z = mix(*arguments).detach().requires_grad_()
    torch.library.opcheck(
        dense.mix_backward.definition, (inputs, weights, z, [True] * 4, arguments[-1]), test_utils=tests
    )
    torch.library.opcheck(gate.definition, (z, block.gate.name), test_utils=tests)
    rows, layers = random(4, 3).requires_grad_(), [random(3, 5), random(5, 2)]
    torch.library.opcheck(perceptron.definition, (rows, layers, [1.0, 0.5]), test_utils=tests)
