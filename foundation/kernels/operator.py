"""The convolution as a torch operator: one node for autograd, torch.compile and torch.export.

`foundation::convolution` has a backward and a double backward, which are operators too; both follow from the form S(x,
Y, W, g) = Σ out · g (see codegen.py). A third derivative is refused.
"""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from foundation.kernels.couplings import TensorProductPaths
from foundation.kernels.cpu import native
from foundation.kernels.cpu.dense import multiply
from foundation.kernels.cuda import driver
from foundation.kernels.differentiable import Operator, needed
from foundation.kernels.edges import EdgeIndex

MAX_WEIGHTS = 1 << 26
"""Most weights [bytes] that are in memory for a moment while a prediction is made."""

DEVICES = ("cpu", "cuda")
"""Kinds of devices that have kernels."""


@runtime_checkable
class Implementation(Protocol):
    """Kernels of the convolution and its derivatives."""

    def forward(self, name: str, features: Tensor, harmonics: Tensor, weights: Tensor, edges: EdgeIndex) -> Tensor:
        """Return the convolution."""
        ...

    def backward(
        self,
        name: str,
        inputs: tuple[Tensor, Tensor, Tensor, Tensor],
        tangents: tuple[Tensor, Tensor, Tensor] | None,
        edges: EdgeIndex,
    ) -> list[Tensor]:
        """Return the gradients of S for x, Y and W; with tangents, those of the double backward, also for g."""
        ...


def implementation(device: torch.device) -> Implementation:
    """Return the kernels of a device.

    Raises:
        NoKernels: they cannot be compiled or run on this CUDA device.
    """
    return native if device.type == "cpu" else driver.kernels(device.index)


def _forward(features: Tensor, harmonics: Tensor, weights: Tensor, edges: list[Tensor], paths: str) -> Tensor:
    """Return the convolution (see couplings.py) of features with harmonics and weights of pairs of edges.

    Args:
        features: Features of atoms, component-major.
        harmonics: Spherical harmonics of each pair's direction.
        weights: Weights of each pair.
        edges: The fields of an EdgeIndex.
        paths: Name of the paths.
    """
    return implementation(features.device).forward(paths, features, harmonics, weights, EdgeIndex(*edges))


def _gradient(
    features: Tensor, harmonics: Tensor, weights: Tensor, gradient: Tensor, edges: list[Tensor], paths: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ∂S/∂x, ∂S/∂Y and ∂S/∂W."""
    inputs = (features, harmonics, weights, gradient)
    x, y, w = implementation(features.device).backward(paths, inputs, None, EdgeIndex(*edges))
    return x, y, w


def _second(
    inputs: list[Tensor], tangents: list[Tensor], edges: list[Tensor], paths: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradient of S(vx, Y, W, g) + S(x, vY, W, g) + S(x, Y, vW, g) for x, Y, W and g."""
    x, y, w, g = inputs
    vx, vy, vw = tangents
    gx, gy, gw, gg = implementation(x.device).backward(paths, (x, y, w, g), (vx, vy, vw), EdgeIndex(*edges))
    return gx, gy, gw, gg


def _forward_fake(features: Tensor, harmonics: Tensor, weights: Tensor, edges: list[Tensor], paths: str) -> Tensor:
    return features.new_empty(features.shape[0], TensorProductPaths.named(paths).irreps_out.dim)


def _gradient_fake(
    features: Tensor, harmonics: Tensor, weights: Tensor, gradient: Tensor, edges: list[Tensor], paths: str
) -> tuple[Tensor, Tensor, Tensor]:
    x, y, w = (tensor.new_empty(tensor.shape) for tensor in (features, harmonics, weights))
    return x, y, w


def _second_fake(
    inputs: list[Tensor], tangents: list[Tensor], edges: list[Tensor], paths: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, y, w, g = (tensor.new_empty(tensor.shape) for tensor in inputs)
    return x, y, w, g


def _keep(ctx, inputs: tuple, output: Tensor) -> None:
    features, harmonics, weights, edges, ctx.paths = inputs
    ctx.save_for_backward(features, harmonics, weights, *edges)


def _backward(ctx, gradient: Tensor):
    features, harmonics, weights, *edges = ctx.saved_tensors
    return (
        *convolution_backward(features, harmonics, weights, gradient, edges, ctx.paths),
        [None] * len(EdgeIndex._fields),
        None,
    )


def _keep_backward(ctx, inputs: tuple, output: tuple) -> None:
    features, harmonics, weights, gradient, edges, ctx.paths = inputs
    ctx.save_for_backward(features, harmonics, weights, gradient, *edges)


def _double_backward(ctx, *tangents: Tensor):
    saved = ctx.saved_tensors
    return (
        *convolution_double_backward(list(saved[:4]), list(tangents), list(saved[4:]), ctx.paths),
        [None] * len(EdgeIndex._fields),
        None,
    )


def _third(ctx, *gradients: Tensor):
    raise NotImplementedError(
        "the convolution has no third derivatives: one can train on forces and stress, but not on their derivatives; "
        "use the torch backend for those"
    )


def _of_hidden(
    features: Tensor, harmonics: Tensor, hidden: Tensor, matrix: Tensor, edges: list[Tensor], paths: str
) -> Tensor:
    """Return the convolution with the weights hidden @ matrix.

    Made for every edge where it is used, a pair's weights are made twice here, so that is left to large batches.
    """
    if len(hidden) * matrix.shape[1] * matrix.element_size() <= MAX_WEIGHTS:
        return native.forward(paths, features, harmonics, multiply(hidden, matrix), EdgeIndex(*edges))
    return native.forward_of_hidden(paths, features, harmonics, hidden, matrix, EdgeIndex(*edges))


def _of_hidden_fake(
    features: Tensor, harmonics: Tensor, hidden: Tensor, matrix: Tensor, edges: list[Tensor], paths: str
) -> Tensor:
    return features.new_empty(features.shape[0], TensorProductPaths.named(paths).irreps_out.dim)


def _keep_of_hidden(ctx, inputs: tuple, output: Tensor) -> None:
    features, harmonics, hidden, matrix, edges, ctx.paths = inputs
    ctx.save_for_backward(features, harmonics, hidden, matrix, *edges)


def _backward_of_hidden(ctx, gradient: Tensor):
    features, harmonics, hidden, matrix, *edges = ctx.saved_tensors
    none = [None] * len(EdgeIndex._fields), None
    *_, needs_matrix = needed(ctx, 4)
    if not needs_matrix and not torch.is_grad_enabled():
        x, y, h = convolution_of_hidden_backward(features, harmonics, hidden, matrix, gradient, edges, ctx.paths)
        return x, y, h, None, *none
    # weights in memory after all: for the gradient of the matrix, and for derivatives of derivatives
    x, y, w = convolution_backward(features, harmonics, _product(hidden, matrix), gradient, edges, ctx.paths)
    return x, y, _product(w, matrix.t()), _product(hidden.t(), w), *none


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Return a product of matrices, in C unless it is differentiated: its bits do not depend on the threads."""
    return left @ right if torch.is_grad_enabled() else multiply(left, right)


def _gradient_of_hidden(
    features: Tensor,
    harmonics: Tensor,
    hidden: Tensor,
    matrix: Tensor,
    gradient: Tensor,
    edges: list[Tensor],
    paths: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ∂S/∂x, ∂S/∂Y and ∂S/∂hidden."""
    inputs = (features, harmonics, hidden, gradient)
    x, y, h = native.backward_of_hidden(paths, inputs, matrix, EdgeIndex(*edges))
    return x, y, h


def _gradient_of_hidden_fake(
    features: Tensor,
    harmonics: Tensor,
    hidden: Tensor,
    matrix: Tensor,
    gradient: Tensor,
    edges: list[Tensor],
    paths: str,
) -> tuple[Tensor, Tensor, Tensor]:
    x, y, h = (tensor.new_empty(tensor.shape) for tensor in (features, harmonics, hidden))
    return x, y, h


convolution_of_hidden_backward = Operator(
    "foundation::convolution_of_hidden_backward", _gradient_of_hidden, _gradient_of_hidden_fake, None, _third
)
convolution_of_hidden = Operator(
    "foundation::convolution_of_hidden", _of_hidden, _of_hidden_fake, _keep_of_hidden, _backward_of_hidden
)
convolution = Operator("foundation::convolution", _forward, _forward_fake, _keep, _backward, DEVICES)
convolution_backward = Operator(
    "foundation::convolution_backward", _gradient, _gradient_fake, _keep_backward, _double_backward, DEVICES
)
convolution_double_backward = Operator(
    "foundation::convolution_double_backward", _second, _second_fake, None, _third, DEVICES
)
for device in DEVICES:
    torch.library.register_autocast("foundation::convolution", device, torch.float32)
