"""The interaction block: what it is made of, and that it turns with its inputs."""

import pytest
import torch
from e3nn import o3
from torch import Tensor

from foundation.kernels.edges import EdgeIndex
from foundation.nn.interaction import InteractionBlock

SCALARS, EVEN, ODD = o3.Irreps("4x0e"), o3.Irreps("4x0e+3x1e+2x2e"), o3.Irreps("2x0o+4x0e+3x1o+2x1e+2x2e")
EVEN_HARMONICS, HARMONICS = o3.Irreps("1x0e+1x1e+1x2e"), o3.Irreps("1x0e+1x1o+1x2e")


def make_block(irreps_in: o3.Irreps, harmonics: o3.Irreps, hidden: o3.Irreps, denominator: float) -> InteractionBlock:
    torch.manual_seed(0)
    return InteractionBlock(irreps_in, harmonics, hidden, [5, 8], denominator).double()


def random_graph(
    irreps_in: o3.Irreps, num_atoms: int = 5, num_edges: int = 14
) -> tuple[Tensor, Tensor, Tensor, EdgeIndex]:
    """Features, edge vectors, basis and edges."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    senders, receivers = torch.randint(num_atoms, (2, num_edges), generator=generator)
    features, vectors, basis = normal(num_atoms, irreps_in.dim), normal(num_edges, 3), normal(num_edges, 5)
    return features, vectors, basis, EdgeIndex.single(senders, receivers.sort().values, num_atoms)


def spherical(irreps: o3.Irreps, vectors: Tensor) -> Tensor:
    return o3.spherical_harmonics(irreps, vectors, normalize=True, normalization="component")


def transform(irreps: o3.Irreps, features: Tensor, matrix: Tensor) -> Tensor:
    """Apply a rotation or reflection to component-major features."""
    blocks = []
    for item, block in zip(irreps, features.split([item.dim for item in irreps], dim=1), strict=True):
        representation = item.ir.D_from_matrix(matrix)
        blocks.append((representation @ block.view(-1, item.ir.dim, item.mul)).flatten(1))
    return torch.cat(blocks, dim=1)


@pytest.mark.parametrize(
    ("irreps_in", "harmonics", "hidden", "sign"),
    [(SCALARS, EVEN_HARMONICS, EVEN, 1), (EVEN, EVEN_HARMONICS, EVEN, 1), (ODD, HARMONICS, ODD, -1)],
)
def test_features_turn_with_the_edges(irreps_in: o3.Irreps, harmonics: o3.Irreps, hidden: o3.Irreps, sign: int) -> None:
    block = make_block(irreps_in, harmonics, hidden, 2.0)
    features, vectors, basis, edges = random_graph(irreps_in)
    torch.manual_seed(3)
    matrix = sign * o3.rand_matrix(dtype=torch.float64)
    output = block(features, spherical(harmonics, vectors), basis, edges)
    turned = block(
        transform(irreps_in, features, matrix),
        spherical(harmonics, vectors @ matrix.T),
        basis,
        edges,
    )
    # e3nn's representation matrices go through angles, and the coefficients may be rounded to float32
    torch.testing.assert_close(turned, transform(block.irreps_out, output, matrix), rtol=1e-6, atol=1e-6)
    assert (turned - output).abs().max() > 0.1


def test_result_is_the_composition_of_its_layers() -> None:
    block = make_block(EVEN, EVEN_HARMONICS, EVEN, 3.0)
    features, vectors, basis, edges = random_graph(EVEN)
    harmonics = spherical(EVEN_HARMONICS, vectors)
    mixed = block.self_interaction_1(features)
    summed = block.convolution(mixed, harmonics, block.radial(basis), edges) / 3.0
    expected = block.gate(block.self_interaction_2(summed) + block.self_connection(features))
    output = block(features, harmonics, basis, edges)
    torch.testing.assert_close(output, expected, rtol=1e-13, atol=1e-13)


def test_irreps_out_of_reach_are_left_out() -> None:
    block = make_block(SCALARS, HARMONICS, ODD, 1.0)
    assert str(block.irreps_out) == "4x0e+3x1o+2x2e"
    features, vectors, basis, edges = random_graph(SCALARS)
    output = block(features, spherical(HARMONICS, vectors), basis, edges)
    assert output.shape == (5, block.irreps_out.dim)


def test_without_edges_only_the_self_connection_is_left() -> None:
    block = make_block(SCALARS, EVEN_HARMONICS, EVEN, 1.0)
    features, vectors, basis, edges = random_graph(SCALARS, num_edges=0)
    output = block(features, spherical(EVEN_HARMONICS, vectors), basis, edges)
    even = block.self_connection(features)[:, :4]
    expected = torch.nn.functional.silu(even) * 1.6791767923989418
    torch.testing.assert_close(output[:, :4], expected, rtol=1e-12, atol=1e-12)
    assert not output[:, 4:].any()


def test_edges_with_a_zero_basis_send_nothing() -> None:
    block = make_block(EVEN, EVEN_HARMONICS, EVEN, 1.0)
    features, vectors, basis, edges = random_graph(EVEN)
    harmonics, nothing = spherical(EVEN_HARMONICS, vectors), torch.zeros(0, dtype=torch.int64)
    none = EdgeIndex.single(nothing, nothing, len(features))
    silent = block(features, harmonics, torch.zeros_like(basis), edges)
    alone = block(features, harmonics[:0], basis[:0], none)
    torch.testing.assert_close(silent, alone)


def test_denominator_is_part_of_the_saved_state() -> None:
    assert make_block(SCALARS, EVEN_HARMONICS, EVEN, 7.0).state_dict()["denominator"].tolist() == [7.0]
