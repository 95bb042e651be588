"""The convolution's own kernels on a CUDA device: which are run, on what, in which order."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from foundation.kernels.couplings import TensorProductPaths
from foundation.kernels.cuda.layout import KernelName, Shape
from foundation.kernels.edges import EdgeIndex


@runtime_checkable
class Launchable(Protocol):
    """A compiled kernel."""

    shape: Shape

    def launch(self, blocks: tuple[int, int], arguments: Sequence[Tensor | int]) -> None:
        """Run the kernel on a grid of blocks, after what was launched before."""


@runtime_checkable
class Machine(Protocol):
    """A device that compiles kernels and runs them."""

    def kernel(self, paths: str, name: KernelName, dtype: torch.dtype) -> Launchable:
        """Return a kernel of a set of paths (by `TensorProductPaths.name`) in a float type."""
        ...


class Kernels:
    """The convolution and its derivatives on a machine, with the interface of kernels/cpu/native.py."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def forward(
        self,
        name: str,
        features: Float[Tensor, "atoms features"],
        harmonics: Float[Tensor, "pairs harmonics"],
        weights: Float[Tensor, "pairs weights"],
        edges: EdgeIndex,
    ) -> Float[Tensor, "atoms outputs"]:
        """Return the convolution."""
        out = features.new_empty(len(features), TensorProductPaths.named(name).irreps_out.dim)
        _run(self._machine, name, "sum", edges, [features, harmonics, weights], [out])
        return out

    def backward(
        self,
        name: str,
        inputs: tuple[Tensor, Tensor, Tensor, Tensor],
        tangents: tuple[Tensor, Tensor, Tensor] | None,
        edges: EdgeIndex,
    ) -> list[Tensor]:
        """Return the gradients of S(x, Y, W, g) for x, Y and W; with tangents, of the double backward, also for g."""
        x, y, w, g = inputs
        kernel: KernelName = "gradient" if tangents is None else "double_gradient"
        parts = self._machine.kernel(name, kernel, x.dtype).shape.parts
        gw = torch.empty_like(w, memory_format=torch.contiguous_format)
        gy = y.new_empty(parts, *y.shape)
        # columns of input irreps without a path are written by no kernel
        paths = TensorProductPaths.named(name)
        whole = all(paths.of_input(number) for number in range(len(paths.irreps_in)))
        make = torch.empty if whole else torch.zeros
        gx, by_pair = (make(rows, x.shape[1], dtype=x.dtype, device=x.device) for rows in (len(x), len(y)))
        _run(self._machine, name, kernel, edges, [*inputs, *(tangents or ())], [gx, gy, gw, by_pair])
        _gather(self._machine, name, edges, by_pair, gx)
        gradients = [gx, gy[0] if parts == 1 else gy.sum(dim=0), gw]
        if tangents is not None:
            gradients.append(torch.empty_like(g, memory_format=torch.contiguous_format))
            _run(self._machine, name, "double_sum", edges, [x, y, w, *tangents], [gradients[3]])
        return gradients


def _run(
    machine: Machine, paths: str, name: KernelName, edges: EdgeIndex, inputs: list[Tensor], results: list[Tensor]
) -> None:
    """Run a kernel that works on rows of edges."""
    index = [edges.row_pointers, edges.senders, edges.pairs, edges.reverse]
    num_atoms, num_pairs = len(inputs[0]), len(inputs[1])
    given = [tensor.contiguous() for tensor in (*index, *inputs)]
    _launch(machine.kernel(paths, name, inputs[0].dtype), num_atoms, [*given, *results, num_atoms, num_pairs])


def _gather(machine: Machine, paths: str, edges: EdgeIndex, by_pair: Tensor, gx: Tensor) -> None:
    """Add to every atom's gradient what its edges as a sender give it."""
    index = [edges.sender_order, edges.sender_pointers, edges.reverse, edges.pairs]
    given = [tensor.contiguous() for tensor in index]
    _launch(machine.kernel(paths, "gather", gx.dtype), len(gx), [by_pair, *given, gx, len(gx)])


def _launch(kernel: Launchable, rows: int, arguments: list[Tensor | int]) -> None:
    if rows:
        kernel.launch((-(-rows // kernel.shape.warps), kernel.shape.parts), arguments)
