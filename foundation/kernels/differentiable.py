"""Operators with hand-written derivatives, quick when run as they are and visible when torch traces them.

A registered operator of torch is one node for autograd, torch.compile and torch.export. A call of it from Python takes
a tenth of a millisecond, most of which goes into lists of tensors. A bare autograd function does the same in a tenth of
the time, but its inside cannot be traced. So each operator is both, with one set of formulas.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C import _len_torch_dispatch_stack
from torch._C import _will_engine_execute_node as _will_execute
from torch._C._functorch import peek_interpreter_stack
from torch.library import custom_op


class Operator:
    """A function of tensors, lists of tensors and constants, with its gradient."""

    def __init__(
        self,
        name: str,
        function: Callable[..., Any],
        fake: Callable[..., Any],
        keep: Callable[[Any, tuple, Any], None] | None,
        backward: Callable[..., tuple],
        devices: tuple[str, ...] = ("cpu",),
    ) -> None:
        """Register an operator.

        Args:
            name: Name for torch.
            function: The result from contiguous or other tensors; new tensors only.
            fake: Empty tensors like the result.
            keep: Saves what backward needs, given its context, the arguments and the result.
            backward: Gradients for the arguments, in their form, from the context and the gradients of the result.
            devices: Kinds of devices for which the function has an implementation.
        """
        self.definition = custom_op(name, mutates_args=(), device_types=devices)(function)
        """The operator as torch knows it."""
        self.definition.register_fake(fake)
        self.definition.register_autograd(backward, setup_context=keep)
        self._node = _node(function, keep, backward)

    def __call__(self, *arguments: Any) -> Any:
        """Return the result of the function."""
        if _is_traced():
            return self.definition(*arguments)
        form: list[int | None] = []
        flat: list[Any] = []
        for argument in arguments:
            is_list = isinstance(argument, (list, tuple)) and bool(argument) and isinstance(argument[0], Tensor)
            form.append(len(argument) if is_list else None)
            flat += argument if is_list else [argument]
        return self._node.apply(form, *flat)


def _is_traced() -> bool:
    """Return whether something looks on or changes what torch computes."""
    return (
        _len_torch_dispatch_stack() > 0
        or torch.compiler.is_compiling()
        or torch.is_autocast_enabled("cpu")
        or torch.is_autocast_enabled("cuda")
        or peek_interpreter_stack() is not None
    )


def _node(
    function: Callable[..., Any], keep: Callable[[Any, tuple, Any], None] | None, backward: Callable[..., tuple]
) -> type[torch.autograd.Function]:
    """Return the autograd function of an operator; lists of tensors are passed one by one."""

    class Node(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, form: list[int | None], *flat: Any) -> Any:
            ctx.form = form
            arguments = _nested(form, flat)
            result = function(*arguments)
            if keep is not None:
                keep(ctx, arguments, result)
            ctx.is_list = isinstance(result, list)
            return tuple(result) if ctx.is_list else result

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor | None) -> tuple:  # pyright: ignore[reportIncompatibleMethodOverride]
            found = backward(ctx, list(gradients)) if ctx.is_list else backward(ctx, *gradients)
            flat: list[Tensor | None] = [None]
            for size, gradient in zip(ctx.form, found if isinstance(found, tuple) else (found,), strict=True):
                flat += gradient if size is not None else [gradient if isinstance(gradient, Tensor) else None]
            return tuple(flat)

    return Node


def _nested(form: list[int | None], flat: Sequence[Any]) -> tuple:
    rest = iter(flat)
    return tuple(next(rest) if size is None else [next(rest) for _ in range(size)] for size in form)


def needed(ctx: Any, count: int) -> list[bool]:
    """Return for each of the first tensors of a node whether the running differentiation asks for its gradient.

    Weights need a gradient, but not while forces are made. For a leaf, torch cannot say: pass it as a view.
    """
    nodes = [node for node, _ in ctx.next_functions[:count]]
    return [node is not None and (hasattr(node, "variable") or _will_execute(node)) for node in nodes]
