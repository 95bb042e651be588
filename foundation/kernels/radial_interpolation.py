"""Interpolation between knots, as sums of table rows with coefficients, and its derivatives.

    out[p] = Σ_j c[p, j] table[4 i_p + ROWS[j]]

with four rows for each knot and i_p the knot below point p: a point has the rows of that knot and the second and third
of the next. The form S(c, table, g) = Σ_p g[p] · out[p] is linear in all three, so its derivatives are three operators,
each of which has the other two as its own: `interpolate` (∂S/∂g), `project` (∂S/∂c) and `scatter` (∂S/∂table), to any
order. Points are visited in the order of their knots, so that the rows shared by successive points stay in the cache,
and only one row per point is read or written.
"""

import ctypes
import logging
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from foundation.kernels.cpu import compiler
from foundation.kernels.cpu.compiler import NoCompiler
from foundation.kernels.differentiable import Operator, needed

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).parent / "cpu" / "interpolation.c"


ROWS = (0, 1, 2, 3, 5, 6)
"""Offsets of a point's rows of the table from the first row of the knot below it."""


class Places(NamedTuple):
    """Places of the points among the knots."""

    knot: Int[Tensor, " points"]
    """The knot below each point."""
    order: Int[Tensor, " points"]
    """The points in the order of their knots."""
    pointers: Int[Tensor, " intervals_plus_one"]
    """The points between knots i and i + 1 are order[pointers[i]] to order[pointers[i + 1]]."""

    @staticmethod
    def of(knot: Int[Tensor, " points"], num_knots: int) -> "Places":
        """Return the places of points, given the knot below each."""
        ascending, order = torch.sort(knot, stable=True)
        pointers = torch.searchsorted(ascending, torch.arange(num_knots, device=knot.device))
        return Places(knot=knot, order=order, pointers=pointers)


@cache
def _library(dtype: torch.dtype) -> ctypes.CDLL:
    """Return the compiled operators of a float type.

    Raises:
        NoCompiler: they cannot be compiled here.
    """
    real = {torch.float32: "float", torch.float64: "double"}[dtype]
    prologue = SOURCE.with_name("prologue.c").read_text()
    return compiler.load(prologue + SOURCE.read_text(), (f"-DREAL={real}",))


def _run(name: str, places: list[Tensor], num_columns: int, *tensors: Tensor) -> None:
    """Call a function of interpolation.c; the last tensor is its result."""
    _, order, pointers = places
    *given, result = tensors
    kept = [tensor.contiguous() for tensor in given]
    sizes = (ctypes.c_int64(len(pointers) - 1), ctypes.c_int64(num_columns), ctypes.c_int(torch.get_num_threads()))
    addresses = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (order, pointers, *kept, result)]
    getattr(_library(result.dtype), name)(*sizes, *addresses)


def _interpolate_in_c(table: Tensor, coefficients: Tensor, places: list[Tensor]) -> Tensor:
    """Return for every point the sum of its rows of the table.

    Args:
        table: Four rows for each knot.
        coefficients: Six for each point.
        places: The fields of Places.
    """
    out = table.new_empty(len(coefficients), table.shape[1])
    _run("interpolate", places, table.shape[1], table, coefficients, out)
    return out


def _project_in_c(table: Tensor, gradient: Tensor, places: list[Tensor]) -> Tensor:
    """Return ∂S/∂c: for every point the products of its gradient with its rows of the table."""
    out = gradient.new_empty(len(gradient), len(ROWS))
    _run("project", places, table.shape[1], table, gradient, out)
    return out


def _scatter_in_c(coefficients: Tensor, gradient: Tensor, places: list[Tensor]) -> Tensor:
    """Return ∂S/∂table: the gradients of the points around each knot, times their coefficients."""
    out = gradient.new_empty(4 * len(places[2]), gradient.shape[1])
    _run("scatter", places, gradient.shape[1], coefficients, gradient, out)
    return out


def _fake_interpolate(table: Tensor, coefficients: Tensor, places: list[Tensor]) -> Tensor:
    return table.new_empty(len(coefficients), table.shape[1])


def _fake_project(table: Tensor, gradient: Tensor, places: list[Tensor]) -> Tensor:
    return gradient.new_empty(len(gradient), len(ROWS))


def _fake_scatter(coefficients: Tensor, gradient: Tensor, places: list[Tensor]) -> Tensor:
    return gradient.new_empty(4 * len(places[2]), gradient.shape[1])


def _keep(ctx, inputs: tuple, output: Tensor) -> None:
    first, second, places = inputs
    ctx.save_for_backward(first, second, *places)


NO_GRADIENTS = [None] * len(Places._fields)


def _interpolate_backward(ctx, gradient: Tensor):
    table, coefficients, *places = ctx.saved_tensors
    needs_table, needs_coefficients = needed(ctx, 2)
    return (
        scatter(coefficients, gradient, places) if needs_table else None,
        project(table, gradient, places) if needs_coefficients else None,
        NO_GRADIENTS,
    )


def _project_backward(ctx, tangent: Tensor):
    table, gradient, *places = ctx.saved_tensors
    needs_table, needs_gradient = needed(ctx, 2)
    return (
        scatter(tangent, gradient, places) if needs_table else None,
        interpolate(table, tangent, places) if needs_gradient else None,
        NO_GRADIENTS,
    )


def _scatter_backward(ctx, tangent: Tensor):
    coefficients, gradient, *places = ctx.saved_tensors
    needs_coefficients, needs_gradient = needed(ctx, 2)
    return (
        project(tangent, gradient, places) if needs_coefficients else None,
        interpolate(tangent, coefficients, places) if needs_gradient else None,
        NO_GRADIENTS,
    )


interpolate = Operator("foundation::interpolate", _interpolate_in_c, _fake_interpolate, _keep, _interpolate_backward)
project = Operator("foundation::interpolate_project", _project_in_c, _fake_project, _keep, _project_backward)
scatter = Operator("foundation::interpolate_scatter", _scatter_in_c, _fake_scatter, _keep, _scatter_backward)


def interpolated(
    table: Float[Tensor, "rows columns"], coefficients: Float[Tensor, "points 6"], places: Places
) -> Float[Tensor, "points columns"]:
    """Return for every point the sum of its rows of a table: in C on a CPU with a compiler, else in plain torch."""
    if table.device.type == "cpu" and _compiles(table.dtype):
        return interpolate(table, coefficients, list(places))
    first = 4 * places.knot
    rows = [table.index_select(0, first + row) * coefficients[:, j : j + 1] for j, row in enumerate(ROWS)]
    return torch.stack(rows).sum(dim=0)


@torch.compiler.assume_constant_result
@cache
def _compiles(dtype: torch.dtype) -> bool:
    try:
        _library(dtype)
    except NoCompiler as error:
        logger.warning("the radial table is interpolated by plain torch, more slowly: %s", error)
        return False
    return True
