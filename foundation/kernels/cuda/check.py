"""Self-check of the CUDA kernels: at first use on a device, they are compared with plain torch on small random inputs.

The reference is computed on the CPU in float64, so nothing that the device does wrong is on both sides.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from data_pipeline.graphs.pairs import mirror
from foundation.kernels.couplings import TensorProductPaths
from foundation.kernels.cuda import driver
from foundation.kernels.cuda.native import Kernels
from foundation.kernels.cuda.nvrtc import NoKernels
from foundation.kernels.edges import EdgeIndex
from foundation.kernels.trusted import UntrustedCode

Plain = Callable[[Tensor, Tensor, Tensor, EdgeIndex], Tensor]
"""The convolution in plain torch: of features, harmonics, weights and edges."""

NUM_ATOMS = 7
NUM_PAIRS = 90
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
"""Largest deviation relative to the largest number of a result."""
RESULTS = ("out", "gx", "gy", "gw", "gx of the double backward", "gy of the double backward",
           "gw of the double backward", "gg of the double backward")  # fmt: skip


class WrongKernels(NoKernels):
    """Kernels that ran and gave other numbers than plain torch."""


class Verdict(NamedTuple):
    """Result of the self-check."""

    works: bool
    """True if the kernels may be used."""
    finding: str
    """Deviations found, or the reason why there are none."""


def verdict(number: int, dtype: torch.dtype, name: str, plain: Plain) -> Verdict:
    """Return whether the kernels of a set of paths may be used on a CUDA device, checked at the first call."""
    key = number, dtype, name
    if key not in _verdicts():
        # a thread of its own has none of the modes of this one, in which tensors may be traced or without gradients
        with ThreadPoolExecutor(1) as thread:
            _verdicts()[key] = thread.submit(_verdict, number, dtype, name, plain).result()
    return _verdicts()[key]


@cache
def _verdicts() -> dict[tuple[int, torch.dtype, str], Verdict]:
    return {}


def _verdict(number: int, dtype: torch.dtype, name: str, plain: Plain) -> Verdict:
    if not torch.cuda.is_available():
        return Verdict(False, "torch finds no CUDA device")
    try:
        device = driver.device(number)
        worst = compare(Kernels(device), name, dtype, torch.device("cuda", number), plain)
    except (RuntimeError, UntrustedCode) as error:  # torch's own errors too: the device's come with what it copies
        where = f"{torch.cuda.get_device_name(number)}, torch {torch.__version__}"
        return Verdict(False, f"{error} ({where}, {dtype}, {name})")
    version = ".".join(map(str, device.compiler.version))
    return Verdict(True, f"own kernels for {device.target} by NVRTC {version}, {worst:.0e} from plain torch")


def compare(kernels: Kernels, name: str, dtype: torch.dtype, device: torch.device, plain: Plain) -> float:
    """Return the largest deviation from plain torch of the convolution and its derivatives, each relative to its size.

    Raises:
        NoKernels: the kernels cannot be compiled or run.
        WrongKernels: a deviation is too large.
    """
    worst = 0.0
    for edges in (_pairs(), _no_pairs()):
        given = _inputs(TensorProductPaths.named(name), edges)
        expected = _expected(plain, given, edges)
        x, y, w, g, *tangents = (tensor.to(device, dtype) for tensor in given)
        index, (vx, vy, vw) = EdgeIndex(*(each.to(device) for each in edges)), tangents
        found = [kernels.forward(name, x, y, w, index), *kernels.backward(name, (x, y, w, g), None, index)]
        found += kernels.backward(name, (x, y, w, g), (vx, vy, vw), index)
        for result, ours, right in zip(RESULTS, found, expected, strict=True):
            error = float((ours.cpu().double() - right).abs().max() / right.abs().max().clamp_min(1e-30))
            if not error <= TOLERANCE[dtype]:
                raise WrongKernels(f"{result} is {error:.1e} from plain torch, which may be {TOLERANCE[dtype]:.0e}")
            worst = max(worst, error)
    return worst


def _expected(plain: Plain, given: list[Tensor], edges: EdgeIndex) -> list[Tensor]:
    """Return the results that plain torch has, in the order of RESULTS."""
    x, y, w, g = (tensor.clone().requires_grad_() for tensor in given[:4])
    out = plain(x, y, w, edges)
    first = torch.autograd.grad(out, (x, y, w), g, create_graph=True)
    inner = torch.stack([(v * gradient).sum() for v, gradient in zip(given[4:], first, strict=True)]).sum()
    second = torch.autograd.grad(inner, (x, y, w, g))
    return [each.detach() for each in (out, *first, *second)]


def _inputs(paths: TensorProductPaths, edges: EdgeIndex) -> list[Tensor]:
    """Return random x, Y, W, g, vx, vY and vW, float64."""
    rng, pairs = np.random.default_rng(0), int(edges.pairs.max()) + 1
    x, y, w = (NUM_ATOMS, paths.irreps_in.dim), (pairs, paths.irreps_harmonics.dim), (pairs, paths.num_weights)
    shapes = (x, y, w, (NUM_ATOMS, paths.irreps_out.dim), x, y, w)
    # numbers that float32 has too
    return [torch.from_numpy(rng.normal(size=shape).astype(np.float32)).double() for shape in shapes]


def _pairs() -> EdgeIndex:
    """Return random pairs, more than 32 edges for some atoms and none for the last."""
    ends = np.random.default_rng(1).integers(0, NUM_ATOMS - 1, (2, NUM_PAIRS))
    edges = mirror(ends[0], ends[1], NUM_ATOMS)
    rows = np.concatenate([[0], np.cumsum(np.bincount(edges.receivers, minlength=NUM_ATOMS))])
    pointers, senders, pairs, reverse = map(torch.from_numpy, (rows, edges.senders, edges.pairs, edges.reverse))
    return EdgeIndex(pointers, senders, pairs, reverse, sender_order=reverse, sender_pointers=pointers)


def _no_pairs() -> EdgeIndex:
    """Return random edges without their reverse."""
    ends = torch.from_numpy(np.random.default_rng(2).integers(0, NUM_ATOMS, (2, NUM_PAIRS // 4)))
    return EdgeIndex.single(ends[0], ends[1].sort().values, NUM_ATOMS)
