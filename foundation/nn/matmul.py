"""Matrix products of the linear maps and the radial networks, in float32, TF32 or bfloat16, by C or by torch.

A separate module without parameters, so that a run can choose the precision of a whole model independently of its
weights. With bf16 both factors are rounded to bfloat16 (8 bits) and their products summed in float32, also in the
gradient and its gradient; geometry, convolution and sums over atoms are unchanged. This applies to training only:
validation is in float32, like predictions of a release. Autocast would also return bfloat16, and would round operators
of the geometry.
"""

from functools import cache
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from foundation.kernels.backend import Backend, say_once
from foundation.kernels.cpu import dense
from foundation.kernels.cpu.compiler import NoCompiler

Precision = Literal["float32", "tf32", "bf16"]


class Matmul(torch.nn.Module):
    """Rows times a matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.rounded = False
        """True if factors are rounded to bfloat16 in training."""
        self.backend: Backend = "auto"
        """The implementation of the layer that this belongs to."""

    def in_c(self, like: Tensor) -> bool:
        """Return whether the layer is computed by the operators of kernels/dense.py for such a tensor.

        Raises:
            NoCompiler: the C backend is asked for and cannot be compiled.
        """
        return not (self.rounded and self.training) and _compiles(like.device.type, like.dtype, self.backend)

    def forward(self, rows: Float[Tensor, "rows inner"], matrix: Float[Tensor, "inner columns"]) -> Tensor:
        """Return the product, in the type of the factors."""
        return _RoundedProduct.apply(rows, matrix) if self.rounded and self.training else rows @ matrix


@torch.compiler.assume_constant_result
@cache
def _compiles(device: str, dtype: torch.dtype, backend: Backend) -> bool:
    if backend not in ("auto", "c") or device != "cpu" or dtype not in (torch.float32, torch.float64):
        return False
    try:
        dense.library(dtype)
    except NoCompiler as error:
        if backend == "c":
            raise
        say_once(f"linear maps and radial networks are computed by plain torch, more slowly: {error}")
        return False
    return True


class _RoundedProduct(torch.autograd.Function):
    """Product of factors rounded to bfloat16; the gradient is one too, and takes rounding as the identity."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor) -> Tensor:
        ctx.save_for_backward(left, right)
        rounded = left.bfloat16(), right.bfloat16()
        if left.is_cuda:
            return torch.mm(*rounded, out_dtype=torch.float32).to(left.dtype)
        # CPUs sum products of bfloat16 in float32 but return bfloat16: here the product is exact instead, and slower
        return rounded[0].to(left.dtype) @ rounded[1].to(left.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        left, right = ctx.saved_tensors
        needs_left, needs_right = ctx.needs_input_grad
        return (
            _RoundedProduct.apply(gradient, right.t()) if needs_left else None,
            _RoundedProduct.apply(left.t(), gradient) if needs_right else None,
        )


def describe_precision(precision: Precision, device: torch.device) -> str:
    """Describe a precision on a device, for a log."""
    if precision == "bf16":
        return "factors rounded to bfloat16, sums in float32" + (", emulated" if device.type == "cpu" else "")
    if precision == "tf32":
        works = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
        return "TF32" if works else f"float32, because this {device.type} device has no TF32"
    return "float32"
