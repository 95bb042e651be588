"""Symmetry functions as a torch operator, with derivatives for vectors of edges.

`foundation::symmetry_functions` has a backward and a double backward, which are operators too, in generated C (see
cpu/symmetry_functions.py). A third derivative is refused.
"""

import ast
from functools import cache

import torch
from torch import Tensor
from torch.library import custom_op

from foundation.kernels.cpu.symmetry_functions import SymmetryFunctions, call


@cache
def named(name: str) -> SymmetryFunctions:
    """Return a set of functions from its name, the text of its parameters."""
    return SymmetryFunctions(*ast.literal_eval(name))


def name_of(functions: SymmetryFunctions) -> str:
    """Return the text of the parameters of a set of functions, from which `named` makes the same."""
    return repr(tuple(functions))


@custom_op("foundation::symmetry_functions", mutates_args=(), device_types="cpu")
def symmetry_functions(vectors: Tensor, row_pointers: Tensor, kinds: Tensor, num_kinds: int, functions: str) -> Tensor:
    """Return the symmetry functions of every atom: G2 by kind of neighbour, then G4 and G5 by pair of kinds.

    Args:
        vectors: Vector of every edge, sorted by receiver [Å].
        row_pointers: First edge of every atom, and the end.
        kinds: Kind of the far end of every edge, such as its element.
        num_kinds: Number of kinds.
        functions: Name of the functions.
    """
    described = named(functions)
    values = vectors.new_empty(len(row_pointers) - 1, described.num_functions(num_kinds))
    call("values", described, (row_pointers, kinds, num_kinds), vectors.contiguous(), values=values)
    return values


@custom_op("foundation::symmetry_functions_backward", mutates_args=(), device_types="cpu")
def symmetry_functions_backward(
    vectors: Tensor, gradient: Tensor, row_pointers: Tensor, kinds: Tensor, num_kinds: int, functions: str
) -> Tensor:
    """Return ∂(Σ g G)/∂r for every edge."""
    found = torch.empty_like(vectors, memory_format=torch.contiguous_format)
    graph, given = (row_pointers, kinds, num_kinds), vectors.contiguous()
    call("gradient", named(functions), graph, given, g=gradient.contiguous(), gv=found)
    return found


@custom_op("foundation::symmetry_functions_double_backward", mutates_args=(), device_types="cpu")
def symmetry_functions_double_backward(
    inputs: list[Tensor], row_pointers: Tensor, kinds: Tensor, num_kinds: int, functions: str
) -> tuple[Tensor, Tensor]:
    """Return the derivatives along tangents of the edges of Σ g G for r, and of G: the gradients for r and g."""
    vectors, gradient, tangents = (tensor.contiguous() for tensor in inputs)
    of_vectors, of_gradient = torch.empty_like(vectors), torch.empty_like(gradient)
    graph, given = (row_pointers, kinds, num_kinds), {"g": gradient, "t": tangents}
    call("tangent", named(functions), graph, vectors, **given, gv=of_vectors, values=of_gradient)
    return of_vectors, of_gradient


@symmetry_functions.register_fake
def _(vectors: Tensor, row_pointers: Tensor, kinds: Tensor, num_kinds: int, functions: str) -> Tensor:
    return vectors.new_empty(row_pointers.shape[0] - 1, named(functions).num_functions(num_kinds))


@symmetry_functions_backward.register_fake
def _(vectors: Tensor, gradient: Tensor, row_pointers: Tensor, kinds: Tensor, num_kinds: int, functions: str) -> Tensor:
    return vectors.new_empty(vectors.shape)


@symmetry_functions_double_backward.register_fake
def _(
    inputs: list[Tensor], row_pointers: Tensor, kinds: Tensor, num_kinds: int, functions: str
) -> tuple[Tensor, Tensor]:
    vectors, gradient, _ = inputs
    return vectors.new_empty(vectors.shape), gradient.new_empty(gradient.shape)


def _keep(ctx, inputs: tuple, output: Tensor) -> None:
    vectors, row_pointers, kinds, ctx.num_kinds, ctx.functions = inputs
    ctx.save_for_backward(vectors, row_pointers, kinds)


def _backward(ctx, gradient: Tensor):
    vectors, row_pointers, kinds = ctx.saved_tensors
    found = symmetry_functions_backward(vectors, gradient, row_pointers, kinds, ctx.num_kinds, ctx.functions)
    return found, None, None, None, None


def _keep_backward(ctx, inputs: tuple, output: Tensor) -> None:
    vectors, gradient, row_pointers, kinds, ctx.num_kinds, ctx.functions = inputs
    ctx.save_for_backward(vectors, gradient, row_pointers, kinds)


def _double_backward(ctx, tangents: Tensor):
    vectors, gradient, row_pointers, kinds = ctx.saved_tensors
    inputs = [vectors, gradient, tangents]
    found = symmetry_functions_double_backward(inputs, row_pointers, kinds, ctx.num_kinds, ctx.functions)
    return *found, None, None, None, None


def _third(ctx, *gradients: Tensor):
    raise NotImplementedError(
        "symmetry functions have no third derivatives: one can train on forces and stress, but not on their "
        "derivatives; use the torch backend for those"
    )


symmetry_functions.register_autograd(_backward, setup_context=_keep)
symmetry_functions_backward.register_autograd(_double_backward, setup_context=_keep_backward)
symmetry_functions_double_backward.register_autograd(_third)
