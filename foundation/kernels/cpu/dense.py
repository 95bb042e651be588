"""Matrix products, equivariant linear maps and gates in C, called through ctypes."""

import ctypes
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from foundation.kernels.cpu import compiler
from foundation.kernels.cpu.parts import exponential, part

MAX_GATED = 32
"""Largest number of irreps behind a gate (the arrays of `Gate` in dense.c)."""


class Block(NamedTuple):
    """A matrix of a linear map between the channels of an irrep."""

    x: int
    """First column of the input."""
    y: int
    """First column of the output."""
    w: int
    """First weight."""
    components: int
    """Number of components of the irrep."""
    fan_in: int
    """Number of channels of the input."""
    fan_out: int
    """Number of channels of the output."""
    scale: float
    """Factor of the product."""


class Nonlinearity(NamedTuple):
    """A gate; without irreps to multiply, it is SiLU of even scalars and tanh of odd ones."""

    odd: int
    """Number of odd scalars, the first columns."""
    even: int
    """Number of even scalars of the output, which follow."""
    gated: tuple[tuple[int, int], ...]
    """Components and channels of the irreps to multiply, each by SiLU of as many even scalars."""
    tanh_scale: float
    """Factor of tanh."""
    silu_scale: float
    """Factor of SiLU."""

    @property
    def outputs(self) -> int:
        """Number of columns of the output."""
        return self.odd + self.even + sum(components * channels for components, channels in self.gated)

    @property
    def inputs(self) -> int:
        """Number of columns of the input."""
        return self.outputs + sum(channels for _, channels in self.gated)


class _Block(ctypes.Structure):
    """`Block` of dense.c."""

    _fields_ = [*((name, ctypes.c_int64) for name in Block._fields[:-1]), ("scale", ctypes.c_double)]


class _Call(ctypes.Structure):
    """`Call` of dense.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("rows", "num_blocks", "x_row", "y_row")),
        ("add", ctypes.c_int32),
        ("threads", ctypes.c_int32),
    ]


class _Gate(ctypes.Structure):
    """`Gate` of dense.c."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("odd", "even", "gates", "num_gated", "inputs", "outputs")),
        ("tanh_scale", ctypes.c_double),
        ("silu_scale", ctypes.c_double),
        ("components", ctypes.c_int64 * MAX_GATED),
        ("channels", ctypes.c_int64 * MAX_GATED),
    ]


@cache
def library(dtype: torch.dtype) -> ctypes.CDLL:
    """Return the compiled functions of a float type.

    Raises:
        NoCompiler: they cannot be compiled here.
    """
    real = {torch.float32: "float", torch.float64: "double"}[dtype]
    source = [part("prologue.c"), "#include <math.h>", exponential(real), part("gemm.c"), part("dense.c")]
    loaded = compiler.load("\n".join(source), (f"-DREAL={real}", "-fno-math-errno"))
    size, pointer, number = ctypes.c_int64, ctypes.c_void_p, ctypes.c_int32
    loaded.multiply.argtypes = [
        size, size, size, ctypes.c_double, pointer, size, size, pointer, size, size, pointer, number, number,
    ]  # fmt: skip
    loaded.packed_size.argtypes, loaded.packed_size.restype = [size, size], size
    loaded.pack_whole.argtypes = [size, size, pointer, size, size, pointer]
    loaded.activate.argtypes = [pointer, size, *[pointer] * 5, number, number]
    for name in ("linear", "linear_back", "linear_weights"):
        getattr(loaded, name).argtypes = [pointer] * 5
    return loaded


def multiply(
    left: Tensor, right: Tensor, scale: float = 1.0, out: Tensor | None = None, *, add: bool = False
) -> Tensor:
    """Return the scaled product of two matrices with any strides.

    Args:
        left: First factor.
        right: Second factor.
        scale: Factor of the product.
        out: Contiguous matrix for the result; None: a new one.
        add: Add the result to out.
    """
    rows, inner = left.shape
    columns = right.shape[1]
    out = left.new_empty(rows, columns) if out is None else out
    library(left.dtype).multiply(
        rows, columns, inner, scale, left.data_ptr(), *left.stride(), right.data_ptr(), *right.stride(),
        out.data_ptr(), add, torch.get_num_threads(),
    )  # fmt: skip
    return out


def packed(matrix: Tensor) -> Tensor:
    """Return the numbers of a matrix in the order in which a product reads its second factor."""
    inner, columns = matrix.shape
    loaded = library(matrix.dtype)
    to = matrix.new_empty(loaded.packed_size(columns, inner))
    loaded.pack_whole(columns, inner, matrix.data_ptr(), *matrix.stride(), to.data_ptr())
    return to


def product_of_packed(dtype: torch.dtype) -> int | None:
    """Return the address of the product of contiguous rows and a packed matrix, for other libraries."""
    return ctypes.cast(library(dtype).product_of_packed, ctypes.c_void_p).value


class LinearMap(NamedTuple):
    """A linear map of component-major features; the arrays that it writes to are contiguous, and so are its inputs."""

    blocks: tuple[Block, ...]
    """Its matrices."""
    inputs: int
    """Number of columns of the input."""
    outputs: int
    """Number of columns of the output."""

    def _run(self, name: str, rows: int, add: bool, *arrays: Tensor) -> None:
        call = _Call(rows, len(self.blocks), self.inputs, self.outputs, add, torch.get_num_threads())
        pointers = [array.data_ptr() for array in arrays]
        getattr(library(arrays[0].dtype), name)(ctypes.addressof(call), _blocks(self.blocks), *pointers)

    def apply(self, x: Tensor, w: Tensor, y: Tensor) -> None:
        """Add x W to y."""
        self._run("linear", len(x), True, w, x, y)

    def back(self, y: Tensor, w: Tensor, x: Tensor) -> None:
        """Add y Wᵀ to x."""
        self._run("linear_back", len(x), True, w, y, x)

    def weights(self, x: Tensor, y: Tensor, w: Tensor) -> None:
        """Add xᵀ y to the gradient of W."""
        self._run("linear_weights", len(x), True, x, y, w)


@cache
def _blocks(blocks: tuple[Block, ...]) -> ctypes.Array:
    return (_Block * len(blocks))(*blocks)


@cache
def _gate(gate: Nonlinearity) -> _Gate:
    sizes = [[item[place] for item in gate.gated] for place in (0, 1)]
    arrays = [(ctypes.c_int64 * MAX_GATED)(*values) for values in sizes]
    gates = sum(sizes[1])
    return _Gate(
        gate.odd,
        gate.even,
        gates,
        len(gate.gated),
        gate.inputs,
        gate.outputs,
        gate.tanh_scale,
        gate.silu_scale,
        *arrays,
    )


def _activate(gate: Nonlinearity, *arrays: Tensor | None, add: bool = False) -> None:
    z = arrays[0]
    assert z is not None
    pointers = [None if array is None else array.data_ptr() for array in arrays]
    run = library(z.dtype).activate
    run(ctypes.addressof(_gate(gate)), len(z), *pointers, add, torch.get_num_threads())


def activated(gate: Nonlinearity, z: Tensor) -> Tensor:
    """Return h = f(z)."""
    h = z.new_empty(len(z), gate.outputs)
    _activate(gate, z, None, None, h, None)
    return h


def activated_back(gate: Nonlinearity, z: Tensor, u: Tensor, gz: Tensor | None = None) -> Tensor:
    """Return f'(z)ᵀ u, or add it to gz."""
    add = gz is not None
    gz = torch.empty_like(z) if gz is None else gz
    _activate(gate, z, u, None, None, gz, add=add)
    return gz


def activated_along(gate: Nonlinearity, z: Tensor, u: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """Return h = f'(z) q and the gradient of u · h for z."""
    h, gz = torch.empty_like(u), torch.empty_like(z)
    _activate(gate, z, u, q, h, gz)
    return h, gz
