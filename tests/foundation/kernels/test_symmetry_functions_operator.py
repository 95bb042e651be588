"""Symmetry functions in C: as in plain torch, with two derivatives, for any elements and numbers of neighbours."""

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from data_pipeline.graphs.batch import GraphBatch, collate
from data_pipeline.structure import Structure
from foundation.kernels.cpu.symmetry_functions import SymmetryFunctions
from foundation.kernels.symmetry_functions import symmetry_functions
from foundation.nn.symmetry_functions import SymmetryFunctionLayer

CUTOFF = 4.0
NEAR = ((0.02, 1.0, 1.0), (0.05, 3.0, -1.0), (0.02, 7.0, 1.0))
WIDE = ((0.03, 2.0, 1.0), (0.03, 1.0, -1.0))
SETS = {
    "cosine": SymmetryFunctions(((0.1, 0.0), (1.0, 2.0)), NEAR, WIDE, CUTOFF, None),
    "polynomial-3": SymmetryFunctions(((0.1, 0.0),), NEAR, (), CUTOFF, 3),
    "polynomial-5": SymmetryFunctions(((0.1, 0.0),), NEAR, WIDE, CUTOFF, 5),
    "polynomial-6": SymmetryFunctions(((4.0, 1.0),), (), WIDE, CUTOFF, 6),
    "radial": SymmetryFunctions(((0.1, 0.0), (1.0, 2.0)), (), (), CUTOFF, None),
}


def batch() -> GraphBatch:
    """A dense gas, a sparse one, a dimer and an atom alone."""
    random = torch.Generator().manual_seed(0)
    structures = []
    for num_atoms, size in ((23, 6.0), (9, 7.0)):
        places = torch.randperm(64, generator=random)[:num_atoms]
        grid = torch.stack([places // 16, places // 4 % 4, places % 4], dim=1).double()
        positions = (grid + 0.3 * torch.rand(num_atoms, 3, generator=random).double()) * size / 4
        structures.append(atoms(positions, size))
    structures += [atoms(torch.tensor([[0.0, 0, 0], [1.1, 0.4, 0.2]]).double()), atoms(torch.zeros(1, 3).double())]
    return collate(structures, CUTOFF, torch.float64)


def atoms(positions: Float[Tensor, "atoms 3"], size: float = 0.0) -> Structure:
    numbers = torch.arange(len(positions)) % 3 + 6
    cell = size * torch.eye(3).double()
    return Structure.checked(
        numbers=numbers.numpy(),
        positions=positions.numpy(),
        cell=cell.numpy(),
        pbc=torch.full((3,), size > 0).numpy(),
        energy=0.0,
    )


def derivatives(layer: SymmetryFunctionLayer, dtype: torch.dtype) -> list[Tensor]:
    """Return values, gradient, and the gradients of a product with the gradient."""
    graph = batch()
    random = torch.Generator().manual_seed(1)
    vectors = graph.edge_vectors().to(dtype).requires_grad_()
    values = layer(graph, vectors, graph.numbers - 6, 3)
    weights = torch.randn(values.shape, generator=random, dtype=torch.float64).to(dtype).requires_grad_()
    (gradient,) = torch.autograd.grad((values * weights).sum(), vectors, create_graph=True)
    tangents = torch.randn(vectors.shape, generator=random, dtype=torch.float64).to(dtype)
    return [values.detach(), gradient.detach(), *torch.autograd.grad((gradient * tangents).sum(), (vectors, weights))]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
@pytest.mark.parametrize("name", SETS)
def test_values_and_both_derivatives_are_those_of_plain_torch(name: str, dtype: torch.dtype, tolerance: float) -> None:
    layer = SymmetryFunctionLayer(SETS[name])
    layer.backend = "torch"
    exact = derivatives(layer, torch.float64)
    layer.backend = "c"
    for found, expected in zip(derivatives(layer, dtype), exact, strict=True):
        assert float(expected.abs().max()) > 0.1
        size = float(expected.abs().max())
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance * size)


def test_any_number_of_threads_gives_the_same_bits() -> None:
    layer, before = SymmetryFunctionLayer(SETS["cosine"]), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = derivatives(layer, torch.float32)
        torch.set_num_threads(2)
        two = derivatives(layer, torch.float32)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(*pair) for pair in zip(one, two, strict=True))


def test_a_third_derivative_is_refused_with_what_to_do() -> None:
    layer, graph = SymmetryFunctionLayer(SETS["radial"]), batch()
    vectors = graph.edge_vectors().requires_grad_()
    found = layer(graph, vectors, graph.numbers - 6, 3).square().sum()
    for _ in range(2):
        (gradient,) = torch.autograd.grad(found, vectors, create_graph=True)
        found = gradient.square().sum()
    with pytest.raises(NotImplementedError, match="use the torch backend"):
        torch.autograd.grad(found, vectors)


def test_fractional_exponents_are_left_to_torch() -> None:
    layer = SymmetryFunctionLayer(SymmetryFunctions(((0.1, 0.0),), ((0.1, 2.5, 1.0),), (), CUTOFF, None))
    assert layer.chosen("cpu", torch.float64) == "torch"
    layer.backend = "c"
    with pytest.raises(ValueError, match="fractional exponents"):
        layer.chosen("cpu", torch.float64)


def test_the_operator_passes_the_checks_of_torch() -> None:
    graph = batch()
    vectors = graph.edge_vectors().requires_grad_()
    name = SymmetryFunctionLayer(SETS["cosine"])._name
    kinds = (graph.numbers - 6)[graph.senders]
    torch.library.opcheck(symmetry_functions, (vectors, graph.row_pointers, kinds, 3, name))
