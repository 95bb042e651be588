"""Random operands of a convolution, on edges that come in pairs and on some that do not."""

import numpy as np
import torch
from torch import Tensor

from data_pipeline.graphs.pairs import mirror
from foundation.kernels.couplings import TensorProductPaths
from foundation.kernels.edges import EdgeIndex


def paired_edges(num_atoms: int, num_pairs: int, seed: int = 0) -> EdgeIndex:
    """Random pairs, an atom with itself included; the last atom has none."""
    rng = np.random.default_rng(seed)
    ends = rng.integers(0, max(num_atoms - 1, 1), (2, num_pairs if num_atoms else 0))
    edges = mirror(ends[0], ends[1], num_atoms)
    pointers = np.concatenate([[0], np.cumsum(np.bincount(edges.receivers, minlength=num_atoms))])
    rows, senders, pairs, reverse = map(torch.from_numpy, (pointers, edges.senders, edges.pairs, edges.reverse))
    return EdgeIndex(rows, senders, pairs, reverse, sender_order=reverse, sender_pointers=rows)


def many_structures(count: int, num_atoms: int = 6, num_pairs: int = 40) -> EdgeIndex:
    """Structures side by side, no edge between them."""
    single = [paired_edges(num_atoms, num_pairs, seed) for seed in range(count)]

    def joined(name: str, step: int) -> Tensor:
        return torch.cat([getattr(edges, name) + step * number for number, edges in enumerate(single)])

    rows = torch.cat([torch.zeros(1, dtype=torch.int64), torch.cat([e.row_pointers.diff() for e in single]).cumsum(0)])
    reverse = joined("reverse", 2 * num_pairs)
    senders, pairs = joined("senders", num_atoms), joined("pairs", num_pairs)
    return EdgeIndex(rows, senders, pairs, reverse, sender_order=reverse, sender_pointers=rows)


def operands(
    paths: TensorProductPaths, edges: EdgeIndex, dtype: torch.dtype = torch.float64, seed: int = 0
) -> list[Tensor]:
    """Features, harmonics and weights, all with gradients."""
    generator = torch.Generator().manual_seed(seed)
    num_pairs = int(edges.pairs.max()) + 1 if len(edges.pairs) else 0
    shapes = (
        (len(edges.row_pointers) - 1, paths.irreps_in.dim),
        (num_pairs, paths.irreps_harmonics.dim),
        (num_pairs, paths.num_weights),
    )
    return [torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def value_and_derivatives(output: Tensor, arguments: list[Tensor]) -> list[Tensor]:
    """The output, its first derivatives along a direction, and the derivatives of those along others."""
    generator = torch.Generator().manual_seed(1)

    def normal(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device)

    direction = normal(output).requires_grad_()
    first = torch.autograd.grad(output, arguments, direction, create_graph=True)
    inner = torch.stack([(normal(gradient) * gradient).sum() for gradient in first]).sum()
    second = torch.autograd.grad(inner, [*arguments, direction])
    return [tensor.detach() for tensor in (output, *first, *second)]
