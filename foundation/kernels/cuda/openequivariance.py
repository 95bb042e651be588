"""The convolution on CUDA: OpenEquivariance's TensorProductConv, with its own two derivatives.

It works on edges, so harmonics and weights of pairs are spread to both directions first. The deterministic algorithm is
used: without atomics, with the same bits every time.
"""

# an optional dependency that a CPU machine cannot install
# pyright: reportMissingImports=false, reportAttributeAccessIssue=false

import importlib.util
from functools import cache

import numpy as np
import torch
from torch import Tensor

from foundation.kernels.couplings import TensorProductPaths
from foundation.kernels.edges import EdgeIndex, spread
from foundation.kernels.trusted import refuse_untrusted_extensions


def available() -> bool:
    """Return whether OpenEquivariance is installed."""
    return importlib.util.find_spec("openequivariance") is not None


@cache
def kernel(name: str, dtype: torch.dtype) -> tuple[torch.nn.Module, Tensor, Tensor]:
    """Return OpenEquivariance's module, the order of its weights, and their signs.

    Its Clebsch-Gordan coefficients may differ from e3nn's by the sign of a whole path; the weights compensate it.

    Raises:
        UntrustedCode: somebody else could have written its compiled extension.
    """
    refuse_untrusted_extensions()
    import openequivariance as oeq
    from openequivariance.core.e3nn_lite import wigner_3j

    paths = TensorProductPaths.named(name)
    real = oeq.torch_to_oeq_dtype(dtype)
    problem = oeq.TPProblem(
        str(paths.irreps_in),
        str(paths.irreps_harmonics),
        "+".join(f"{path.channels}x{path.output}" for path in paths.paths),
        [(path.input, path.harmonic, number, "uvu", True) for number, path in enumerate(paths.paths)],
        irrep_dtype=real,
        weight_dtype=real,
        shared_weights=False,
        internal_weights=False,
        layout="ir_mul",
    )
    module = oeq.TensorProductConv(problem, deterministic=True)
    signs = []
    for number, path in enumerate(paths.paths):
        ours = paths.wigner[number]
        degrees = ((size - 1) // 2 for size in ours.shape)
        sign = float(np.sign((ours * wigner_3j(*degrees)).sum()))
        signs.append(torch.full((path.channels,), sign, dtype=dtype))
    order = module.reorder_weights_from_e3nn(torch.arange(paths.num_weights).unsqueeze(0)).squeeze(0)
    return module, order.cuda(), torch.cat(signs)[order].cuda()


def outputs(name: str, features: Tensor, harmonics: Tensor, weights: Tensor, edges: EdgeIndex) -> list[Tensor]:
    """Return the result of every path: atoms × components × channels."""
    paths = TensorProductPaths.named(name)
    module, order, signs = kernel(name, features.dtype)
    weights = weights.index_select(1, order) * signs
    harmonics, weights = spread(edges, harmonics, weights, paths.odd_harmonics)
    result = module(features, harmonics, weights, edges.receivers(), edges.senders, edges.sender_order)
    parts = result.split([path.output.dim * path.channels for path in paths.paths], dim=1)
    return [part.view(-1, p.output.dim, p.channels) for part, p in zip(parts, paths.paths, strict=True)]
