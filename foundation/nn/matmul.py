"""The matrix products of the linear maps and the radial networks, in float32, TF32 or bfloat16.

A module of its own, without parameters, so that a run can choose for a whole model what the weights' file says nothing
of. With bf16 both factors are rounded to bfloat16 (8 bits), their products are summed in float32, and so are the
products of the gradient and of its gradient; geometry, convolution and sums over atoms stay as they are. That is so in
training only: what is validated is what a release will say, in float32. Not autocast: that returns bfloat16 as well and
chooses by operator, among them the geometry's.
"""

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

Precision = Literal["float32", "tf32", "bf16"]


class Matmul(torch.nn.Module):
    """Rows times a matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.rounded = False
        """True if factors are rounded to bfloat16 in training."""

    def forward(self, rows: Float[Tensor, "rows inner"], matrix: Float[Tensor, "inner columns"]) -> Tensor:
        """Return the product, in the type of the factors."""
        return _RoundedProduct.apply(rows, matrix) if self.rounded and self.training else rows @ matrix


class _RoundedProduct(torch.autograd.Function):
    """The product of factors rounded to bfloat16; rounding counts as the identity in the gradient, which is one too."""

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


def precision_in_words(precision: Precision, device: torch.device) -> str:
    """Return what a precision amounts to on a device, for a log."""
    if precision == "bf16":
        return "factors rounded to bfloat16, sums in float32" + (", emulated" if device.type == "cpu" else "")
    if precision == "tf32":
        works = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
        return "TF32" if works else f"float32, because this {device.type} device has no TF32"
    return "float32"
