"""Activation checkpointing that works with double backward: a part of a network keeps only its inputs.

Forces are a gradient taken inside the loss, so a step differentiates three times: the energy for the forces, then the
loss through that gradient, then the loss through the energy. torch.utils.checkpoint saves no memory here: what it
recomputes for the forces becomes part of the graph that the loss is differentiated through, and stays until the end.
Here the gradient of a part is itself an operator that keeps only its own inputs, and is recomputed in the backward pass
of the loss. A step computes the part three times more and its gradient once more; it then holds the inside of one part
at a time instead of all. tests/benchmarks/bench_memory.py measures both.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable


def recomputed(
    part: Callable[..., Tensor], parameters: Sequence[Tensor], *inputs: Float[Tensor, "..."]
) -> Float[Tensor, "..."]:
    """Return part(*inputs) without keeping intermediate results; the same numbers, gradient and double backward.

    The gradient for the parameters cannot be differentiated again; that for the inputs can.

    Args:
        part: Function to compute; must be deterministic.
        parameters: All other tensors that the result depends on and that may need a gradient: leaves of the graph.
        inputs: Float tensors, all of them used.
    """
    return _Value.apply(part, len(inputs), *inputs, *[p for p in parameters if p.requires_grad])


class _Value(torch.autograd.Function):
    """The part itself."""

    @staticmethod
    def forward(ctx: Any, part: Callable[..., Tensor], num_inputs: int, *tensors: Tensor) -> Tensor:
        ctx.part, ctx.num_inputs = part, num_inputs
        ctx.save_for_backward(*tensors)
        return part(*tensors[:num_inputs])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        inputs, parameters = ctx.saved_tensors[: ctx.num_inputs], ctx.saved_tensors[ctx.num_inputs :]
        if torch.is_grad_enabled():  # create_graph: the forces, for which parameters stay as they are
            gradients = _Gradient.apply(ctx.part, ctx.num_inputs, *inputs, gradient, *parameters)
            return None, None, *gradients, *[None] * len(parameters)
        with torch.enable_grad():
            inputs = _leaves(inputs)
            output = ctx.part(*inputs)
        return None, None, *torch.autograd.grad(output, (*inputs, *parameters), gradient, allow_unused=True)


class _Gradient(torch.autograd.Function):
    """The gradient of the part for its inputs."""

    @staticmethod
    def forward(ctx: Any, part: Callable[..., Tensor], num_inputs: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.part, ctx.num_inputs = part, num_inputs
        ctx.save_for_backward(*tensors)
        with torch.enable_grad():
            inputs = _leaves(tensors[:num_inputs])
            output = part(*inputs)
        return torch.autograd.grad(output, inputs, tensors[num_inputs], materialize_grads=True)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *tangents: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        with torch.enable_grad():
            *inputs, gradient = _leaves(ctx.saved_tensors[: ctx.num_inputs + 1])
            first = torch.autograd.grad(ctx.part(*inputs), inputs, gradient, create_graph=True, materialize_grads=True)
        # an unused input has a gradient of zero
        used = [(value, tangent) for value, tangent in zip(first, tangents, strict=True) if value.requires_grad]
        values, tangents = zip(*used, strict=True)
        sources = (*inputs, gradient, *ctx.saved_tensors[ctx.num_inputs + 1 :])
        return None, None, *torch.autograd.grad(values, sources, tangents, allow_unused=True)


def _leaves(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.detach().requires_grad_() for tensor in tensors]
